//! Commands in the guest.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::client::CallOptions;
use wrenn_proto::http::KEEPALIVE_PING_HEADER;
use wrenn_proto::process as wire;
use wrenn_proto::process::__buffa::oneof::process_event::{Event, data_event::Output};
use wrenn_proto::process::__buffa::oneof::process_selector::Selector;
use wrenn_proto::process::{
    ConnectRequest, ListRequest, PTY, ProcessConfig, ProcessSelector, SendSignalRequest,
    StartRequest, UpdateRequest, pty,
};

use super::{GuestClient, GuestError, ProcessInput};

/// How often, in seconds, a quiet stream is to show that it lives. No proxy or firewall on
/// the way then takes it for dead.
const KEEPALIVE_SECONDS: &str = "30";

/// A command to run in the guest.
#[derive(Clone, Debug, Default)]
pub struct Command {
    program: String,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    cwd: Option<String>,
    user: Option<String>,
    pty: Option<PtySize>,
    stdin: bool,
    tag: Option<String>,
    timeout: Option<Duration>,
    terminate_on_disconnect: bool,
}

/// Size of a terminal, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PtySize {
    /// Columns.
    pub cols: u16,
    /// Rows.
    pub rows: u16,
}

impl From<PtySize> for PTY {
    fn from(size: PtySize) -> Self {
        let size = pty::Size {
            cols: size.cols.into(),
            rows: size.rows.into(),
        };
        Self {
            size: MessageField::some(size),
        }
    }
}

impl Command {
    /// A program, found on the guest's PATH, without arguments.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            ..Self::default()
        }
    }

    /// A line for the guest's `sh`.
    #[must_use]
    pub fn shell(line: impl Into<String>) -> Self {
        Self::new("sh").args(["-c".to_owned(), line.into()])
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// The directory that it starts in; the user's home unless set.
    #[must_use]
    pub fn cwd(mut self, directory: impl Into<String>) -> Self {
        self.cwd = Some(directory.into());
        self
    }

    /// The user that it runs as; the template's default unless set.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// Gives it a terminal of this size.
    #[must_use]
    pub fn pty(mut self, size: PtySize) -> Self {
        self.pty = Some(size);
        self
    }

    /// Leaves its standard input open for [`GuestProcess::input`]; it is empty otherwise.
    #[must_use]
    pub fn with_stdin(mut self) -> Self {
        self.stdin = true;
        self
    }

    /// A name by which it can be found again.
    #[must_use]
    pub fn tag(mut self, tag: impl Into<String>) -> Self {
        self.tag = Some(tag.into());
        self
    }

    /// Has the daemon terminate it when the connection to us is gone for good: SIGTERM after 10
    /// seconds without a client, SIGKILL after 30 more. Otherwise it goes on.
    #[must_use]
    pub fn terminate_on_disconnect(mut self) -> Self {
        self.terminate_on_disconnect = true;
        self
    }

    /// Kills it after this long.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }
}

/// What a running command tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEvent {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// Bytes of its terminal.
    Pty(Bytes),
    /// It ended; nothing follows.
    Exit(ExitStatus),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExitStatus {
    /// Its exit code; for one that died by a signal, -1 or 128 and the signal's number, as
    /// the daemon chose.
    pub code: i32,
    /// Whether it ended by itself.
    pub exited: bool,
    /// The daemon's words, such as `exit status 3` or `signal: killed`.
    pub status: String,
    /// What went wrong, where something did.
    pub error: Option<String>,
    /// The number of the signal that ended it, where one did and the daemon says which.
    pub signal: Option<u8>,
    /// Whether its time-out killed it.
    pub timed_out: bool,
}

impl ExitStatus {
    /// The end of a command that its time-out killed, of which the daemon says only that.
    #[must_use]
    pub fn killed_by_timeout() -> Self {
        Self {
            code: 128 + 9,
            exited: false,
            status: "signal: killed".to_owned(),
            error: Some("its deadline passed, and it was killed".to_owned()),
            signal: Some(9),
            timed_out: true,
        }
    }

    /// The code that a shell would show: the command's own, or 128 and the signal's number.
    #[must_use]
    pub fn shell_code(&self) -> u8 {
        if self.exited {
            return u8::try_from(self.code & 0xff).unwrap_or(1);
        }
        128u8.saturating_add(self.signal_number().unwrap_or(0))
    }

