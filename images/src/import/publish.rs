//! Puts what was made in its place in the root directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::error::ImportError;
use super::staging::Staging;
use crate::error::AtPath as _;
use crate::install::{TEMPLATE_DESCRIPTION, TemplateDescription, lock_root, seal, sync};
use crate::kernel::write_json;

/// Checks that `name` may name a template.
pub(super) fn check_name(name: &str) -> Result<(), ImportError> {
    const LONGEST: usize = 128;
    let fits = !name.is_empty()
        && name.len() <= LONGEST
        && !name.starts_with('.')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
    if fits {
        Ok(())
    } else {
        Err(ImportError::Name(name.to_owned()))
    }
}

/// What this looks at in `kernel.json`.
#[derive(serde::Deserialize)]
struct Offer {
    #[serde(default)]
    on_request: bool,
}

/// The id of the kernel that boots a template: the one that is asked for, or of those that
/// need not be asked for the one that was installed last.
pub(super) fn kernel(root: &Path, asked: Option<&str>) -> Result<String, ImportError> {
    let directory = root.join("kernels");
    let mut present: Vec<(SystemTime, String, bool)> = Vec::new();
    if directory.is_dir() {
        for entry in fs::read_dir(&directory).at("list", &directory)? {
            let entry = entry.at("list", &directory)?;
            let description = entry.path().join("kernel.json");
            let installed = fs::metadata(&description).and_then(|metadata| metadata.modified());
            if let (Ok(installed), Ok(id)) = (installed, entry.file_name().into_string()) {
                let on_request = fs::read(&description)
                    .ok()
                    .and_then(|text| serde_json::from_slice(&text).ok())
                    .is_some_and(|offer: Offer| offer.on_request);
                present.push((installed, id, on_request));
            }
        }
    }
    present.sort();
    match asked {
        Some(id) if present.iter().any(|(_, known, _)| known == id) => Ok(id.to_owned()),
        Some(id) if !present.is_empty() => Err(ImportError::UnknownKernel {
            id: id.to_owned(),
            present: present.into_iter().map(|(_, id, _)| id).collect(),
        }),
        _ => match present.into_iter().rfind(|(_, _, on_request)| !on_request) {
            Some((_, id, _)) => Ok(id),
            None => Err(ImportError::NoKernel { directory }),
        },
    }
}

/// Makes `image` and `description` the template that the description names. Returns where
/// the image lies now.
///
/// A name that is new appears with both files at once. Under one that is there already, the
/// image comes first and `template.json` is exchanged after it, so that whoever opens the
/// template finds the old or the new one.
pub(super) fn put_in_place(
    root: &Path,
    staging: &Staging,
    image: &Path,
    description: &TemplateDescription,
) -> Result<PathBuf, ImportError> {
    let template = staging.make_directory("template")?;
    let (staged_image, staged_json) = (
        template.join(&description.rootfs),
        template.join(TEMPLATE_DESCRIPTION),
    );
    fs::rename(image, &staged_image).at("rename", image)?;
    seal(&staged_image)?;
    write_json(description, &staged_json)?;
    for path in [&staged_json, &template] {
        sync(path)?;
    }

    let templates = root.join("templates");
    fs::create_dir_all(&templates).at("create", &templates)?;
    let place = templates.join(&description.name);
    let placed_image = place.join(&description.rootfs);
    let _lock = lock_root(root)?;
    if place.exists() {
        // One that is there has the same contents, and somebody may have it open.
        if !placed_image.exists() {
            fs::rename(&staged_image, &placed_image).at("move into place", &placed_image)?;
        }
        let placed_json = place.join(TEMPLATE_DESCRIPTION);
        sync(&place)?;
        fs::rename(&staged_json, &placed_json).at("move into place", &placed_json)?;
        sync(&place)?;
    } else {
        fs::rename(&template, &place).at("move into place", &place)?;
    }
    sync(&templates)?;
    Ok(placed_image)
}
