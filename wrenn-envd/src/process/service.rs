//! The RPC face of processes: requests in, events out.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use rustix::process::Signal;
use tokio::time::Instant;
use wrenn_proto::connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use wrenn_proto::hostagent::Reason;
use wrenn_proto::http::KEEPALIVE_PING_HEADER;
use wrenn_proto::process::process_event::{
    DataEvent, Event, KeepAlive, StartEvent, data_event::Output,
};
use wrenn_proto::process::process_input;
use wrenn_proto::process::process_selector;
use wrenn_proto::process::stream_input_request;
use wrenn_proto::process::{
    self as wire, CloseStdinRequest, CloseStdinResponse, ConnectRequest, ConnectResponse,
    ListRequest, ListResponse, ProcessConfig, ProcessEvent, ProcessInfo, ProcessInput,
    ProcessSelector, SendInputRequest, SendInputResponse, SendSignalRequest, SendSignalResponse,
    StartRequest, StartResponse, StreamInputRequest, StreamInputResponse, UpdateRequest,
    UpdateResponse,
};
use wrenn_proto::reason::with_reason;

use super::hub::{Channel, Chunk, Followed, Follower, Offsets};
use super::launch::{LaunchError, Order};
use super::owner::{InputError, InputKind, Process, SignalError};
use super::stdio::TerminalSize;
use super::table::Selector;
use crate::auth;
use crate::guest::Guest;

const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

pub struct ProcessService {
    guest: Arc<Guest>,
}

impl ProcessService {
    pub fn new(guest: Arc<Guest>) -> Self {
        Self { guest }
    }

    fn running(&self, selector: Option<ProcessSelector>) -> Result<Arc<Process>, ConnectError> {
        let selector = read_selector(selector)?;
        self.guest
            .processes
            .find_running(&selector)
            .ok_or_else(|| not_found(&selector))
    }
}

impl wire::Process for ProcessService {
    async fn list<'a>(
        &'a self,
        _ctx: RequestContext,
        _request: ServiceRequest<'_, ListRequest>,
    ) -> ServiceResult<impl Encodable<ListResponse> + Send + use<'a>> {
        let processes = self
            .guest
            .processes
            .running()
            .iter()
            .map(|p| describe(p))
            .collect();
        Response::ok(ListResponse { processes })
    }

    async fn connect(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ConnectRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ConnectResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let selector = read_selector(request.process.into_option())?;
        let process = self
            .guest
            .processes
            .find(&selector)
            .ok_or_else(|| not_found(&selector))?;
        let from = request.from.into_option().map(|from| Offsets {
            stdout: from.stdout,
            stderr: from.stderr,
            pty: from.pty,
        });
        let stream = Stage::Announce {
            start: started(&process),
            follower: process.follow(from),
            keepalive: keepalive(&ctx),
            deadline: ctx.deadline().map(Instant::from_std),
            end_at_deadline: false,
        };
        Ok(Response::stream(events(stream).map(|event| {
            event.map(|event| ConnectResponse {
                event: event.into(),
            })
        })))
    }

    async fn start(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StartRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StartResponse> + Send + use<>>> {
        let user = auth::identify(ctx.headers(), &self.guest.settings())?;
        let order = read_order(request.to_owned_message());
        let deadline = ctx.deadline().map(Instant::from_std);
        let (process, follower) = Process::start(&self.guest, order, &user, deadline)?;
        tracing::debug!(
            pid = process.pid,
            command = process.order.command,
            "started"
        );
        let stream = Stage::Announce {
            start: started(&process),
            follower,
            keepalive: keepalive(&ctx),
            // The owner keeps the deadline, and this stream learns of it with the end.
            deadline: None,
            end_at_deadline: true,
        };
        Ok(Response::stream(events(stream).map(|event| {
            event.map(|event| StartResponse {
                event: event.into(),
            })
        })))
    }

    async fn update<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, UpdateRequest>,
    ) -> ServiceResult<impl Encodable<UpdateResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.running(request.process.into_option())?;
        if let Some(pty) = request.pty.into_option() {
            process.resize(read_size(&pty)).await?;
        }
        Response::ok(UpdateResponse::default())
    }

    async fn stream_input<'a>(
        &'a self,
        _ctx: RequestContext,
        mut requests: InboundStream<StreamInputRequest>,
    ) -> ServiceResult<impl Encodable<StreamInputResponse> + Send + use<'a>> {
        let mut process = None;
        while let Some(message) = requests.next().await {
            match (message?.to_owned_message().event, &process) {
                (Some(stream_input_request::Event::Start(start)), None) => {
                    process = Some(self.running(start.process.into_option())?);
                }
                (Some(stream_input_request::Event::Data(data)), Some(process)) => {
                    write(process, data.input.into_option()).await?;
                }
                (Some(stream_input_request::Event::Keepalive(_)) | None, _) => {}
                (Some(stream_input_request::Event::Start(_)), Some(_)) => {
                    return Err(ConnectError::invalid_argument(
                        "the process was selected already",
                    ));
                }
                (Some(stream_input_request::Event::Data(_)), None) => {
                    return Err(ConnectError::invalid_argument(
                        "the first message must select a process",
                    ));
                }
            }
        }
        Response::ok(StreamInputResponse::default())
    }

    async fn send_input<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendInputRequest>,
    ) -> ServiceResult<impl Encodable<SendInputResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let process = self.running(request.process.into_option())?;
        write(&process, request.input.into_option()).await?;
        Response::ok(SendInputResponse::default())
    }

    async fn send_signal<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, SendSignalRequest>,
    ) -> ServiceResult<impl Encodable<SendSignalResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let number = request.signal.to_i32();
        let signal = Signal::from_named_raw(number).ok_or_else(|| {
            ConnectError::invalid_argument(format!("{number} is not the number of a signal"))
        })?;
        self.running(request.process.into_option())?
            .signal(signal)?;
        Response::ok(SendSignalResponse::default())
    }

    async fn close_stdin<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, CloseStdinRequest>,
    ) -> ServiceResult<impl Encodable<CloseStdinResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        self.running(request.process.into_option())?
            .close_input()
            .await?;
        Response::ok(CloseStdinResponse::default())
    }
}

