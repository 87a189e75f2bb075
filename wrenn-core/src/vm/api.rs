//! Client of the Firecracker HTTP API on a Unix socket.
//!
//! Every request opens a connection of its own: the socket is local, requests are few,
//! and no state is left that could go stale when a VMM dies.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

use super::config::{Action, CreateSnapshot, LoadSnapshot};

/// The longest answer that is read; what a VMM says is short.
const MAX_ANSWER_BYTES: usize = 1 << 20;
/// How long one request may take. A VMM that is taken over must not hang its host; the
/// slowest honest answer seen is that of a boot under nested emulation, about 2 s.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// What the slowest disk writes of a snapshot in a second, in MiB. A snapshot that is
/// slow is slow; only one that makes no progress at all is given up.
const SLOWEST_SNAPSHOT_MIB: u32 = 4;

/// Client of one VMM's API.
#[derive(Clone, Debug)]
pub struct ApiClient {
    socket: PathBuf,
}

/// Answer of `GET /`.
#[derive(Clone, Debug, Deserialize)]
pub struct InstanceInfo {
    /// Name of the program.
    pub app_name: String,
    /// The id that it was started with.
    pub id: String,
    /// `Not started`, `Running` or `Paused`.
    pub state: String,
    /// Version of the program.
    pub vmm_version: String,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket could not be reached.
    #[error("cannot connect to {socket}")]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The request was cut off.
    #[error("{method} {path} was cut off")]
    Transport {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// Why.
        #[source]
        source: hyper::Error,
    },
    /// The VMM said no.
    #[error("{method} {path} answered {status}: {fault}")]
    Refused {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// Status of the answer.
        status: StatusCode,
        /// `fault_message` of the answer, or its text.
        fault: String,
    },
    /// The answer makes no sense.
    #[error("{method} {path} answered something that cannot be read: {reason}")]
    Answer {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No answer came.
    #[error("{method} {path} was not answered within {} s", deadline.as_secs())]
    Deadline {
        /// Method of the request.
        method: Method,
        /// Path of the request.
        path: String,
        /// How long was waited.
        deadline: Duration,
    },
}

impl ApiError {
    /// Whether the program has not made its socket yet.
    #[must_use]
    pub fn is_not_listening(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }
}

impl ApiClient {
    /// A client for the socket at `socket`.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// Asks who answers and in which state it is.
    ///
    /// # Errors
    /// When no sensible answer comes.
    pub async fn info(&self) -> Result<InstanceInfo, ApiError> {
        let answer = self
            .request(Method::GET, "", None, REQUEST_DEADLINE)
            .await?;
        serde_json::from_slice(&answer).map_err(|error| ApiError::Answer {
            method: Method::GET,
            path: "/".to_owned(),
            reason: error.to_string(),
        })
    }

    /// Puts `body` at `path` (without the leading slash).
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached.
    pub async fn put<T: Serialize + Sync>(&self, path: &str, body: &T) -> Result<(), ApiError> {
        self.send(Method::PUT, path, body, REQUEST_DEADLINE).await
    }

    /// Patches `path` (without the leading slash) with `body`.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached.
    pub async fn patch<T: Serialize + Sync>(&self, path: &str, body: &T) -> Result<(), ApiError> {
        self.send(Method::PATCH, path, body, REQUEST_DEADLINE).await
    }

    /// Asks for an action.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached.
    pub async fn action(&self, action: Action) -> Result<(), ApiError> {
        self.put("actions", &serde_json::json!({ "action_type": action }))
            .await
    }

    /// Stops the guest between two instructions. Already paused is no error.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached.
    pub async fn pause(&self) -> Result<(), ApiError> {
        self.patch("vm", &serde_json::json!({ "state": "Paused" }))
            .await
    }

    /// Lets the guest go on. Already running is no error.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached.
    pub async fn resume(&self) -> Result<(), ApiError> {
        self.patch("vm", &serde_json::json!({ "state": "Resumed" }))
            .await
    }

    /// Writes a paused machine of `memory_mib` MiB to files, which are not synced. The time
    /// that it may take grows with the memory.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached; the machine goes on being paused.
    pub async fn create_snapshot(
        &self,
        snapshot: &CreateSnapshot,
        memory_mib: u32,
    ) -> Result<(), ApiError> {
        let deadline =
            REQUEST_DEADLINE + Duration::from_secs((memory_mib / SLOWEST_SNAPSHOT_MIB).into());
        self.send(Method::PUT, "snapshot/create", snapshot, deadline)
            .await
    }

    /// Makes the machine of a snapshot, in a VMM that was told nothing yet.
    ///
    /// # Errors
    /// When the VMM refuses or cannot be reached. It may have ended then.
    pub async fn load_snapshot(&self, snapshot: &LoadSnapshot) -> Result<(), ApiError> {
        self.put("snapshot/load", snapshot).await
    }

    async fn send<T: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: &T,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        let body = serde_json::to_vec(body).map_err(|error| ApiError::Answer {
            method: method.clone(),
            path: format!("/{path}"),
            reason: error.to_string(),
        })?;
        self.request(method, path, Some(body), deadline)
            .await
            .map(|_| ())
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Bytes, ApiError> {
        let path = format!("/{path}");
        tokio::time::timeout(deadline, self.exchange(&method, &path, body))
            .await
            .unwrap_or(Err(ApiError::Deadline {
                method,
                path,
                deadline,
            }))
    }

