//! Commands in guests.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt as _};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use wrenn_proto::buffa::{Enumeration as _, MessageField};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode, InboundStream};
use wrenn_proto::hostagent::__buffa::oneof::process_event;
use wrenn_proto::hostagent::{
    self as wire, Command, ConnectProcessRequest, ExecRequest, ExecResponse, ExecStart,
    ExecStreamRequest, ExitStatus, ListProcessesRequest, ListProcessesResponse, ProcessConnect,
    ProcessEvent, Reason, SignalProcessRequest, SignalProcessResponse, list_processes_response,
};
use wrenn_proto::process::__buffa::oneof::process_event::{Event, data_event::Output};
use wrenn_proto::process::__buffa::oneof::process_selector::Selector;
use wrenn_proto::process::process_event::{EndEvent, StartEvent};
use wrenn_proto::process::{
    ConnectRequest, OutputOffsets, ProcessConfig, ProcessSelector, Signal, StartRequest,
};

use super::feed::{ClientMessage, feed};
use super::input::{self, MAX_WHOLE};
use crate::errors::{invalid, refuse, stopping, too_large};
use crate::guest::{Input, ProcessEvents};
use crate::host::{Host, Visit};

const MAX_TAG: usize = 256;
const MAX_COMMAND: usize = 1 << 20;

type Answer<T> = Result<T, ConnectError>;

/// A command, as the daemon takes it.
struct Start {
    request: StartRequest,
    user: String,
    timeout: Option<Duration>,
}

fn read_command(visit: &Visit, command: Option<Command>) -> Answer<Start> {
    let command = command.unwrap_or_default();
    if command.program.is_empty() {
        return Err(invalid("'command.program' is empty; name a program"));
    }
    let words = std::iter::once(&command.program).chain(&command.args);
    let size: usize = words.clone().map(|word| word.len() + 1).sum();
    if size > MAX_COMMAND {
        return Err(invalid(format!(
            "the command has {size} bytes, and at most {MAX_COMMAND} are taken; put them in a file"
        )));
    }
    for word in words {
        input::no_zero("an argument", word)?;
    }
    if command.tag.len() > MAX_TAG {
        return Err(invalid(format!("a tag has at most {MAX_TAG} bytes")));
    }
    let cwd = match input::path(&command.cwd)? {
        "" => None,
        path => Some(visit.guest.client().resolve(path)),
    };
    let size = command.terminal.into_option();
    let pty = size.as_ref().map(input::terminal_size).transpose()?;
    let config = ProcessConfig {
        cmd: command.program,
        args: command.args,
        envs: input::environment(command.env)?.into_iter().collect(),
        cwd,
    };
    Ok(Start {
        user: input::user(&command.user)?.to_owned(),
        timeout: (command.timeout_sec > 0).then(|| Duration::from_secs(command.timeout_sec)),
        request: StartRequest {
            process: MessageField::some(config),
            pty: pty.into(),
            tag: Some(command.tag).filter(|tag| !tag.is_empty()),
            stdin: Some(command.stdin),
            ..StartRequest::default()
        },
    })
}

/// A command that runs, and its first event is over.
struct Running {
    started: StartEvent,
    events: ProcessEvents,
}

async fn begun(mut events: ProcessEvents) -> Answer<Running> {
    loop {
        match events.next().await {
            Some(Ok(Event::Start(start))) => {
                return Ok(Running {
                    started: *start,
                    events,
                });
            }
            Some(Ok(Event::Keepalive(_))) => {}
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => return Err(out_of_turn()),
        }
    }
}

async fn start(visit: &Visit, start: Start) -> Answer<Running> {
    let client = visit.guest.client();
    let events = client
        .start(start.request, &start.user, start.timeout)
        .await?;
    begun(events).await
}

fn out_of_turn() -> ConnectError {
    refuse(
        ErrorCode::Unavailable,
        Reason::REASON_GUEST_UNAVAILABLE,
        "the guest does not answer as it should; try again",
    )
}

pub(super) async fn exec(host: &Arc<Host>, request: ExecRequest) -> Answer<ExecResponse> {
    let stdin = request.stdin;
    if stdin.len() > MAX_WHOLE {
        return Err(too_large(format!(
            "Exec takes up to {} MiB; use ExecStream for more",
            MAX_WHOLE >> 20
        )));
    }
    let visit = input::visit(host, &request.id)?;
    let mut command = read_command(&visit, request.command.into_option())?;
    if !stdin.is_empty() {
        command.request.stdin = Some(true);
    }
    let running = visit.ask(start(&visit, command)).await?;
    visit.ask(collect(&visit, running, stdin)).await
}

