//! Files in the guest.

use std::io;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use http::{Method, header};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_util::io::ReaderStream;
use wrenn_proto::filesystem::{
    EntryInfo, FileType, ListDirRequest, MakeDirRequest, MoveRequest, RemoveRequest, StatRequest,
};

use super::http::{Body, collect, full};
use super::{GuestClient, GuestError};

const READ: &str = "reading a file";
const WRITE: &str = "writing a file";
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
        let response = self
            .http
            .send(
                READ,
                self.token.as_ref(),
                Method::GET,
                &self.target(path, None),
                &[],
                full(Bytes::new()),
            )
            .await?;
        let frames = BodyStream::new(response.into_body());
        Ok(frames.filter_map(|frame| async {
            match frame {
                Ok(frame) => frame.into_data().ok().map(Ok),
                Err(error) => Some(Err(GuestError::transport(READ, error))),
            }
        }))
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
        self.write_stream(path, user, chunks).await
    }

    /// Writes `chunks` into the guest's file at `path`, as [`upload`](Self::upload) does.
    /// They are taken no faster than the guest writes them.
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
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<(), GuestError> {
        let frames = StreamBody::new(chunks.map_ok(Frame::data));
        self.put(path, user, BodyExt::boxed_unsync(frames)).await
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
        self.put(path, None, full(bytes)).await
    }

    async fn put(&self, path: &str, user: Option<&str>, body: Body) -> Result<(), GuestError> {
        let target = self.target(path, user);
        let headers = [(header::CONTENT_TYPE, "application/octet-stream".to_owned())];
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
        files(path, user.or(self.user.as_deref()))
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

fn no_entry(what: &'static str) -> GuestError {
    GuestError::Protocol {
        what,
        reason: "an answer without an entry".to_owned(),
    }
}

fn files(path: &str, user: Option<&str>) -> String {
    let mut target = format!("/files?path={}", escape(path));
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
            files("/home/user/a b&c=%?#ü", Some("me&you")),
            "/files?path=/home/user/a%20b%26c%3D%25%3F%23%C3%BC&username=me%26you"
        );
    }
}
