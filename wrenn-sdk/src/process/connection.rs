//! The task that follows a process over one connection after another.

use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use wrenn_api::id::SandboxId;
use wrenn_api::stream::{
    Channel, ClientMessage, Connect, Exit, Offsets, Output, PROTOCOL, ServerMessage, Start,
};

use super::input::{Acknowledged, Inputs, control};
use super::{ExitStatus, ProcessEvent};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::retry::backoff;
use crate::websocket::{self, Message, Receiver, Sender};

/// The server sends a ping every 30 seconds. One that sends nothing for this long is gone.
const SILENCE: Duration = Duration::from_secs(90);
/// A connection that held this long worked.
const STABLE: Duration = Duration::from_secs(5);
/// How long a process that is let go may take its last input.
const FAREWELL: Duration = Duration::from_secs(5);

/// The first message of a connection.
pub(super) enum Opening {
    Start(Start),
    /// The path segment of the process, and from where on.
    Attach(String, Connect),
}

/// A connection whose process is known.
pub(super) struct Connection {
    sender: Sender,
    receiver: Receiver,
    pid: u32,
    tag: String,
    tty: bool,
    expected: Expected,
    /// The process ended before it started: it was not found.
    early: Option<Exit>,
}

/// The offset that comes next in each channel; nothing where that is not known yet.
#[derive(Clone, Copy, Debug, Default)]
struct Expected([Option<u64>; 3]);

const fn index(channel: Channel) -> usize {
    match channel {
        Channel::Stderr => 1,
        Channel::Tty => 2,
        _ => 0,
    }
}

impl Expected {
    fn all(offsets: Offsets) -> Self {
        Self([
            Some(offsets.stdout),
            Some(offsets.stderr),
            Some(offsets.tty),
        ])
    }

    fn offsets(&self) -> Offsets {
        let [stdout, stderr, tty] = self.0.map(Option::unwrap_or_default);
        Offsets {
            stdout,
            stderr,
            tty,
        }
    }

    /// The offsets to ask the server for; none as long as no output came.
    fn from(&self) -> Option<Offsets> {
        self.0.iter().any(Option::is_some).then(|| self.offsets())
    }

    /// The new part of a piece of output.
    fn fresh(&self, mut output: Output) -> Result<Output> {
        let Some(expected) = self.0[index(output.channel)] else {
            return Ok(output);
        };
        if output.offset > expected {
            return Err(Error::OutputLost {
                channel: output.channel,
                expected,
                got: output.offset,
            });
        }
        let known = usize::try_from(expected - output.offset).unwrap_or(usize::MAX);
        let known = known.min(output.data.len());
        output.data = output.data.slice(known..);
        output.offset += known as u64;
        Ok(output)
    }

    fn advance(&mut self, output: &Output) {
        self.0[index(output.channel)] = Some(output.offset + output.data.len() as u64);
    }
}

impl Connection {
    /// Starts a process, or finds one.
    pub(super) async fn open(
        client: &Client,
        sandbox: &SandboxId,
        opening: Opening,
    ) -> Result<Self> {
        let transport = &client.transport;
        let base = ["v1", "sandboxes", sandbox.as_str()];
        let (url, first, expected) = match opening {
            Opening::Start(start) => {
                let url = transport.url(&[&base[..], &["exec", "stream"]].concat())?;
                let expected = Expected::all(Offsets::default());
                (url, ClientMessage::Start(start), expected)
            }
            Opening::Attach(process, connect) => {
                let url =
                    transport.url(&[&base[..], &["processes", &process, "stream"]].concat())?;
                let expected = connect.from.map(Expected::all).unwrap_or_default();
                (url, ClientMessage::Connect(connect), expected)
            }
        };
        let mut socket = websocket::open(transport, &url, Some(PROTOCOL)).await?;
        let broken = |source: Box<dyn std::error::Error + Send + Sync>| Error::Disconnected {
            request: format!("GET {}", url.path()),
            request_id: None,
            source,
        };
        socket
            .send(control(&first))
            .await
            .map_err(|error| broken(error.into()))?;
        let (sender, mut receiver) = socket.split();
        let (pid, tag, tty, early) = loop {
            let message = match timeout(SILENCE, receiver.next()).await {
                Ok(Some(Ok(Message::Text(text)))) => parse(&text)?,
                Ok(Some(Ok(Message::Close(_))) | None) => {
                    return Err(broken("the server closed it".into()));
                }
                Ok(Some(Ok(_))) => continue,
                Ok(Some(Err(error))) => return Err(broken(error.into())),
                Err(_) => return Err(broken("the server is silent".into())),
            };
            match message {
                ServerMessage::Started { pid, tag, tty } => {
                    break (pid, tag, tty, None);
                }
                ServerMessage::Exit(exit) => {
                    break (0, String::new(), false, Some(exit));
                }
                ServerMessage::Error { code, message } => {
                    return Err(Error::message(code, message));
                }
                _ => {}
            }
        };
        Ok(Self {
            sender,
            receiver,
            pid,
            tag,
            tty,
            expected,
            early,
        })
    }

