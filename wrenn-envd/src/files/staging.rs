//! Files that are not complete yet.
//!
//! ```text
//!   open ──write…──▶ commit ──rename──▶ in place
//!    └────── dropped before that ─────▶ removed, old file untouched
//! ```
//!
//! The name tells a watcher of the directory what it is about, and whether it takes the
//! place of another file, so that an upload looks like a plain write from outside.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::filesystem::ownership;
use crate::filesystem::tree::unique;
use crate::users::User;

const NEW: &str = ".wrenn-upload-new-";
const REPLACEMENT: &str = ".wrenn-upload-replacement-";

/// What a staging name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staged {
    New,
    Replacement,
}

impl Staged {
    /// A fresh name.
    pub fn name(replaces: bool) -> String {
        format!("{}{}", if replaces { REPLACEMENT } else { NEW }, unique())
    }

    /// `None` for every other name.
    pub fn parse(name: &OsStr) -> Option<Self> {
        let name = name.as_encoded_bytes();
        if name.starts_with(NEW.as_bytes()) {
            Some(Self::New)
        } else if name.starts_with(REPLACEMENT.as_bytes()) {
            Some(Self::Replacement)
        } else {
            None
        }
    }
}

/// A destination that is being written.
#[derive(Debug)]
#[must_use = "dropping this removes what was written"]
pub struct StagedFile {
    file: File,
    /// Where the bytes are until `commit`; `None` for a device or pipe, which can only be
    /// written in place.
    staging: Option<PathBuf>,
    destination: PathBuf,
}

impl StagedFile {
    /// Starts writing to a destination. Missing directories are made and belong to the
    /// user, as the file will. Its permission bits are `mode`, or else those of the file that is
    /// there, or 0644.
    pub fn open(destination: &Path, user: &User, mode: Option<u32>) -> io::Result<Self> {
        let destination = follow_links(destination)?;
        let old = match fs::metadata(&destination) {
            Ok(old) => Some(old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(old) = &old {
            let file_type = old.file_type();
            if file_type.is_dir() {
                return Err(io::ErrorKind::IsADirectory.into());
            }
            if file_type.is_char_device() || file_type.is_block_device() || file_type.is_fifo() {
                // A pipe that nobody reads must not hold a thread for ever.
                let file = File::options()
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&destination)?;
                return Ok(Self {
                    file,
                    staging: None,
                    destination,
                });
            }
        }
        let parent = destination.parent().unwrap_or(Path::new("/"));
        ownership::make_dirs(parent, user)?;
        let staging = parent.join(Staged::name(old.is_some()));
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&staging)?;
        let staged = Self {
            file,
            staging: Some(staging),
            destination,
        };
        ownership::give_file(&staged.file, user)?;
        let mode =
            mode.unwrap_or_else(|| old.map_or(0o644, |old| old.permissions().mode() & 0o7777));
        staged
            .file
            .set_permissions(fs::Permissions::from_mode(mode))?;
        Ok(staged)
    }

    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Where the file will be.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Puts what was written in place. Until here the old file was what readers saw.
    pub fn commit(mut self) -> io::Result<()> {
        match &self.staging {
            Some(staging) => {
                fs::rename(staging, &self.destination)?;
                self.staging = None;
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        if let Some(staging) = self.staging.take()
            && let Err(error) = fs::remove_file(&staging)
        {
            tracing::warn!(path = %staging.display(), %error, "cannot remove a broken upload");
        }
    }
}

/// Where writing to a path ends up: a link is written through, also one that leads to a
/// file that is not there yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    // As many as the kernel follows, path_resolution(7).
    for _ in 0..40 {
        match fs::read_link(&path) {
            Ok(target) => {
                path = crate::paths::clean(&path.parent().unwrap_or(Path::new("/")).join(target));
            }
            // Not a link, or nothing there.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::InvalidInput | io::ErrorKind::NotFound
                ) =>
            {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn user() -> User {
        User {
            name: "someone".into(),
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: vec![],
            home: "/".into(),
            shell: "/bin/sh".into(),
        }
    }

    fn entries(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_broken_upload_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "old").unwrap();
        let mut staged = StagedFile::open(&path, &user(), None).unwrap();
        staged.file().write_all(b"half of the new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        drop(staged);
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(dir.path()), ["file"]);
    }

    #[test]
    fn a_complete_one_takes_its_place_and_keeps_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
        let mut staged = StagedFile::open(&path, &user(), None).unwrap();
        staged.file().write_all(b"new").unwrap();
        staged.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o751
        );
        assert_eq!(entries(dir.path()), ["script"]);
    }

    #[test]
    fn new_files_get_their_directories_and_a_plain_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        StagedFile::open(&path, &user(), None)
            .unwrap()
            .commit()
            .unwrap();
        assert_eq!(
            path.metadata().unwrap().permissions().mode() & 0o7777,
            0o644
        );
        let parent = path.parent().unwrap().metadata().unwrap();
        assert_eq!(parent.permissions().mode() & 0o777, 0o755);
    }

    #[test]
    fn a_mode_that_is_named_goes_before_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("script");
        for mode in [0o755, 0o4711, 0o600] {
            let staged = StagedFile::open(&path, &user(), Some(mode)).unwrap();
            staged.commit().unwrap();
            let found = path.metadata().unwrap().permissions().mode() & 0o7777;
            assert_eq!(found, mode);
        }
    }

    #[test]
    fn writes_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("real", &link).unwrap();
        let mut staged = StagedFile::open(&link, &user(), None).unwrap();
        staged.file().write_all(b"x").unwrap();
        staged.commit().unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read(dir.path().join("real")).unwrap(), b"x");

        std::os::unix::fs::symlink("loop", dir.path().join("loop")).unwrap();
        let error = StagedFile::open(&dir.path().join("loop"), &user(), None).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
    }

    #[test]
    fn devices_are_written_in_place() {
        let mut staged = StagedFile::open(Path::new("/dev/null"), &user(), None).unwrap();
        staged.file().write_all(b"x").unwrap();
        staged.commit().unwrap();
        assert!(
            Path::new("/dev/null")
                .metadata()
                .unwrap()
                .file_type()
                .is_char_device()
        );
    }
}