/// Feeds a command its input, and collects what it prints.
async fn collect(visit: &Visit, mut running: Running, stdin: Bytes) -> Answer<ExecResponse> {
    let client = visit.guest.client();
    let pid = running.started.pid;
    let feeding = async {
        if stdin.is_empty() {
            return;
        }
        let mut input = Input::open(client.clone(), pid, false);
        let written = match input.write(stdin).await {
            Ok(()) => input.close().await,
            Err(error) => Err(error),
        };
        if let Err(error) = written {
            tracing::debug!(pid, %error, "dropped the rest of a command's input");
        }
    };
    let mut feeding = std::pin::pin!(feeding);
    let mut fed = false;
    let (mut stdout, mut stderr) = (BytesMut::new(), BytesMut::new());
    let exit = loop {
        let event = tokio::select! {
            event = running.events.next() => event,
            () = &mut feeding, if !fed => {
                fed = true;
                continue;
            }
        };
        match event {
            Some(Ok(Event::Data(data))) => match data.output {
                Some(Output::Stdout(bytes) | Output::Pty(bytes)) => {
                    stdout.extend_from_slice(&bytes);
                }
                Some(Output::Stderr(bytes)) => stderr.extend_from_slice(&bytes),
                None => {}
            },
            Some(Ok(Event::End(end))) => break exit_status(*end),
            Some(Ok(Event::Start(_) | Event::Keepalive(_))) => {}
            Some(Err(error)) if error.code == ErrorCode::DeadlineExceeded => break timed_out(),
            Some(Err(error)) => return Err(error),
            None => return Err(out_of_turn()),
        }
        if stdout.len() + stderr.len() > MAX_WHOLE {
            // It may have ended by itself.
            let killed = client.signal(Selector::Pid(pid), Signal::SIGNAL_SIGKILL);
            killed.await.ok();
            return Err(refuse(
                ErrorCode::ResourceExhausted,
                Reason::REASON_TOO_LARGE,
                format!(
                    "the command printed more than {} MiB and was killed; use ExecStream",
                    MAX_WHOLE >> 20
                ),
            ));
        }
    };
    Ok(ExecResponse {
        stdout: stdout.freeze(),
        stderr: stderr.freeze(),
        exit: MessageField::some(exit),
    })
}

pub(super) async fn exec_stream(
    host: &Arc<Host>,
    request: ExecStart,
    requests: InboundStream<ExecStreamRequest>,
) -> Answer<impl Stream<Item = Answer<ProcessEvent>> + Send + use<>> {
    let visit = input::visit(host, &request.id)?;
    let command = read_command(&visit, request.command.into_option())?;
    let running = visit.ask(start(&visit, command)).await?;
    let messages =
        requests.map(|request| ClientMessage::of_exec(request?.to_owned_message().message));
    Ok(follow(host, visit, running, messages.boxed()))
}

pub(super) async fn connect(
    host: &Arc<Host>,
    request: ProcessConnect,
    requests: InboundStream<ConnectProcessRequest>,
) -> Answer<impl Stream<Item = Answer<ProcessEvent>> + Send + use<>> {
    let selector = selector(request.pid, request.tag)?;
    let visit = input::visit(host, &request.id)?;
    let from = request.from.into_option().map(|from| OutputOffsets {
        stdout: from.stdout,
        stderr: from.stderr,
        pty: from.terminal,
    });
    let joined = async {
        let request = ConnectRequest {
            process: selector.into(),
            from: from.into(),
        };
        begun(visit.guest.client().connect(request).await?).await
    };
    let running = visit.ask(joined).await?;
    let messages =
        requests.map(|request| ClientMessage::of_connect(request?.to_owned_message().message));
    Ok(follow(host, visit, running, messages.boxed()))
}

fn selector(pid: u32, tag: String) -> Answer<ProcessSelector> {
    let selector = match (pid, tag.is_empty()) {
        (0, true) => return Err(invalid("name the command by its pid or its tag")),
        (0, false) => Selector::Tag(tag),
        (pid, true) => Selector::Pid(pid),
        (_, false) => {
            return Err(invalid(
                "name the command by its pid or its tag, not by both",
            ));
        }
    };
    Ok(ProcessSelector {
        selector: Some(selector),
    })
}

/// A command that is followed.
struct Following {
    host: Arc<Host>,
    visit: Visit,
    running: Running,
    /// Passes on what the caller sends; ends with the stream.
    feed: AbortOnDropHandle<Answer<()>>,
    fed: bool,
}

