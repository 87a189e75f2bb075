//! Commands that are followed, over a WebSocket: the protocol of [`wrenn_api::stream`].
//!
//! ```text
//!  client ── frames ──▶ Reader ── input, sizes ──▶ agent ── output ──▶ Writer ── frames ──▶ client
//!                         └─ signals: a call of its own, so that input in the way does not matter
//! ```
//!
//! Reader and writer run beside each other: a client that does not read what the command
//! prints stops the command, and can still send it a signal. A client that goes away leaves
//! the command running.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{BoxStream, SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;
use wrenn_api::error::{ErrorBody, ErrorCode};
use wrenn_api::id::{SandboxId, TeamId};
use wrenn_api::stream::{
    Channel, ClientMessage, Connect, Exit, MAX_CHUNK, MAX_CLIENT_FRAME, Offsets, Output, PROTOCOL,
    ServerMessage, decode_input,
};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::oneof::{
    connect_process_request, exec_stream_request, process_event,
};

use super::authentication::MaybeCaller;
use super::error::HttpError;
use super::exec;
use super::extract::{Path, Query, Upgrade, parser_message};
use crate::hosts::client::{HostClient, HostError};
use crate::service::App;
use crate::service::error::ServiceError;

/// How long the first frames may take: credential, and what to run.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client that was silent for this many pings is gone.
const MISSED_PINGS: u32 = 3;
/// Memory of a socket for input, which is little as a rule.
const READ_BUFFER: usize = 16 << 10;
/// After how much output the client is asked whether it has it.
const PING_BYTES: u64 = 128 << 10;
/// The most output on its way to the client. Less than what the guest keeps for a client that
/// connects again, with what is on its way to us.
const MAX_UNACKNOWLEDGED: u64 = 1 << 20;
/// Messages on their way to the agent.
const IN_FLIGHT: usize = 16;
const NORMAL: u16 = 1000;
const SIGKILL: u32 = 9;

/// A command that an agent runs, and its output.
pub(crate) struct Command {
    pub(crate) pid: u32,
    tag: String,
    tty: bool,
    input: Input,
    events: BoxStream<'static, Result<wire::ProcessEvent, ConnectError>>,
}

/// What goes up to the agent, in the words of the call that was made.
#[derive(Clone)]
enum Input {
    Started(mpsc::Sender<wire::ExecStreamRequest>),
    Connected(mpsc::Sender<wire::ConnectProcessRequest>),
}

/// One message up.
enum Upward {
    Bytes(Bytes),
    Resize(wire::TerminalSize),
    Close,
}

impl Input {
    /// False where the agent takes no more.
    async fn send(&self, message: Upward) -> bool {
        match self {
            Self::Started(up) => {
                use exec_stream_request::Message;
                let message = match message {
                    Upward::Bytes(bytes) => Message::Input(bytes),
                    Upward::Resize(size) => size.into(),
                    Upward::Close => wire::CloseInput::default().into(),
                };
                let message = Some(message);
                up.send(wire::ExecStreamRequest { message }).await.is_ok()
            }
            Self::Connected(up) => {
                use connect_process_request::Message;
                let message = match message {
                    Upward::Bytes(bytes) => Message::Input(bytes),
                    Upward::Resize(size) => size.into(),
                    Upward::Close => wire::CloseInput::default().into(),
                };
                let message = Some(message);
                up.send(wire::ConnectProcessRequest { message })
                    .await
                    .is_ok()
            }
        }
    }
}

/// Opens a stream to the agent: what is put into the channel goes up, events come down.
macro_rules! open {
    ($call:expr, $first:expr) => {{
        let (mut send, receive) = $call.await.map_err(HostError::from)?.into_split();
        let (up, mut messages) = mpsc::channel(IN_FLIGHT);
        send.send($first).await.map_err(HostError::from)?;
        let pump = tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                // Why it takes no more is said on the way down.
                if send.send(message).await.is_err() {
                    return;
                }
            }
        });
        let pump = AbortOnDropHandle::new(pump);
        let events = futures::stream::try_unfold((receive, pump), |(mut receive, pump)| async {
            let message = receive.message().await?;
            Ok(message.map(|message| (message.to_owned_message(), (receive, pump))))
        });
        (up, events.boxed())
    }};
}

