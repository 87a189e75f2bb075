//! One file out of a sandbox.
//!
//! A connection that breaks is replaced by another one, which goes on with the next byte:
//!
//! ```text
//!  stat ─▶ GET ─▶ bytes ─▶ broken ─▶ GET with Range ─▶ stat, as before? ─▶ bytes ─▶ …
//!                                                          └─ no: error
//! ```
//!
//! The first stat comes before the file is opened and each later one after it was opened again,
//! so a file that was replaced or written to in between is seen as another one.

use std::future::IntoFuture;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use wrenn_api::error::ErrorCode;
use wrenn_api::file::{FileEntry, FileKind};
use wrenn_api::time::OffsetDateTime;

use super::Files;
use crate::error::{Error, Result};
use crate::progress::{Observer, Progress};
use crate::retry::backoff;
use crate::transport::{Call, request_id};

const MODE: u32 = 0o777;
const REQUEST: &str = "GET …/files/content";
/// Connections in a row that may bring nothing.
const MAX_RESUMES: u32 = 3;

/// Copies a file of the sandbox to a local one when it is awaited.
///
/// A connection that breaks is replaced, and the copy goes on where it was. A file that changed
/// meanwhile is [`Error::FileChanged`], and the local file stays as it was.
#[derive(Debug)]
#[must_use = "nothing is copied until it is awaited"]
pub struct Download {
    files: Files,
    path: String,
    local: PathBuf,
    observer: Observer,
}

impl Download {
    pub(super) fn new(files: Files, path: String, local: PathBuf) -> Self {
        Self {
            files,
            path,
            local,
            observer: Observer::default(),
        }
    }

    /// Calls `observer` as bytes arrive.
    pub fn on_progress(mut self, observer: impl FnMut(Progress) + Send + 'static) -> Self {
        self.observer = Observer::new(observer);
        self
    }
}

/// The result of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Downloaded {
    /// Bytes of the file.
    pub bytes: u64,
}

impl IntoFuture for Download {
    type Output = Result<Downloaded>;
    type IntoFuture = BoxFuture<'static, Result<Downloaded>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (mut incoming, mode) = Incoming::open(&self.files, &self.path).await?;
            let mode = mode & MODE;
            // A link is followed, so that what it leads to is replaced.
            let local = tokio::fs::canonicalize(&self.local).await;
            let local = local.unwrap_or(self.local);
            let existing = tokio::fs::metadata(&local).await;
            if existing.is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
                // A device or pipe is written to and not replaced.
                let file = tokio::fs::OpenOptions::new().write(true).open(&local).await;
                let mut file = file.map_err(Error::io("open", &local))?;
                let bytes = copy(
                    &mut incoming,
                    &mut file,
                    &self.observer,
                    Error::io("write", &local),
                );
                return Ok(Downloaded {
                    bytes: bytes.await?,
                });
            }
            let bytes = replace(&mut incoming, &local, mode, &self.observer).await?;
            Ok(Downloaded { bytes })
        })
    }
}

async fn replace(
    incoming: &mut Incoming<'_>,
    local: &Path,
    mode: u32,
    observer: &Observer,
) -> Result<u64> {
    let directory = match local.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".wrenn-")
        .tempfile_in(directory)
        .map_err(Error::io("create a file in", directory))?;
    let (file, path) = temporary.into_parts();
    let mut file = tokio::fs::File::from_std(file);
    let bytes = copy(incoming, &mut file, observer, Error::io("write", local)).await?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .await
        .map_err(Error::io("write", local))?;
    path.persist(local)
        .map_err(|error| Error::io("write", local)(error.error))?;
    Ok(bytes)
}

/// Identifies a version of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// Where it is: a link may lead elsewhere.
    path: String,
    size: u64,
    modified_at: OffsetDateTime,
}

impl Version {
    /// `None` for a device and the like, which has no versions.
    fn of(entry: &FileEntry) -> Option<Self> {
        Some(Self {
            path: entry.path.clone(),
            size: entry.size,
            modified_at: entry.modified_at?,
        })
        .filter(|_| entry.kind == FileKind::File)
    }
}

/// The file that a path leads to.
async fn look(files: &Files, path: &str) -> Result<FileEntry> {
    let entry = files.stat(path).await?;
    match &entry.symlink_target {
        // The end of all links, where there is one.
        Some(target) if target.starts_with('/') => files.stat(target.as_str()).await,
        _ => Ok(entry),
    }
}

