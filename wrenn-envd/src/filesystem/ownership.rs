//! Giving what the daemon makes to the user it was made for.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, chown, fchown};
use std::path::{Path, PathBuf};

use crate::users::User;

/// Whether ownership can be given away at all.
pub fn may_give() -> bool {
    rustix::process::geteuid().is_root()
}

/// Gives an open file to the user.
pub fn give_file(file: &fs::File, user: &User) -> io::Result<()> {
    if may_give() {
        fchown(file, Some(user.uid), Some(user.gid))
    } else {
        Ok(())
    }
}

fn give(path: &Path, user: &User) -> io::Result<()> {
    if may_give() {
        chown(path, Some(user.uid), Some(user.gid))
    } else {
        Ok(())
    }
}

/// Makes a directory and its missing parents; the new ones belong to the user. One that
/// is there stays as it is.
pub fn make_dirs(path: &Path, user: &User) -> io::Result<()> {
    let mut missing: Vec<PathBuf> = Vec::new();
    for ancestor in path.ancestors() {
        match fs::metadata(ancestor) {
            Ok(found) if found.is_dir() => break,
            Ok(_) => return Err(io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                missing.push(ancestor.to_owned());
            }
            Err(error) => return Err(error),
        }
    }
    for directory in missing.iter().rev() {
        match fs::DirBuilder::new().mode(0o755).create(directory) {
            Ok(()) => give(directory, user)?,
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