impl Command {
    /// Starts a command. Dropped, it runs on.
    pub(crate) async fn start(
        id: &SandboxId,
        host: &HostClient,
        command: wire::Command,
    ) -> Result<Self, ServiceError> {
        let tag = command.tag.clone();
        let tty = command.terminal.is_set();
        let opening = async {
            let start = wire::ExecStart {
                id: id.to_string(),
                command: Some(command).into(),
            };
            let first = wire::ExecStreamRequest {
                message: Some(start.into()),
            };
            let (up, events) = open!(host.streams.exec_stream(), first);
            Self::begun(Input::Started(up), events, tag, tty).await
        };
        opening
            .await
            .map_err(|error| ServiceError::of_host(id, error))
    }

    /// Follows a command that runs.
    async fn connect(
        id: &SandboxId,
        host: &HostClient,
        connect: Connect,
    ) -> Result<Self, ServiceError> {
        let tag = connect.tag.unwrap_or_default();
        let opening = async {
            let connect = wire::ProcessConnect {
                id: id.to_string(),
                pid: connect.pid.unwrap_or_default(),
                tag: tag.clone(),
                terminal: false,
                from: connect
                    .from
                    .map(|from| wire::OutputOffsets {
                        stdout: from.stdout,
                        stderr: from.stderr,
                        terminal: from.tty,
                    })
                    .into(),
            };
            let first = wire::ConnectProcessRequest {
                message: Some(connect.into()),
            };
            let (up, events) = open!(host.streams.connect_process(), first);
            Self::begun(Input::Connected(up), events, tag, false).await
        };
        opening
            .await
            .map_err(|error| ServiceError::of_host(id, error))
    }

    async fn begun(
        input: Input,
        mut events: BoxStream<'static, Result<wire::ProcessEvent, ConnectError>>,
        tag: String,
        tty: bool,
    ) -> Result<Self, HostError> {
        loop {
            let event = match events.next().await {
                Some(Ok(event)) => event.event,
                Some(Err(error)) => return Err(error.into()),
                None => return Err(silent()),
            };
            match event {
                Some(process_event::Event::Started(started)) => {
                    return Ok(Self {
                        pid: started.pid,
                        tag: if started.tag.is_empty() {
                            tag
                        } else {
                            started.tag
                        },
                        tty: tty || started.terminal,
                        input,
                        events,
                    });
                }
                Some(process_event::Event::KeepAlive(_)) | None => {}
                Some(_) => return Err(silent()),
            }
        }
    }
}

fn silent() -> HostError {
    HostError::Refused {
        reason: wire::Reason::REASON_INTERNAL,
        state: None,
        message: "the host does not say what it started".to_owned(),
    }
}

/// Run a command and follow it (WebSocket)
///
/// Protocol `wrenn.exec.v1`. The client sends `auth` where the request has no credential, then
/// `start` or `connect`. Text frames are `ClientMessage` and `ServerMessage`; binary frames are
/// input (a zero byte, then bytes) and output (a channel, 1 out, 2 err, 3 terminal; eight bytes
/// of offset, big-endian; bytes). With `format=json` input and output are text frames as well.
/// The server ends with exactly one `exit` or `error`.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/exec/stream", tag = "exec",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("format" = Option<String>, Query, description = "`binary` (default) or `json`"),
    ),
    responses((status = 101, description = "ServerMessage and ClientMessage in frames"), (status = "default", body = ErrorBody))
)]
pub(crate) async fn exec_stream(
    State(app): State<Arc<App>>,
    MaybeCaller(team): MaybeCaller,
    Path(id): Path<String>,
    query: Query,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, HttpError> {
    open_socket(app, team, id, None, query, upgrade).await
}

/// Follow a process (WebSocket)
///
/// As `exec/stream`; the client's first message is `connect`, and its `from` says what it has
/// of the output.
#[utoipa::path(
    get, path = "/v1/sandboxes/{id}/processes/{process}/stream", tag = "exec",
    params(
        ("id" = String, Path, description = "Id or name"),
        ("process" = String, Path, description = "Process id or tag"),
        ("format" = Option<String>, Query, description = "`binary` (default) or `json`"),
    ),
    responses((status = 101, description = "ServerMessage and ClientMessage in frames"), (status = "default", body = ErrorBody))
)]
pub(crate) async fn process_stream(
    State(app): State<Arc<App>>,
    MaybeCaller(team): MaybeCaller,
    Path((id, process)): Path<(String, String)>,
    query: Query,
    Upgrade(upgrade): Upgrade,
) -> Result<Response, HttpError> {
    open_socket(app, team, id, Some(process), query, upgrade).await
}

