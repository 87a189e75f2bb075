//! Finds the guest daemon's program.
//!
//! 1. the file that the variable `WRENN_ENVD` names;
//! 2. `wrenn-envd` in the directory of the test program, or the one above it: cargo puts
//!    tests into `target/…/deps/`. Where cargo runs the test and the sources are newer, it is
//!    built again: a test of another package does not build it;
//! 3. what `cargo build -p wrenn-envd` makes, where cargo runs the test.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

const NAME: &str = "wrenn-envd";
const VARIABLE: &str = "WRENN_ENVD";
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
/// What the program is made of.
const SOURCES: [&str; 4] = [
    "wrenn-envd/src",
    "proto/envd",
    "proto/hostagent",
    "proto/src",
];

/// Why there is no guest daemon to run.
#[derive(Debug, thiserror::Error)]
pub enum FindEnvdError {
    /// The variable names no file.
    #[error("WRENN_ENVD names {path}, which is no file; build it with `cargo build -p wrenn-envd`")]
    Variable {
        /// What it names.
        path: PathBuf,
    },
    /// It is nowhere, and there is no cargo to build it.
    #[error(
        "cannot find wrenn-envd beside {program}; build it with `cargo build -p wrenn-envd`, or \
         name it in WRENN_ENVD"
    )]
    Missing {
        /// The test program.
        program: PathBuf,
    },
    /// Cargo did not run.
    #[error("cannot run {cargo} to build wrenn-envd; name a built one in WRENN_ENVD")]
    Cargo {
        /// The cargo that was tried.
        cargo: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Cargo did not build it.
    #[error("`cargo build -p wrenn-envd` failed, name a built one in WRENN_ENVD:\n{output}")]
    Build {
        /// What cargo said.
        output: String,
    },
}

/// The path of the program. It is searched, or built, once.
pub(crate) fn find() -> Result<PathBuf, FindEnvdError> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = &*found {
        return Ok(path.clone());
    }
    let path = search()?;
    *found = Some(path.clone());
    Ok(path)
}

fn search() -> Result<PathBuf, FindEnvdError> {
    if let Some(path) = std::env::var_os(VARIABLE).map(PathBuf::from) {
        return if path.is_file() {
            Ok(path)
        } else {
            Err(FindEnvdError::Variable { path })
        };
    }
    let program = std::env::current_exe().unwrap_or_default();
    let directories = program.ancestors().skip(1).take(2);
    let mut candidates = directories.map(|directory| directory.join(NAME));
    let found = candidates.find(|path| path.is_file());
    match (found, std::env::var_os("CARGO")) {
        (Some(path), Some(cargo)) if is_stale(&path) => {
            let built = build(Path::new(&cargo), profile_of(&path));
            Ok(built.unwrap_or_else(|error| {
                eprintln!("wrenn-testing: uses an old wrenn-envd: {error}");
                path
            }))
        }
        (Some(path), _) => Ok(path),
        (None, Some(cargo)) => build(Path::new(&cargo), "dev"),
        (None, None) => Err(FindEnvdError::Missing { program }),
    }
}

/// The profile that cargo built a program with, by the directory that it lies in.
fn profile_of(program: &Path) -> &str {
    let directory = program.parent().and_then(Path::file_name);
    match directory.and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    }
}

/// Whether a source of the program is newer. Where there are no sources, none is.
fn is_stale(program: &Path) -> bool {
    let Ok(built) = program.metadata().and_then(|metadata| metadata.modified()) else {
        return true;
    };
    let mut open: Vec<PathBuf> = SOURCES
        .iter()
        .map(|path| Path::new(WORKSPACE).join(path))
        .collect();
    while let Some(path) = open.pop() {
        if let Ok(entries) = path.read_dir() {
            open.extend(entries.flatten().map(|entry| entry.path()));
        } else if let Ok(modified) = path.metadata().and_then(|metadata| metadata.modified())
            && modified > built
        {
            return true;
        }
    }
    false
}

fn build(cargo: &Path, profile: &str) -> Result<PathBuf, FindEnvdError> {
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", NAME, "--profile", profile])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(WORKSPACE)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| FindEnvdError::Cargo {
            cargo: cargo.to_owned(),
            source,
        })?;
    let built = executable(&output.stdout).filter(|_| output.status.success());
    let Some(path) = built else {
        return Err(FindEnvdError::Build {
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    };
    // A source that changed without effect leaves the program as it was, and the next test
    // would build again.
    if let Ok(file) = File::open(&path) {
        file.set_modified(SystemTime::now()).ok();
    }
    Ok(path)
}

/// The program among cargo's messages.
fn executable(messages: &[u8]) -> Option<PathBuf> {
    messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == NAME)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_is_read_from_the_directory() {
        for (path, profile) in [
            ("/t/debug/wrenn-envd", "dev"),
            ("/t/release/wrenn-envd", "release"),
        ] {
            assert_eq!(profile_of(Path::new(path)), profile);
        }
    }

    #[test]
    fn executable_is_found_among_cargos_messages() {
        let messages =
            br#"{"reason":"compiler-artifact","target":{"name":"wrenn-proto"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"wrenn-envd"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"wrenn-envd"},"executable":"/t/debug/wrenn-envd"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(
            executable(messages),
            Some(PathBuf::from("/t/debug/wrenn-envd"))
        );
        assert_eq!(executable(b"nonsense"), None);
    }
}
