//! Files in the guest.

use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use wrenn_proto::filesystem::{
    EntryInfo, FileType, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
};
use wrenn_proto::http::FILE_MODE_HEADER;

use super::http::{Body, collect, full};
use super::{GuestClient, GuestError};

const READ: &str = "reading a file";
const WRITE: &str = "writing a file";
const FILES: &str = "/files";
/// The last second of the year 9999, after which no RFC 3339 time follows.
const LAST_SECOND: u64 = 253_402_300_799;
/// The size in which an upload is read and sent.
const CHUNK_BYTES: usize = 256 * 1024;
/// The longest file that [`GuestClient::read_file`] keeps in memory.
const MAX_IN_MEMORY: usize = 64 << 20;

/// A file, directory or link in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Last part of its path.
    pub name: String,
    /// Its path.
    pub path: String,
    /// What it is.
    pub kind: EntryKind,
    /// Its length in bytes.
    pub size: u64,
    /// Its permission bits.
    pub mode: u32,
    /// Name of its owner.
    pub owner: String,
    /// Name of its group.
    pub group: String,
    /// Where it points, for a link.
    pub symlink_target: Option<String>,
    /// When it was written last; absent for a time that the calendar does not have.
    pub modified: Option<SystemTime>,
}

/// A file's contents, or a part of them, as they come.
pub struct FileContents {
    /// How long the whole file is; unknown for what the kernel makes up as it is read.
    pub total_size: Option<u64>,
    /// The bytes. They come no faster than they are taken.
    pub chunks: BoxStream<'static, Result<Bytes, GuestError>>,
}

impl std::fmt::Debug for FileContents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileContents")
            .field("total_size", &self.total_size)
            .finish_non_exhaustive()
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, socket or pipe.
    Special,
}

impl From<EntryInfo> for Entry {
    fn from(info: EntryInfo) -> Self {
        let kind = match info.r#type.as_known() {
            Some(FileType::FILE_TYPE_FILE) => EntryKind::File,
            Some(FileType::FILE_TYPE_DIRECTORY) => EntryKind::Directory,
            Some(FileType::FILE_TYPE_SYMLINK) => EntryKind::Symlink,
            _ => EntryKind::Special,
        };
        Self {
            name: info.name,
            path: info.path,
            kind,
            size: u64::try_from(info.size).unwrap_or(0),
            mode: info.mode,
            owner: info.owner,
            group: info.group,
            symlink_target: info.symlink_target,
            modified: info.modified_time.into_option().and_then(|time| {
                let seconds = u64::try_from(time.seconds).ok();
                let seconds = seconds.filter(|seconds| *seconds <= LAST_SECOND)?;
                let nanos = u32::try_from(time.nanos)
                    .ok()
                    .filter(|n| *n < 1_000_000_000);
                UNIX_EPOCH.checked_add(Duration::new(seconds, nanos.unwrap_or(0)))
            }),
        }
    }
}