    pub(super) const fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn tag(&self) -> &str {
        &self.tag
    }

    pub(super) const fn tty(&self) -> bool {
        self.tty
    }

    pub(super) fn offsets(&self) -> Offsets {
        self.expected.offsets()
    }
}

fn parse(text: &str) -> Result<ServerMessage> {
    serde_json::from_str(text).map_err(|error| Error::Protocol {
        request: "the stream of a process".to_owned(),
        problem: error.to_string(),
        request_id: None,
    })
}

/// How the time on one connection ended.
enum Ended {
    /// The process has ended, or nobody follows it any more.
    Done,
    Failed(Error),
    /// The connection broke; the process may go on.
    Lost(Error),
}

/// Follows a process to its end.
pub(super) struct Follow {
    pub(super) client: Client,
    pub(super) sandbox: SandboxId,
    pub(super) tty: bool,
    pub(super) reconnect: Duration,
    pub(super) events: mpsc::Sender<Result<ProcessEvent>>,
    pub(super) inputs: Inputs,
    pub(super) offsets: watch::Sender<Offsets>,
}

impl Follow {
    pub(super) async fn run(mut self, mut connection: Connection) {
        let process = connection.pid.to_string();
        let mut expected = connection.expected;
        let acknowledged = Acknowledged::default();
        let mut outage = Outage::new(self.reconnect);
        let error = loop {
            let error = match self
                .follow(connection, &mut expected, &acknowledged, &mut outage)
                .await
            {
                Ended::Done => return,
                Ended::Failed(error) => break error,
                Ended::Lost(error) => error,
            };
            let in_doubt = acknowledged.in_doubt();
            if self.tty {
                acknowledged.assume_read();
            } else if in_doubt > 0 {
                break Error::InputLost { in_doubt };
            }
            tracing::debug!(%error, pid = process, "connecting to a process again");
            connection = tokio::select! {
                connected = outage.reconnect(&self, &process, expected, error) => match connected {
                    Ok(connection) => connection,
                    Err(error) => break error,
                },
                () = self.events.closed() => return,
            };
        };
        // The receiver may be gone.
        let _heard = self.events.send(Err(error)).await;
    }

    async fn follow(
        &mut self,
        connection: Connection,
        expected: &mut Expected,
        acknowledged: &Acknowledged,
        outage: &mut Outage,
    ) -> Ended {
        let Connection {
            mut sender,
            mut receiver,
            early,
            ..
        } = connection;
        if let Some(exit) = early {
            return deliver_exit(&self.events, exit).await;
        }
        let opened = Instant::now();
        if outage.is_reconnected()
            && let Err(error) = self.inputs.repeat(&mut sender).await
        {
            return Ended::Lost(lost(error));
        }
        let before = *self.offsets.borrow();
        let ended = {
            let write = async {
                let error = self.inputs.send_all(&mut sender, acknowledged).await;
                tracing::debug!(%error, "no more input is sent on this connection");
                // The reader says how it ended, perhaps with the exit.
                std::future::pending().await
            };
            tokio::select! {
                ended = read(&mut receiver, expected, acknowledged, &self.events, &self.offsets) => ended,
                () = write => Ended::Done,
                () = self.events.closed() => Ended::Done,
            }
        };
        if opened.elapsed() > STABLE || *self.offsets.borrow() != before {
            outage.forget();
        }
        if self.events.is_closed() {
            let rest = self.inputs.send_rest(&mut sender, acknowledged);
            // The process goes on either way.
            let _farewell = timeout(FAREWELL, rest).await;
        }
        ended
    }
}

fn lost(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Disconnected {
        request: "the stream of a process".to_owned(),
        request_id: None,
        source: source.into(),
    }
}

