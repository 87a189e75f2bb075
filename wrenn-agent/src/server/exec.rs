//! Commands in guests.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;
use wrenn_core::guest::{
    Command, ExitStatus, GuestError, GuestProcess, OutputOffsets, ProcessEvent as Event, RpcCode,
    Signal,
};
use wrenn_proto::buffa::{Enumeration as _, MessageField};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode, InboundStream};
use wrenn_proto::hostagent as wire;
use wrenn_proto::hostagent::__buffa::oneof::{
    connect_process_request, exec_stream_request, process_event,
};
use wrenn_proto::hostagent::*;

use super::feed::{Upward, feed};
use super::guest::Visit;
use super::input::MAX_WHOLE;
use super::{KEEP_ALIVE, State as Agent, input};
use crate::errors::{answer, cut, invalid, stopping, too_large};
use crate::metrics::OpenStream;

/// How long killing a command that printed too much may take.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

pub(super) async fn exec(
    agent: &Arc<Agent>,
    request: ExecRequest,
) -> Result<ExecResponse, ConnectError> {
    if request.stdin.len() > MAX_WHOLE {
        return Err(input::too_large("Exec", "ExecStream"));
    }
    let mut command = input::command(request.command.into_option())?;
    let stdin = request.stdin;
    if !stdin.is_empty() {
        command = command.with_stdin();
    }
    let visit = agent.visit(&request.id)?;
    agent.metrics.command_started();
    visit.ask(run(&visit, &command, stdin)).await?
}

/// Runs a command to its end. The outer error is the guest's, the inner one the caller's.
async fn run(
    visit: &Visit,
    command: &Command,
    stdin: Bytes,
) -> Result<Result<ExecResponse, ConnectError>, GuestError> {
    let mut process = visit.guest.start(command).await?;
    let has_stdin = !stdin.is_empty();
    let writer = has_stdin.then(|| process.input());
    let feeding = async {
        let Some(mut writer) = writer else { return };
        let written = match writer.write(stdin).await {
            Ok(()) => writer.close().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            debug!(%error, "the command takes no more input");
        }
    };
    let mut feeding = pin!(feeding);
    let mut fed = false;
    let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
    let exit = loop {
        let event = tokio::select! {
            event = process.next() => event,
            () = &mut feeding, if !fed => {
                fed = true;
                continue;
            }
        };
        match event {
            Ok(Event::Stdout(bytes) | Event::Pty(bytes)) => stdout.extend_from_slice(&bytes),
            Ok(Event::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
            Ok(Event::Exit(status)) => break exit_message(&status),
            Err(error) if error.code() == Some(RpcCode::DeadlineExceeded) => {
                break exit_message(&ExitStatus::killed_by_timeout());
            }
            Err(error) => return Err(error),
        }
        if stdout.len() + stderr.len() > MAX_WHOLE {
            return Ok(Err(printed_too_much(visit, process.pid()).await));
        }
    };
    Ok(Ok(ExecResponse {
        stdout: stdout.freeze(),
        stderr: stderr.freeze(),
        exit: MessageField::some(exit),
    }))
}

/// Nobody is going to read the rest, so the command would wait for ever: it is killed.
async fn printed_too_much(visit: &Visit, pid: u32) -> ConnectError {
    let killing = visit.guest.signal(pid, Signal::SIGNAL_SIGKILL);
    match timeout(KILL_DEADLINE, killing).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(pid, %error, "it ended by itself"),
        Err(_) => debug!(pid, "the guest is too busy to kill a command"),
    }
    too_large(
        ErrorCode::ResourceExhausted,
        format!(
            "the command printed more than {} MiB and was killed; use ExecStream",
            MAX_WHOLE >> 20
        ),
    )
}

