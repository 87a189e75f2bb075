//! Kernels out of Debian's packages.
//!
//! ```text
//! linux-image-cloud-amd64 ─▶ linux-image-6.1.0-NN-cloud-amd64 ─▶ unpacked/  vmlinuz vmlinux
//!                                                                           modules/ release
//! unpacked + wrenn-envd ─▶ guest kernel/  kernel.json vmlinuz vmlinux initrd.img
//! ```
//!
//! The version is the newest one at the time of the first build and stays until the product
//! leaves the cache: a kernel that changes by itself would change every snapshot's ground.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::archive::Archive;
use crate::cache::Cache;
use crate::cpio;
use crate::error::{AtPath, BuildError};
use crate::modules::ModuleTree;
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::vmlinux;

/// What a guest needs before it can reach its root file system, its network and good
/// random numbers, and to tell its host which memory is free. All else it needs is built into
/// Debian's cloud kernel.
const GUEST_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_net",
    "virtio_rng",
    "virtio_balloon",
];

/// The kernel that guests run.
pub const GUEST: DebianKernel = DebianKernel {
    kind: "kernel-guest-unpacked",
    metapackage: "linux-image-cloud-amd64",
    prefix: "linux-image-6",
    modules: GUEST_MODULES,
    with_elf: true,
};

/// Which kernel to take out of which package.
#[derive(Debug, Clone, Copy)]
pub struct DebianKernel {
    /// Folder of the product in the cache.
    pub kind: &'static str,
    /// The package that names the newest kernel.
    pub metapackage: &'static str,
    /// How the name of the kernel's own package starts.
    pub prefix: &'static str,
    /// The modules to take; what they need comes with them.
    pub modules: &'static [&'static str],
    /// Whether the ELF kernel is wanted beside the bzImage.
    pub with_elf: bool,
}

/// A kernel's files, taken out of its package.
#[derive(Debug, Clone)]
pub struct UnpackedKernel {
    dir: PathBuf,
    release: String,
    modules: Vec<String>,
}

/// `kernel.json`: describes a kernel to whoever boots it. File names are relative to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelDescription {
    pub version: u32,
    pub id: String,
    pub bzimage: String,
    pub elf: String,
    pub initrd: Option<String>,
    /// Whether only those get it who name it; a template that names no kernel gets another.
    #[serde(default, skip_serializing_if = "is_false")]
    pub on_request: bool,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands the field over by reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A guest kernel, ready to be installed.
#[derive(Debug, Clone)]
pub struct GuestKernel {
    /// The directory that holds `kernel.json` and the files it names.
    pub dir: PathBuf,
    pub description: KernelDescription,
}

impl GuestKernel {
    /// The kernel that lies in `dir`.
    ///
    /// # Errors
    /// Its description cannot be read.
    pub(crate) fn read(dir: PathBuf) -> Result<Self, BuildError> {
        let path = dir.join("kernel.json");
        let text = fs::read(&path).at("read", &path)?;
        let description = serde_json::from_slice(&text)
            .map_err(std::io::Error::from)
            .at("understand", &path)?;
        Ok(Self { dir, description })
    }
}

impl DebianKernel {
    /// Fetches and unpacks the kernel, or finds it in the cache.
    ///
    /// # Errors
    /// The package cannot be fetched or does not hold what is expected.
    pub fn unpack(
        &self,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<UnpackedKernel, BuildError> {
        let recipe = Recipe::new(self.kind, 1)
            .input("metapackage", self.metapackage)
            .input("elf", if self.with_elf { "yes" } else { "no" })
            .inputs("module", self.modules.iter().copied());
        let step = format!("kernel from {}", self.metapackage);
        let dir = cache.product(&recipe, &step, progress, |dir| self.build(cache, dir))?;
        UnpackedKernel::read(dir)
    }

    fn build(&self, cache: &Cache, dir: &Path) -> Result<(), BuildError> {
        let archive = Archive::open(cache)?;
        let package = archive.dependency(self.metapackage, self.prefix)?;
        let tree = dir.join("package");
        archive.unpack(&package, &tree)?;
        drop(archive);

        let not_there = |file: &str| BuildError::NotInPackage {
            package: package.clone(),
            file: file.into(),
        };
        let release = package
            .strip_prefix("linux-image-")
            .ok_or_else(|| not_there("release"))?;
        let vmlinuz = dir.join("vmlinuz");
        fs::rename(tree.join(format!("boot/vmlinuz-{release}")), &vmlinuz)
            .at("move the kernel to", &vmlinuz)?;
        if self.with_elf {
            let image = fs::read(&vmlinuz).at("read", &vmlinuz)?;
            let elf = vmlinux::unpack(&image).map_err(|source| BuildError::BadKernelImage {
                path: vmlinuz.clone(),
                source,
            })?;
            let vmlinux = dir.join("vmlinux");
            fs::write(&vmlinux, elf).at("write", &vmlinux)?;
        }

        let modules = dir.join("modules");
        fs::create_dir(&modules).at("create", &modules)?;
        let available = ModuleTree::read(&tree.join("lib/modules").join(release))?;
        let mut load = String::new();
        for file in available.load_order(self.modules.iter().copied())? {
            let name = file
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            fs::rename(&file, modules.join(name)).at("move a module from", &file)?;
            load.push_str(name);
            load.push('\n');
        }
        let list = modules.join("load");
        fs::write(&list, load).at("write", &list)?;
        fs::write(dir.join("release"), release).at("write", &dir.join("release"))?;
        crate::cache::remove_tree(&tree)
    }
}

impl UnpackedKernel {
    fn read(dir: PathBuf) -> Result<Self, BuildError> {
        let read = |name: &str| {
            let path = dir.join(name);
            fs::read_to_string(&path).at("read", &path)
        };
        let release = read("release")?;
        let modules = read("modules/load")?.lines().map(str::to_owned).collect();
        Ok(Self {
            dir,
            release,
            modules,
        })
    }