async fn write(process: &Process, input: Option<ProcessInput>) -> Result<(), ConnectError> {
    match input.and_then(|input| input.input) {
        Some(process_input::Input::Stdin(bytes)) => {
            Ok(process.write(InputKind::Stdin, &bytes).await?)
        }
        Some(process_input::Input::Pty(bytes)) => Ok(process.write(InputKind::Pty, &bytes).await?),
        None => Err(ConnectError::invalid_argument("no input was given")),
    }
}

/// Where one stream of events stands.
enum Stage {
    Announce {
        start: StartEvent,
        follower: Follower,
        keepalive: Duration,
        /// When this stream ends, whatever the process does.
        deadline: Option<Instant>,
        /// Whether an end that a deadline brought about is an error for this stream.
        end_at_deadline: bool,
    },
    Follow {
        follower: Follower,
        keepalive: Duration,
        deadline: Option<Instant>,
        end_at_deadline: bool,
    },
    Done,
}

/// `start`, any number of `data` and `keepalive`, then `end` or an error.
fn events(stage: Stage) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send {
    futures::stream::unfold(stage, |stage| async move {
        match stage {
            Stage::Announce {
                start,
                follower,
                keepalive,
                deadline,
                end_at_deadline,
            } => {
                let next = Stage::Follow {
                    follower,
                    keepalive,
                    deadline,
                    end_at_deadline,
                };
                Some((Ok(event(start)), next))
            }
            Stage::Follow {
                mut follower,
                keepalive,
                deadline,
                end_at_deadline,
            } => {
                let passed = async {
                    match deadline {
                        Some(deadline) => tokio::time::sleep_until(deadline).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    () = passed => Some((Err(too_late()), Stage::Done)),
                    followed = follower.next() => match followed {
                        Some(Followed::Output(chunk)) => {
                            let next = Stage::Follow { follower, keepalive, deadline, end_at_deadline };
                            Some((Ok(event(data(chunk))), next))
                        }
                        Some(Followed::Ended(end)) if end.deadline && end_at_deadline => {
                            Some((Err(too_late()), Stage::Done))
                        }
                        Some(Followed::Ended(end)) => Some((Ok(event(end.event())), Stage::Done)),
                        None => None,
                    },
                    () = tokio::time::sleep(keepalive) => {
                        let next = Stage::Follow { follower, keepalive, deadline, end_at_deadline };
                        Some((Ok(event(KeepAlive::default())), next))
                    }
                }
            }
            Stage::Done => None,
        }
    })
}

fn event(event: impl Into<Event>) -> ProcessEvent {
    ProcessEvent {
        event: Some(event.into()),
    }
}

fn started(process: &Process) -> StartEvent {
    StartEvent {
        pid: process.pid,
        terminal: process.order.terminal.is_some(),
        tag: process.order.tag.clone(),
    }
}

fn data(chunk: Chunk) -> DataEvent {
    DataEvent {
        offset: chunk.offset,
        output: Some(match chunk.channel {
            Channel::Stdout => Output::Stdout(chunk.bytes),
            Channel::Stderr => Output::Stderr(chunk.bytes),
            Channel::Pty => Output::Pty(chunk.bytes),
        }),
    }
}

fn too_late() -> ConnectError {
    ConnectError::deadline_exceeded("the deadline of the request has passed")
}

fn keepalive(ctx: &RequestContext) -> Duration {
    ctx.header(KEEPALIVE_PING_HEADER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|seconds| (1..=3600).contains(seconds))
        .map_or(DEFAULT_KEEPALIVE, Duration::from_secs)
}

fn describe(process: &Process) -> ProcessInfo {
    let order = &process.order;
    ProcessInfo {
        pid: process.pid,
        tag: order.tag.clone(),
        terminal: order.terminal.is_some(),
        config: ProcessConfig {
            cmd: order.command.clone(),
            args: order.arguments.clone(),
            envs: order.env.clone().into_iter().collect(),
            cwd: order.directory.clone(),
        }
        .into(),
    }
}

fn read_order(request: StartRequest) -> Order {
    let config = request.process.into_option().unwrap_or_default();
    Order {
        command: config.cmd,
        arguments: config.args,
        env: config.envs.into_iter().collect(),
        directory: config.cwd,
        tag: request.tag,
        stdin: request.stdin.unwrap_or(true),
        terminal: request.pty.into_option().map(|pty| read_size(&pty)),
        terminate_on_disconnect: request.terminate_on_disconnect,
    }
}

/// A terminal without a size gets the one that terminals have always had.
fn read_size(pty: &wire::PTY) -> TerminalSize {
    let size = pty.size.as_option().cloned().unwrap_or_default();
    let limit = |value: u32, default: u16| match u16::try_from(value) {
        Ok(0) => default,
        Ok(value) => value,
        Err(_) => u16::MAX,
    };
    TerminalSize {
        columns: limit(size.cols, 80),
        rows: limit(size.rows, 24),
    }
}

fn read_selector(selector: Option<ProcessSelector>) -> Result<Selector, ConnectError> {
    match selector.and_then(|selector| selector.selector) {
        Some(process_selector::Selector::Pid(pid)) => Ok(Selector::Pid(pid)),
        Some(process_selector::Selector::Tag(tag)) => Ok(Selector::Tag(tag)),
        None => Err(ConnectError::invalid_argument("no process was selected")),
    }
}

fn not_found(selector: &Selector) -> ConnectError {
    let error = ConnectError::not_found(match selector {
        Selector::Pid(pid) => format!("process with pid {pid} not found"),
        Selector::Tag(tag) => format!("process with tag '{tag}' not found"),
    });
    with_reason(error, Reason::REASON_PROCESS_NOT_FOUND, None)
}

impl From<LaunchError> for ConnectError {
    fn from(error: LaunchError) -> Self {
        match &error {
            LaunchError::NoCommand | LaunchError::Directory { .. } => {
                Self::invalid_argument(error.to_string())
            }
            LaunchError::NotRoot { .. } => Self::permission_denied(error.to_string()),
            LaunchError::Spawn { source, .. } => match source.raw_os_error() {
                Some(libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE) => {
                    Self::resource_exhausted(error.to_string())
                }
                errno => {
                    let refused = Self::invalid_argument(error.to_string());
                    match errno.and_then(exec_failure) {
                        Some(reason) => with_reason(refused, reason, None),
                        None => refused,
                    }
                }
            },
            LaunchError::Terminal(source) | LaunchError::Pipe(source) => {
                Self::resource_exhausted(format!("{error}: {source}"))
            }
        }
    }
}

/// Why a program was not executed, as shells tell it by the exit codes 127 and 126. The
/// directory was looked at before, so what is missing is the program or its interpreter.
fn exec_failure(errno: i32) -> Option<Reason> {
    match errno {
        libc::ENOENT => Some(Reason::REASON_COMMAND_NOT_FOUND),
        libc::EACCES
        | libc::EISDIR
        | libc::ELIBBAD
        | libc::ELOOP
        | libc::ENAMETOOLONG
        | libc::ENOEXEC
        | libc::ENOTDIR
        | libc::ETXTBSY => Some(Reason::REASON_COMMAND_NOT_EXECUTABLE),
        _ => None,
    }
}

impl From<InputError> for ConnectError {
    fn from(error: InputError) -> Self {
        match error {
            InputError::Write(source) => Self::internal(format!("cannot write input: {source}")),
            _ => Self::failed_precondition(error.to_string()),
        }
    }
}

impl From<SignalError> for ConnectError {
    fn from(error: SignalError) -> Self {
        match error {
            SignalError::Ended => {
                let error = Self::not_found(error.to_string());
                with_reason(error, Reason::REASON_PROCESS_NOT_FOUND, None)
            }
            SignalError::Send(source) => {
                Self::internal(format!("cannot send the signal: {source}"))
            }
        }
    }
}

impl From<auth::IdentifyError> for ConnectError {
    fn from(error: auth::IdentifyError) -> Self {
        Self::unauthenticated(error.to_string())
    }
}