async fn open_socket(
    app: Arc<App>,
    team: Option<TeamId>,
    reference: String,
    process: Option<String>,
    mut query: Query,
    upgrade: WebSocketUpgrade,
) -> Result<Response, HttpError> {
    let json = match query.text("format")?.as_deref() {
        None | Some("binary") => false,
        Some("json") => true,
        Some(_) => {
            return Err(HttpError::invalid(
                "'format' is not known; give binary or json",
            ));
        }
    };
    query.finish()?;
    if let Some(team) = &team {
        // Said before the upgrade, where a client sees a status.
        app.running(team, &reference).await?;
    }
    let session = Session {
        app: Arc::clone(&app),
        team,
        reference,
        process,
        json,
    };
    let tasks = app.tasks.clone();
    Ok(upgrade
        .protocols([PROTOCOL])
        .max_message_size(MAX_CLIENT_FRAME)
        .max_frame_size(MAX_CLIENT_FRAME)
        .read_buffer_size(READ_BUFFER)
        .on_upgrade(move |socket| async move {
            // The upgrade's own task is not counted: the server waits for this one.
            let served = tasks.spawn(session.serve(socket));
            if let Err(error) = served.await {
                tracing::error!(%error, "failed to serve a WebSocket");
            }
        }))
}

/// One socket.
struct Session {
    app: Arc<App>,
    team: Option<TeamId>,
    reference: String,
    process: Option<String>,
    json: bool,
}

/// What became of the first frames.
enum Begun {
    Command(Box<(Command, SandboxId, HostClient)>),
    /// It was not found, or is no program: as a shell says it.
    NotStarted(Exit),
}

type Sink = SplitSink<WebSocket, Message>;

impl Session {
    async fn serve(self, socket: WebSocket) {
        let (mut sink, mut stream) = socket.split();
        let begun = tokio::select! {
            begun = self.begin(&mut stream) => begun,
            () = self.app.shutdown.cancelled() => Err(stopping()),
        };
        let outcome = match begun {
            Ok(Begun::Command(begun)) => {
                let (command, id, host) = *begun;
                self.follow(command, id, host, &mut sink, stream).await
            }
            Ok(Begun::NotStarted(exit)) => Ok(Some(exit)),
            Err(error) => Err(error),
        };
        let (message, close) = match outcome {
            Ok(Some(exit)) => (Some(ServerMessage::Exit(exit)), NORMAL),
            // The client has left.
            Ok(None) => return,
            Err(error) => {
                let close = 4000 + error.code.http_status();
                let message = ServerMessage::Error {
                    code: error.code,
                    message: error.message,
                };
                (Some(message), close)
            }
        };
        if let Some(message) = message {
            send_text(&mut sink, &message).await.ok();
        }
        let frame = CloseFrame {
            code: close,
            reason: Utf8Bytes::default(),
        };
        sink.send(Message::Close(Some(frame))).await.ok();
    }