impl GuestClient {
    /// Opens the guest's file at `path` and gives its bytes as they come. They come no
    /// faster than they are taken.
    ///
    /// # Errors
    /// When the file cannot be read; the stream itself fails when the connection breaks.
    pub async fn read_stream(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static, GuestError> {
        Ok(chunks(READ, self.open(Method::GET, path, &[]).await?))
    }

    /// Opens the guest's file at `path` from byte `offset` on, and gives at most `length` of
    /// its bytes as they come.
    ///
    /// # Errors
    /// When the file cannot be read, or `offset` lies behind its end
    /// ([`RpcCode::OutOfRange`](super::RpcCode::OutOfRange)); the stream itself fails when the
    /// connection breaks or the file becomes shorter.
    pub async fn read_part(
        &self,
        path: &str,
        offset: u64,
        length: Option<u64>,
    ) -> Result<FileContents, GuestError> {
        let range = match length {
            None if offset == 0 => None,
            None => Some(format!("bytes={offset}-")),
            // No range says "nothing".
            Some(0) => return self.empty_part(path, offset).await,
            Some(length) => {
                let last = offset.saturating_add(length - 1);
                Some(format!("bytes={offset}-{last}"))
            }
        };
        let headers: Vec<_> = range
            .map(|range| (header::RANGE, range))
            .into_iter()
            .collect();
        let opened = self.open(Method::GET, path, &headers).await;
        let response = match opened {
            // Also at the very end, which is no mistake.
            Err(GuestError::Status { status: 416, .. }) => {
                return self.empty_part(path, offset).await;
            }
            opened => opened?,
        };
        let partial = response.status() == StatusCode::PARTIAL_CONTENT;
        let total_size = if partial {
            let range = text(&response, header::CONTENT_RANGE);
            range.and_then(|range| range.rsplit('/').next()?.parse().ok())
        } else {
            text(&response, header::CONTENT_LENGTH).and_then(|length| length.parse().ok())
        };
        let chunks = chunks(READ, response).boxed();
        let chunks = if partial || (offset == 0 && length.is_none()) {
            chunks
        } else {
            // A file without a length has no ranges either.
            cut(chunks, offset, length).boxed()
        };
        Ok(FileContents { total_size, chunks })
    }

    /// The part of a file that has no bytes in it, where its offset lies within the file.
    async fn empty_part(&self, path: &str, offset: u64) -> Result<FileContents, GuestError> {
        let response = self.open(Method::HEAD, path, &[]).await?;
        let length = text(&response, header::CONTENT_LENGTH);
        let total_size: Option<u64> = length.and_then(|length| length.parse().ok());
        if total_size.is_some_and(|total| offset > total) {
            return Err(GuestError::Status {
                what: READ,
                status: StatusCode::RANGE_NOT_SATISFIABLE.as_u16(),
                message: format!(
                    "offset {offset} lies behind the end of '{path}', which has {} bytes",
                    total_size.unwrap_or_default()
                ),
            });
        }
        Ok(FileContents {
            total_size,
            chunks: futures::stream::empty().boxed(),
        })
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, String)],
    ) -> Result<Response<Incoming>, GuestError> {
        let (token, target) = (self.token.as_ref(), self.target(path, None));
        let nothing = full(Bytes::new());
        self.http
            .send(READ, token, method, &target, headers, nothing)
            .await
    }

    /// Copies the guest's file at `path` into `sink`, in constant memory. Returns how many
    /// bytes it was.
    ///
    /// # Errors
    /// When the file cannot be read, the connection breaks, or `sink` fails.
    pub async fn download(
        &self,
        path: &str,
        sink: &mut (impl AsyncWrite + Unpin + Send),
    ) -> Result<u64, GuestError> {
        let local = |source| GuestError::Local {
            what: "write the copy",
            source,
        };
        let mut chunks = std::pin::pin!(self.read_stream(path).await?);
        let mut length = 0;
        while let Some(bytes) = chunks.try_next().await? {
            length += bytes.len() as u64;
            sink.write_all(&bytes).await.map_err(local)?;
        }
        sink.flush().await.map_err(local)?;
        Ok(length)
    }

    /// Copies `source` into the guest's file at `path`, in constant memory, owned by `user`
    /// or else the default user. The old file stays until the new one is whole.
    ///
    /// # Errors
    /// When the file cannot be written (507 where the disk is full), the connection
    /// breaks, or `source` fails.
    pub async fn upload(
        &self,
        path: &str,
        user: Option<&str>,
        source: impl AsyncRead + Send + 'static,
    ) -> Result<(), GuestError> {
        let chunks = ReaderStream::with_capacity(source, CHUNK_BYTES);
        self.write_stream(path, user, None, chunks).await
    }

    /// Writes `chunks` into the guest's file at `path`, as [`upload`](Self::upload) does, with
    /// the permission bits `mode` or else those that it had, or 0644. They are taken no faster
    /// than the guest writes them.
    ///
    /// # Errors
    /// As [`upload`](Self::upload). A chunk that is an error leaves the old file as it was.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the old file as it was.
    pub async fn write_stream(
        &self,
        path: &str,
        user: Option<&str>,
        mode: Option<u32>,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), GuestError> {
        let frames = StreamBody::new(chunks.map_ok(Frame::data));
        let body = BodyExt::boxed_unsync(frames);
        self.put(path, user, mode, body).await
    }

    /// Reads a file that fits in memory (up to 64 MiB).
    ///
    /// # Errors
    /// When the file cannot be read or is larger.
    pub async fn read_file(&self, path: &str) -> Result<Vec<u8>, GuestError> {
        let mut chunks = std::pin::pin!(self.read_stream(path).await?);
        let mut bytes = Vec::new();
        while let Some(chunk) = chunks.try_next().await? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_IN_MEMORY {
                let reason = format!("{path} is larger than 64 MiB; stream it instead");
                return Err(GuestError::Request {
                    what: "path",
                    reason,
                });
            }
        }
        Ok(bytes)
    }

    /// Writes a file, owned by the default user.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn write_file(&self, path: &str, bytes: impl Into<Bytes>) -> Result<(), GuestError> {
        self.put(path, None, None, full(bytes)).await
    }

    /// Writes a file, with the permission bits `mode`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub async fn write_file_with_mode(
        &self,
        path: &str,
        mode: u32,
        bytes: impl Into<Bytes>,
    ) -> Result<(), GuestError> {
        self.put(path, None, Some(mode), full(bytes)).await
    }

    async fn put(
        &self,
        path: &str,
        user: Option<&str>,
        mode: Option<u32>,
        body: Body,
    ) -> Result<(), GuestError> {
        let target = self.target(path, user);
        let mut headers = vec![(header::CONTENT_TYPE, "application/octet-stream".to_owned())];
        if let Some(mode) = mode {
            let name = header::HeaderName::from_static(FILE_MODE_HEADER);
            headers.push((name, format!("{mode:o}")));
        }
        let response = self
            .http
            .send(
                WRITE,
                self.token.as_ref(),
                Method::POST,
                &target,
                &headers,
                body,
            )
            .await?;
        collect(WRITE, response).await.map(drop)
    }

    /// The path of a request about a file, for `user` or whom this client acts as.
    fn target(&self, path: &str, user: Option<&str>) -> String {
        target(FILES, path, user.or(self.user.as_deref()))
    }

    /// Looks at one path.
    ///
    /// # Errors
    /// When nothing is there.
    pub async fn stat(&self, path: &str) -> Result<Entry, GuestError> {
        const WHAT: &str = "looking at a file";
        let request = StatRequest {
            path: path.to_owned(),
        };
        let response = self
            .files
            .stat(request)
            .await
            .map_err(GuestError::rpc(WHAT))?;
        let entry = response.into_owned().entry.into_option();
        entry.map(Entry::from).ok_or_else(|| no_entry(WHAT))
    }

    /// Lists a directory, `depth` levels down (1: only itself).
    ///
    /// # Errors
    /// When it is no directory or cannot be read.
    pub async fn list_dir(&self, path: &str, depth: u32) -> Result<Vec<Entry>, GuestError> {
        let request = ListDirRequest {
            path: path.to_owned(),
            depth,
        };
        let response = self
            .files
            .list_dir(request)
            .await
            .map_err(GuestError::rpc("listing a directory"))?;
        Ok(response
            .into_owned()
            .entries
            .into_iter()
            .map(Entry::from)
            .collect())
    }

    /// Makes a directory and those above it.
    ///
    /// # Errors
    /// When it is there already or cannot be made.
    pub async fn make_dir(&self, path: &str) -> Result<(), GuestError> {
        let request = MakeDirRequest {
            path: path.to_owned(),
        };
        let made = self.files.make_dir(request).await;
        made.map(drop)
            .map_err(GuestError::rpc("making a directory"))
    }

    /// Moves a file or directory.
    ///
    /// # Errors
    /// When it cannot be moved.
    pub async fn rename(&self, from: &str, to: &str) -> Result<(), GuestError> {
        let request = MoveRequest {
            source: from.to_owned(),
            destination: to.to_owned(),
        };
        let moved = self.files.r#move(request).await;
        moved.map(drop).map_err(GuestError::rpc("moving a file"))
    }

    /// Removes a file, or a directory with all that is in it.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub async fn remove(&self, path: &str) -> Result<(), GuestError> {
        let request = RemoveRequest {
            path: path.to_owned(),
        };
        let removed = self.files.remove(request).await;
        removed
            .map(drop)
            .map_err(GuestError::rpc("removing a file"))
    }
}

