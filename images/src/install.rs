//! Lays kernels and templates into a root directory.
//!
//! ```text
//! <root>/kernels/<kernel id>/{kernel.json, vmlinuz, vmlinux, initrd.img}
//! <root>/templates/<name>/{template.json, <SHA-256>.ext4}
//! ```
//!
//! A kernel is filled aside and changes places with the old one in one step. An image is
//! never changed, since sandboxes read from it for as long as they live: a new one comes
//! beside it, and then `template.json` is exchanged. So whoever opens a template finds the
//! old or the new one, never half of one. Images that nobody uses any more are removed by
//! whoever knows the users.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::{Whence, lseek64};
use serde::{Deserialize, Serialize};

use crate::cache::remove_tree;
use crate::error::{AtPath, BuildError};
use crate::kernel::{GuestKernel, write_json};
use crate::rootfs::RootImage;

const KERNELS: &str = "kernels";
pub(crate) const TEMPLATES: &str = "templates";
/// Where new entries lie until they are put in their place.
pub(crate) const STAGED: &str = ".install";
/// The files that describe an entry of each. Two kernels with the same description hold the
/// same, but for the initramfs.
const KERNEL_DESCRIPTION: &str = "kernel.json";
pub(crate) const TEMPLATE_DESCRIPTION: &str = "template.json";

/// `template.json`: what a sandbox is created from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TemplateDescription {
    pub version: u32,
    pub name: String,
    pub kind: TemplateKind,
    /// Id of the kernel it boots.
    pub kernel: String,
    /// File name of the root file system, relative to this file.
    pub rootfs: String,
    pub rootfs_sha256: String,
    pub size_mib: u64,
    pub default_user: String,
    pub env: BTreeMap<String, String>,
    pub start_command: Option<String>,
    /// Where commands start that name no directory; their user's home if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_directory: Option<String>,
}

/// How a template comes to life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TemplateKind {
    /// It has a root file system and boots.
    Image,
}

/// Puts `kernel` and `images` into the root directory `root`. What is already there in the
/// same version is left alone.
///
/// # Errors
/// The directory cannot be written.
pub fn install(root: &Path, kernel: &GuestKernel, images: &[RootImage]) -> Result<(), BuildError> {
    fs::create_dir_all(root).at("create", root)?;
    let staged = root.join(STAGED);
    let _lock = lock_root(root)?;
    remove_tree(&staged)?;
    stage(&staged, kernel, images, Files::Copied)?;
    adopt(&staged, root, Bring::Moved)?;
    remove_tree(&staged)
}

/// Copies everything from the root directory `from` to the root directory `to` that `to` does
/// not have in the same version. They may lie on different file systems.
///
/// # Errors
/// `from` cannot be read, or `to` not written.
pub fn copy_root(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(to).at("create", to)?;
    let _lock = lock_root(to)?;
    adopt(from, to, Bring::Copied)
}

/// Whether a staged tree gets files of its own, or shares those of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// Copies, which share their blocks with the cache where the file system can do that.
    Copied,
    /// Hard links: for trees that are only read.
    Linked,
}

/// Makes a fresh root directory in `root`, which must not exist yet.
///
/// # Errors
/// The directory cannot be written.
pub fn stage(
    root: &Path,
    kernel: &GuestKernel,
    images: &[RootImage],
    files: Files,
) -> Result<(), BuildError> {
    let put = |from: &Path, to: &Path| match files {
        Files::Copied => copy_sparse(from, to),
        Files::Linked => fs::hard_link(from, to).at("link", to),
    };
    let description = &kernel.description;
    let place = root.join(KERNELS).join(&description.id);
    fs::create_dir_all(&place).at("create", &place)?;
    let names = [
        Some(&description.bzimage),
        Some(&description.elf),
        description.initrd.as_ref(),
    ];
    for name in names.into_iter().flatten() {
        put(&kernel.dir.join(name), &place.join(name))?;
    }
    write_json(&description, &place.join(KERNEL_DESCRIPTION))?;

    for image in images {
        let place = root.join(TEMPLATES).join(image.name);
        fs::create_dir_all(&place).at("create", &place)?;
        let rootfs = image_name(&image.sha256);
        put(&image.file, &place.join(&rootfs))?;
        let description = TemplateDescription {
            version: 1,
            name: image.name.to_owned(),
            kind: TemplateKind::Image,
            kernel: description.id.clone(),
            rootfs,
            rootfs_sha256: image.sha256.clone(),
            size_mib: image.size_mib,
            default_user: "user".to_owned(),
            env: BTreeMap::new(),
            start_command: None,
            working_directory: None,
        };
        write_json(&description, &place.join(TEMPLATE_DESCRIPTION))?;
    }
    Ok(())
}

