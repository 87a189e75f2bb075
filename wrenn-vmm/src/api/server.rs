//! The API thread: accepts connections on the Unix socket and answers one request after
//! another. It never does anything itself: actions go to the main thread.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::api::controller::{self, Answer};
use crate::api::http::{self, HttpRequest, HttpResponse, Parsed, StatusCode};
use crate::api::request::{self, Action};

/// Connections at the same time, as Firecracker has it. One client needs one.
const CONNECTIONS_MAX: usize = 10;

/// The way to the main thread and back.
pub struct Channel {
    /// Actions.
    pub actions: Sender<Action>,
    /// Their answers, one each, in order.
    pub answers: Receiver<Answer>,
    /// Tells the main thread about an action.
    pub wake: EventFd,
}

impl Channel {
    /// Has an action done; `None` if the main thread is gone.
    fn ask(&self, action: Action) -> Option<Answer> {
        self.actions.send(action).ok()?;
        self.wake.write(1).ok()?;
        self.answers.recv().ok()
    }
}

/// The server.
pub struct ApiServer {
    listener: UnixListener,
    epoll: Epoll,
    channel: Channel,
    connections: HashMap<u64, Connection>,
    next_token: u64,
}

struct Connection {
    stream: UnixStream,
    buffer: Vec<u8>,
}

/// What becomes of a connection.
enum Outcome {
    Keep,
    Close,
}

const LISTENER_TOKEN: u64 = 0;

impl ApiServer {
    /// Binds the socket.
    ///
    /// # Errors
    /// If the path is taken or cannot be created.
    pub fn bind(path: &Path, channel: Channel) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, LISTENER_TOKEN);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self {
            listener,
            epoll,
            channel,
            connections: HashMap::new(),
            next_token: 1,
        })
    }

    /// Serves until the main thread is gone.
    pub fn run(mut self) {
        let mut events = [EpollEvent::default(); CONNECTIONS_MAX + 1];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("the API cannot wait for requests: {error}");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    LISTENER_TOKEN => self.accept(),
                    token => self.serve(token),
                }
            }
        }
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                // One too many is closed at once rather than kept waiting for ever.
                Ok((stream, _)) if self.connections.len() < CONNECTIONS_MAX => {
                    if let Err(error) = self.add(stream) {
                        log::warn!("the API cannot take a connection: {error}");
                    }
                }
                Ok(_) => log::warn!("the API has too many connections"),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    log::warn!("the API cannot accept a connection: {error}");
                    return;
                }
            }
        }
    }

    fn add(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let token = self.next_token;
        self.next_token += 1;
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll
            .ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        self.connections.insert(
            token,
            Connection {
                stream,
                buffer: Vec::new(),
            },
        );
        Ok(())
    }

    fn serve(&mut self, token: u64) {
        let Some(connection) = self.connections.get_mut(&token) else {
            return;
        };
        if let Outcome::Close = connection.serve(&self.channel) {
            // Closing the descriptor takes it out of the epoll set.
            self.connections.remove(&token);
        }
    }
}

impl Connection {
    fn serve(&mut self, channel: &Channel) -> Outcome {
        let mut piece = [0u8; 4096];
        match self.stream.read(&mut piece) {
            Ok(0) => return Outcome::Close,
            Ok(count) => self.buffer.extend_from_slice(&piece[..count]),
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Outcome::Keep;
            }
            Err(_) => return Outcome::Close,
        }
        loop {
            match http::parse(&self.buffer) {
                Ok(Parsed::Partial { expects_continue }) => {
                    if expects_continue
                        && self
                            .stream
                            .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
                            .is_err()
                    {
                        return Outcome::Close;
                    }
                    return Outcome::Keep;
                }
                Ok(Parsed::Complete(request, length)) => {
                    self.buffer.drain(..length);
                    let Some(response) = answer(&request, channel) else {
                        return Outcome::Close;
                    };
                    if self.send(&response).is_err() {
                        return Outcome::Close;
                    }
                }
                Err(error) => {
                    log::warn!("API: {error}");
                    // The connection is over whether or not the client hears why.
                    self.send(&controller::fault(error.status(), &error.to_string()))
                        .ok();
                    return Outcome::Close;
                }
            }
        }
    }

    /// Sends an answer. It fits the socket's buffer unless the client does not read at
    /// all, and such a client loses its connection.
    fn send(&mut self, response: &HttpResponse) -> io::Result<()> {
        self.stream.write_all(&response.encode())
    }
}

/// The answer to a request; `None` if there is nobody left to give one.
fn answer(request: &HttpRequest, channel: &Channel) -> Option<HttpResponse> {
    let (method, path) = (request.method.name(), &request.path);
    log::info!("The API server received a {method} request on {path:?}.");
    let response = match request::parse(request) {
        Ok(action) => controller::response(&channel.ask(action)?),
        Err(error) => controller::fault(StatusCode::BadRequest, &error.to_string()),
    };
    if response.status == StatusCode::BadRequest {
        log::warn!(
            "{method} {path} was refused: {}",
            response.body.as_deref().unwrap_or_default()
        );
    }
    Some(response)
}

#[cfg(test)]
mod tests;