/// The bytes of an answer as they come.
pub(super) fn chunks(
    what: &'static str,
    response: Response<Incoming>,
) -> impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static {
    BodyStream::new(response.into_body()).filter_map(move |frame| async move {
        match frame {
            Ok(frame) => frame.into_data().ok().map(Ok),
            Err(error) => Some(Err(GuestError::transport(what, error))),
        }
    })
}

/// A part of a stream of bytes.
fn cut(
    chunks: impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static,
    offset: u64,
    length: Option<u64>,
) -> impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static {
    let part = |bytes: &Bytes, wanted: u64| {
        usize::try_from(wanted).map_or(bytes.len(), |wanted| wanted.min(bytes.len()))
    };
    let begin = (Box::pin(chunks), offset, length.unwrap_or(u64::MAX));
    futures::stream::try_unfold(begin, move |(mut chunks, mut skip, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        while let Some(mut bytes) = chunks.try_next().await? {
            let skipped = bytes.split_to(part(&bytes, skip));
            skip -= skipped.len() as u64;
            bytes.truncate(part(&bytes, left));
            if !bytes.is_empty() {
                let left = left - bytes.len() as u64;
                return Ok(Some((bytes, (chunks, skip, left))));
            }
        }
        Ok(None)
    })
}

fn text(response: &Response<Incoming>, name: header::HeaderName) -> Option<String> {
    Some(response.headers().get(name)?.to_str().ok()?.to_owned())
}

fn no_entry(what: &'static str) -> GuestError {
    GuestError::Protocol {
        what,
        reason: "an answer without an entry".to_owned(),
    }
}

/// The path of a request to `route` about a file of the guest.
pub(super) fn target(route: &str, path: &str, user: Option<&str>) -> String {
    let mut target = format!("{route}?path={}", escape(path));
    if let Some(user) = user {
        target.push_str("&username=");
        target.push_str(&escape(user).to_string());
    }
    target
}

/// All but the unreserved characters of RFC 3986 and the slash.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

fn escape(text: &str) -> impl std::fmt::Display + '_ {
    utf8_percent_encode(text, ESCAPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_survive_the_query() {
        assert_eq!(
            target(FILES, "/home/user/a b&c=%?#ü", Some("me&you")),
            "/files?path=/home/user/a%20b%26c%3D%25%3F%23%C3%BC&username=me%26you"
        );
    }
}