/// The name of an image in its template's directory.
pub(crate) fn image_name(sha256: &str) -> String {
    format!("{sha256}.ext4")
}

/// How something gets from one root directory to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bring {
    /// Both lie on one file system, and the first is not needed any more.
    Moved,
    Copied,
}

impl Bring {
    fn directory(self, from: &Path, to: &Path) -> Result<(), BuildError> {
        match self {
            Self::Moved => fs::rename(from, to).at("move into place", to),
            Self::Copied => copy_directory(from, to),
        }
    }

    fn file(self, from: &Path, to: &Path) -> Result<(), BuildError> {
        match self {
            Self::Moved => fs::rename(from, to).at("move into place", to),
            Self::Copied => copy_sparse(from, to),
        }
    }
}

/// Takes over every entry of `from` that differs.
pub(crate) fn adopt(from: &Path, to: &Path, bring: Bring) -> Result<(), BuildError> {
    let aside = to.join(".incoming");
    remove_tree(&aside)?;
    fs::create_dir(&aside).at("create", &aside)?;
    for (new, old) in entries(from, to, KERNELS)? {
        adopt_kernel(&new, &old, &aside, bring)?;
    }
    for (new, old) in entries(from, to, TEMPLATES)? {
        adopt_template(&new, &old, &aside, bring)?;
    }
    remove_tree(&aside)
}

/// What lies in a section of `from`, each with its place in `to`.
fn entries(from: &Path, to: &Path, section: &str) -> Result<Vec<(PathBuf, PathBuf)>, BuildError> {
    let (source, target) = (from.join(section), to.join(section));
    if !source.is_dir() {
        return Ok(Vec::new());
    }
    fs::create_dir_all(&target).at("create", &target)?;
    let entries = fs::read_dir(&source).at("list", &source)?;
    entries
        .map(|entry| {
            let name = entry.at("list", &source)?.file_name();
            Ok((source.join(&name), target.join(&name)))
        })
        .collect()
}

/// Puts the kernel `new` in the place of `old`, by way of the directory `aside`.
fn adopt_kernel(new: &Path, old: &Path, aside: &Path, bring: Bring) -> Result<(), BuildError> {
    let wanted = new.join(KERNEL_DESCRIPTION);
    let wanted = fs::read(&wanted).at("read", &wanted)?;
    // An initramfs has no hash in its description; its contents decide.
    let present = fs::read(old.join(KERNEL_DESCRIPTION));
    if present.is_ok_and(|present| present == wanted) && same_initrd(new, old) {
        return Ok(());
    }
    let fresh = aside.join(KERNELS);
    bring.directory(new, &fresh)?;
    exchange(&fresh, old)?;
    remove_tree(&fresh)
}

/// Makes `old` the template `new`, by way of the directory `aside`. Images that are there
/// stay as they are.
fn adopt_template(new: &Path, old: &Path, aside: &Path, bring: Bring) -> Result<(), BuildError> {
    let wanted = new.join(TEMPLATE_DESCRIPTION);
    let bytes = fs::read(&wanted).at("read", &wanted)?;
    let description: TemplateDescription = serde_json::from_slice(&bytes)
        .map_err(std::io::Error::from)
        .at("read", &wanted)?;
    if !old.exists() {
        let fresh = aside.join(TEMPLATES);
        bring.directory(new, &fresh)?;
        seal(&fresh.join(&description.rootfs))?;
        return fs::rename(&fresh, old).at("move into place", old);
    }
    let image = old.join(&description.rootfs);
    // One that is there has the same contents, and somebody may have it open.
    if !image.exists() {
        let fresh = aside.join(&description.rootfs);
        bring.file(&new.join(&description.rootfs), &fresh)?;
        seal(&fresh)?;
        fs::rename(&fresh, &image).at("move into place", &image)?;
    }
    let placed = old.join(TEMPLATE_DESCRIPTION);
    if fs::read(&placed).is_ok_and(|present| present == bytes) {
        return Ok(());
    }
    let fresh = aside.join(TEMPLATE_DESCRIPTION);
    bring.file(&wanted, &fresh)?;
    // Image and manifest are on the disk before anybody finds them.
    sync(&fresh)?;
    sync(old)?;
    fs::rename(&fresh, &placed).at("move into place", &placed)?;
    sync(old)
}

