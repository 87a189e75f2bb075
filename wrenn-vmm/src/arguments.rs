//! The command line. Flags are Firecracker's, so that one launcher can start either.

use std::path::PathBuf;

use crate::config::{LogLevel, LoggerConfig};

/// Where the API listens if nobody says.
const DEFAULT_API_SOCKET: &str = "/run/wrenn-vmm.socket";
/// The id of a machine that nobody named.
const DEFAULT_ID: &str = "anonymous-instance";
/// The longest id, as Firecracker has it.
const ID_MAX: usize = 64;

/// What `--help` prints.
pub const HELP: &str = "\
wrenn-vmm: runs one virtual machine and speaks the Firecracker HTTP API

Usage: wrenn-vmm [--api-sock PATH] [OPTIONS]

  --api-sock PATH      Unix socket of the API [default: /run/wrenn-vmm.socket]
  --id ID              Name of the machine [default: anonymous-instance]
  --config-file PATH   Configure and start the machine from this JSON file
  --no-api             Without an API; needs --config-file
  --log-path PATH      Log to this file or named pipe [default: standard error]
  --level LEVEL        Off, Error, Warn, Info, Debug or Trace [default: Info]
  --module MODULE      Log only what comes from this module
  --show-level         Write the level on each line of the log
  --show-log-origin    Write file and line on each line of the log
  --metrics-path PATH  Write metrics to this file or named pipe
  --no-seccomp         Without system call filters; for debugging
  --boot-timer         Accepted and ignored
  --version            Print the version
  --help               Print this text

The machine's first serial port is on standard input and output.
";

/// The command line, understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Where the API listens; `None` for no API.
    pub api_socket: Option<PathBuf>,
    /// The machine's name.
    pub id: String,
    /// The configuration file.
    pub config_file: Option<PathBuf>,
    /// The log.
    pub logger: LoggerConfig,
    /// The metrics.
    pub metrics_path: Option<PathBuf>,
    /// Whether threads are bound by filters.
    pub seccomp: bool,
}

/// What the command line asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run a machine.
    Run(Box<Arguments>),
    /// Print the version.
    Version,
    /// Print the help.
    Help,
}

/// A command line that asks for nothing sensible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentsError {
    /// Not a flag of ours.
    #[error("unknown argument {0:?}")]
    Unknown(String),
    /// A flag without its value.
    #[error("{0} needs a value")]
    NoValue(String),
    /// A flag with a value that it does not take.
    #[error("{0} takes no value")]
    UnexpectedValue(String),
    /// The same flag twice.
    #[error("{0} is given twice")]
    Twice(String),
    /// No API and no configuration either.
    #[error("--no-api needs --config-file, or nobody could ever start the machine")]
    NoApiNoConfig,
    /// Strange characters in the id.
    #[error("the id {0:?} is not 1 to {ID_MAX} letters, digits and dashes")]
    Id(String),
    /// No such level.
    #[error("{0}")]
    Level(String),
}

