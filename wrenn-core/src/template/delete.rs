//! Deleting templates and images that nobody needs.
//!
//! A sandbox that is being made notes the image that it uses before it opens it. So a
//! template is first taken out of sight and its users are looked for after that: whoever
//! noted it in time is found, and whoever comes later finds no image.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use tracing::{info, warn};

use super::open::{OpenTemplateError, read_template};
use super::users::ImageUsers;
use super::{DESCRIPTION, directory_of, is_name, names};
use crate::RootDirectory;

/// Why a template or an image was not deleted.
#[derive(Debug, thiserror::Error)]
pub enum DeleteTemplateError {
    /// Its name holds something that a name may not hold.
    #[error("'{0}' is no template name: one is made of up to 128 of a-z, 0-9, '.', '_' and '-'")]
    Name(String),
    /// Nothing of that name is there.
    #[error("there is no template '{name}' in {directory}")]
    Unknown {
        /// The name.
        name: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
    /// Somebody needs it.
    #[error("template '{name}' is in use by {}; delete or destroy these first", users.join(", "))]
    InUse {
        /// The template.
        name: String,
        /// Who needs it.
        users: Vec<String>,
    },
    /// It could not be found out who needs it.
    #[error("cannot find out who uses template '{name}'; it was not deleted")]
    Users {
        /// The template.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be locked, listed, moved or removed.
    #[error("cannot {step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Deletes the template `name` with all its images, unless somebody uses one of them.
///
/// # Errors
/// It is not there, is in use, or cannot be removed. If it is in use, it stays as it was.
pub fn delete(
    root: &RootDirectory,
    name: &str,
    users: &dyn ImageUsers,
) -> Result<(), DeleteTemplateError> {
    if !is_name(name) {
        return Err(DeleteTemplateError::Name(name.to_owned()));
    }
    let directory = directory_of(root, name);
    let unknown = || DeleteTemplateError::Unknown {
        name: name.to_owned(),
        directory: root.templates(),
    };
    if !root.templates().is_dir() {
        return Err(unknown());
    }
    let _lock = lock(root)?;
    sweep(root)?;
    if !directory.join(DESCRIPTION).exists() {
        return Err(unknown());
    }
    // Whoever is found now spares the template a moment out of sight.
    refuse_if_used(&directory, name, users)?;
    let aside = aside(root, name);
    fs::rename(&directory, &aside).map_err(io_error("move", &directory))?;
    if let Err(error) = refuse_if_used(&aside, name, users) {
        fs::rename(&aside, &directory).map_err(io_error("move back", &directory))?;
        return Err(error);
    }
    // From here on it is gone: what is left without a manifest is only swept.
    let manifest = aside.join(DESCRIPTION);
    fs::remove_file(&manifest).map_err(io_error("remove", &manifest))?;
    fs::remove_dir_all(&aside).map_err(io_error("remove", &aside))
}

/// Removes the older images of the template `name` that nobody uses. Returns how many.
///
/// # Errors
/// It cannot be found out who uses an image, or one cannot be removed.
pub fn prune(
    root: &RootDirectory,
    name: &str,
    users: &dyn ImageUsers,
) -> Result<usize, DeleteTemplateError> {
    if !is_name(name) {
        return Err(DeleteTemplateError::Name(name.to_owned()));
    }
    let directory = directory_of(root, name);
    let _lock = lock(root)?;
    sweep(root)?;
    let path = directory.join(DESCRIPTION);
    let present = match read_template(&path) {
        Ok(manifest) => manifest.rootfs,
        // Without a manifest nobody can tell which image is the present one.
        Err(OpenTemplateError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(0);
        }
        Err(error) => {
            warn!(%error, "older images of a damaged template stay");
            return Ok(0);
        }
    };
    let mut removed = 0;
    for (path, sha256) in images(&directory)? {
        if path.file_name() == Some(present.as_os_str())
            || !users_of(name, &sha256, users)?.is_empty()
        {
            continue;
        }
        fs::remove_file(&path).map_err(io_error("remove", &path))?;
        info!(template = name, image = sha256, "removed an older image");
        removed += 1;
    }
    Ok(removed)
}

/// Removes the older images of every template that nobody uses. Returns how many.
///
/// # Errors
/// It cannot be found out who uses an image, or one cannot be removed.
pub fn prune_all(
    root: &RootDirectory,
    users: &dyn ImageUsers,
) -> Result<usize, DeleteTemplateError> {
    let pruned = names(root)
        .into_iter()
        .map(|name| prune(root, &name, users));
    pruned.sum()
}

/// Ends what a deletion began that was killed: puts the template back if it had not been
/// decided, else removes the rest.
fn sweep(root: &RootDirectory) -> Result<(), DeleteTemplateError> {
    for entry in entries(&root.templates())? {
        let name = entry.file_name().and_then(|name| name.to_str());
        let Some(name) = name.and_then(|name| name.strip_prefix(ASIDE)) else {
            continue;
        };
        let directory = directory_of(root, name);
        if directory.exists() || !is_name(name) || !entry.join(DESCRIPTION).exists() {
            fs::remove_dir_all(&entry).map_err(io_error("remove", &entry))?;
        } else {
            fs::rename(&entry, &directory).map_err(io_error("move back", &directory))?;
        }
    }
    Ok(())
}

/// How the name of a template starts that is about to go. No template is called so.
const ASIDE: &str = ".deleted-";

fn aside(root: &RootDirectory, name: &str) -> PathBuf {
    root.templates().join(format!("{ASIDE}{name}"))
}

fn refuse_if_used(
    directory: &Path,
    name: &str,
    users: &dyn ImageUsers,
) -> Result<(), DeleteTemplateError> {
    let mut found = Vec::new();
    let present = read_template(&directory.join(DESCRIPTION));
    let present = present.ok().map(|manifest| manifest.rootfs_sha256);
    let older = images(directory)?.into_iter().map(|(_, sha256)| sha256);
    for sha256 in present.into_iter().chain(older) {
        found.extend(users_of(name, &sha256, users)?);
    }
    found.sort();
    found.dedup();
    if found.is_empty() {
        Ok(())
    } else {
        Err(DeleteTemplateError::InUse {
            name: name.to_owned(),
            users: found,
        })
    }
}

fn users_of(
    name: &str,
    sha256: &str,
    users: &dyn ImageUsers,
) -> Result<Vec<String>, DeleteTemplateError> {
    users
        .users_of(sha256)
        .map_err(|source| DeleteTemplateError::Users {
            name: name.to_owned(),
            source,
        })
}

/// The images in a template's directory that are named by their contents.
fn images(directory: &Path) -> Result<Vec<(PathBuf, String)>, DeleteTemplateError> {
    let images = entries(directory)?.into_iter().filter_map(|path| {
        let stem = path.file_name()?.to_str()?.strip_suffix(".ext4")?;
        let is_digest = stem.len() == 64 && stem.bytes().all(|b| b.is_ascii_hexdigit());
        is_digest
            .then(|| stem.to_owned())
            .map(|sha256| (path, sha256))
    });
    Ok(images.collect())
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>, DeleteTemplateError> {
    match fs::read_dir(directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()
            .map_err(io_error("list", directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(io_error("list", directory)(error)),
    }
}

/// Waits for the right to change what lies in the root directory, which whoever installs
/// or imports takes as well.
fn lock(root: &RootDirectory) -> Result<File, DeleteTemplateError> {
    let path = root.install_lock();
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(io_error("open", &path))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| io_error("lock", &path)(errno.into()))?;
    Ok(file)
}

fn io_error<'a>(
    step: &'static str,
    path: &'a Path,
) -> impl Fn(io::Error) -> DeleteTemplateError + 'a {
    move |source| DeleteTemplateError::Io {
        step,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::super::users::NoUsers;
    use super::*;

    const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";

    fn root_with_two_images() -> (tempfile::TempDir, RootDirectory) {
        let directory = tempfile::tempdir().unwrap();
        let root = RootDirectory::new(directory.path());
        let template = root.templates().join("tiny");
        fs::create_dir_all(&template).unwrap();
        for sha256 in [OLD, NEW] {
            fs::write(template.join(format!("{sha256}.ext4")), sha256).unwrap();
        }
        let manifest = format!(
            r#"{{"version":1,"name":"tiny","kind":"image","kernel":"k1","rootfs":"{NEW}.ext4",
                "rootfs_sha256":"{NEW}","size_mib":1,"default_user":"user"}}"#
        );
        fs::write(template.join(DESCRIPTION), manifest).unwrap();
        (directory, root)
    }

    fn used(image: &'static str) -> impl Fn(&str) -> io::Result<Vec<String>> {
        move |asked| {
            let uses = asked == image;
            Ok(uses.then(|| "sbone".to_owned()).into_iter().collect())
        }
    }

    fn names_in(root: &RootDirectory, directory: &str) -> Vec<String> {
        let mut names: Vec<String> = entries(&root.templates().join(directory))
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_template_in_use_stays_and_its_users_are_named() {
        let (_directory, root) = root_with_two_images();
        for image in [OLD, NEW] {
            let error = delete(&root, "tiny", &used(image)).unwrap_err();
            let message = error.to_string();
            assert!(message.contains("in use by sbone;"), "{message}");
            assert_eq!(names_in(&root, "tiny").len(), 3);
        }
        delete(&root, "tiny", &NoUsers).unwrap();
        assert!(names_in(&root, "").is_empty());
        assert!(matches!(
            delete(&root, "tiny", &NoUsers),
            Err(DeleteTemplateError::Unknown { .. })
        ));
    }

    #[test]
    fn a_user_that_comes_while_it_is_deleted_keeps_it() {
        let (_directory, root) = root_with_two_images();
        let asked = Cell::new(0);
        // The first look finds nobody; a sandbox is made right after it.
        let users = |image: &str| {
            asked.set(asked.get() + 1);
            let late = asked.get() > 3 && image == NEW;
            Ok(late.then(|| "sblate".to_owned()).into_iter().collect())
        };
        let error = delete(&root, "tiny", &users).unwrap_err();
        assert!(error.to_string().contains("sblate"), "{error}");
        assert_eq!(names_in(&root, ""), ["tiny"]);
    }

    #[test]
    fn users_that_cannot_be_found_out_count_as_users() {
        let (_directory, root) = root_with_two_images();
        let users = |_: &str| Err(io::ErrorKind::PermissionDenied.into());
        assert!(delete(&root, "tiny", &users).is_err());
        assert!(prune(&root, "tiny", &users).is_err());
        assert_eq!(names_in(&root, "tiny").len(), 3);
    }

    #[test]
    fn older_images_go_when_nobody_uses_them() {
        let (_directory, root) = root_with_two_images();
        assert_eq!(prune(&root, "tiny", &used(OLD)).unwrap(), 0);
        assert_eq!(prune_all(&root, &NoUsers).unwrap(), 1);
        let left = [format!("{NEW}.ext4"), DESCRIPTION.to_owned()];
        assert_eq!(names_in(&root, "tiny"), left);
    }

    #[test]
    fn a_deletion_that_was_killed_is_taken_back_or_ended() {
        let (_directory, root) = root_with_two_images();
        fs::rename(root.templates().join("tiny"), aside(&root, "tiny")).unwrap();
        assert_eq!(prune(&root, "tiny", &used(OLD)).unwrap(), 0);
        assert_eq!(names_in(&root, "tiny").len(), 3);

        let decided = aside(&root, "other");
        fs::create_dir(&decided).unwrap();
        fs::write(decided.join("image.ext4"), "x").unwrap();
        assert_eq!(prune(&root, "tiny", &used(OLD)).unwrap(), 0);
        assert_eq!(names_in(&root, ""), ["tiny"]);
    }

    #[test]
    fn no_name_leads_out_of_the_directory() {
        let (_directory, root) = root_with_two_images();
        for name in ["..", "../templates/tiny", "", "tiny/", ".deleted-tiny"] {
            let deleted = delete(&root, name, &NoUsers);
            assert!(
                matches!(deleted, Err(DeleteTemplateError::Name(_))),
                "{name}"
            );
        }
    }
}
