//! What templates there are.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::manifest::TemplateManifest;
use super::open::{OpenTemplateError, read_template};
use super::{DESCRIPTION, KERNEL_DESCRIPTION, directory_of};
use crate::RootDirectory;

/// Why templates cannot be listed.
#[derive(Debug, thiserror::Error)]
pub enum ListTemplatesError {
    /// The directory cannot be read.
    #[error("cannot list {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// One template of a list.
#[derive(Debug)]
pub struct ListedTemplate {
    /// Its name.
    pub name: String,
    /// What its manifest says, or why that cannot be told.
    pub manifest: Result<TemplateManifest, OpenTemplateError>,
    /// Bytes that its files take on the disk, older images among them.
    pub disk_bytes: u64,
}

/// Names of the templates in a root directory, sorted. Empty if it cannot be read.
#[must_use]
pub fn names(root: &RootDirectory) -> Vec<String> {
    names_in(&root.templates(), DESCRIPTION).unwrap_or_default()
}

/// Ids of the kernels in a root directory, sorted. Empty if it cannot be read.
pub(super) fn kernels(root: &RootDirectory) -> Vec<String> {
    names_in(&root.kernels(), KERNEL_DESCRIPTION).unwrap_or_default()
}

/// The templates in a root directory, sorted by name; a damaged one is among them.
///
/// # Errors
/// The directory is there and cannot be read.
pub fn list(root: &RootDirectory) -> Result<Vec<ListedTemplate>, ListTemplatesError> {
    let directory = root.templates();
    let names = names_in(&directory, DESCRIPTION).map_err(|source| ListTemplatesError::List {
        path: directory,
        source,
    })?;
    let listed = names.into_iter().map(|name| {
        let directory = directory_of(root, &name);
        ListedTemplate {
            manifest: read_template(&directory.join(DESCRIPTION)),
            disk_bytes: disk_bytes(&directory),
            name,
        }
    });
    Ok(listed.collect())
}

/// The entries of a directory that hold the file `description`.
fn names_in(directory: &Path, description: &str) -> io::Result<Vec<String>> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join(description).exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    Ok(names)
}

fn disk_bytes(directory: &Path) -> u64 {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        // Images have holes: what they take is less than their length.
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}
