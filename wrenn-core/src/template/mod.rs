//! What sandboxes are made from: a kernel and a root file system, as they lie in the
//! root directory.
//!
//! ```text
//! <root>/kernels/<kernel id>/kernel.json, vmlinux, initrd.img
//! <root>/templates/<name>/template.json        which of the images it is, and how it is used
//!                         <SHA-256>.ext4       an image, never changed once it is here
//! ```
//!
//! Whoever installs or imports under a name that is there already adds an image and exchanges
//! `template.json`; older images stay as long as somebody uses them. Who does, only callers
//! know: they pass [`ImageUsers`].
//!
//! Making templates is not the engines' business: the crate `wrenn-images` does it.

mod delete;
mod list;
mod manifest;
mod open;
mod users;

pub use delete::{DeleteTemplateError, delete, prune, prune_all};
pub use list::{ListTemplatesError, ListedTemplate, list, names};
pub use manifest::{KernelManifest, TemplateKind, TemplateManifest};
pub use open::{OpenTemplateError, Template};
pub use users::{ImageUsers, NoUsers};

use std::path::PathBuf;

use crate::RootDirectory;

/// The longest name of a template, in bytes: what is made of it is still a file's name.
const MAX_NAME: usize = 128;
/// The file that makes a directory a template.
const DESCRIPTION: &str = "template.json";
/// The file that makes a directory a kernel.
const KERNEL_DESCRIPTION: &str = "kernel.json";

fn directory_of(root: &RootDirectory, name: &str) -> PathBuf {
    root.templates().join(name)
}

/// Whether `name` may name a template.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
}
