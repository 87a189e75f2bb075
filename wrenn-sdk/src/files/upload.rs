//! One file into a sandbox.

use std::future::IntoFuture;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream;
use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::Files;
use crate::error::{Error, Result};
use crate::progress::{Observer, Progress};
use crate::transport::Call;

const CHUNK: usize = 256 << 10;
const ROUTE: &str = "stream/write";
/// Permission bits; the server takes no more.
const MODE: u32 = 0o7777;

/// Writes a file when it is awaited.
///
/// A connection that breaks is [`Error::UploadInterrupted`]: the old file stays, and the next
/// write begins anew.
#[derive(Clone, Debug)]
#[must_use = "nothing is written until it is awaited"]
pub struct Write {
    files: Files,
    path: String,
    contents: Bytes,
    mode: Option<u32>,
}

impl Write {
    pub(super) const fn new(files: Files, path: String, contents: Bytes) -> Self {
        Self {
            files,
            path,
            contents,
            mode: None,
        }
    }

    /// The permission bits of the file.
    pub const fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }
}

impl IntoFuture for Write {
    type Output = Result<()>;
    type IntoFuture = BoxFuture<'static, Result<()>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let size = self.contents.len() as u64;
            let call = call(&self.files, &self.path, self.mode)?.bytes(self.contents);
            send(&self.files, call, || size).await
        })
    }
}

fn call(files: &Files, path: &str, mode: Option<u32>) -> Result<Call> {
    let mode = mode.map(|mode| ("mode", format!("{:04o}", mode & MODE)));
    let url = files.url(ROUTE, path, mode.as_slice())?;
    Ok(Call::new(Method::POST, url))
}

/// Sends the call, and makes sure that all arrived.
async fn send(files: &Files, call: Call, sent: impl FnOnce() -> u64) -> Result<()> {
    let response = match files.client.transport.send(call).await {
        Err(Error::Disconnected { source, .. }) => {
            return Err(Error::UploadInterrupted {
                sent: sent(),
                source,
            });
        }
        response => response?,
    };
    let arrived = response
        .headers()
        .get("x-size")
        .and_then(|size| size.to_str().ok()?.parse::<u64>().ok());
    let sent = sent();
    match arrived {
        Some(arrived) if arrived != sent => Err(Error::Protocol {
            request: "POST …/files/stream/write".to_owned(),
            problem: format!("{sent} bytes were sent, and {arrived} arrived"),
            request_id: crate::transport::request_id(response.headers()),
        }),
        _ => Ok(()),
    }
}

enum From {
    File(PathBuf),
    Reader(Pin<Box<dyn AsyncRead + Send + Sync>>),
}

/// Copies into a file of the sandbox when it is awaited.
///
/// A connection that breaks is [`Error::UploadInterrupted`]: the old file stays, and the next
/// upload begins anew, since a reader cannot be read twice.
#[must_use = "nothing is copied until it is awaited"]
pub struct Upload {
    files: Files,
    from: From,
    path: String,
    mode: Option<u32>,
    observer: Observer,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Upload {
    fn new(files: Files, from: From, path: String) -> Self {
        Self {
            files,
            from,
            path,
            mode: None,
            observer: Observer::default(),
        }
    }

    pub(super) fn file(files: Files, local: PathBuf, path: String) -> Self {
        Self::new(files, From::File(local), path)
    }

    pub(super) fn reader(
        files: Files,
        reader: Pin<Box<dyn AsyncRead + Send + Sync>>,
        path: String,
    ) -> Self {
        Self::new(files, From::Reader(reader), path)
    }

    /// The permission bits of the file; those of the local one unless set.
    pub const fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Calls `observer` as bytes are sent.
    pub fn on_progress(mut self, observer: impl FnMut(Progress) + Send + 'static) -> Self {
        self.observer = Observer::new(observer);
        self
    }
}

/// The result of an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Uploaded {
    /// Bytes of the file.
    pub bytes: u64,
}

impl IntoFuture for Upload {
    type Output = Result<Uploaded>;
    type IntoFuture = BoxFuture<'static, Result<Uploaded>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let mut mode = self.mode;
            let mut total = None;
            let mut local = None;
            let reader = match self.from {
                From::Reader(reader) => reader,
                From::File(path) => {
                    let file = tokio::fs::File::open(&path).await;
                    let file = file.map_err(Error::io("open", &path))?;
                    let metadata = file.metadata().await;
                    let metadata = metadata.map_err(Error::io("read", &path))?;
                    if metadata.is_dir() {
                        let kind = io::ErrorKind::IsADirectory;
                        return Err(Error::io("read", path)(kind.into()));
                    }
                    mode.get_or_insert(metadata.mode());
                    total = metadata.is_file().then_some(metadata.len());
                    local = Some(path);
                    Box::pin(file)
                }
            };
            let source = Source::new(reader, self.observer, total);
            let state = source.state();
            let call = call(&self.files, &self.path, mode)?.stream(source.into_body());
            let sent = send(&self.files, call, || state.done()).await;
            match (state.failed(), local) {
                (None, _) => sent?,
                (Some(error), Some(path)) => return Err(Error::io("read", path)(error)),
                (Some(source), None) => {
                    return Err(Error::Stream {
                        operation: "read what is to be copied",
                        source,
                    });
                }
            }
            Ok(Uploaded {
                bytes: state.done(),
            })
        })
    }
}

/// A reader as the body of a request, whose own errors are told from those of the network.
pub(super) struct Source<R> {
    reader: R,
    state: State,
    observer: Observer,
    total: Option<u64>,
}

#[derive(Clone, Default)]
pub(super) struct State(Arc<Mutex<(u64, Option<io::Error>)>>);

impl State {
    fn lock(&self) -> std::sync::MutexGuard<'_, (u64, Option<io::Error>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn done(&self) -> u64 {
        self.lock().0
    }

    pub(super) fn failed(&self) -> Option<io::Error> {
        self.lock().1.take()
    }
}

impl<R: AsyncRead + Unpin + Send + 'static> Source<R> {
    fn new(reader: R, observer: Observer, total: Option<u64>) -> Self {
        Self {
            reader,
            state: State::default(),
            observer,
            total,
        }
    }

    fn state(&self) -> State {
        self.state.clone()
    }

    fn into_body(self) -> reqwest::Body {
        reqwest::Body::wrap_stream(stream::try_unfold(self, |mut source| async move {
            let mut buffer = BytesMut::with_capacity(CHUNK);
            match source.reader.read_buf(&mut buffer).await {
                Ok(0) => Ok(None),
                Ok(count) => {
                    let done = {
                        let mut state = source.state.lock();
                        state.0 += count as u64;
                        state.0
                    };
                    source.observer.report(done, source.total);
                    Ok(Some((buffer.freeze(), source)))
                }
                Err(error) => {
                    let kind = error.kind();
                    source.state.lock().1 = Some(error);
                    Err(io::Error::from(kind))
                }
            }
        }))
    }
}