async fn read(
    receiver: &mut Receiver,
    expected: &mut Expected,
    acknowledged: &Acknowledged,
    events: &mpsc::Sender<Result<ProcessEvent>>,
    offsets: &watch::Sender<Offsets>,
) -> Ended {
    loop {
        let message = match timeout(SILENCE, receiver.next()).await {
            Ok(Some(Ok(message))) => message,
            Ok(Some(Err(error))) => return Ended::Lost(lost(error)),
            Ok(None) => return Ended::Lost(lost("the server closed it")),
            Err(_) => return Ended::Lost(lost("the server is silent")),
        };
        match message {
            Message::Binary(frame) => {
                let output = match Output::decode(&frame) {
                    Ok(output) => output,
                    Err(error) => {
                        return Ended::Failed(Error::Protocol {
                            request: "the stream of a process".to_owned(),
                            problem: error.to_string(),
                            request_id: None,
                        });
                    }
                };
                let output = match expected.fresh(output) {
                    Ok(output) => output,
                    Err(error) => return Ended::Failed(error),
                };
                if !output.data.is_empty() && events.send(Ok(event(&output))).await.is_err() {
                    return Ended::Done;
                }
                // Only what was handed over counts: the rest comes again.
                expected.advance(&output);
                offsets.send_replace(expected.offsets());
            }
            Message::Text(text) => match parse(&text) {
                Ok(ServerMessage::Exit(exit)) => return deliver_exit(events, exit).await,
                Ok(ServerMessage::Error { code, message }) => {
                    let error = Error::message(code, message);
                    return if code.is_retryable() {
                        Ended::Lost(error)
                    } else {
                        Ended::Failed(error)
                    };
                }
                Ok(_) => {}
                Err(error) => return Ended::Failed(error),
            },
            Message::Pong(payload) => acknowledged.pong(&payload),
            Message::Close(_) => return Ended::Lost(lost("the server closed it")),
            Message::Ping(_) | Message::Frame(_) => {}
        }
    }
}

fn event(output: &Output) -> ProcessEvent {
    let data = output.data.clone();
    match output.channel {
        Channel::Stderr => ProcessEvent::Stderr(data),
        Channel::Tty => ProcessEvent::Tty(data),
        _ => ProcessEvent::Stdout(data),
    }
}

async fn deliver_exit(events: &mpsc::Sender<Result<ProcessEvent>>, exit: Exit) -> Ended {
    let status = ExitStatus {
        code: exit.code,
        signal: exit.signal,
        timed_out: exit.timed_out,
        message: exit.message,
    };
    // The receiver may be gone.
    let _heard = events.send(Ok(ProcessEvent::Exit(status))).await;
    Ended::Done
}

/// The time without a working connection.
struct Outage {
    longest: Duration,
    began: Option<Instant>,
    attempts: u32,
}

impl Outage {
    const fn new(longest: Duration) -> Self {
        Self {
            longest,
            began: None,
            attempts: 0,
        }
    }

    /// Whether the present connection is not the first one.
    const fn is_reconnected(&self) -> bool {
        self.began.is_some()
    }

    const fn forget(&mut self) {
        self.began = None;
        self.attempts = 0;
    }

    async fn reconnect(
        &mut self,
        follow: &Follow,
        process: &str,
        expected: Expected,
        mut error: Error,
    ) -> Result<Connection> {
        let began = *self.began.get_or_insert_with(Instant::now);
        loop {
            let wait = backoff(self.attempts);
            if began.elapsed() + wait > self.longest {
                return Err(error);
            }
            self.attempts += 1;
            tokio::time::sleep(wait).await;
            let connect = Connect {
                from: expected.from(),
                ..Connect::default()
            };
            let opening = Opening::Attach(process.to_owned(), connect);
            match Connection::open(&follow.client, &follow.sandbox, opening).await {
                Ok(connection) => return Ok(connection),
                Err(failed) if failed.is_retryable() => error = failed,
                Err(failed) => return Err(failed),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn output(offset: u64, data: &'static str) -> Output {
        Output {
            channel: Channel::Stdout,
            offset,
            data: Bytes::from_static(data.as_bytes()),
        }
    }

    #[test]
    fn repeated_output_is_trimmed() {
        let expected = Expected::all(Offsets {
            stdout: 4,
            ..Offsets::default()
        });
        assert_eq!(expected.fresh(output(4, "efg")).unwrap(), output(4, "efg"));
        assert_eq!(
            expected.fresh(output(2, "cdefg")).unwrap(),
            output(4, "efg")
        );
        assert!(expected.fresh(output(0, "ab")).unwrap().data.is_empty());
        let error = expected.fresh(output(7, "h")).unwrap_err();
        assert!(matches!(
            error,
            Error::OutputLost {
                expected: 4,
                got: 7,
                ..
            }
        ));
    }

    #[test]
    fn first_output_of_attached_process_sets_offset() {
        let mut expected = Expected::default();
        assert_eq!(expected.from(), None);
        let first = expected.fresh(output(100, "abc")).unwrap();
        expected.advance(&first);
        assert_eq!(expected.from().unwrap().stdout, 103);
    }
}
