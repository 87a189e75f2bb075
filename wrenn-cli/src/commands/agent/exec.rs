//! `wrenn agent exec`: a command in a sandbox, with our streams and our terminal.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::mpsc;
use wrenn_core::guest::{ExitStatus, ProcessEvent};
use wrenn_proto::hostagent::__buffa::oneof::process_event::Event;
use wrenn_proto::hostagent::{
    CloseInput, Command, ExecStart, ExecStreamRequest, SignalProcessRequest, TerminalSize,
};
use wrenn_sdk::{Signal, TerminalSize as Size};

use super::client::AgentClient;
use crate::commands::run::parse_variable;
use crate::terminal::{self, Attach, Remote, RemoteInput, Signals, terminal_size};

/// Messages on their way up. More would only hide how fast the command reads.
const IN_FLIGHT: usize = 4;

/// Options of `wrenn agent exec`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pass standard input on to the command.
    #[arg(long, short)]
    interactive: bool,
    /// Give the command a terminal; implies -i.
    #[arg(long, short)]
    tty: bool,
    /// Variable of the command's environment; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Directory that the command starts in.
    #[arg(long, value_name = "DIR", default_value = "")]
    cwd: String,
    /// User of the guest that the command runs as.
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
    /// End the command after this long: 30s, 5m, 1h30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// The sandbox.
    id: String,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(agent: &AgentClient, args: Args) -> anyhow::Result<ExitCode> {
    let attach = Attach {
        stdin: args.interactive || args.tty,
        tty: args.tty,
        timeout: args.timeout,
    };
    attach.check()?;
    let signals = Signals::listen()?;
    terminal::run_remote(signals, AgentCommand::start(agent, args), attach).await
}

/// A command that an agent runs for us.
struct AgentCommand<'a> {
    agent: &'a AgentClient,
    id: String,
    pid: u32,
    up: mpsc::Sender<ExecStreamRequest>,
    down: BoxStream<'static, anyhow::Result<Event>>,
}

struct AgentInput(mpsc::Sender<ExecStreamRequest>);

impl<'a> AgentCommand<'a> {
    async fn start(agent: &'a AgentClient, args: Args) -> anyhow::Result<Self> {
        let id = args.id.clone();
        let opened = agent.rpc.exec_stream().await;
        let (mut send, receive) = agent.check(opened)?.into_split();
        let (up, mut messages) = mpsc::channel(IN_FLIGHT);
        up.send(begin(args)).await.context("nothing is sent yet")?;
        tokio::spawn(async move {
            while let Some(message) = messages.recv().await {
                // Why it takes no more is said on the way down.
                if send.send(message).await.is_err() {
                    return;
                }
            }
        });
        let explaining = agent.clone();
        let mut down = futures::stream::try_unfold(receive, move |mut receive| {
            let agent = explaining.clone();
            async move {
                loop {
                    let message = receive.message().await;
                    match message.map_err(|error| agent.explain(&error))? {
                        Some(message) => {
                            if let Some(event) = message.to_owned_message().event {
                                return Ok(Some((event, receive)));
                            }
                        }
                        None => return Ok(None),
                    }
                }
            }
        })
        .boxed();
        let pid = match down.next().await {
            Some(Ok(Event::Started(started))) => started.pid,
            Some(Err(error)) => return Err(error),
            Some(Ok(_)) | None => return Err(anyhow!("the agent does not say what it started")),
        };
        Ok(Self {
            agent,
            id,
            pid,
            up,
            down,
        })
    }
}

fn begin(args: Args) -> ExecStreamRequest {
    let mut words = args.command.into_iter();
    let command = Command {
        program: words.next().unwrap_or_default(),
        args: words.collect(),
        env: args.env.into_iter().collect(),
        cwd: args.cwd,
        user: args.user,
        terminal: args.tty.then(|| size_message(terminal_size())).into(),
        stdin: args.interactive || args.tty,
        timeout_sec: args.timeout.map_or(0, |timeout| timeout.as_secs().max(1)),
        ..Command::default()
    };
    let start = ExecStart {
        id: args.id,
        command: Some(command).into(),
    };
    ExecStreamRequest {
        message: Some(start.into()),
    }
}

fn size_message(size: Size) -> TerminalSize {
    TerminalSize {
        cols: size.cols.into(),
        rows: size.rows.into(),
    }
}

impl Remote for AgentCommand<'_> {
    type Input = AgentInput;

    fn input(&mut self) -> AgentInput {
        AgentInput(self.up.clone())
    }

    async fn next(&mut self) -> anyhow::Result<terminal::Event> {
        loop {
            return Ok(match self.down.next().await {
                Some(event) => match event? {
                    Event::Stdout(bytes) | Event::Terminal(bytes) => terminal::Event::Stdout(bytes),
                    Event::Stderr(bytes) => terminal::Event::Stderr(bytes),
                    Event::Exit(exit) => terminal::Event::from(ProcessEvent::Exit(ExitStatus {
                        code: exit.code,
                        exited: exit.exited,
                        status: exit.status,
                        error: (!exit.error.is_empty()).then_some(exit.error),
                        signal: u8::try_from(exit.signal).ok().filter(|signal| *signal > 0),
                        timed_out: exit.timed_out,
                    })),
                    Event::Started(_) | Event::KeepAlive(_) => continue,
                },
                None => return Err(anyhow!("the agent does not say how the command ended")),
            });
        }
    }

    async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let request = SignalProcessRequest {
            id: self.id.clone(),
            pid: self.pid,
            signal: signal.number(),
            ..SignalProcessRequest::default()
        };
        let answer = self.agent.rpc.signal_process(request).await;
        self.agent.check(answer).map(drop)
    }

    async fn resize(&self, size: Size) -> anyhow::Result<()> {
        // Not waited for: while input is stuck, output must not be. The next size gets
        // through.
        Ok(self.up.try_send(ExecStreamRequest {
            message: Some(size_message(size).into()),
        })?)
    }
}

impl RemoteInput for AgentInput {
    async fn write(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        use wrenn_proto::hostagent::__buffa::oneof::exec_stream_request::Message;
        let message = Some(Message::Input(bytes));
        Ok(self.0.send(ExecStreamRequest { message }).await?)
    }

    async fn close(self) -> anyhow::Result<()> {
        let message = Some(CloseInput::default().into());
        Ok(self.0.send(ExecStreamRequest { message }).await?)
    }
}
