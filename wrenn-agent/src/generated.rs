//! Small files of the root directory that the first start makes and every later one reads.
//!
//! | file | what |
//! |---|---|
//! | `agent-id` | the identity of the root directory: 32 hexadecimal digits |
//! | `agent-token` | what callers must present: 64 hexadecimal digits, for root alone |
//!
//! Each is atomically replaced, so a start that is cut off leaves it whole or not there.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use atomic_write_file::AtomicWriteFile;
use atomic_write_file::unix::OpenOptionsExt as _;
use wrenn_core::RootDirectory;

/// Longer than anything that is written here.
const MAX_BYTES: u64 = 4096;

/// A file that can neither be read nor made.
#[derive(Debug, thiserror::Error)]
pub enum GeneratedFileError {
    /// It cannot be read.
    #[error("cannot read {}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be made.
    #[error("cannot write {}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It holds nothing that can be used.
    #[error("{} holds no line of printable characters; remove it to have it made again", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
    },
}

/// The identity of the root directory. Random, and not made of numbers of the file system,
/// which two hosts that were made alike share.
pub(crate) fn root_id(root: &RootDirectory) -> Result<String, GeneratedFileError> {
    read_or_create(&root.path().join("agent-id"), &rand::random::<[u8; 16]>())
}

/// The token of the file at `path`.
pub(crate) fn token(path: &Path) -> Result<String, GeneratedFileError> {
    read_or_create(path, &rand::random::<[u8; 32]>())
}

fn read_or_create(path: &Path, random: &[u8]) -> Result<String, GeneratedFileError> {
    match File::open(path) {
        Ok(file) => {
            let mut text = String::new();
            io::Read::read_to_string(&mut io::Read::take(file, MAX_BYTES), &mut text).map_err(
                |source| GeneratedFileError::Read {
                    path: path.to_owned(),
                    source,
                },
            )?;
            let text = text.trim();
            if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
                return Err(GeneratedFileError::Content {
                    path: path.to_owned(),
                });
            }
            Ok(text.to_owned())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            create(path, &text).map_err(|source| GeneratedFileError::Write {
                path: path.to_owned(),
                source,
            })?;
            Ok(text)
        }
        Err(source) => Err(GeneratedFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn create(path: &Path, text: &str) -> io::Result<()> {
    let mut file = AtomicWriteFile::options()
        .preserve_mode(false)
        .mode(0o600)
        .open(path)?;
    writeln!(file, "{text}")?;
    file.commit()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn token_is_made_once_and_only_root_reads_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent-token");
        let first = token(&path).unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(token(&path).unwrap(), first);
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        let root = RootDirectory::new(directory.path());
        assert_eq!(root_id(&root).unwrap().len(), 32);
        assert_eq!(root_id(&root).unwrap(), root_id(&root).unwrap());
    }

    #[test]
    fn token_of_somebody_else_may_be_any_printable_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "a-token_of.mine\n").unwrap();
        assert_eq!(token(&path).unwrap(), "a-token_of.mine");
        for content in ["", "\n", "two words\n"] {
            fs::write(&path, content).unwrap();
            let error = token(&path).unwrap_err();
            assert!(
                matches!(error, GeneratedFileError::Content { .. }),
                "{error}"
            );
        }
        let nowhere = token(&directory.path().join("no/such/token")).unwrap_err();
        assert!(
            matches!(nowhere, GeneratedFileError::Write { .. }),
            "{nowhere}"
        );
    }
}
