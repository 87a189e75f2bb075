//! The users of a template's image.

use std::io;

use super::named::NamedSnapshot;
use super::references;
use crate::RootDirectory;
use crate::template::ImageUsers;

/// The sandboxes and named snapshots of a root directory as users of images. A sandbox whose
/// owner died counts until it is swept.
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
            if references::image(&entry.path())?.as_deref() == Some(image_sha256) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SandboxId;
    use crate::sandbox::directory::SandboxDirectory;

    #[tokio::test]
    async fn a_sandbox_is_a_user_of_its_image_until_it_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let users = SandboxImages::of(&root);
        assert!(users.users_of("aa").unwrap().is_empty());

        let sandbox = SandboxDirectory::create(&root, SandboxId::random()).unwrap();
        assert!(users.users_of("aa").unwrap().is_empty());
        references::add_image(sandbox.path(), "aa").unwrap();
        assert_eq!(users.users_of("aa").unwrap(), [sandbox.id().to_string()]);
        assert!(users.users_of("bb").unwrap().is_empty());
        sandbox.remove().await.unwrap();
        assert!(users.users_of("aa").unwrap().is_empty());
    }
}
