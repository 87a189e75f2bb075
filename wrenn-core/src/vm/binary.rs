//! Which program runs the virtual machines.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The program that runs virtual machines: `wrenn-vmm` or Firecracker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmBinary(PathBuf);

/// Why no program was found.
#[derive(Debug, thiserror::Error)]
pub enum FindVmmError {
    /// The path that was given names no program.
    #[error("{0} is no program; give the path of wrenn-vmm or firecracker")]
    NotExecutable(PathBuf),
    /// Neither program is there.
    #[error(
        "found neither firecracker on PATH nor wrenn-vmm beside this program; name one with --vmm"
    )]
    NotFound,
}

impl VmmBinary {
    /// Finds the program: the one that was configured, else Firecracker on PATH, else the
    /// `wrenn-vmm` that was built with the running program, else `wrenn-vmm` on PATH.
    ///
    /// # Errors
    /// When the configured path is no program, or nothing is found.
    pub fn find(
        configured: Option<&Path>,
        search_path: Option<&OsStr>,
    ) -> Result<Self, FindVmmError> {
        if let Some(path) = configured {
            return if is_program(path) {
                Ok(Self(
                    path.canonicalize().unwrap_or_else(|_| path.to_owned()),
                ))
            } else {
                Err(FindVmmError::NotExecutable(path.to_owned()))
            };
        }
        on_path("firecracker", search_path)
            .or_else(|| find_program("wrenn-vmm", search_path))
            .map(Self)
            .ok_or(FindVmmError::NotFound)
    }

    /// Where the program lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Finds a program that belongs to ours: the one that was built with the running program,
/// else the one on PATH.
pub(crate) fn find_program(name: &str, search_path: Option<&OsStr>) -> Option<PathBuf> {
    let beside = || {
        let path = std::env::current_exe().ok()?.parent()?.join(name);
        is_program(&path).then_some(path)
    };
    beside().or_else(|| on_path(name, search_path))
}

fn on_path(name: &str, search_path: Option<&OsStr>) -> Option<PathBuf> {
    search_path
        .into_iter()
        .flat_map(std::env::split_paths)
        .map(|directory| directory.join(name))
        .find(|path| is_program(path))
}

pub(crate) fn is_program(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firecracker_on_path_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("firecracker");
        std::fs::write(&program, "").unwrap();
        let search = Some(directory.path().as_os_str());
        assert_ne!(
            VmmBinary::find(None, search).ok(),
            Some(VmmBinary(program.clone()))
        );
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(VmmBinary::find(None, search).unwrap().path(), program);
    }

    #[test]
    fn what_is_no_program_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().join("notes.txt");
        std::fs::write(&text, "").unwrap();
        for path in [text.as_path(), directory.path()] {
            let error = VmmBinary::find(Some(path), None).unwrap_err();
            assert!(matches!(error, FindVmmError::NotExecutable(_)), "{error}");
        }
    }
}