    /// Reads the first frames, and starts or joins the command.
    async fn begin(&self, stream: &mut SplitStream<WebSocket>) -> Result<Begun, HttpError> {
        let first = tokio::time::timeout(FIRST_FRAME_TIMEOUT, async {
            let mut message = next_message(stream).await?;
            let mut team = self.team.clone();
            if let ClientMessage::Auth { token } = message {
                team = Some(self.app.team_of_key(&token).await?);
                message = next_message(stream).await?;
            }
            let team = team.ok_or(ServiceError::Unauthorized)?;
            Ok::<_, HttpError>((team, message))
        });
        let (team, message) = first.await.map_err(|_| {
            HttpError::invalid("no 'start' or 'connect' came within 5 s of the upgrade")
        })??;
        let (sandbox, host) = self.app.running(&team, &self.reference).await?;
        let command = match (message, &self.process) {
            (ClientMessage::Start(start), None) => {
                let command = exec::command(start)?;
                match Command::start(&sandbox.id, &host, command).await {
                    Ok(command) => command,
                    Err(ServiceError::CommandNotStarted { exit_code, message }) => {
                        return Ok(Begun::NotStarted(Exit {
                            code: exit_code,
                            message: Some(message),
                            ..Exit::default()
                        }));
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            (ClientMessage::Connect(connect), None) => {
                if connect.pid.is_none() && connect.tag.is_none() {
                    return Err(HttpError::invalid("'connect' names no 'pid' and no 'tag'"));
                }
                Command::connect(&sandbox.id, &host, connect).await?
            }
            (ClientMessage::Connect(connect), Some(process)) => {
                let (pid, tag) = exec::selector(process);
                let connect = Connect {
                    pid: (pid > 0).then_some(pid),
                    tag: (!tag.is_empty()).then_some(tag),
                    from: connect.from,
                };
                Command::connect(&sandbox.id, &host, connect).await?
            }
            (_, None) => {
                return Err(HttpError::invalid(
                    "the first message must be 'start' or 'connect'",
                ));
            }
            (_, Some(_)) => return Err(HttpError::invalid("the first message must be 'connect'")),
        };
        Ok(Begun::Command(Box::new((command, sandbox.id, host))))
    }

    /// Follows a command to its end. `None`: the client left first.
    async fn follow(
        &self,
        command: Command,
        id: SandboxId,
        host: HostClient,
        sink: &mut Sink,
        stream: SplitStream<WebSocket>,
    ) -> Result<Option<Exit>, HttpError> {
        let Command {
            pid,
            tag,
            tty,
            input,
            mut events,
        } = command;
        let started = ServerMessage::Started { pid, tag, tty };
        if send_text(sink, &started).await.is_err() {
            return Ok(None);
        }
        let heard = Arc::new(AtomicBool::new(false));
        let (client, mut client_state) = watch::channel(ClientState::default());
        let reader = Reader {
            id: id.clone(),
            host,
            pid,
            tty,
            input,
            heard: Arc::clone(&heard),
            client,
            json: self.json,
        };
        let reader = self.app.tasks.spawn(reader.run(stream));
        let mut reader = AbortOnDropHandle::new(reader);
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pings.reset();
        let mut silent_pings = 0;
        let mut offsets = Offsets::default();
        let mut flow = Flow::default();
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                read = &mut reader => return match read {
                    Ok(Ok(())) => Ok(None),
                    Ok(Err(error)) => Err(error),
                    Err(_) => Ok(None),
                },
                _ = pings.tick() => {
                    let alive = heard.swap(false, Ordering::Relaxed)
                        || client_state.borrow().input_waits;
                    silent_pings = if alive { 0 } else { silent_pings + 1 };
                    if silent_pings > MISSED_PINGS
                        || sink.send(ping(flow.sent)).await.is_err()
                    {
                        return Ok(None);
                    }
                    continue;
                }
                () = self.app.shutdown.cancelled() => return Err(stopping()),
            };
            let event = match event {
                Some(Ok(event)) => event,
                Some(Err(error)) => return Err(ServiceError::of_host(&id, error.into()).into()),
                None => {
                    return Err(HttpError::new(
                        ErrorCode::AgentError,
                        "the host does not say how the command ended",
                    ));
                }
            };
            let (channel, data) = match event.event {
                Some(process_event::Event::Stdout(data)) => (Channel::Stdout, data),
                Some(process_event::Event::Stderr(data)) => (Channel::Stderr, data),
                Some(process_event::Event::Terminal(data)) => (Channel::Tty, data),
                Some(process_event::Event::Exit(exit)) => return Ok(Some(exit_message(&exit))),
                Some(process_event::Event::Started(_) | process_event::Event::KeepAlive(_))
                | None => continue,
            };
            offsets.set(channel, event.offset);
            let sending = async {
                // More would be lost with the connection than the guest keeps.
                flow.until_acknowledged(&mut client_state).await;
                self.send_output(sink, channel, &mut offsets, &mut flow, data)
                    .await
            };
            let sent = tokio::select! {
                sent = sending => sent,
                read = &mut reader => return match read {
                    Ok(Err(error)) => Err(error),
                    _ => Ok(None),
                },
                () = self.app.shutdown.cancelled() => return Err(stopping()),
            };
            if sent.is_err() {
                return Ok(None);
            }
        }
    }

    async fn send_output(
        &self,
        sink: &mut Sink,
        channel: Channel,
        offsets: &mut Offsets,
        flow: &mut Flow,
        mut data: Bytes,
    ) -> Result<(), axum::Error> {
        while !data.is_empty() {
            let chunk = data.split_to(data.len().min(MAX_CHUNK));
            let offset = offsets.get(channel);
            offsets.set(channel, offset + chunk.len() as u64);
            flow.sent += chunk.len() as u64;
            if self.json {
                let output = ServerMessage::Output {
                    channel,
                    offset,
                    data: STANDARD.encode(&chunk),
                };
                send_text(sink, &output).await?;
            } else {
                let output = Output {
                    channel,
                    offset,
                    data: chunk,
                };
                sink.send(Message::Binary(output.encode())).await?;
            }
            if flow.ping_is_due() {
                sink.send(ping(flow.sent)).await?;
            }
        }
        Ok(())
    }
}

fn stopping() -> HttpError {
    ServiceError::Stopping("the server stops; the command goes on, connect to it again").into()
}

fn exit_message(exit: &wire::ExitStatus) -> Exit {
    Exit {
        code: exit.code,
        signal: (exit.signal > 0).then_some(exit.signal),
        timed_out: exit.timed_out,
        // The guest repeats the exit code in words; only a time-out says more.
        message: (exit.timed_out && !exit.error.is_empty()).then(|| exit.error.clone()),
    }
}

async fn send_text(sink: &mut Sink, message: &ServerMessage) -> Result<(), axum::Error> {
    let text = serde_json::to_string(message).map_err(axum::Error::new)?;
    sink.send(Message::Text(text.into())).await
}

/// The next text frame of a socket on which nothing else may come yet.
async fn next_message(stream: &mut SplitStream<WebSocket>) -> Result<ClientMessage, HttpError> {
    loop {
        match stream.next().await {
            Some(Ok(Message::Text(text))) => return parse(&text),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Binary(_))) => {
                return Err(HttpError::invalid(
                    "input came before 'start'; the first frame is a text frame",
                ));
            }
            Some(Ok(Message::Close(_)) | Err(_)) | None => {
                return Err(HttpError::invalid(
                    "the client left before it said what to run",
                ));
            }
        }
    }
}