    /// The kernel's release, as `uname -r` in it says.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// The bzImage.
    #[must_use]
    pub fn bzimage(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The ELF kernel, where it was asked for.
    #[must_use]
    pub fn elf(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// Adds `/modules/…` and `/modules/load`, the list in loading order, to an initramfs.
    ///
    /// # Errors
    /// A module cannot be read or the archive not written.
    pub fn add_modules<W: std::io::Write>(
        &self,
        archive: &mut cpio::Writer<W>,
        image: &Path,
    ) -> Result<(), BuildError> {
        archive.directory("modules", 0o755).at("write", image)?;
        for name in &self.modules {
            let path = self.dir.join("modules").join(name);
            let contents = fs::read(&path).at("read", &path)?;
            archive
                .file(&format!("modules/{name}"), 0o644, &contents)
                .at("write", image)?;
        }
        let load: String = self
            .modules
            .iter()
            .flat_map(|name| [name.as_str(), "\n"])
            .collect();
        archive
            .file("modules/load", 0o644, load.as_bytes())
            .at("write", image)
    }
}

/// Builds the guest kernel with its initramfs, whose `/init` is the guest daemon `envd`.
///
/// # Errors
/// The kernel cannot be fetched, or the cache not written.
pub fn guest_kernel(
    cache: &Cache,
    envd: &Path,
    progress: &dyn Progress,
) -> Result<GuestKernel, BuildError> {
    let unpacked = GUEST.unpack(cache, progress)?;
    let recipe = Recipe::new("kernel-guest", 2)
        .input("unpacked", &unpacked.dir.display().to_string())
        .file("envd", envd)
        .at("read", envd)?;
    let description = KernelDescription {
        version: 1,
        id: format!("debian-{}", unpacked.release),
        bzimage: "vmlinuz".into(),
        elf: "vmlinux".into(),
        initrd: Some("initrd.img".into()),
        on_request: false,
    };
    let dir = cache.product(&recipe, "guest initramfs", progress, |dir| {
        for (from, name) in [(unpacked.bzimage(), "vmlinuz"), (unpacked.elf(), "vmlinux")] {
            // Products never change, so they may share a file.
            fs::hard_link(&from, dir.join(name)).at("link", &from)?;
        }
        write_initramfs(&unpacked, envd, &dir.join("initrd.img"))?;
        write_json(&description, &dir.join("kernel.json"))
    })?;
    Ok(GuestKernel { dir, description })
}

fn write_initramfs(kernel: &UnpackedKernel, envd: &Path, image: &Path) -> Result<(), BuildError> {
    let init = crate::strip::program(envd).at("read", envd)?;
    let out = File::create(image).at("create", image)?;
    let mut archive = cpio::Writer::new(BufWriter::new(out));
    for name in ["dev", "proc", "sys", "root"] {
        archive.directory(name, 0o755).at("write", image)?;
    }
    archive
        .character_device("dev/console", 0o600, 5, 1)
        .at("write", image)?;
    archive.file("init", 0o755, &init).at("write", image)?;
    kernel.add_modules(&mut archive, image)?;
    archive.finish().map(drop).at("write", image)
}

/// Writes `value` as indented JSON.
pub(crate) fn write_json<T: Serialize>(value: &T, path: &Path) -> Result<(), BuildError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(std::io::Error::from)
        .at("encode", path)?;
    text.push(b'\n');
    fs::write(path, text).at("write", path)
}