/// Understands the command line, without the program's own name.
///
/// # Errors
/// If it makes no sense.
pub fn parse(arguments: impl Iterator<Item = String>) -> Result<Command, ArgumentsError> {
    let mut arguments = arguments.peekable();
    let mut parsed = Arguments {
        seccomp: true,
        ..Default::default()
    };
    let mut socket = None;
    let mut id = None;
    let mut level = None;
    let mut no_api = false;
    while let Some(argument) = arguments.next() {
        let (flag, mut inline) = match argument.split_once('=') {
            Some((flag, value)) => (flag.to_owned(), Some(value.to_owned())),
            None => (argument, None),
        };
        let mut value = || {
            inline
                .take()
                .or_else(|| arguments.next_if(|next| !next.starts_with("--")))
                .ok_or_else(|| ArgumentsError::NoValue(flag.clone()))
        };
        let twice = || ArgumentsError::Twice(flag.clone());
        match flag.as_str() {
            "--api-sock" => set(&mut socket, value()?.into()).ok_or_else(twice)?,
            "--id" => set(&mut id, value()?).ok_or_else(twice)?,
            "--config-file" => {
                set(&mut parsed.config_file, value()?.into()).ok_or_else(twice)?;
            }
            "--log-path" => {
                set(&mut parsed.logger.log_path, value()?.into()).ok_or_else(twice)?;
            }
            "--level" => set(&mut level, value()?).ok_or_else(twice)?,
            "--module" => set(&mut parsed.logger.module, value()?).ok_or_else(twice)?,
            "--metrics-path" => {
                set(&mut parsed.metrics_path, value()?.into()).ok_or_else(twice)?;
            }
            "--no-api" => no_api = true,
            "--no-seccomp" => parsed.seccomp = false,
            "--show-level" => parsed.logger.show_level = Some(true),
            "--show-log-origin" => parsed.logger.show_log_origin = Some(true),
            "--boot-timer" => {}
            "--version" => return Ok(Command::Version),
            "--help" | "-h" => return Ok(Command::Help),
            _ => return Err(ArgumentsError::Unknown(flag)),
        }
        if inline.is_some() {
            return Err(ArgumentsError::UnexpectedValue(flag));
        }
    }

    if no_api && parsed.config_file.is_none() {
        return Err(ArgumentsError::NoApiNoConfig);
    }
    parsed.api_socket = (!no_api).then(|| socket.unwrap_or_else(|| DEFAULT_API_SOCKET.into()));
    parsed.id = id.unwrap_or_else(|| DEFAULT_ID.to_owned());
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if parsed.id.is_empty() || parsed.id.len() > ID_MAX || !parsed.id.bytes().all(valid) {
        return Err(ArgumentsError::Id(parsed.id));
    }
    if let Some(level) = level {
        let level: LogLevel = level.parse().map_err(|error| {
            let error: crate::config::UnknownLogLevel = error;
            ArgumentsError::Level(error.to_string())
        })?;
        parsed.logger.level = Some(level);
    }
    Ok(Command::Run(Box::new(parsed)))
}

/// Fills an empty place; `None` if it is taken.
fn set<T>(place: &mut Option<T>, value: T) -> Option<()> {
    if place.is_some() {
        return None;
    }
    *place = Some(value);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(line: &str) -> Result<Command, ArgumentsError> {
        parse(line.split_whitespace().map(str::to_owned))
    }

    fn arguments(line: &str) -> Arguments {
        match run(line) {
            Ok(Command::Run(arguments)) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn flags_of_the_launcher() {
        let parsed = arguments(
            "--api-sock /run/x.sock --id sb1 --log-path=/tmp/log --level debug --show-level",
        );
        assert_eq!(parsed.api_socket, Some("/run/x.sock".into()));
        assert_eq!(parsed.id, "sb1");
        assert_eq!(parsed.logger.log_path, Some("/tmp/log".into()));
        assert_eq!(parsed.logger.level, Some(LogLevel::Debug));
        assert!(parsed.seccomp);
    }

    #[test]
    fn defaults() {
        let parsed = arguments("");
        assert_eq!(parsed.api_socket, Some(DEFAULT_API_SOCKET.into()));
        assert_eq!(parsed.id, DEFAULT_ID);
        assert_eq!(
            arguments("--no-api --config-file /c --no-seccomp").api_socket,
            None
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for (line, expected) in [
            ("--what", ArgumentsError::Unknown("--what".into())),
            ("x", ArgumentsError::Unknown("x".into())),
            ("--id", ArgumentsError::NoValue("--id".into())),
            ("--id --no-api", ArgumentsError::NoValue("--id".into())),
            ("--id a --id b", ArgumentsError::Twice("--id".into())),
            (
                "--no-api=1",
                ArgumentsError::UnexpectedValue("--no-api".into()),
            ),
            ("--no-api", ArgumentsError::NoApiNoConfig),
            ("--id a/b", ArgumentsError::Id("a/b".into())),
        ] {
            assert_eq!(run(line), Err(expected), "{line}");
        }
        assert!(matches!(run("--level loud"), Err(ArgumentsError::Level(_))));
    }
}
