//! Commands whose output is streamed.
//!
//! ```text
//!              ┌───────────── task ──────────────┐
//!  next() ◀────┤ read:  frames, offsets, exit    │◀── WebSocket ◀── command
//!  Stdin  ────▶┤ write: input, size, pings       │──▶ WebSocket ──▶ command
//!              │ reconnect from the last offset  │
//!              └─────────────────────────────────┘
//! ```
//!
//! The task holds one event that was not taken yet. All else waits in the socket, and at
//! last the command waits.

mod connection;
mod input;

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Method;
use tokio::sync::{mpsc, watch};
use wrenn_api::error::InvalidValue;
use wrenn_api::id::SandboxId;
pub use wrenn_api::stream::TerminalSize;
use wrenn_api::stream::{Connect, Offsets, Start};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::signal::Signal;
use connection::{Connection, Opening};
pub use input::Stdin;

/// How long a broken connection is tried again.
const RECONNECT: Duration = Duration::from_secs(60);

/// Something that a process tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessEvent {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// Bytes of the terminal, for a process that has one.
    Tty(Bytes),
    /// It has ended. The last event.
    Exit(ExitStatus),
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExitStatus {
    /// The exit code, or 128 and the signal's number. 127: the command was not found; 126:
    /// it is no program.
    pub code: i32,
    /// The number of the signal that ended it.
    pub signal: Option<u32>,
    /// Whether its time-out killed it.
    pub timed_out: bool,
    /// A sentence where the code does not tell: the command was not found.
    pub message: Option<String>,
}

impl ExitStatus {
    /// Whether the exit code is 0.
    #[must_use]
    pub const fn success(&self) -> bool {
        self.code == 0
    }
}

/// A process by its number in the guest, or by the tag that it was started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessId {
    /// The number.
    Pid(u32),
    /// The tag.
    Tag(String),
}

impl ProcessId {
    pub(crate) fn segment(&self) -> String {
        match self {
            Self::Pid(pid) => pid.to_string(),
            Self::Tag(tag) => tag.clone(),
        }
    }
}

impl From<u32> for ProcessId {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

/// Text of digits only is a number, any other a tag.
impl From<&str> for ProcessId {
    fn from(text: &str) -> Self {
        text.parse()
            .map_or_else(|_| Self::Tag(text.to_owned()), Self::Pid)
    }
}

impl From<String> for ProcessId {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

/// Starts a process when it is awaited.
#[derive(Clone, Debug)]
#[must_use = "nothing is started until it is awaited"]
pub struct Spawn {
    client: Client,
    sandbox: SandboxId,
    start: Start,
    reconnect: Duration,
}

impl Spawn {
    pub(crate) fn new(client: Client, sandbox: SandboxId, cmd: String, args: Vec<String>) -> Self {
        Self {
            client,
            sandbox,
            start: Start {
                cmd,
                args,
                ..Start::default()
            },
            reconnect: RECONNECT,
        }
    }

    /// Adds a variable to its environment.
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.start.env.insert(name.into(), value.into());
        self
    }

    /// Adds variables to its environment.
    pub fn envs(mut self, variables: BTreeMap<String, String>) -> Self {
        self.start.env.extend(variables);
        self
    }

    /// The directory that it starts in; the user's home unless set.
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.start.cwd = directory.into();
        self
    }

    /// The user of the guest that it runs as; the template's default one unless set.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.start.user = user.into();
        self
    }

    /// A name to find it by.
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.start.tag = tag.into();
        self
    }

    /// Kills it after this long, rounded up to seconds. Never unless set.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.start.timeout_sec = whole_seconds(timeout);
        self
    }

    /// Keeps its standard input open, for [`Process::write_stdin`]. It reads end of file at
    /// once without.
    pub fn stdin(mut self) -> Self {
        self.start.stdin = true;
        self
    }

    /// Gives it a terminal, whose output comes as [`ProcessEvent::Tty`]. Implies
    /// [`stdin`](Self::stdin).
    pub fn tty(mut self, size: TerminalSize) -> Self {
        self.start.tty = Some(size);
        self.start.stdin = true;
        self
    }

    /// How long a broken connection is tried again: 60 seconds unless set.
    pub fn reconnect_for(mut self, time: Duration) -> Self {
        self.reconnect = time;
        self
    }
}