/// `started`, then what the command prints, then `exit` or an error.
fn follow(
    host: &Arc<Host>,
    visit: Visit,
    running: Running,
    messages: futures::stream::BoxStream<'static, Answer<Option<ClientMessage>>>,
) -> impl Stream<Item = Answer<ProcessEvent>> + Send + use<> {
    let client = visit.guest.client().clone();
    let started = wire::process_event::Started {
        pid: running.started.pid,
        tag: running.started.tag.clone().unwrap_or_default(),
        terminal: running.started.terminal,
    };
    let feed = feed(client, started.pid, started.terminal, messages);
    let following = Following {
        feed: AbortOnDropHandle::new(tokio::spawn(feed)),
        fed: false,
        host: Arc::clone(host),
        visit,
        running,
    };
    let started = event(process_event::Event::Started(Box::new(started)));
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
    async fn next(&mut self) -> Answer<ProcessEvent> {
        loop {
            let interval = self.host.config.keep_alive;
            tokio::select! {
                biased;
                next = timeout(interval, self.running.events.next()) => match next {
                    Ok(Some(Ok(next))) => if let Some(event) = translate(next) {
                        return Ok(event);
                    },
                    Ok(Some(Err(error))) if error.code == ErrorCode::DeadlineExceeded => {
                        let exit = process_event::Event::Exit(Box::new(timed_out()));
                        return Ok(event(exit));
                    }
                    Ok(Some(Err(error))) => return Err(self.lost(error)),
                    Ok(None) => return Err(self.lost(out_of_turn())),
                    Err(_) => return Ok(event(process_event::Event::KeepAlive(Box::default()))),
                },
                gone = self.visit.sandbox.not_running() => return Err(gone),
                () = self.host.shutdown.cancelled() => return Err(stopping()),
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

    /// Why the events broke off: the sandbox's end explains more than its connection's.
    fn lost(&self, error: ConnectError) -> ConnectError {
        match self.visit.sandbox.visit() {
            Ok(_) => error,
            Err(gone) => gone,
        }
    }
}

fn translate(next: Event) -> Option<ProcessEvent> {
    let data = match next {
        Event::Data(data) => *data,
        Event::End(end) => {
            let exit = process_event::Event::Exit(Box::new(exit_status(*end)));
            return Some(event(exit));
        }
        Event::Start(_) | Event::Keepalive(_) => return None,
    };
    let output = match data.output? {
        Output::Stdout(bytes) => process_event::Event::Stdout(bytes),
        Output::Stderr(bytes) => process_event::Event::Stderr(bytes),
        Output::Pty(bytes) => process_event::Event::Terminal(bytes),
    };
    Some(ProcessEvent {
        offset: data.offset,
        ..event(output)
    })
}

fn event(event: process_event::Event) -> ProcessEvent {
    ProcessEvent {
        event: Some(event),
        ..ProcessEvent::default()
    }
}

fn exit_status(end: EndEvent) -> ExitStatus {
    let code = match (end.exited, end.signal) {
        (true, _) => end.exit_code & 0xff,
        (false, signal) => 128 + i32::try_from(signal).unwrap_or(127),
    };
    ExitStatus {
        code,
        exited: end.exited,
        status: end.status,
        error: end.error.unwrap_or_default(),
        timed_out: end.deadline,
        signal: end.signal,
    }
}

/// The end of a command that its time-out killed, of which the guest says only that.
fn timed_out() -> ExitStatus {
    ExitStatus {
        code: 128 + 9,
        exited: false,
        status: "signal: killed".to_owned(),
        error: "its deadline passed, and it was killed".to_owned(),
        timed_out: true,
        signal: 9,
    }
}

pub(super) async fn list(
    host: &Arc<Host>,
    request: ListProcessesRequest,
) -> Answer<ListProcessesResponse> {
    let visit = input::visit(host, &request.id)?;
    let processes = visit.ask(visit.guest.client().list_processes()).await?;
    let processes = processes.into_iter().map(|process| {
        let config = process.config.into_option().unwrap_or_default();
        list_processes_response::Process {
            pid: process.pid,
            program: config.cmd,
            args: config.args,
            tag: process.tag.unwrap_or_default(),
            terminal: process.terminal,
        }
    });
    Ok(ListProcessesResponse {
        processes: processes.collect(),
    })
}

pub(super) async fn signal(
    host: &Arc<Host>,
    request: SignalProcessRequest,
) -> Answer<SignalProcessResponse> {
    let number = i32::try_from(request.signal).ok();
    let signal = number
        .and_then(Signal::from_i32)
        .filter(|signal| *signal != Signal::SIGNAL_UNSPECIFIED)
        .ok_or_else(|| {
            invalid(format!(
                "signal {} is not passed on; use 15 (TERM) or 9 (KILL)",
                request.signal
            ))
        })?;
    let selector = selector(request.pid, request.tag)?;
    let visit = input::visit(host, &request.id)?;
    let process = selector.selector.ok_or_else(out_of_turn)?;
    visit
        .ask(visit.guest.client().signal(process, signal))
        .await?;
    Ok(SignalProcessResponse::default())
}