    /// The number of the signal that ended it.
    #[must_use]
    pub fn signal_number(&self) -> Option<u8> {
        if self.exited {
            return None;
        }
        self.signal.or_else(|| {
            let number = if self.code > 128 {
                Some(self.code - 128)
            } else {
                signal_number(&self.status)
            };
            number.and_then(|number| u8::try_from(number).ok())
        })
    }
}

/// Reads the number out of words such as `signal: killed`.
fn signal_number(status: &str) -> Option<i32> {
    let name = status.strip_prefix("signal: ")?;
    let name = name.trim_end_matches(" (core dumped)");
    Some(match name {
        "hangup" => 1,
        "interrupt" => 2,
        "quit" => 3,
        "illegal instruction" => 4,
        "trace/breakpoint trap" => 5,
        "aborted" => 6,
        "bus error" => 7,
        "floating point exception" => 8,
        "killed" => 9,
        "user defined signal 1" => 10,
        "segmentation fault" => 11,
        "user defined signal 2" => 12,
        "broken pipe" => 13,
        "alarm clock" => 14,
        "terminated" => 15,
        _ => name.strip_prefix("signal ").unwrap_or(name).parse().ok()?,
    })
}

/// Everything that a command printed, and how it ended.
#[derive(Clone, Debug)]
pub struct CommandOutput {
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
    /// How it ended.
    pub status: ExitStatus,
}

/// Signals that can be sent to a command.
pub use wrenn_proto::process::Signal;

/// Which process is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessId {
    /// By its id in the guest.
    Pid(u32),
    /// By the name it was given. Of several, one that runs.
    Tag(String),
}

impl From<u32> for ProcessId {
    fn from(pid: u32) -> Self {
        Self::Pid(pid)
    }
}

impl From<ProcessId> for ProcessSelector {
    fn from(id: ProcessId) -> Self {
        Self {
            selector: Some(match id {
                ProcessId::Pid(pid) => Selector::Pid(pid),
                ProcessId::Tag(tag) => Selector::Tag(tag),
            }),
        }
    }
}

/// How many bytes of each channel of a command's output somebody has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutputOffsets {
    /// Of its standard output.
    pub stdout: u64,
    /// Of its standard error.
    pub stderr: u64,
    /// Of its terminal.
    pub terminal: u64,
}

/// A process that runs in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessSummary {
    /// Its id in the guest.
    pub pid: u32,
    /// Its program.
    pub program: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// The name it was given.
    pub tag: Option<String>,
    /// Whether it has a terminal.
    pub terminal: bool,
}

/// A running command. Dropping it leaves the command running, unless that was to be
/// [terminated](Command::terminate_on_disconnect) then.
pub struct GuestProcess {
    pid: u32,
    terminal: bool,
    tag: Option<String>,
    /// Where the last output stands.
    offset: u64,
    client: GuestClient,
    events: BoxStream<'static, Result<Event, GuestError>>,
    ended: bool,
}

impl fmt::Debug for GuestProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestProcess")
            .field("pid", &self.pid)
            .finish_non_exhaustive()
    }
}

/// Turns a generated server stream into a plain stream of events.
macro_rules! events_of {
    ($what:expr, $stream:expr) => {
        futures::stream::try_unfold($stream, |mut stream| async move {
            loop {
                match stream.message().await.map_err(GuestError::rpc($what))? {
                    Some(message) => {
                        let event = message.to_owned_message().event.into_option();
                        if let Some(event) = event.and_then(|event| event.event) {
                            return Ok(Some((event, stream)));
                        }
                    }
                    None => return Ok(None),
                }
            }
        })
        .boxed()
    };
}