impl IntoFuture for Spawn {
    type Output = Result<Process>;
    type IntoFuture = BoxFuture<'static, Result<Process>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let takes_input = self.start.stdin;
            let tty = self.start.tty.is_some();
            let opening = Opening::Start(self.start);
            open(
                self.client,
                self.sandbox,
                opening,
                Options {
                    tty,
                    takes_input,
                    reconnect: self.reconnect,
                },
            )
            .await
        })
    }
}

/// Follows a process that runs already, when it is awaited.
#[derive(Clone, Debug)]
#[must_use = "nothing is followed until it is awaited"]
pub struct Attach {
    client: Client,
    sandbox: SandboxId,
    process: ProcessId,
    from: Option<Offsets>,
    reconnect: Duration,
}

impl Attach {
    pub(crate) fn new(client: Client, sandbox: SandboxId, process: ProcessId) -> Self {
        Self {
            client,
            sandbox,
            process,
            from: None,
            reconnect: RECONNECT,
        }
    }

    /// Output from these offsets on, as [`Process::offsets`] told them. Without, what no
    /// client was sent.
    pub fn from(mut self, offsets: Offsets) -> Self {
        self.from = Some(offsets);
        self
    }

    /// How long a broken connection is tried again: 60 seconds unless set.
    pub fn reconnect_for(mut self, time: Duration) -> Self {
        self.reconnect = time;
        self
    }
}

impl IntoFuture for Attach {
    type Output = Result<Process>;
    type IntoFuture = BoxFuture<'static, Result<Process>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let connect = Connect {
                from: self.from,
                ..Connect::default()
            };
            let opening = Opening::Attach(self.process.segment(), connect);
            let options = Options {
                tty: false,
                takes_input: true,
                reconnect: self.reconnect,
            };
            open(self.client, self.sandbox, opening, options).await
        })
    }
}

struct Options {
    tty: bool,
    takes_input: bool,
    reconnect: Duration,
}

async fn open(
    client: Client,
    sandbox: SandboxId,
    opening: Opening,
    options: Options,
) -> Result<Process> {
    let opened = Connection::open(&client, &sandbox, opening).await?;
    let (events, receive) = mpsc::channel(1);
    let (send, inputs) = mpsc::channel(1);
    let (size, sizes) = watch::channel(None);
    let (offsets, seen) = watch::channel(opened.offsets());
    let pid = opened.pid();
    let process = Process {
        client: client.clone(),
        sandbox: sandbox.clone(),
        pid,
        tag: opened.tag().to_owned(),
        events: receive,
        stdin: options.takes_input.then(|| Stdin::new(send)),
        size,
        offsets: seen,
        exited: false,
    };
    let follow = connection::Follow {
        client,
        sandbox,
        tty: options.tty || opened.tty(),
        reconnect: options.reconnect,
        events,
        inputs: input::Inputs::new(inputs, sizes),
        offsets,
    };
    tokio::spawn(follow.run(opened));
    Ok(process)
}

/// A process in a sandbox, with its output as it comes.
///
/// A connection that breaks is made again, and output goes on where it stopped. Output that
/// is not taken by [`next`](Self::next) makes the process wait. Dropping the value lets the
/// process go on without a follower, as [`detach`](Self::detach) does.
///
/// ```no_run
/// # async fn example(sandbox: wrenn_sdk::Sandbox) -> wrenn_sdk::Result<()> {
/// use wrenn_sdk::ProcessEvent;
///
/// let mut process = sandbox.spawn("make", ["all"]).cwd("/src").await?;
/// while let Some(event) = process.next().await? {
///     match event {
///         ProcessEvent::Stdout(bytes) => print!("{}", String::from_utf8_lossy(&bytes)),
///         ProcessEvent::Exit(status) => println!("ended with {}", status.code),
///         _ => {}
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Process {
    client: Client,
    sandbox: SandboxId,
    pid: u32,
    tag: String,
    events: mpsc::Receiver<Result<ProcessEvent>>,
    stdin: Option<Stdin>,
    size: watch::Sender<Option<TerminalSize>>,
    offsets: watch::Receiver<Offsets>,
    exited: bool,
}

