//! One file out of a sandbox.

use std::future::IntoFuture;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use http::Method;
use reqwest::Response;
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::Files;
use crate::error::{Error, Result};
use crate::progress::{Observer, Progress};
use crate::transport::{Call, request_id};

const MODE: u32 = 0o777;

/// Copies a file of the sandbox to a local one when it is awaited.
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
            let mode = self.files.stat(self.path.as_str()).await?.mode & MODE;
            let mut response = open(&self.files, &self.path).await?;
            // A link is followed, so that what it leads to is replaced.
            let local = tokio::fs::canonicalize(&self.local).await;
            let local = local.unwrap_or(self.local);
            let existing = tokio::fs::metadata(&local).await;
            if existing.is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
                // A device or pipe is written to and not replaced.
                let file = tokio::fs::OpenOptions::new().write(true).open(&local).await;
                let mut file = file.map_err(Error::io("open", &local))?;
                let bytes = copy(
                    &mut response,
                    &mut file,
                    &self.observer,
                    Error::io("write", &local),
                );
                return Ok(Downloaded {
                    bytes: bytes.await?,
                });
            }
            let bytes = replace(&mut response, &local, mode, &self.observer).await?;
            Ok(Downloaded { bytes })
        })
    }
}

async fn replace(
    response: &mut Response,
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
    let bytes = copy(response, &mut file, observer, Error::io("write", local)).await?;
    file.set_permissions(std::fs::Permissions::from_mode(mode))
        .await
        .map_err(Error::io("write", local))?;
    path.persist(local)
        .map_err(|error| Error::io("write", local)(error.error))?;
    Ok(bytes)
}

async fn open(files: &Files, path: &str) -> Result<Response> {
    let url = files.url("content", path, &[])?;
    let call = Call::new(Method::GET, url);
    files.client.transport.send(call).await
}

/// Copies a file of a sandbox into a writer.
pub(super) async fn stream_to<W: AsyncWrite + Unpin + ?Sized>(
    files: &Files,
    path: &str,
    writer: &mut W,
    observer: &Observer,
) -> Result<u64> {
    let mut response = open(files, path).await?;
    copy(&mut response, writer, observer, |source| Error::Stream {
        operation: "write the copy",
        source,
    })
    .await
}

async fn copy<W: AsyncWrite + Unpin + ?Sized>(
    response: &mut Response,
    writer: &mut W,
    observer: &Observer,
    failed: impl FnOnce(std::io::Error) -> Error,
) -> Result<u64> {
    let request_id = request_id(response.headers());
    let total = response.content_length();
    let mut done = 0;
    let written = async {
        while let Some(chunk) = response.chunk().await.map_err(Ok)? {
            writer.write_all(&chunk).await.map_err(Err)?;
            done += chunk.len() as u64;
            observer.report(done, total);
        }
        writer.flush().await.map_err(Err)
    };
    match written.await {
        Ok(()) => Ok(done),
        Err(Ok(network)) => Err(Error::Disconnected {
            request: "GET …/files/content".to_owned(),
            request_id,
            source: network.without_url().into(),
        }),
        Err(Err(local)) => Err(failed(local)),
    }
}
