//! Directories into and out of a sandbox, as archives that are never stored.

use std::future::IntoFuture;
use std::io;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _};
use http::Method;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};

use super::Files;
use crate::archive::{ArchiveError, OutwardLinks, Skipped, pack, size_of, unpack};
use crate::error::{Error, Result};
use crate::progress::{Observer, Progress};
use crate::transport::{Call, request_id};

const PIPE: usize = 256 << 10;
const ROUTE: &str = "archive";

/// Copies a local directory into the sandbox when it is awaited.
#[derive(Debug)]
#[must_use = "nothing is copied until it is awaited"]
pub struct UploadDir {
    files: Files,
    local: PathBuf,
    path: String,
    observer: Observer,
}

/// The result of an upload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadedDir {
    /// Devices, pipes and sockets, which were left out.
    pub skipped: Vec<Skipped>,
}

impl UploadDir {
    pub(super) fn new(files: Files, local: PathBuf, path: String) -> Self {
        Self {
            files,
            local,
            path,
            observer: Observer::default(),
        }
    }

    /// Calls `observer` as files are sent.
    pub fn on_progress(mut self, observer: impl FnMut(Progress) + Send + 'static) -> Self {
        self.observer = Observer::new(observer);
        self
    }
}

impl IntoFuture for UploadDir {
    type Output = Result<UploadedDir>;
    type IntoFuture = BoxFuture<'static, Result<UploadedDir>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let url = self.files.url(ROUTE, &self.path, &[])?;
            let (writer, reader) = tokio::io::duplex(PIPE);
            let (failed, failure) = tokio::sync::oneshot::channel::<()>();
            let packing = tokio::task::spawn_blocking(move || {
                let mut writer = SyncIoBridge::new(writer);
                let packed = pack_into(&mut writer, &self.local, &self.observer);
                match packed {
                    Ok(_) => drop(failed),
                    // The body must not end as if it were whole.
                    Err(_) => drop(failed.send(())),
                }
                // Only now does the body reach its end.
                drop(writer);
                packed
            });
            let packed = ReaderStream::with_capacity(reader, PIPE / 2);
            let end = futures::stream::once(async {
                match failure.await {
                    Ok(()) => Err(io::Error::other("a local file could not be read")),
                    Err(_) => Ok(bytes::Bytes::new()),
                }
            });
            let body = reqwest::Body::wrap_stream(packed.chain(end));
            let call = Call::new(Method::PUT, url).stream(body);
            let sent = self.files.client.transport.send(call).await;
            let packed = packing.await.map_err(|error| worker_died(&error))?;
            match (sent, packed) {
                (Ok(_), Ok(skipped)) => Ok(UploadedDir { skipped }),
                // Where the server refuses, the packer's pipe breaks.
                (Err(error), Ok(_) | Err(Error::Stream { .. })) => Err(error),
                (_, Err(error)) => Err(error),
            }
        })
    }
}

fn pack_into(writer: impl io::Write, local: &Path, observer: &Observer) -> Result<Vec<Skipped>> {
    let total = size_of(local)?;
    observer.report(0, Some(total));
    let writer = io::BufWriter::with_capacity(PIPE / 2, writer);
    pack(local, writer, |done| observer.report(done, Some(total)))
}

/// Copies a directory of the sandbox into a local one when it is awaited.
///
/// Symbolic links are made as they are, wherever they lead, and nothing is written through one.
/// The sandbox chooses where they lead: treat what was copied like a repository or an archive of
/// the same origin, before a program follows them.
#[derive(Debug)]
#[must_use = "nothing is copied until it is awaited"]
pub struct DownloadDir {
    files: Files,
    path: String,
    local: PathBuf,
    observer: Observer,
    outward_links: OutwardLinks,
}

/// The result of a download.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DownloadedDir {
    /// Devices and pipes, which were left out, and links that lead out of the directory, where
    /// those were not wanted.
    pub skipped: Vec<Skipped>,
    /// Symbolic links that were made and lead out of the directory, as `/usr/bin/python3` does.
    /// Their names may hold control codes of a terminal.
    pub outward_links: Vec<String>,
}

impl DownloadDir {
    pub(super) fn new(files: Files, path: String, local: PathBuf) -> Self {
        Self {
            files,
            path,
            local,
            observer: Observer::default(),
            outward_links: OutwardLinks::default(),
        }
    }

    /// Leaves out symbolic links that lead out of the directory.
    pub fn without_outward_links(mut self) -> Self {
        self.outward_links = OutwardLinks::LeaveOut;
        self
    }

    /// Calls `observer` as bytes arrive.
    pub fn on_progress(mut self, observer: impl FnMut(Progress) + Send + 'static) -> Self {
        self.observer = Observer::new(observer);
        self
    }
}

impl IntoFuture for DownloadDir {
    type Output = Result<DownloadedDir>;
    type IntoFuture = BoxFuture<'static, Result<DownloadedDir>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let url = self.files.url(ROUTE, &self.path, &[])?;
            let call = Call::new(Method::GET, url);
            let response = self.files.client.transport.send(call).await?;
            let request_id = request_id(response.headers());
            let chunks = response
                .bytes_stream()
                .map_err(|error| io::Error::other(error.without_url()));
            let reader = StreamReader::new(chunks);
            let unpacking = tokio::task::spawn_blocking(move || {
                let mut reader = SyncIoBridge::new(reader);
                let observer = self.observer;
                let unpacked = unpack(&mut reader, &self.local, self.outward_links, |done| {
                    observer.report(done, None);
                });
                // The blocks after the end, so that the connection can be used again.
                if unpacked.is_ok() {
                    io::copy(&mut reader, &mut io::sink()).map_err(ArchiveError::Read)?;
                }
                unpacked
            });
            let unpacked = unpacking.await.map_err(|error| worker_died(&error))?;
            unpacked
                .map(|unpacked| DownloadedDir {
                    skipped: unpacked.skipped,
                    outward_links: unpacked.outward_links,
                })
                .map_err(|error| match error {
                    ArchiveError::Read(source)
                        if source
                            .get_ref()
                            .is_some_and(|inner| inner.is::<reqwest::Error>()) =>
                    {
                        Error::Disconnected {
                            request: "GET …/files/archive".to_owned(),
                            request_id,
                            source: source.into(),
                        }
                    }
                    error => error.into(),
                })
        })
    }
}

fn worker_died(error: &tokio::task::JoinError) -> Error {
    Error::Stream {
        operation: "run a worker",
        source: io::Error::other(error.to_string()),
    }
}
