//! Why a template could not be imported.

use std::io;
use std::path::PathBuf;

use super::oci::ImageError;
use super::tarball::ArchiveError;
use crate::error::BuildError;

/// A template could not be imported. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("'{0}' is no template name: one is made of a-z, 0-9, '.', '_' and '-'")]
    Name(String),
    #[error("importing a template needs root, since its files belong to several users")]
    NeedsRoot,
    #[error(
        "{} {found}; a template is made from a root file system's tar archive (plain, gzip or \
         zstd), an ext4 image, an OCI image layout, or what docker save writes", path.display()
    )]
    Unrecognised { path: PathBuf, found: String },
    #[error("there is no kernel in {}; cargo xtask setup builds one", directory.display())]
    NoKernel { directory: PathBuf },
    #[error("there is no kernel '{id}'; there are: {}", present.join(", "))]
    UnknownKernel { id: String, present: Vec<String> },
    #[error("cannot unpack {}", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: ArchiveError,
    },
    #[error("cannot use the image in {}", path.display())]
    Image {
        path: PathBuf,
        #[source]
        source: ImageError,
    },
    #[error("layer {number} of {} cannot be unpacked", path.display())]
    Layer {
        number: usize,
        path: PathBuf,
        #[source]
        source: ArchiveError,
    },
    #[error("cannot put {what} into the root file system")]
    Prepare {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("the root file system has no user '{name}'; name another with --default-user")]
    UnknownUser { name: String },
    #[error("{asked_mib} MiB are too few for what is in it; it takes {needed_mib} MiB at least")]
    TooSmall { asked_mib: u64, needed_mib: u64 },
    #[error("{} is no sound ext4 file system; e2fsck -f mends what can be mended", path.display())]
    Unsound {
        path: PathBuf,
        #[source]
        source: BuildError,
    },
    #[error("no space left in {}; free some, or choose another root directory", directory.display())]
    DiskFull { directory: PathBuf },
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl From<crate::command::CommandError> for ImportError {
    fn from(error: crate::command::CommandError) -> Self {
        Self::Build(error.into())
    }
}

impl ImportError {
    /// Whether it comes from a full disk, wherever that was noticed.
    pub(super) fn is_full_disk(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let full = match error.downcast_ref::<BuildError>() {
                Some(BuildError::DiskFull { .. }) => true,
                _ => {
                    error.downcast_ref::<io::Error>().is_some_and(|error| {
                        matches!(
                            error.kind(),
                            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                        )
                        // Programs tell it in words only.
                    }) || error
                        .downcast_ref::<crate::command::CommandError>()
                        .is_some_and(|error| error.to_string().contains("No space left on device"))
                }
            };
            if full {
                return true;
            }
            next = error.source();
        }
        false
    }
}
