//! Commands that run to their end, and commands in the background.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::Method;
use wrenn_api::exec::{self as wire, Encoding, Started};
use wrenn_api::id::SandboxId;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::process::whole_seconds;
use crate::transport::Call;

/// Runs a command to its end when it is awaited.
#[derive(Clone, Debug)]
#[must_use = "nothing runs until it is awaited"]
pub struct Exec {
    client: Client,
    sandbox: SandboxId,
    body: wire::Exec,
}

impl Exec {
    pub(crate) fn new(client: Client, sandbox: SandboxId, cmd: String, args: Vec<String>) -> Self {
        Self {
            client,
            sandbox,
            body: wire::Exec {
                cmd,
                args,
                ..wire::Exec::default()
            },
        }
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.body.env.insert(name.into(), value.into());
        self
    }

    /// Adds variables to its environment.
    pub fn envs(mut self, variables: BTreeMap<String, String>) -> Self {
        self.body.env.extend(variables);
        self
    }

    /// The directory that it starts in; the user's home unless set.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.body.cwd = directory.into();
        self
    }

    /// The user of the guest that it runs as; the template's default one unless set.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.body.user = user.into();
        self
    }

    /// Its standard input, up to 16 MiB; empty unless set.
    pub fn stdin(mut self, input: impl AsRef<[u8]>) -> Self {
        self.body.stdin = STANDARD.encode(input);
        self
    }

    /// Kills it after this long, rounded up to seconds; zero for never. 30 seconds unless
    /// set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.body.timeout_sec = whole_seconds(timeout);
        self
    }

    /// Starts it in the background, under a tag to find it by. Its output can be followed
    /// with [`Sandbox::attach`](crate::Sandbox::attach). It has no time-out unless one was
    /// set.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn background(mut self, tag: impl Into<String>) -> Result<Background> {
        self.body.background = true;
        self.body.tag = tag.into();
        if self.body.timeout_sec == wire::Exec::default().timeout_sec {
            self.body.timeout_sec = 0;
        }
        let call = self.call()?;
        let started: Started = self.client.transport.fetch(call).await?;
        Ok(Background {
            pid: started.pid,
            tag: started.tag,
        })
    }

    fn call(&self) -> Result<Call> {
        let path = ["v1", "sandboxes", self.sandbox.as_str(), "exec"];
        self.client.call(Method::POST, &path)?.json(&self.body)
    }
}

impl IntoFuture for Exec {
    type Output = Result<ExecResult>;
    type IntoFuture = BoxFuture<'static, Result<ExecResult>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let call = self.call()?;
            let result: wire::ExecResult = self.client.transport.fetch(call).await?;
            ExecResult::from_wire(result)
        })
    }
}

/// A command that was started in the background.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Background {
    /// Its number in the guest.
    pub pid: u32,
    /// Its tag.
    pub tag: String,
}

/// The output of a command, and how it ended.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ExecResult {
    /// Standard output.
    pub stdout: Bytes,
    /// Standard error.
    pub stderr: Bytes,
    /// The exit code, or 128 and the signal's number. 127: the command was not found; 126:
    /// it is no program.
    pub exit_code: i32,
    /// The number of the signal that ended it.
    pub signal: Option<u32>,
    /// Whether its time-out killed it.
    pub timed_out: bool,
    /// How long it ran, as the server saw it.
    pub duration: Duration,
}

impl ExecResult {
    /// Whether the exit code is 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        self.exit_code == 0
    }

    /// Standard output as text; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text; what is not UTF-8 becomes U+FFFD.
    #[must_use]
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    fn from_wire(result: wire::ExecResult) -> Result<Self> {
        let problem = |problem: String| Error::Protocol {
            request: "POST …/exec".to_owned(),
            problem,
            request_id: None,
        };
        let decode = |text: String| match result.encoding {
            Encoding::Utf8 => Ok(Bytes::from(text)),
            Encoding::Base64 => STANDARD
                .decode(text)
                .map(Bytes::from)
                .map_err(|error| problem(error.to_string())),
            _ => Err(problem("an encoding that is not known".to_owned())),
        };
        let duration = Duration::try_from_secs_f64(result.duration_ms / 1000.0);
        Ok(Self {
            stdout: decode(result.stdout)?,
            stderr: decode(result.stderr)?,
            exit_code: result.exit_code,
            signal: result.signal,
            timed_out: result.timed_out,
            duration: duration.unwrap_or_default(),
        })
    }
}
