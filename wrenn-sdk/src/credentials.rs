//! Where a server is and with which key, as `wrenn up` leaves it for the user's programs.
//!
//! The file is `credentials.json` in `$WRENN_CONFIG_DIR`, else in `$XDG_CONFIG_HOME/wrenn`,
//! else in `~/.config/wrenn`. Only its owner reads it.

use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

const FILE: &str = "credentials.json";

/// A server and a key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credentials {
    /// Where the server listens: `http://127.0.0.1:7400`.
    pub api_url: String,
    /// The key.
    pub api_key: String,
}

// The key does not belong into logs.
impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("api_url", &self.api_url)
            .finish_non_exhaustive()
    }
}

/// Where the file is, for this user and environment. `None` without a home directory.
#[must_use]
pub fn path() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let directory = if let Some(directory) = variable("WRENN_CONFIG_DIR") {
        PathBuf::from(directory)
    } else if let Some(directory) = variable("XDG_CONFIG_HOME") {
        PathBuf::from(directory).join("wrenn")
    } else {
        PathBuf::from(variable("HOME")?).join(".config/wrenn")
    };
    Some(directory.join(FILE))
}

impl Credentials {
    /// Reads the file of this user, if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn load() -> Result<Option<Self>> {
        path().map_or(Ok(None), |path| Self::load_from(&path))
    }

    /// Reads a file, if there is one.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn load_from(path: &Path) -> Result<Option<Self>> {
        let refused = |source| Error::Credentials {
            path: path.to_owned(),
            source,
        };
        let text = match fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(|error| refused(error.into()))?,
        };
        serde_json::from_slice(&text).map_err(|error| refused(error.into()))
    }

    /// Atomically replaces a file, which only its owner can read, in a directory that is
    /// made if need be.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_to(&self, path: &Path) -> Result<()> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(Error::io("create", directory))?;
        let write = || -> io::Result<()> {
            let mut file = AtomicWriteFile::options()
                .preserve_mode(false)
                .mode(0o600)
                .open(path)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.commit()
        };
        write().map_err(Error::io("write", path))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn saved_credentials_load_and_stay_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("wrenn/credentials.json");
        assert_eq!(Credentials::load_from(&path).unwrap(), None);
        let credentials = Credentials {
            api_url: "http://127.0.0.1:7400".to_owned(),
            api_key: "wrn_secret".to_owned(),
        };
        credentials.save_to(&path).unwrap();
        credentials.save_to(&path).unwrap();
        assert_eq!(
            Credentials::load_from(&path).unwrap().as_ref(),
            Some(&credentials)
        );
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert!(!format!("{credentials:?}").contains("secret"));
        fs::write(&path, "{").unwrap();
        let error = Credentials::load_from(&path).unwrap_err().to_string();
        assert!(error.contains("wrenn up"), "{error}");
    }
}
