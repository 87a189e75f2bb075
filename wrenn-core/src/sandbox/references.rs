//! References of a sandbox to the image and the builds that it is made from, held by the names
//! of empty files in its directory.
//!
//! ```text
//! image-<sha256>   the image of its root disk
//! build-<id>       a build that its memory comes from
//! ```
//!
//! Whoever deletes templates or collects builds looks here. A name is there whole or not at
//! all, so a reference holds where a record was damaged. A sandbox without a record, which is
//! being created, is protected as well.

use std::fs::File;
use std::io;
use std::path::Path;

use crate::snapshot::BuildId;

const IMAGE: &str = "image-";
const BUILD: &str = "build-";
const EARLIER_IMAGE: &str = "image";

/// Adds the image of its root disk. It must be added before the image is opened.
pub(super) fn add_image(directory: &Path, sha256: &str) -> io::Result<()> {
    add(directory, IMAGE, sha256)
}

/// The image of its root disk; `None` before there is one.
pub(super) fn image(directory: &Path) -> io::Result<Option<String>> {
    if let Some(sha256) = names(directory, IMAGE)?.pop() {
        return Ok(Some(sha256));
    }
    // Sandboxes that were paused before there were references have a file that holds it.
    match std::fs::read_to_string(directory.join(EARLIER_IMAGE)) {
        Ok(sha256) => Ok(Some(sha256)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

/// Adds a build that its memory comes from.
pub(super) fn add_build(directory: &Path, build: &BuildId) -> io::Result<()> {
    add(directory, BUILD, build.as_str())
}

/// The builds that its memory comes from.
pub(super) fn builds(directory: &Path) -> io::Result<Vec<BuildId>> {
    let names = names(directory, BUILD)?;
    Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Removes all builds but these.
pub(super) fn retain_builds(directory: &Path, needed: &[&BuildId]) -> io::Result<()> {
    for build in builds(directory)? {
        if !needed.contains(&&build) {
            std::fs::remove_file(directory.join(format!("{BUILD}{build}")))?;
        }
    }
    Ok(())
}

fn add(directory: &Path, kind: &str, name: &str) -> io::Result<()> {
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.join(format!("{kind}{name}")))
        .map(drop)
}

/// None for a directory that is gone, or was never made.
fn names(directory: &Path, kind: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) => {
            return match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(Vec::new()),
                _ => Err(error),
            };
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix(kind));
        names.extend(name.map(str::to_owned));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_kept_until_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(image(path).unwrap(), None);
        std::fs::write(path.join("image"), "earlier").unwrap();
        assert_eq!(image(path).unwrap().as_deref(), Some("earlier"));
        add_image(path, "aa").unwrap();
        add_image(path, "aa").unwrap();
        assert_eq!(image(path).unwrap().as_deref(), Some("aa"));

        let (old, new) = (BuildId::random(), BuildId::random());
        add_build(path, &old).unwrap();
        add_build(path, &new).unwrap();
        assert_eq!(builds(path).unwrap().len(), 2);
        retain_builds(path, &[&new]).unwrap();
        assert_eq!(builds(path).unwrap(), [new]);
        assert!(builds(&path.join("gone")).unwrap().is_empty());
    }
}
