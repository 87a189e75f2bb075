//! Commands that run to their end, and processes.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::string_enum::string_enum;

/// Standard input and output of one `exec`, in bytes. There is a stream for more.
pub const MAX_EXEC_BYTES: usize = 16 << 20;

/// The body of `POST …/exec`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exec {
    /// The program.
    #[cfg_attr(feature = "openapi", schema(min_length = 1))]
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables on top of the sandbox's.
    pub env: BTreeMap<String, String>,
    /// Directory that it starts in; the user's home unless set.
    pub cwd: String,
    /// User of the guest; the template's default one unless set.
    pub user: String,
    /// Standard input, in base64.
    pub stdin: String,
    /// Seconds after which it is killed; 0 for never.
    pub timeout_sec: u64,
    /// Whether the answer comes as soon as it has started. Its output can be followed then.
    pub background: bool,
    /// A name to find it by.
    pub tag: String,
}

impl Default for Exec {
    fn default() -> Self {
        Self {
            cmd: String::new(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: String::new(),
            user: String::new(),
            stdin: String::new(),
            timeout_sec: 30,
            background: false,
            tag: String::new(),
        }
    }
}

string_enum! {
    /// How `stdout` and `stderr` are written.
    Encoding, "encoding" {
        /// As they are: both are UTF-8.
        Utf8 = "utf-8",
        /// Both in base64.
        Base64 = "base64",
    }
}

/// The answer of a command that ran to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExecResult {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// How both are written.
    pub encoding: Encoding,
    /// The exit code, or 128 and the signal's number. 127: the command was not found; 126:
    /// it is no program.
    pub exit_code: i32,
    /// The number of the signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u32>,
    /// Whether its time-out killed it.
    pub timed_out: bool,
    /// How long it ran, as the server saw it.
    pub duration_ms: f64,
}

/// The answer to a command in the background.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Started {
    /// Its process id in the guest.
    pub pid: u32,
    /// Its tag.
    pub tag: String,
}

/// A process that was started through the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Process {
    /// Its process id in the guest.
    pub pid: u32,
    /// The program.
    pub cmd: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its tag; empty for none.
    pub tag: String,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// The answer to `GET …/processes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Processes {
    /// The processes.
    pub items: Vec<Process>,
}