impl GuestClient {
    /// Starts a command.
    ///
    /// # Errors
    /// When it cannot be started: no such program, user or directory.
    pub async fn start(&self, command: &Command) -> Result<GuestProcess, GuestError> {
        const WHAT: &str = "starting a command";
        let mut options = keep_alive(WHAT, CallOptions::default())?;
        if let Some(user) = &command.user {
            let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:"));
            options = options
                .try_with_header("authorization", format!("Basic {basic}"))
                .map_err(GuestError::rpc(WHAT))?;
        }
        if let Some(timeout) = command.timeout {
            options = options.with_timeout(timeout);
        }
        let config = ProcessConfig {
            cmd: command.program.clone(),
            args: command.args.clone(),
            envs: command.env.clone().into_iter().collect(),
            cwd: command.cwd.clone(),
        };
        let request = StartRequest {
            process: MessageField::some(config),
            pty: command.pty.map(PTY::from).into(),
            tag: command.tag.clone(),
            stdin: Some(command.stdin),
            terminate_on_disconnect: command.terminate_on_disconnect,
        };
        let stream = self
            .processes
            .start_with_options(request, options)
            .await
            .map_err(GuestError::rpc(WHAT))?;
        self.attach(WHAT, events_of!(WHAT, stream)).await
    }

    /// Joins a process that runs already, or ended a moment ago. Output that nobody was sent so
    /// far comes first.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn connect(&self, process: impl Into<ProcessId>) -> Result<GuestProcess, GuestError> {
        self.join(process.into(), None).await
    }

    /// The same, where output comes again that somebody had before, from `from` on. Bytes that are
    /// no longer kept are left out: [`GuestProcess::offset`] then shows a gap.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn connect_from(
        &self,
        process: impl Into<ProcessId>,
        from: OutputOffsets,
    ) -> Result<GuestProcess, GuestError> {
        self.join(process.into(), Some(from)).await
    }

    async fn join(
        &self,
        process: ProcessId,
        from: Option<OutputOffsets>,
    ) -> Result<GuestProcess, GuestError> {
        const WHAT: &str = "joining a command";
        let options = keep_alive(WHAT, CallOptions::default())?;
        let from = from.map(|from| wire::OutputOffsets {
            stdout: from.stdout,
            stderr: from.stderr,
            pty: from.terminal,
        });
        let request = ConnectRequest {
            process: ProcessSelector::from(process).into(),
            from: from.into(),
        };
        let stream = self
            .processes
            .connect_with_options(request, options)
            .await
            .map_err(GuestError::rpc(WHAT))?;
        self.attach(WHAT, events_of!(WHAT, stream)).await
    }

    async fn attach(
        &self,
        what: &'static str,
        mut events: BoxStream<'static, Result<Event, GuestError>>,
    ) -> Result<GuestProcess, GuestError> {
        loop {
            match events.next().await {
                Some(Ok(Event::Start(start))) => {
                    return Ok(GuestProcess {
                        pid: start.pid,
                        terminal: start.terminal,
                        tag: start.tag,
                        offset: 0,
                        client: self.clone(),
                        events,
                        ended: false,
                    });
                }
                Some(Ok(Event::Keepalive(_))) => {}
                Some(Ok(_)) => {
                    let reason = "an event before the start".to_owned();
                    return Err(GuestError::Protocol { what, reason });
                }
                Some(Err(error)) => return Err(error),
                None => {
                    let reason = "the stream ended before the start".to_owned();
                    return Err(GuestError::Protocol { what, reason });
                }
            }
        }
    }

    /// Runs a command to its end and collects what it prints, which must fit in memory.
    ///
    /// # Errors
    /// When it cannot be started or the connection breaks. A command that fails is no
    /// error here: look at its status.
    pub async fn output(&self, command: &Command) -> Result<CommandOutput, GuestError> {
        let mut process = self.start(command).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match process.next().await? {
                ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => {
                    stdout.extend_from_slice(&bytes)
                }
                ProcessEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
                ProcessEvent::Exit(status) => {
                    return Ok(CommandOutput {
                        stdout,
                        stderr,
                        status,
                    });
                }
            }
        }
    }

    /// The commands that run in the guest.
    ///
    /// # Errors
    /// When the daemon cannot be asked.
    pub async fn processes(&self) -> Result<Vec<ProcessSummary>, GuestError> {
        let response = self
            .processes
            .list(ListRequest::default())
            .await
            .map_err(GuestError::rpc("listing commands"))?;
        let summaries = response.into_owned().processes.into_iter().map(|process| {
            let config = process.config.into_option().unwrap_or_default();
            ProcessSummary {
                pid: process.pid,
                program: config.cmd,
                args: config.args,
                tag: process.tag,
                terminal: process.terminal,
            }
        });
        Ok(summaries.collect())
    }

    /// A writer for the standard input of a command, or its terminal if it has one. One at
    /// a time.
    #[must_use]
    pub fn input(&self, pid: u32, pty: bool) -> ProcessInput {
        ProcessInput::open(self.clone(), pid, pty)
    }

    /// Sends a signal to a command's whole process group.
    ///
    /// # Errors
    /// When there is no such process.
    pub async fn signal(
        &self,
        process: impl Into<ProcessId>,
        signal: Signal,
    ) -> Result<(), GuestError> {
        let request = SendSignalRequest {
            process: ProcessSelector::from(process.into()).into(),
            signal: signal.into(),
        };
        let sent = self.processes.send_signal(request).await;
        sent.map(drop).map_err(GuestError::rpc("sending a signal"))
    }

    /// Tells a command's terminal its new size.
    ///
    /// # Errors
    /// When there is no such process or it has no terminal.
    pub async fn resize(&self, pid: u32, size: PtySize) -> Result<(), GuestError> {
        let request = UpdateRequest {
            process: by_pid(pid).into(),
            pty: MessageField::some(size.into()),
        };
        let sent = self.processes.update(request).await;
        sent.map(drop)
            .map_err(GuestError::rpc("resizing a terminal"))
    }
}

