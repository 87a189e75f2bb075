//! Lays kernels and templates into a root directory.
//!
//! ```text
//! <root>/kernels/<kernel id>/{kernel.json, vmlinuz, vmlinux, initrd.img}
//! <root>/templates/<name>/{template.json, rootfs.ext4}
//! ```
//!
//! Each of these directories is filled aside and changes places with the old one in one
//! step, so that whoever opens a template finds the old or the new one, never half of one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, RenameFlags, renameat2};
use nix::unistd::{Whence, lseek64};
use serde::{Deserialize, Serialize};

use crate::cache::remove_tree;
use crate::error::{AtPath, BuildError};
use crate::kernel::{GuestKernel, write_json};
use crate::rootfs::RootImage;

/// The folders of a root directory that are filled here, and the file in each entry that
/// describes it. Two entries with the same description hold the same.
const SECTIONS: &[(&str, &str)] = &[("kernels", "kernel.json"), ("templates", "template.json")];

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
    let staged = root.join(".install");
    let _lock = lock_root(root)?;
    remove_tree(&staged)?;
    stage(&staged, kernel, images, Files::Copied)?;
    adopt(&staged, root, |from, to| {
        fs::rename(from, to).at("move into place", to)
    })?;
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
    adopt(from, to, copy_directory)
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
    let place = root.join("kernels").join(&description.id);
    fs::create_dir_all(&place).at("create", &place)?;
    let names = [
        Some(&description.bzimage),
        Some(&description.elf),
        description.initrd.as_ref(),
    ];
    for name in names.into_iter().flatten() {
        put(&kernel.dir.join(name), &place.join(name))?;
    }
    write_json(&description, &place.join("kernel.json"))?;

    for image in images {
        let place = root.join("templates").join(image.name);
        fs::create_dir_all(&place).at("create", &place)?;
        put(&image.file, &place.join("rootfs.ext4"))?;
        let description = TemplateDescription {
            version: 1,
            name: image.name.to_owned(),
            kind: TemplateKind::Image,
            kernel: description.id.clone(),
            rootfs: "rootfs.ext4".to_owned(),
            rootfs_sha256: image.sha256.clone(),
            size_mib: image.size_mib,
            default_user: "user".to_owned(),
            env: BTreeMap::new(),
            start_command: None,
            working_directory: None,
        };
        write_json(&description, &place.join("template.json"))?;
    }
    Ok(())
}

/// Takes over every entry of `from` that differs, bringing it to a place aside by `bring`.
fn adopt(
    from: &Path,
    to: &Path,
    bring: impl Fn(&Path, &Path) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    for (section, description) in SECTIONS {
        let (source, target) = (from.join(section), to.join(section));
        if !source.is_dir() {
            continue;
        }
        fs::create_dir_all(&target).at("create", &target)?;
        for entry in fs::read_dir(&source).at("list", &source)? {
            let name = entry.at("list", &source)?.file_name();
            let (new, old) = (source.join(&name), target.join(&name));
            let wanted = new.join(description);
            let wanted = fs::read(&wanted).at("read", &wanted)?;
            // An initramfs has no hash in its description; its contents decide.
            if fs::read(old.join(description)).is_ok_and(|present| present == wanted)
                && same_initrd(&new, &old)
            {
                continue;
            }
            let aside = to.join(format!(".{section}-{}", name.display()));
            remove_tree(&aside)?;
            bring(&new, &aside)?;
            exchange(&aside, &old)?;
            remove_tree(&aside)?;
        }
    }
    Ok(())
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
    fn installs_the_layout_and_replaces_only_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, kernel) = (dir.path().join("root"), kernel_in(dir.path()));
        install(&root, &kernel, &[image_in(dir.path(), "one", "1")]).unwrap();
        let rootfs = root.join("templates/base/rootfs.ext4");
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
        assert_eq!(fs::read_to_string(&rootfs).unwrap(), "two");
        assert_eq!(inode(&kernel_file), kernel_inode);

        let text = fs::read(root.join("templates/base/template.json")).unwrap();
        let description: TemplateDescription = serde_json::from_slice(&text).unwrap();
        assert_eq!(description.kernel, "debian-6.1-test");
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
            fs::read_to_string(two.join("templates/base/rootfs.ext4")).unwrap(),
            "x"
        );
        let changed = one.join("kernels/debian-6.1-test/initrd.img");
        fs::remove_file(&changed).unwrap();
        fs::write(&changed, "new daemon").unwrap();
        copy_root(&one, &two).unwrap();
        let copied = two.join("kernels/debian-6.1-test/initrd.img");
        assert_eq!(fs::read_to_string(copied).unwrap(), "new daemon");
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