/// A file on its way out of a sandbox.
struct Incoming<'a> {
    files: &'a Files,
    path: &'a str,
    version: Option<Version>,
    response: Response,
    total: Option<u64>,
    done: u64,
    /// Connections in a row that brought nothing.
    failed: u32,
}

impl<'a> Incoming<'a> {
    /// Opens the file, and gives its mode.
    async fn open(files: &'a Files, path: &'a str) -> Result<(Self, u32)> {
        let entry = look(files, path).await?;
        let response = files.client.transport.send(call(files, path)?).await?;
        let incoming = Self {
            files,
            path,
            version: Version::of(&entry),
            total: response.content_length(),
            response,
            done: 0,
            failed: 0,
        };
        Ok((incoming, entry.mode))
    }

    /// The next bytes; nothing at the end of the file.
    async fn chunk(&mut self) -> Result<Option<Bytes>> {
        loop {
            let network = match self.response.chunk().await {
                Ok(Some(chunk)) => {
                    self.done += chunk.len() as u64;
                    self.failed = 0;
                    return Ok(Some(chunk));
                }
                Ok(None) => return Ok(None),
                Err(_) if self.total == Some(self.done) => return Ok(None),
                Err(network) => network,
            };
            let error = Error::Disconnected {
                request: REQUEST.to_owned(),
                request_id: request_id(self.response.headers()),
                source: network.without_url().into(),
            };
            if self.version.is_none() || self.failed == MAX_RESUMES {
                return Err(error);
            }
            let wait = backoff(self.failed);
            self.failed += 1;
            tracing::debug!(%error, ?wait, done = self.done, "resuming a download");
            tokio::time::sleep(wait).await;
            self.resume().await?;
        }
    }

    /// Goes on with the next byte, if it is still that of the same file.
    async fn resume(&mut self) -> Result<()> {
        let changed = || Error::FileChanged {
            path: self.path.to_owned(),
        };
        let range = HeaderValue::from_str(&format!("bytes={}-", self.done));
        let range = range.unwrap_or_else(|_| HeaderValue::from_static("bytes=0-"));
        let call = call(self.files, self.path)?.header("range", range);
        let response = match self.files.client.transport.send(call).await {
            Err(error) if error.code() == Some(ErrorCode::RangeNotSatisfiable) => {
                return Err(changed());
            }
            response => response?,
        };
        let entry = look(self.files, self.path).await?;
        if Version::of(&entry) != self.version {
            return Err(changed());
        }
        let begins = format!("bytes {}-", self.done);
        let goes_on = response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .is_some_and(|range| range.starts_with(&begins));
        if response.status() != StatusCode::PARTIAL_CONTENT || !goes_on {
            return Err(Error::Protocol {
                request: REQUEST.to_owned(),
                problem: format!("it does not go on at byte {}", self.done),
                request_id: request_id(response.headers()),
            });
        }
        self.response = response;
        Ok(())
    }
}

fn call(files: &Files, path: &str) -> Result<Call> {
    Ok(Call::new(Method::GET, files.url("content", path, &[])?))
}

/// Copies a file of a sandbox into a writer.
pub(super) async fn stream_to<W: AsyncWrite + Unpin + ?Sized>(
    files: &Files,
    path: &str,
    writer: &mut W,
    observer: &Observer,
) -> Result<u64> {
    let (mut incoming, _mode) = Incoming::open(files, path).await?;
    copy(&mut incoming, writer, observer, |source| Error::Stream {
        operation: "write the copy",
        source,
    })
    .await
}

async fn copy<W: AsyncWrite + Unpin + ?Sized>(
    incoming: &mut Incoming<'_>,
    writer: &mut W,
    observer: &Observer,
    failed: impl FnOnce(std::io::Error) -> Error,
) -> Result<u64> {
    let written = async {
        while let Some(chunk) = incoming.chunk().await.map_err(Ok)? {
            writer.write_all(&chunk).await.map_err(Err)?;
            observer.report(incoming.done, incoming.total);
        }
        writer.flush().await.map_err(Err)
    };
    match written.await {
        Ok(()) => Ok(incoming.done),
        Err(Ok(error)) => Err(error),
        Err(Err(local)) => Err(failed(local)),
    }
}