fn parse(text: &str) -> Result<ClientMessage, HttpError> {
    serde_json::from_str(text).map_err(|error| {
        HttpError::invalid(format!(
            "a message cannot be used: {}",
            parser_message(&error)
        ))
    })
}

/// A ping that says how much output was sent before it: its pong acknowledges that.
fn ping(sent: u64) -> Message {
    Message::Ping(Bytes::copy_from_slice(&sent.to_be_bytes()))
}

/// How much output is on its way to the client, wherever between it is held.
#[derive(Debug, Default)]
struct Flow {
    sent: u64,
    pinged: u64,
}

impl Flow {
    fn ping_is_due(&mut self) -> bool {
        let due = self.sent - self.pinged >= PING_BYTES;
        if due {
            self.pinged = self.sent;
        }
        due
    }

    /// Waits while too much was sent that the client has not acknowledged. Not while its input
    /// waits: acknowledgements are behind it, and the command may wait for us.
    async fn until_acknowledged(&self, client: &mut watch::Receiver<ClientState>) {
        let sent = self.sent;
        let enough = |client: &ClientState| {
            client.input_waits || sent.saturating_sub(client.acknowledged) < MAX_UNACKNOWLEDGED
        };
        if client.wait_for(enough).await.is_err() {
            // The reader has ended, and with it this connection.
            std::future::pending::<()>().await;
        }
    }
}

