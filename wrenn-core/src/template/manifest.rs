//! The files that describe templates and kernels.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Layout version of the manifests that this code reads.
pub(super) const MANIFEST_VERSION: u32 = 1;

/// `template.json`: what a template is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemplateManifest {
    /// Version of this layout.
    pub version: u32,
    /// The name by which people ask for it.
    pub name: String,
    /// Whether it boots or resumes.
    pub kind: TemplateKind,
    /// Id of the kernel that boots it.
    pub kernel: String,
    /// File name of the root file system, inside the template's directory.
    pub rootfs: PathBuf,
    /// SHA-256 of that file, in lower-case hex.
    pub rootfs_sha256: String,
    /// Size of the root disk, in MiB.
    pub size_mib: u64,
    /// The user that runs commands when none is named.
    pub default_user: String,
    /// Environment of every command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// A line for the guest's shell that is started in the background of each new sandbox,
    /// if any.
    #[serde(default)]
    pub start_command: Option<String>,
    /// Where commands start that name no directory; their user's home if none.
    #[serde(default)]
    pub working_directory: Option<String>,
}

/// How a sandbox starts from a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// It has a root file system and boots.
    Image,
}

/// `kernel.json`: the files of one kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelManifest {
    /// Version of this layout.
    pub version: u32,
    /// The name that templates use.
    pub id: String,
    /// File name of the compressed image.
    pub bzimage: PathBuf,
    /// File name of the uncompressed ELF image.
    pub elf: PathBuf,
    /// File name of the initramfs, where the kernel needs one.
    pub initrd: Option<PathBuf>,
}