impl GuestProcess {
    /// Its id in the guest.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.terminal
    }

    /// The name it was given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Where the first byte of the output that [`next`](Self::next) gave last stands in its
    /// channel.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// A writer for its standard input or terminal. One at a time.
    #[must_use]
    pub fn input(&self) -> ProcessInput {
        self.client.input(self.pid, self.terminal)
    }

    /// The next event. After [`ProcessEvent::Exit`] there is none, and asking is an error.
    ///
    /// # Errors
    /// When the connection breaks, or the command was killed by its time-out.
    ///
    /// # Cancel safety
    /// Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<ProcessEvent, GuestError> {
        const WHAT: &str = "a running command";
        let broken = |reason: &str| GuestError::Protocol {
            what: WHAT,
            reason: reason.to_owned(),
        };
        if self.ended {
            return Err(broken("it ended already"));
        }
        loop {
            let Some(event) = self.events.next().await else {
                return Err(broken("its stream ended without an exit status"));
            };
            match event? {
                Event::Data(data) => {
                    self.offset = data.offset;
                    match data.output {
                        Some(Output::Stdout(bytes)) => return Ok(ProcessEvent::Stdout(bytes)),
                        Some(Output::Stderr(bytes)) => return Ok(ProcessEvent::Stderr(bytes)),
                        Some(Output::Pty(bytes)) => return Ok(ProcessEvent::Pty(bytes)),
                        None => {}
                    }
                }
                Event::End(end) => {
                    self.ended = true;
                    return Ok(ProcessEvent::Exit(ExitStatus {
                        code: end.exit_code,
                        exited: end.exited,
                        status: end.status,
                        error: end.error,
                        signal: u8::try_from(end.signal).ok().filter(|signal| *signal > 0),
                        timed_out: end.deadline,
                    }));
                }
                Event::Start(_) | Event::Keepalive(_) => {}
            }
        }
    }
}

pub(super) fn keep_alive(
    what: &'static str,
    options: CallOptions,
) -> Result<CallOptions, GuestError> {
    options
        .try_with_header(KEEPALIVE_PING_HEADER, KEEPALIVE_SECONDS)
        .map_err(GuestError::rpc(what))
}

pub(super) fn by_pid(pid: u32) -> ProcessSelector {
    ProcessSelector {
        selector: Some(Selector::Pid(pid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32, exited: bool, status: &str) -> ExitStatus {
        ExitStatus {
            code,
            exited,
            status: status.to_owned(),
            error: None,
            signal: None,
            timed_out: false,
        }
    }

    #[test]
    fn codes_are_those_of_a_shell() {
        assert_eq!(ended(3, true, "exit status 3").shell_code(), 3);
        assert_eq!(ended(-1, false, "signal: killed").shell_code(), 137);
        assert_eq!(ended(-1, false, "signal: terminated").shell_code(), 143);
        assert_eq!(
            ended(-1, false, "signal: segmentation fault (core dumped)").shell_code(),
            139
        );
        assert_eq!(ended(130, false, "signal: interrupt").shell_code(), 130);
    }
}