/// Writes an image out. Nobody changes it from here on, and it says so.
pub(crate) fn seal(image: &Path) -> Result<(), BuildError> {
    fs::set_permissions(image, Permissions::from_mode(0o444)).at("close", image)?;
    sync(image)
}

/// Waits until a file or directory is on the disk.
pub(crate) fn sync(path: &Path) -> Result<(), BuildError> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .at("write out", path)
}

fn same_initrd(new: &Path, old: &Path) -> bool {
    let read = |dir: &Path| fs::read(dir.join("initrd.img")).ok();
    read(new) == read(old)
}

/// Puts `fresh` in the place of `old`, which ends up where `fresh` was, if it existed.
fn exchange(fresh: &Path, old: &Path) -> Result<(), BuildError> {
    let here = nix::fcntl::AT_FDCWD;
    match renameat2(here, fresh, here, old, RenameFlags::RENAME_EXCHANGE) {
        Err(Errno::ENOENT) => fs::rename(fresh, old).at("move into place", old),
        other => other.map_err(Into::into).at("move into place", old),
    }
}

fn copy_directory(from: &Path, to: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(to).at("create", to)?;
    for entry in fs::read_dir(from).at("list", from)? {
        let entry = entry.at("list", from)?;
        copy_sparse(&entry.path(), &to.join(entry.file_name()))?;
    }
    Ok(())
}

/// Waits for the right to change what lies in the root directory `root`: held by whoever
/// installs, puts in place or deletes.
pub(crate) fn lock_root(root: &Path) -> Result<Flock<File>, BuildError> {
    let path = root.join(".install.lock");
    let file = File::create(&path).at("create", &path)?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| BuildError::file("lock", &path, errno.into()))
}

/// Copies a file so that it takes no more room than the original: by sharing its blocks, or
/// else by copying its data and leaving its holes.
pub(crate) fn copy_sparse(from: &Path, to: &Path) -> Result<(), BuildError> {
    let source = File::open(from).at("open", from)?;
    let target = File::create_new(to).at("create", to)?;
    if rustix::fs::ioctl_ficlone(&target, &source).is_ok() {
        return Ok(());
    }
    copy_data(source, target).map_err(|source| BuildError::file("copy to", to, source))
}