/// What the reader knows of the client.
#[derive(Clone, Copy, Debug, Default)]
struct ClientState {
    /// How much output it has, by its last pong.
    acknowledged: u64,
    /// Its input waits for the command: what comes behind it is not seen.
    input_waits: bool,
}

/// What the client sends to its command.
struct Reader {
    id: SandboxId,
    host: HostClient,
    pid: u32,
    tty: bool,
    input: Input,
    /// Told of every frame, pongs too.
    heard: Arc<AtomicBool>,
    client: watch::Sender<ClientState>,
    json: bool,
}

impl Reader {
    /// Until the client leaves, which is no error, or sends what makes no sense.
    async fn run(self, mut stream: SplitStream<WebSocket>) -> Result<(), HttpError> {
        while let Some(Ok(message)) = stream.next().await {
            self.heard.store(true, Ordering::Relaxed);
            match message {
                Message::Binary(frame) => {
                    let bytes = decode_input(&frame)
                        .map_err(|error| HttpError::invalid(error.to_string()))?;
                    self.pass(Upward::Bytes(bytes)).await;
                }
                Message::Text(text) => self.act(parse(&text)?).await?,
                Message::Close(_) => return Ok(()),
                Message::Pong(payload) => self.acknowledge(&payload),
                Message::Ping(_) => {}
            }
        }
        Ok(())
    }

    /// Passes a message on, which waits while the command takes no input.
    async fn pass(&self, message: Upward) {
        self.client.send_modify(|client| client.input_waits = true);
        self.input.send(message).await;
        self.client.send_modify(|client| client.input_waits = false);
    }

    fn acknowledge(&self, payload: &[u8]) {
        if let Ok(sent) = payload.try_into().map(u64::from_be_bytes) {
            self.client
                .send_modify(|client| client.acknowledged = client.acknowledged.max(sent));
        }
    }

    async fn act(&self, message: ClientMessage) -> Result<(), HttpError> {
        match message {
            ClientMessage::Input { data } if self.json => {
                let bytes = STANDARD
                    .decode(data)
                    .map_err(|_| HttpError::invalid("the 'data' of an input is not base64"))?;
                self.pass(Upward::Bytes(bytes.into())).await;
            }
            ClientMessage::Input { .. } => {
                return Err(HttpError::invalid(
                    "input goes in binary frames, or in 'input' messages with ?format=json",
                ));
            }
            ClientMessage::Eof => {
                self.pass(Upward::Close).await;
            }
            ClientMessage::Resize(size) => {
                if !self.tty {
                    return Err(HttpError::invalid("the command has no terminal to resize"));
                }
                let size = wire::TerminalSize {
                    cols: size.cols.into(),
                    rows: size.rows.into(),
                };
                self.pass(Upward::Resize(size)).await;
            }
            ClientMessage::Signal { signal } => self.signal(signal).await?,
            ClientMessage::Stop => self.signal(SIGKILL).await?,
            ClientMessage::Auth { .. } | ClientMessage::Start(_) | ClientMessage::Connect(_) => {
                return Err(HttpError::invalid("the command has been chosen already"));
            }
        }
        Ok(())
    }

    async fn signal(&self, signal: u32) -> Result<(), HttpError> {
        let request = wire::SignalProcessRequest {
            id: self.id.to_string(),
            pid: self.pid,
            signal,
            ..wire::SignalProcessRequest::default()
        };
        match self.host.calls.signal_process(request).await {
            Ok(_) => Ok(()),
            Err(error) => match ServiceError::of_host(&self.id, error.into()) {
                // It has ended meanwhile, and its end is on its way.
                ServiceError::NotFound(_) => Ok(()),
                error => Err(error.into()),
            },
        }
    }
}