impl Process {
    /// Its number in the guest; 0 for a command that could not be started.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// The tag that it was started with; empty for none.
    #[must_use]
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// The next event; nothing after its exit.
    ///
    /// # Errors
    /// When the connection broke and could not be made again, or output is lost. The process
    /// may still run then; [`Sandbox::attach`](crate::Sandbox::attach) finds it again.
    ///
    /// # Cancel safety
    /// Safe: nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<ProcessEvent>> {
        if self.exited {
            return Ok(None);
        }
        match self.events.recv().await {
            Some(event) => {
                let event = event?;
                self.exited = matches!(event, ProcessEvent::Exit(_));
                Ok(Some(event))
            }
            None => Err(Error::Disconnected {
                request: "the stream of a process".to_owned(),
                request_id: None,
                source: "it ended with an error before".into(),
            }),
        }
    }

    /// Waits for its end and drops its output.
    ///
    /// # Errors
    /// Like [`next`](Self::next).
    ///
    /// # Cancel safety
    /// Safe, but for the output that was dropped.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        loop {
            match self.next().await? {
                Some(ProcessEvent::Exit(status)) => return Ok(status),
                Some(_) => {}
                None => {
                    return Err(Error::Invalid(InvalidValue {
                        what: "process to wait for",
                        value: self.pid.to_string(),
                        expected: "one whose exit was not taken yet",
                    }));
                }
            }
        }
    }

    /// How much of its output was taken or is next to be, for
    /// [`Attach::from`] in another program.
    #[must_use]
    pub fn offsets(&self) -> Offsets {
        *self.offsets.borrow()
    }

    /// Writes to its standard input or terminal. Waits while the process does not read.
    ///
    /// # Errors
    /// When it has no open input ([`Spawn::stdin`]), or has ended.
    pub async fn write_stdin(&mut self, bytes: impl Into<Bytes>) -> Result<()> {
        match &mut self.stdin {
            Some(stdin) => stdin.write(bytes).await,
            None => Err(Error::InputClosed),
        }
    }

    /// Ends its standard input: it reads end of file after what was written.
    ///
    /// # Errors
    /// When it has no open input, or has ended.
    pub async fn close_stdin(&mut self) -> Result<()> {
        match self.stdin.take() {
            Some(stdin) => stdin.close().await,
            None => Err(Error::InputClosed),
        }
    }

    /// Its standard input as a value of its own, to write while something else reads.
    pub fn take_stdin(&mut self) -> Option<Stdin> {
        self.stdin.take()
    }

    /// Sends a signal to its process group. Goes past input that it does not read.
    ///
    /// # Errors
    /// When it has ended, or the server cannot be reached.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        self.handle().signal(signal).await
    }

    /// Kills it and its process group.
    ///
    /// # Errors
    /// When it has ended, or the server cannot be reached.
    pub async fn kill(&self) -> Result<()> {
        self.signal(Signal::KILL).await
    }

    /// Tells its terminal a new size. Returns at once; of several sizes the last counts.
    pub fn resize(&self, size: TerminalSize) {
        self.size.send_replace(Some(size));
    }

    /// Lets the process go on without a follower.
    pub fn detach(self) {}

    /// A handle for signals and sizes while [`next`](Self::next) is awaited.
    #[must_use]
    pub fn handle(&self) -> ProcessHandle {
        ProcessHandle {
            client: self.client.clone(),
            sandbox: self.sandbox.clone(),
            pid: self.pid,
            size: self.size.clone(),
        }
    }
}

/// Signals and terminal size of a [`Process`], for use beside its stream.
#[derive(Clone, Debug)]
pub struct ProcessHandle {
    client: Client,
    sandbox: SandboxId,
    pid: u32,
    size: watch::Sender<Option<TerminalSize>>,
}

impl ProcessHandle {
    /// Sends a signal to its process group.
    ///
    /// # Errors
    /// When it has ended, or the server cannot be reached.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        send_signal(
            &self.client,
            &self.sandbox,
            &ProcessId::Pid(self.pid),
            signal,
        )
        .await
    }

    /// Tells its terminal a new size.
    pub fn resize(&self, size: TerminalSize) {
        self.size.send_replace(Some(size));
    }
}

pub(crate) async fn send_signal(
    client: &Client,
    sandbox: &SandboxId,
    process: &ProcessId,
    signal: Signal,
) -> Result<()> {
    let process = process.segment();
    let path = ["v1", "sandboxes", sandbox.as_str(), "processes", &process];
    let query = [("signal", signal.number().to_string())];
    let call = client.call_with(Method::DELETE, &path, &query)?;
    client.transport.send(call).await.map(drop)
}

pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