fn copy_data(mut source: File, mut target: File) -> std::io::Result<()> {
    let size = source.metadata()?.len();
    target.set_len(size)?;
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let start = match lseek64(&source, at, Whence::SeekData) {
            Ok(start) => start,
            // No data after this place.
            Err(Errno::ENXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = lseek64(&source, start, Whence::SeekHole)?;
        let offset = u64::try_from(start).map_err(std::io::Error::other)?;
        source.seek(SeekFrom::Start(offset))?;
        target.seek(SeekFrom::Start(offset))?;
        let mut left = u64::try_from(end - start).map_err(std::io::Error::other)?;
        while left > 0 {
            let chunk = usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            source.read_exact(&mut buffer[..chunk])?;
            target.write_all(&buffer[..chunk])?;
            left -= chunk as u64;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::kernel::KernelDescription;

    fn kernel_in(dir: &Path) -> GuestKernel {
        for name in ["vmlinuz", "vmlinux", "initrd.img"] {
            fs::write(dir.join(name), name).unwrap();
        }
        let description = KernelDescription {
            version: 1,
            id: "debian-6.1-test".into(),
            bzimage: "vmlinuz".into(),
            elf: "vmlinux".into(),
            initrd: Some("initrd.img".into()),
            on_request: false,
        };
        GuestKernel {
            dir: dir.to_path_buf(),
            description,
        }
    }

    fn image_in(dir: &Path, contents: &str, sha256: &str) -> RootImage {
        let file = dir.join("image.ext4");
        fs::write(&file, contents).unwrap();
        RootImage {
            name: "base",
            file,
            sha256: sha256.into(),
            size_mib: 1,
        }
    }

    #[test]
    fn installs_the_layout_and_adds_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kernel) = (dir.path().join("root"), kernel_in(dir.path()));
        install(&root, &kernel, &[image_in(dir.path(), "one", "1")]).unwrap();
        let rootfs = root.join("templates/base/1.ext4");
        let kernel_file = root.join("kernels/debian-6.1-test/vmlinux");
        assert_eq!(fs::read_to_string(&rootfs).unwrap(), "one");
        let inode = |path: &Path| path.metadata().unwrap().ino();
        let kernel_inode = inode(&kernel_file);
        let first = inode(&rootfs);

        install(&root, &kernel, &[image_in(dir.path(), "one", "1")]).unwrap();
        assert_eq!(
            inode(&rootfs),
            first,
            "unchanged template was written again"
        );
        install(&root, &kernel, &[image_in(dir.path(), "two", "2")]).unwrap();
        let second = root.join("templates/base/2.ext4");
        assert_eq!(fs::read_to_string(&second).unwrap(), "two");
        assert_eq!(second.metadata().unwrap().mode() & 0o777, 0o444);
        assert_eq!(
            (inode(&rootfs), fs::read_to_string(&rootfs).unwrap()),
            (first, "one".to_owned()),
            "sandboxes lost the image that they are made from"
        );
        assert_eq!(inode(&kernel_file), kernel_inode);

        let text = fs::read(root.join("templates/base/template.json")).unwrap();
        let description: TemplateDescription = serde_json::from_slice(&text).unwrap();
        assert_eq!(description.kernel, "debian-6.1-test");
        assert_eq!(description.rootfs, "2.ext4");
        assert_eq!(description.rootfs_sha256, "2");
        let mut left: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, [".install.lock", "kernels", "templates"]);
    }

    #[test]
    fn copies_a_root_to_another() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        let image = image_in(dir.path(), "x", "1");
        stage(&one, &kernel_in(dir.path()), &[image], Files::Linked).unwrap();
        copy_root(&one, &two).unwrap();
        assert_eq!(
            fs::read_to_string(two.join("templates/base/1.ext4")).unwrap(),
            "x"
        );
        let changed = one.join("kernels/debian-6.1-test/initrd.img");
        fs::remove_file(&changed).unwrap();
        fs::write(&changed, "new daemon").unwrap();
        copy_root(&one, &two).unwrap();
        let copied = two.join("kernels/debian-6.1-test/initrd.img");
        assert_eq!(fs::read_to_string(copied).unwrap(), "new daemon");

        let next = dir.path().join("next");
        let image = image_in(dir.path(), "y", "2");
        stage(&next, &kernel_in(dir.path()), &[image], Files::Linked).unwrap();
        copy_root(&next, &two).unwrap();
        for (image, contents) in [("1.ext4", "x"), ("2.ext4", "y")] {
            let image = two.join("templates/base").join(image);
            assert_eq!(fs::read_to_string(image).unwrap(), contents);
        }
    }

    #[test]
    fn what_was_cut_off_is_finished_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kernel) = (dir.path().join("root"), kernel_in(dir.path()));
        install(&root, &kernel, &[image_in(dir.path(), "one", "1")]).unwrap();
        // The image of the next version came, its manifest did not; another came in part.
        let template = root.join("templates/base");
        fs::write(template.join("2.ext4"), "two").unwrap();
        fs::create_dir(root.join(".incoming")).unwrap();
        fs::write(root.join(".incoming/3.ext4"), "thr").unwrap();
        for (contents, sha256) in [("two", "2"), ("three", "3")] {
            let image = image_in(dir.path(), contents, sha256);
            install(&root, &kernel, &[image]).unwrap();
            let present = template.join(format!("{sha256}.ext4"));
            assert_eq!(fs::read_to_string(present).unwrap(), contents);
            let text = fs::read_to_string(template.join("template.json")).unwrap();
            assert!(text.contains(&format!("{sha256}.ext4")), "{text}");
        }
        assert!(!root.join(".incoming").exists());
    }

    #[test]
    fn copy_keeps_holes_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let mut file = File::create(&from).unwrap();
        file.set_len(64 << 20).unwrap();
        file.seek(SeekFrom::Start(20 << 20)).unwrap();
        file.write_all(&[7; 3000]).unwrap();
        copy_sparse(&from, &to).unwrap();
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
