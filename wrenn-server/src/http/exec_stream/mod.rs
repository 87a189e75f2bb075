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

mod command;
mod flow;
mod reader;

pub(crate) use command::Command;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::extract::State;
use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use wrenn_api::error::{ErrorBody, ErrorCode};
use wrenn_api::id::{SandboxId, TeamId};
use wrenn_api::stream::{
    Channel, ClientMessage, Connect, Exit, MAX_CHUNK, MAX_CLIENT_FRAME, Offsets, Output, PROTOCOL,
    ServerMessage,
};
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::oneof::process_event;

use super::authentication::MaybeCaller;
use super::error::HttpError;
use super::exec;
use super::extract::{Path, Query, Upgrade};
use crate::hosts::client::HostClient;
use crate::service::App;
use crate::service::error::ServiceError;
use flow::{ClientState, Flow, ping};
use reader::{Reader, next_message};

/// How long the first frames may take: credential, and what to run.
const FIRST_FRAME_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a client may take to read what it was sent before the end, and to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that was silent for this many pings is gone.
const MISSED_PINGS: u32 = 3;
/// Memory of a socket for input, which is little as a rule.
const READ_BUFFER: usize = 16 << 10;
const NORMAL: u16 = 1000;

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
        let mut reader = None;
        let outcome = match begun {
            Ok(Begun::Command(begun)) => {
                let (command, id, host) = *begun;
                self.follow(command, id, host, &mut sink, stream, &mut reader)
                    .await
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
        // A connection that is closed with unread frames of the client is reset, and the client
        // loses what it has not read by then, the exit among it.
        if let Some(reader) = reader.filter(|reader| !reader.is_finished()) {
            tokio::select! {
                _ = tokio::time::timeout(CLOSE_TIMEOUT, reader) => {}
                () = self.app.shutdown.cancelled() => {}
            }
        }
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

    /// Follows a command to its end. `None`: the client left first. What reads the client's
    /// frames goes on afterwards, in `reader`.
    async fn follow(
        &self,
        command: Command,
        id: SandboxId,
        host: HostClient,
        sink: &mut Sink,
        stream: SplitStream<WebSocket>,
        reader: &mut Option<AbortOnDropHandle<Result<(), HttpError>>>,
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
        let reading = Reader {
            id: id.clone(),
            host,
            pid,
            tty,
            input,
            heard: Arc::clone(&heard),
            client,
            json: self.json,
        };
        let reading = self.app.tasks.spawn(reading.run(stream));
        let reader = reader.insert(AbortOnDropHandle::new(reading));
        let mut pings = tokio::time::interval(PING_INTERVAL);
        pings.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        pings.reset();
        let mut silent_pings = 0;
        let mut offsets = Offsets::default();
        let mut flow = Flow::default();
        // An event that came while the last one was sent.
        let mut ready = None;
        loop {
            let event = tokio::select! {
                biased;
                event = async {
                    match ready.take() {
                        Some(event) => event,
                        None => events.next().await,
                    }
                } => event,
                read = &mut *reader => return match read {
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
                if !flow.has_room(&client_state) {
                    // More would be lost with the connection than the guest keeps.
                    sink.flush().await?;
                    flow.until_acknowledged(&mut client_state).await;
                }
                self.feed_output(sink, channel, &mut offsets, &mut flow, data)
                    .await?;
                // Output that comes at once goes out with this: each flush is a system call here,
                // and wakes the client.
                ready = events.next().now_or_never();
                if ready.is_none() {
                    sink.flush().await?;
                }
                Ok::<_, axum::Error>(())
            };
            let sent = tokio::select! {
                sent = sending => sent,
                read = &mut *reader => return match read {
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

    /// Puts output into the socket's buffer, which is written where it is full.
    async fn feed_output(
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
                sink.feed(text(&output)?).await?;
            } else {
                let output = Output {
                    channel,
                    offset,
                    data: chunk,
                };
                sink.feed(Message::Binary(output.encode())).await?;
            }
            if flow.ping_is_due() {
                sink.feed(ping(flow.sent)).await?;
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
    sink.send(text(message)?).await
}

fn text(message: &ServerMessage) -> Result<Message, axum::Error> {
    let text = serde_json::to_string(message).map_err(axum::Error::new)?;
    Ok(Message::Text(text.into()))
}
