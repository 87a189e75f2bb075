//! Finds the guest daemon's program.
//!
//! 1. the file that the variable `WRENN_ENVD` names;
//! 2. `wrenn-envd` in the directory of the test program, or the one above it: cargo puts
//!    tests into `target/…/deps/`;
//! 3. what `cargo build -p wrenn-envd` makes, where cargo runs the test.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::PoisonError;

const NAME: &str = "wrenn-envd";
const VARIABLE: &str = "WRENN_ENVD";

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
    if let Some(path) = candidates.find(|path| path.is_file()) {
        return Ok(path);
    }
    match std::env::var_os("CARGO") {
        Some(cargo) => build(Path::new(&cargo)),
        None => Err(FindEnvdError::Missing { program }),
    }
}

fn build(cargo: &Path) -> Result<PathBuf, FindEnvdError> {
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", NAME])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .stdin(Stdio::null())
        .output()
        .map_err(|source| FindEnvdError::Cargo {
            cargo: cargo.to_owned(),
            source,
        })?;
    executable(&output.stdout)
        .filter(|_| output.status.success())
        .ok_or_else(|| FindEnvdError::Build {
            output: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
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
