//! Carries a template from one root directory to another that lies on another host, as a tar
//! archive that leaves the holes of the image out.
//!
//! ```text
//! <root>/templates/<name>/ ──pack──▶ templates/<name>/template.json ──unpack──▶ <other root>/…
//!                                    templates/<name>/<SHA-256>.ext4
//! ```

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::cache::remove_tree;
use crate::error::{AtPath as _, BuildError};
use crate::install::{Bring, STAGED, TEMPLATE_DESCRIPTION, TEMPLATES, adopt, lock_root};
use crate::install::{TemplateDescription, sync};

/// Where archives lie that are sent to a host, in its root directory. What is left there was cut
/// off, and is of no use.
pub const RECEIVED: &str = ".received";

/// Writes the template `name` of the root directory `root` to `archive`.
///
/// # Errors
/// The template cannot be read, or `archive` not written.
pub fn pack(root: &Path, name: &str, archive: impl Write) -> Result<(), BuildError> {
    let entry = Path::new(TEMPLATES).join(name);
    let description_path = root.join(&entry).join(TEMPLATE_DESCRIPTION);
    let text = fs::read(&description_path).at("read", &description_path)?;
    let description: TemplateDescription = serde_json::from_slice(&text)
        .map_err(std::io::Error::from)
        .at("read", &description_path)?;
    let mut builder = tar::Builder::new(archive);
    builder.mode(tar::HeaderMode::Deterministic);
    for file in [TEMPLATE_DESCRIPTION, &description.rootfs] {
        let path = root.join(&entry).join(file);
        builder
            .append_path_with_name(&path, entry.join(file))
            .at("pack", &path)?;
    }
    builder
        .into_inner()
        .and_then(|mut archive| archive.flush())
        .at("pack", &root.join(&entry))
}

/// Puts what `archive` holds, templates as [`pack`] wrote them and kernels, into the root
/// directory `root`. A template of the same name gets the new contents, and keeps its image for
/// the sandboxes that were made from it. An archive that is cut off changes nothing.
///
/// # Errors
/// The archive cannot be read, or `root` not written.
pub fn unpack(archive: impl Read, root: &Path) -> Result<(), BuildError> {
    fs::create_dir_all(root).at("create", root)?;
    let staged = root.join(STAGED);
    let _lock = lock_root(root)?;
    remove_tree(&staged)?;
    let unpacked = unpack_staged(archive, &staged).and_then(|()| {
        adopt(&staged, root, Bring::Moved)?;
        sync(root)
    });
    // An error of the archive goes before one of the removal.
    unpacked.and(remove_tree(&staged)).inspect_err(|_| {
        remove_tree(&staged).ok();
    })
}

fn unpack_staged(archive: impl Read, staged: &Path) -> Result<(), BuildError> {
    fs::create_dir(staged).at("create", staged)?;
    let mut archive = tar::Archive::new(archive);
    archive.set_preserve_permissions(false);
    for entry in archive.entries().at("unpack into", staged)? {
        let mut entry = entry.at("unpack into", staged)?;
        let path = entry.path().at("unpack into", staged)?.into_owned();
        if !entry.header().entry_type().is_file() && !is_sparse(&entry) {
            return Err(not_packed_here(&path));
        }
        let inside = entry.unpack_in(staged).at("unpack into", staged)?;
        if !inside {
            return Err(not_packed_here(&path));
        }
    }
    Ok(())
}

fn is_sparse<R: Read>(entry: &tar::Entry<'_, R>) -> bool {
    entry.header().entry_type().is_gnu_sparse()
}

fn not_packed_here(path: &Path) -> BuildError {
    BuildError::File {
        action: "unpack",
        path: PathBuf::from(path),
        source: std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "it is no file inside of the archive",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;
    use crate::install::TemplateKind;
    use crate::kernel::write_json;

    const IMAGE_BYTES: u64 = 64 << 20;

    /// A root directory with a template whose image is a hole with data in its middle.
    fn with_template(name: &str, data: &[u8]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join(TEMPLATES).join(name);
        fs::create_dir_all(&place).unwrap();
        let rootfs = format!("{}.ext4", data.len());
        let image = fs::File::create(place.join(&rootfs)).unwrap();
        image.set_len(IMAGE_BYTES).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&image, data, IMAGE_BYTES / 2).unwrap();
        let description = TemplateDescription {
            version: 1,
            name: name.to_owned(),
            kind: TemplateKind::Image,
            kernel: "k1".to_owned(),
            rootfs,
            rootfs_sha256: "0".repeat(64),
            size_mib: IMAGE_BYTES >> 20,
            default_user: "user".to_owned(),
            env: BTreeMap::new(),
            start_command: None,
            working_directory: None,
        };
        write_json(&description, &place.join(TEMPLATE_DESCRIPTION)).unwrap();
        root
    }

    fn packed(root: &Path, name: &str) -> Vec<u8> {
        let mut archive = Vec::new();
        pack(root, name, &mut archive).unwrap();
        archive
    }

    #[test]
    fn template_arrives_equal_and_as_sparse() {
        let from = with_template("python", b"some data");
        let archive = packed(from.path(), "python");
        assert!(archive.len() < 1 << 20, "{} bytes", archive.len());
        let to = tempfile::tempdir().unwrap();
        unpack(&archive[..], to.path()).unwrap();
        for file in [TEMPLATE_DESCRIPTION, "9.ext4"] {
            let path = Path::new(TEMPLATES).join("python").join(file);
            let (sent, received) = (from.path().join(&path), to.path().join(&path));
            assert_eq!(fs::read(sent).unwrap(), fs::read(&received).unwrap());
            assert!(fs::metadata(&received).unwrap().blocks() * 512 < 1 << 20);
        }
        assert!(!to.path().join(STAGED).exists());
    }

    #[test]
    fn older_image_stays_for_its_sandboxes() {
        let to = with_template("python", b"old");
        let from = with_template("python", b"newer");
        unpack(&packed(from.path(), "python")[..], to.path()).unwrap();
        let place = to.path().join("templates/python");
        assert!(place.join("3.ext4").exists() && place.join("5.ext4").exists());
        let text = fs::read_to_string(place.join(TEMPLATE_DESCRIPTION)).unwrap();
        assert!(text.contains("5.ext4"), "{text}");
    }

    #[test]
    fn archive_cut_anywhere_changes_nothing() {
        let from = with_template("python", b"some data");
        let archive = packed(from.path(), "python");
        for length in (0..archive.len() - 1024).step_by(512) {
            let to = with_template("python", b"old");
            let before = fs::read(to.path().join("templates/python/template.json")).unwrap();
            // Within a block, and at its end.
            let result = unpack(&archive[..length + 100], to.path());
            if length > 0 {
                assert!(unpack(&archive[..length], to.path()).is_err(), "{length}");
            }
            let after = fs::read(to.path().join("templates/python/template.json")).unwrap();
            assert!(result.is_err(), "{length}");
            assert_eq!(before, after, "{length}");
            assert!(!to.path().join(STAGED).exists(), "{length}");
        }
    }

    #[test]
    fn links_are_refused() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder
            .append_link(&mut header, "templates/python", "/etc")
            .unwrap();
        let to = tempfile::tempdir().unwrap();
        let error = unpack(&builder.into_inner().unwrap()[..], to.path()).unwrap_err();
        assert!(error.to_string().contains("templates/python"), "{error}");
        assert!(!to.path().join(TEMPLATES).exists());
    }
}
