//! Why a product could not be built.

use std::io;
use std::path::{Path, PathBuf};

use crate::command::CommandError;

/// A product could not be built. Nothing of it is left in the cache.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a build step's program failed")]
    Command(#[from] CommandError),
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} has no room left; free some space there", path.display())]
    DiskFull { path: PathBuf },
    #[error("the Debian archive has no package {name}")]
    NoPackage { name: String },
    #[error("package {package} holds no {file}")]
    NotInPackage { package: String, file: String },
    #[error("kernel module {name} is neither in the package nor built into the kernel")]
    NoModule { name: String },
    #[error("kernel modules need each other in a circle: {names:?}")]
    ModuleCircle { names: Vec<String> },
    #[error("cannot read the kernel module {}", path.display())]
    BadModule {
        path: PathBuf,
        #[source]
        source: object::Error,
    },
    #[error("cannot unpack the kernel image {}", path.display())]
    BadKernelImage {
        path: PathBuf,
        #[source]
        source: crate::vmlinux::UnpackError,
    },
    #[error("the kernel's configuration has a line {line:?}, but {reason}")]
    KernelFragment { line: String, reason: &'static str },
    #[error(
        "these options of images/kernel/guest.config have not taken effect, since this kernel \
         does not know them or has not what they depend on: {}", options.join(", ")
    )]
    KernelOptions { options: Vec<String> },
    #[error(
        "building the root file system {template} needs root, since its files belong to several users"
    )]
    NeedsRoot { template: &'static str },
    #[error("{} was not written into {} whole", path, image.display())]
    NotInjected { path: String, image: PathBuf },
    #[error("{path} in {} is far longer than such files are", image.display())]
    TooLong { path: String, image: PathBuf },
    #[error("there is no template named {name:?}; known are: base, minimal")]
    UnknownTemplate { name: String },
    #[error("neither XDG_CACHE_HOME nor HOME is set, so there is no place for the cache")]
    NoCacheHome,
}

impl BuildError {
    /// An error about a file, told apart from a full disk, which has a fix of its own.
    #[must_use]
    pub fn file(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        if source.kind() == io::ErrorKind::StorageFull {
            Self::DiskFull { path }
        } else {
            Self::File {
                action,
                path,
                source,
            }
        }
    }
}

/// Adds to an I/O error what was tried and where.
pub(crate) trait AtPath<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, BuildError>;
}

impl<T> AtPath<T> for io::Result<T> {
    fn at(self, action: &'static str, path: &Path) -> Result<T, BuildError> {
        self.map_err(|source| BuildError::file(action, path, source))
    }
}
