//! Which template's image each sandbox was made from, noted where others can read it.

use std::io;
use std::path::Path;

use super::directory::{DirectoryError, SandboxDirectory};
use super::named::NamedSnapshot;
use crate::RootDirectory;
use crate::template::ImageUsers;

/// The file in a sandbox's directory that holds the SHA-256 of its image.
const NOTE: &str = "image";

/// Notes which image the sandbox is made from. It must be noted before the image is opened:
/// whoever deletes templates looks at these notes.
pub(super) fn note(directory: &SandboxDirectory, sha256: &str) -> Result<(), DirectoryError> {
    let path = directory.file(NOTE);
    std::fs::write(&path, sha256).map_err(|source| DirectoryError::Io {
        step: "write",
        path,
        source,
    })
}

/// Which image is noted for the sandbox.
pub(super) fn noted(directory: &SandboxDirectory) -> Option<String> {
    noted_in(directory.path()).ok().flatten()
}

/// The sandboxes and named snapshots of a root directory as users of images. One whose owner died counts until
/// it is swept.
#[derive(Clone, Debug)]
pub struct SandboxImages(RootDirectory);

impl SandboxImages {
    /// Those of `root`.
    #[must_use]
    pub fn of(root: &RootDirectory) -> Self {
        Self(root.clone())
    }
}

impl ImageUsers for SandboxImages {
    fn users_of(&self, image_sha256: &str) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.0.sandboxes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            entries => Some(entries?),
        };
        let mut users = Vec::new();
        for entry in entries.into_iter().flatten() {
            let entry = entry?;
            if noted_in(&entry.path())?.as_deref() == Some(image_sha256) {
                users.push(entry.file_name().to_string_lossy().into_owned());
            }
        }
        users.sort();
        let named = NamedSnapshot::references(&self.0).map_err(io::Error::other)?;
        let uses = |named: &&NamedSnapshot| named.frozen.image.as_deref() == Some(image_sha256);
        let named = named.iter().filter(uses);
        users.extend(named.map(|named| format!("snapshot {}", named.name())));
        Ok(users)
    }
}

/// What is noted in a sandbox's directory; nothing if it has not come so far, or has gone.
fn noted_in(directory: &Path) -> io::Result<Option<String>> {
    match std::fs::read_to_string(directory.join(NOTE)) {
        Ok(sha256) => Ok(Some(sha256)),
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SandboxId;

    #[tokio::test]
    async fn a_sandbox_is_a_user_of_its_image_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let users = SandboxImages::of(&root);
        assert!(users.users_of("aa").unwrap().is_empty());

        let sandbox = SandboxDirectory::create(&root, SandboxId::random()).unwrap();
        assert!(users.users_of("aa").unwrap().is_empty());
        note(&sandbox, "aa").unwrap();
        assert_eq!(users.users_of("aa").unwrap(), [sandbox.id().to_string()]);
        assert!(users.users_of("bb").unwrap().is_empty());
        sandbox.remove().await.unwrap();
        assert!(users.users_of("aa").unwrap().is_empty());
    }
}
