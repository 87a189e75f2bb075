//! The program `wrenn-pager`, which serves one VM.
//!
//! ```text
//! standard input   one JSON object, ProgramConfig, to its end
//! standard output  a line {"ready":true} once the VMM can connect, a line {"recorded":true}
//!                  once it has made the file of the working set, and a line with the
//!                  ProgramReport when it ends
//! standard error   why it failed
//! exit code        0 the VM ended, 1 it failed and killed its VMM, 2 it could not start
//! ```
//!
//! Arguments are for those who look at a list of processes: `wrenn-pager --id sb…`.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::confine::{self, ConfineError};
use super::{
    BindError, Counters, Extent, MemorySource, Outcome, Pager, PagerConfig, Report, SourceError,
    WorkingSetFile,
};

/// What the program says once it has made the file of the working set.
pub(super) const RECORDED: &str = "{\"recorded\":true}";

/// What the program is told.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProgramConfig {
    /// Where the VMM connects. The program removes it once it has, if its user may.
    pub socket: PathBuf,
    /// User and group that may connect, if not those that the program starts as.
    #[serde(default)]
    pub socket_owner: Option<(u32, u32)>,
    /// Memory files, opened before rights are dropped.
    pub files: Vec<PathBuf>,
    /// What is where.
    pub extents: Vec<Extent>,
    /// How many threads resolve faults; by default one for each CPU.
    #[serde(default)]
    pub workers: Option<NonZeroUsize>,
    /// How many bytes are brought for a fault at most.
    #[serde(default)]
    pub burst: Option<u64>,
    /// How long to wait for the VMM, in milliseconds.
    #[serde(default)]
    pub connect_timeout_ms: Option<u64>,
    /// The working set: prefetched if the file is there, else recorded. The program's user
    /// must be able to rename files in its directory.
    #[serde(default)]
    pub working_set: Option<PathBuf>,
    /// For how long after the resume the VM's needs belong to the working set, in
    /// milliseconds; by default ten seconds.
    #[serde(default)]
    pub working_set_window_ms: Option<u64>,
    /// User and group to become.
    #[serde(default)]
    pub user: Option<(u32, u32)>,
}

/// What the program says at its end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramReport {
    /// How it ended.
    pub outcome: ProgramOutcome,
    /// What it did.
    pub counters: Counters,
}

/// How the program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramOutcome {
    /// The VMM ended.
    Ended,
    /// It could not go on, for this reason, and has killed the VMM.
    Failed(String),
}

/// Why the program cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Standard input cannot be read.
    #[error("cannot read the configuration from standard input")]
    Read(#[source] io::Error),
    /// It is not what it must be.
    #[error("the configuration on standard input is wrong")]
    Parse(#[source] serde_json::Error),
    /// The memory cannot be served.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// There is no place for the VMM to connect to.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// It would have more rights than it needs.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// Nobody heard that it is ready.
    #[error("cannot write to standard output")]
    Write(#[source] io::Error),
}

impl ProgramConfig {
    fn bind(self) -> Result<Pager, StartError> {
        let source = MemorySource::open(self.extents, &self.files)?;
        let mut config = PagerConfig::new(&self.socket, source);
        config.socket_owner = self.socket_owner;
        config.workers = self.workers.unwrap_or(config.workers);
        config.burst = self.burst.unwrap_or(config.burst);
        if let Some(limit) = self.connect_timeout_ms {
            config.connect_timeout = Duration::from_millis(limit);
        }
        config.working_set = self.working_set.map(|path| WorkingSetFile {
            path,
            window: Duration::from_millis(self.working_set_window_ms.unwrap_or(10_000)),
            recorded: Some(say_recorded),
        });
        Ok(Pager::bind(config)?)
    }
}

/// The whole program, for any binary that wants to contain it. To be called first thing:
/// it drops the rights of the process that it runs in, which must have one thread.
#[must_use]
pub fn main() -> ExitCode {
    match start() {
        Ok(pager) => finish(pager.serve()),
        Err(error) => {
            complain(&error);
            ExitCode::from(2)
        }
    }
}

fn start() -> Result<Pager, StartError> {
    let mut config = Vec::new();
    io::stdin()
        .read_to_end(&mut config)
        .map_err(StartError::Read)?;
    let config: ProgramConfig = serde_json::from_slice(&config).map_err(StartError::Parse)?;
    let user = config.user;
    let pager = config.bind()?;
    confine::drop_privileges(user)?;
    confine::filter_calls()?;
    say("{\"ready\":true}").map_err(StartError::Write)?;
    Ok(pager)
}

fn finish(report: Report) -> ExitCode {
    let (outcome, code) = match report.outcome {
        Outcome::Ended | Outcome::Stopped => (ProgramOutcome::Ended, ExitCode::SUCCESS),
        Outcome::Failed(error) => {
            complain(&error);
            (ProgramOutcome::Failed(chain(&error)), ExitCode::FAILURE)
        }
    };
    let report = ProgramReport {
        outcome,
        counters: report.counters,
    };
    // Whoever started it may be gone: then nobody wants to know.
    if let Ok(line) = serde_json::to_string(&report)
        && let Err(error) = say(&line)
    {
        tracing::debug!(%error, "nobody hears the report");
    }
    code
}

fn say(line: &str) -> io::Result<()> {
    let mut output = io::stdout();
    output.write_all(format!("{line}\n").as_bytes())?;
    output.flush()
}

fn say_recorded() {
    if let Err(error) = say(RECORDED) {
        tracing::debug!(%error, "nobody hears that the working set is recorded");
    }
}

fn complain(error: &dyn std::error::Error) {
    let line = format!("wrenn-pager: {}\n", chain(error));
    if let Err(error) = io::stderr().write_all(line.as_bytes()) {
        tracing::debug!(%error, "nobody hears of a failure");
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        if write!(text, ": {error}").is_err() {
            break;
        }
        cause = error.source();
    }
    text
}