pub(super) async fn exec_stream(
    agent: &Arc<Agent>,
    mut requests: InboundStream<ExecStreamRequest>,
) -> Result<impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + use<>, ConnectError> {
    use exec_stream_request::Message;
    let first = first(&mut requests, agent).await?;
    let Some(Message::Start(start)) = first.message else {
        return Err(invalid("the first message must be 'start'"));
    };
    let command = input::command(start.command.into_option())?;
    let visit = agent.visit(&start.id)?;
    agent.metrics.command_started();
    let process = visit.ask(visit.guest.start(&command)).await?;
    let messages = requests.map(|request| Upward::of_exec(request?.to_owned_message().message));
    Ok(follow(agent, visit, process, messages.boxed()))
}

pub(super) async fn connect(
    agent: &Arc<Agent>,
    mut requests: InboundStream<ConnectProcessRequest>,
) -> Result<impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + use<>, ConnectError> {
    use connect_process_request::Message;
    let first = first(&mut requests, agent).await?;
    let Some(Message::Connect(connect)) = first.message else {
        return Err(invalid("the first message must be 'connect'"));
    };
    let id = input::process_id(connect.pid, connect.tag)?;
    let visit = agent.visit(&connect.id)?;
    let process = match connect.from.into_option() {
        Some(from) => {
            let from = OutputOffsets {
                stdout: from.stdout,
                stderr: from.stderr,
                terminal: from.terminal,
            };
            visit.ask(visit.guest.connect_from(id, from)).await?
        }
        None => visit.ask(visit.guest.connect(id)).await?,
    };
    let messages = requests.map(|request| Upward::of_connect(request?.to_owned_message().message));
    Ok(follow(agent, visit, process, messages.boxed()))
}

/// The first message of a stream, which says what it is about.
pub(super) async fn first<M>(
    requests: &mut InboundStream<M>,
    agent: &Agent,
) -> Result<M, ConnectError>
where
    M: wrenn_proto::buffa::HasMessageView,
    wrenn_proto::connectrpc::StreamMessage<M>: Send,
{
    let message = tokio::select! {
        message = requests.next() => message,
        () = agent.shutdown.cancelled() => return Err(stopping()),
    };
    match message {
        Some(message) => Ok(message?.to_owned_message()),
        None => Err(invalid("the stream ended before its first message")),
    }
}

/// A command that somebody follows.
struct Following {
    agent: Arc<Agent>,
    visit: Visit,
    process: GuestProcess,
    /// Passes on what the caller sends; ends with the stream.
    feed: AbortOnDropHandle<Result<(), ConnectError>>,
    fed: bool,
    _open: OpenStream,
}

/// `started`, then what the command prints, then `exit` or an error.
fn follow(
    agent: &Arc<Agent>,
    visit: Visit,
    process: GuestProcess,
    messages: BoxStream<'static, Result<Option<Upward>, ConnectError>>,
) -> impl Stream<Item = Result<ProcessEvent, ConnectError>> + Send + use<> {
    let started = event(process_event::Event::Started(Box::new(
        wire::process_event::Started {
            pid: process.pid(),
            tag: cut(process.tag().unwrap_or_default(), input::MAX_TAG).to_owned(),
            terminal: process.terminal(),
        },
    )));
    let feed = feed(
        visit.guest.clone(),
        process.pid(),
        process.terminal(),
        messages,
    );
    let following = Following {
        feed: AbortOnDropHandle::new(agent.tasks.spawn(feed)),
        fed: false,
        _open: agent.metrics.stream_opened(),
        agent: Arc::clone(agent),
        visit,
        process,
    };
    let events = futures::stream::unfold(Some(following), |following| async {
        let mut following = following?;
        let next = following.next().await;
        let over = match &next {
            Ok(event) => matches!(event.event, Some(process_event::Event::Exit(_))),
            Err(_) => true,
        };
        Some((next, (!over).then_some(following)))
    });
    futures::stream::iter([Ok(started)]).chain(events)
}

