//! Listing, moving and removing.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};

use wrenn_proto::filesystem::EntryInfo;

use super::entry::describe;
use crate::users::Names;

/// More entries than this would not fit into a message that a client can take.
const MAX_ENTRIES: usize = 100_000;

#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("'{path}' is not a directory")]
    NotADirectory { path: PathBuf },
    #[error("'{path}' holds more than {MAX_ENTRIES} entries; list it with less depth")]
    TooMany { path: PathBuf },
    #[error("cannot list '{path}'")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Entries up to `depth` levels below a directory, as a depth-first walk meets them: sorted by
/// name, each directory before what is in it. Links are not followed, except for `path` itself.
pub fn list(path: &Path, depth: u32) -> Result<Vec<EntryInfo>, ListError> {
    let failed = |source| ListError::Read {
        path: path.to_owned(),
        source,
    };
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Err(ListError::NotADirectory {
            path: path.to_owned(),
        });
    }
    let names = Names::load();
    let mut entries = Vec::new();
    // The next one is the last.
    let mut pending = children(path, 1).map_err(failed)?;
    while let Some((child, level)) = pending.pop() {
        let Ok(entry) = describe(&child, &names) else {
            continue;
        };
        if entries.len() == MAX_ENTRIES {
            return Err(ListError::TooMany {
                path: path.to_owned(),
            });
        }
        entries.push(entry);
        if level < depth && child.symlink_metadata().is_ok_and(|own| own.is_dir()) {
            // A directory that vanished or is closed to us is left out.
            pending.extend(children(&child, level + 1).unwrap_or_default());
        }
    }
    Ok(entries)
}

/// The entries of a directory, which are at this level, the first by name at the end.
fn children(directory: &Path, level: u32) -> io::Result<Vec<(PathBuf, u32)>> {
    let mut paths = fs::read_dir(directory)?
        .map(|child| child.map(|child| child.path()))
        .collect::<io::Result<Vec<_>>>()?;
    paths.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
    Ok(paths.into_iter().map(|path| (path, level)).collect())
}

/// Removes an entry with everything in it. Links are removed, not followed. That
/// nothing is there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(own) if own.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Renames; across file systems (`/tmp` is one of its own) copies, then removes.
pub fn rename(source: &Path, destination: &Path) -> io::Result<()> {
    match fs::rename(source, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            // The copy grows beside the destination and takes its place at the end, so
            // that nobody sees half of it.
            let parent = destination.parent().unwrap_or(Path::new("/"));
            let aside = parent.join(format!(".wrenn-move-{}", unique()));
            let moved = copy(source, &aside).and_then(|()| fs::rename(&aside, destination));
            if let Err(error) = moved {
                remove(&aside)?;
                return Err(error);
            }
            remove(source)
        }
        result => result,
    }
}

/// Copies an entry with owner, mode and times.
fn copy(source: &Path, destination: &Path) -> io::Result<()> {
    let own = fs::symlink_metadata(source)?;
    if own.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(source)?, destination)?;
    } else if own.is_dir() {
        fs::create_dir(destination)?;
        for child in fs::read_dir(source)? {
            let child = child?;
            copy(&child.path(), &destination.join(child.file_name()))?;
        }
    } else if own.is_file() {
        fs::copy(source, destination)?;
    } else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "sockets, pipes and devices can't be moved to another file system",
        ));
    }
    if rustix::process::geteuid().is_root() {
        lchown(destination, Some(own.uid()), Some(own.gid()))?;
    }
    if !own.is_symlink() {
        fs::set_permissions(destination, own.permissions())?;
        let times = fs::FileTimes::new()
            .set_accessed(own.accessed()?)
            .set_modified(own.modified()?);
        fs::File::open(destination)?.set_times(times)?;
    }
    Ok(())
}

/// A part of a file name that nobody else uses.
pub fn unique() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};

    static COUNT: AtomicU64 = AtomicU64::new(0);
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!(
        "{}-{:x}{:09x}-{count}",
        std::process::id(),
        time.tv_sec,
        time.tv_nsec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(entries: &[EntryInfo], root: &Path) -> Vec<String> {
        let root = format!("{}/", root.display());
        entries
            .iter()
            .map(|entry| entry.path.replace(&root, ""))
            .collect()
    }

    #[test]
    fn lists_to_the_depth_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("b/c/d")).unwrap();
        fs::write(dir.path().join("a"), "").unwrap();
        fs::write(dir.path().join("b/z"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        assert_eq!(
            paths(&list(dir.path(), 1).unwrap(), dir.path()),
            ["a", "b", "loop"]
        );
        assert_eq!(
            paths(&list(dir.path(), 0).unwrap(), dir.path()),
            ["a", "b", "loop"]
        );
        assert_eq!(
            paths(&list(dir.path(), 9).unwrap(), dir.path()),
            ["a", "b", "b/c", "b/c/d", "b/z", "loop"]
        );
        assert!(matches!(
            list(&dir.path().join("a"), 1),
            Err(ListError::NotADirectory { .. })
        ));
    }

    #[test]
    fn removes_a_link_and_not_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir_all(kept.join("inside")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&kept, &link).unwrap();
        remove(&link).unwrap();
        assert!(kept.join("inside").is_dir() && !link.exists());
        remove(&kept).unwrap();
        assert!(!kept.exists());
        remove(&kept).unwrap();
    }

    #[test]
    fn a_copy_keeps_contents_mode_and_time() {
        use std::os::unix::fs::PermissionsExt as _;

        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("file"), "contents").unwrap();
        fs::set_permissions(source.join("file"), fs::Permissions::from_mode(0o750)).unwrap();
        std::os::unix::fs::symlink("file", source.join("link")).unwrap();
        let copied = dir.path().join("copied");
        copy(&source, &copied).unwrap();
        assert_eq!(fs::read_to_string(copied.join("link")).unwrap(), "contents");
        let (old, new) = (
            source.join("file").metadata().unwrap(),
            copied.join("file").metadata().unwrap(),
        );
        assert_eq!(old.permissions(), new.permissions());
        assert_eq!(old.modified().unwrap(), new.modified().unwrap());
    }
}