    async fn exchange(
        &self,
        method: &Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ApiError> {
        let transport = |source| ApiError::Transport {
            method: method.clone(),
            path: path.to_owned(),
            source,
        };
        let unreadable = |reason: String| ApiError::Answer {
            method: method.clone(),
            path: path.to_owned(),
            reason,
        };
        let stream = connect(&self.socket)
            .await
            .map_err(|source| ApiError::Connect {
                socket: self.socket.clone(),
                source,
            })?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(transport)?;

        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "localhost")
            .header(http::header::ACCEPT, "application/json");
        if body.is_some() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| unreadable(error.to_string()))?;

        let exchange = async {
            let response = sender.send_request(request).await.map_err(transport)?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| unreadable(error.to_string()))?
                .to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            Err(ApiError::Refused {
                method: method.clone(),
                path: path.to_owned(),
                status,
                fault: fault_message(&body),
            })
        };
        // The connection is driven here, so nothing of it outlives this future.
        tokio::pin!(connection);
        tokio::pin!(exchange);
        tokio::select! {
            biased;
            answer = &mut exchange => answer,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(source) => Err(transport(source)),
            },
        }
    }
}

/// Connects to a socket, and to nothing that a link in its place leads to: the VMM may
/// write to the directory. By way of the handle the path may also be longer than the 107
/// bytes that an address holds.
async fn connect(socket: &Path) -> io::Result<UnixStream> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let handle = rustix::fs::open(socket, flags, Mode::empty())?;
    let found = rustix::fs::fstat(&handle)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Socket {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no socket",
        ));
    }
    UnixStream::connect(format!("/proc/self/fd/{}", handle.as_raw_fd())).await
}

/// The `fault_message` of an error body, or the body itself.
fn fault_message(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Fault {
        fault_message: String,
    }
    serde_json::from_slice::<Fault>(body).map_or_else(
        |_| String::from_utf8_lossy(body).trim().to_owned(),
        |fault| fault.fault_message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    /// Answers one connection with fixed bytes and returns what was asked.
    async fn serve_once(listener: UnixListener, answer: &'static str) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let n = stream.read(&mut buffer).await.unwrap();
            request.extend_from_slice(&buffer[..n]);
            let text = String::from_utf8_lossy(&request);
            if n == 0
                || text.ends_with('}')
                || (text.starts_with("GET") && text.ends_with("\r\n\r\n"))
            {
                break;
            }
        }
        stream.write_all(answer.as_bytes()).await.unwrap();
        String::from_utf8(request).unwrap()
    }

    fn socket() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("api.sock");
        (directory, path)
    }

    #[tokio::test]
    async fn a_put_is_what_firecracker_reads() {
        let (_directory, path) = socket();
        let server = tokio::spawn(serve_once(
            UnixListener::bind(&path).unwrap(),
            "HTTP/1.1 204 \r\nServer: x\r\n\r\n",
        ));
        ApiClient::new(&path)
            .action(Action::InstanceStart)
            .await
            .unwrap();
        let request = server.await.unwrap();
        assert!(
            request.starts_with("PUT /actions HTTP/1.1\r\n"),
            "{request}"
        );
        assert!(
            request.ends_with(r#"{"action_type":"InstanceStart"}"#),
            "{request}"
        );
    }

    #[tokio::test]
    async fn a_refusal_carries_the_fault() {
        let (_directory, path) = socket();
        let server = tokio::spawn(serve_once(
            UnixListener::bind(&path).unwrap(),
            "HTTP/1.1 400 \r\nContent-Length: 32\r\n\r\n{\"fault_message\":\"no such disk\"}",
        ));
        let error = ApiClient::new(&path)
            .put("drives/a", &serde_json::json!({}))
            .await
            .unwrap_err();
        assert!(error.to_string().ends_with("no such disk"), "{error}");
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_missing_socket_is_told_apart() {
        let (_directory, path) = socket();
        let error = ApiClient::new(&path).info().await.unwrap_err();
        assert!(error.is_not_listening(), "{error}");
    }

    #[tokio::test]
    async fn a_long_path_is_no_obstacle() {
        let (directory, short) = socket();
        let server = tokio::spawn(serve_once(
            UnixListener::bind(&short).unwrap(),
            "HTTP/1.1 204 \r\n\r\n",
        ));
        let deep = directory.path().join("d".repeat(200));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("api.sock");
        std::fs::rename(&short, &path).unwrap();
        ApiClient::new(&path)
            .action(Action::InstanceStart)
            .await
            .unwrap();
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_link_in_the_sockets_place_is_not_followed() {
        let (directory, path) = socket();
        let elsewhere = directory.path().join("elsewhere.sock");
        let _listener = UnixListener::bind(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        let error = ApiClient::new(&path).info().await.unwrap_err();
        assert!(
            matches!(&error, ApiError::Connect { source, .. } if source.kind() == io::ErrorKind::InvalidData),
            "{error:?}"
        );
    }
}