impl Following {
    async fn next(&mut self) -> Result<ProcessEvent, ConnectError> {
        loop {
            tokio::select! {
                biased;
                next = timeout(KEEP_ALIVE, self.process.next()) => return match next {
                    Ok(Ok(next)) => Ok(ProcessEvent {
                        offset: self.offset_of(&next),
                        ..event(translate(next))
                    }),
                    Ok(Err(error)) if error.code() == Some(RpcCode::DeadlineExceeded) => {
                        Ok(event(process_event::Event::Exit(Box::new(exit_message(
                            &ExitStatus::killed_by_timeout(),
                        )))))
                    }
                    Ok(Err(error)) => Err(self.lost(&error)),
                    Err(_) => Ok(event(process_event::Event::KeepAlive(Box::default()))),
                },
                gone = self.visit.sandbox.not_running() => return Err(answer(&gone)),
                () = self.agent.shutdown.cancelled() => return Err(stopping()),
                fed = &mut self.feed, if !self.fed => {
                    self.fed = true;
                    // It is only aborted with the stream, and does not panic.
                    if let Ok(Err(error)) = fed {
                        return Err(error);
                    }
                }
            }
        }
    }

    fn offset_of(&self, event: &Event) -> u64 {
        match event {
            Event::Stdout(_) | Event::Stderr(_) | Event::Pty(_) => self.process.offset(),
            Event::Exit(_) => 0,
        }
    }

    /// Why the events broke off: the sandbox's end explains more than its connection's.
    fn lost(&self, error: &GuestError) -> ConnectError {
        match self.visit.sandbox.guest() {
            Ok(_) => answer(error),
            Err(gone) => answer(&gone),
        }
    }
}

fn event(event: process_event::Event) -> ProcessEvent {
    ProcessEvent {
        event: Some(event),
        ..ProcessEvent::default()
    }
}

fn translate(event: Event) -> process_event::Event {
    match event {
        Event::Stdout(bytes) => process_event::Event::Stdout(bytes),
        Event::Stderr(bytes) => process_event::Event::Stderr(bytes),
        Event::Pty(bytes) => process_event::Event::Terminal(bytes),
        Event::Exit(status) => process_event::Event::Exit(Box::new(exit_message(&status))),
    }
}

fn exit_message(status: &ExitStatus) -> wire::ExitStatus {
    wire::ExitStatus {
        code: status.shell_code().into(),
        exited: status.exited,
        status: status.status.clone(),
        error: status.error.clone().unwrap_or_default(),
        timed_out: status.timed_out,
        signal: status.signal_number().unwrap_or(0).into(),
    }
}

pub(super) async fn list(
    agent: &Arc<Agent>,
    request: ListProcessesRequest,
) -> Result<ListProcessesResponse, ConnectError> {
    let visit = agent.visit(&request.id)?;
    let processes = visit.ask(visit.guest.processes()).await?;
    let processes = processes
        .into_iter()
        .map(|process| list_processes_response::Process {
            pid: process.pid,
            program: process.program,
            args: process.args,
            tag: process.tag.unwrap_or_default(),
            terminal: process.terminal,
        });
    Ok(ListProcessesResponse {
        processes: processes.collect(),
    })
}

pub(super) async fn signal(
    agent: &Arc<Agent>,
    request: SignalProcessRequest,
) -> Result<SignalProcessResponse, ConnectError> {
    let signal = i32::try_from(request.signal).ok();
    let signal = signal
        .and_then(Signal::from_i32)
        .filter(|signal| *signal != Signal::SIGNAL_UNSPECIFIED)
        .ok_or_else(|| {
            invalid(format!(
                "signal {} is not passed on; use 15 (TERM) or 9 (KILL)",
                request.signal
            ))
        })?;
    let process = input::process_id(request.pid, request.tag)?;
    let visit = agent.visit(&request.id)?;
    visit.ask(visit.guest.signal(process, signal)).await?;
    Ok(SignalProcessResponse::default())
}
