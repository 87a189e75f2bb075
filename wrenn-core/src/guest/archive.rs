//! Directories of the guest as tar archives, which its daemon makes and unpacks.

use std::io;

use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use http::{Method, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use wrenn_proto::http::Unpacked;

use super::files::{chunks, target};
use super::http::{collect, full};
use super::{GuestClient, GuestError};

const READ: &str = "reading an archive";
const WRITE: &str = "unpacking an archive";
const ROUTE: &str = "/archive";

impl GuestClient {
    /// The guest's directory at `path` as a tar archive, its entries named relative to it. It
    /// comes no faster than it is taken.
    ///
    /// # Errors
    /// When the directory cannot be read; the stream itself fails when the connection breaks,
    /// or a file became shorter while it was read.
    pub async fn read_archive(
        &self,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, GuestError>> + Send + 'static, GuestError> {
        let target = target(ROUTE, path, self.user.as_deref());
        let (token, nothing) = (self.token.as_ref(), full(Bytes::new()));
        let response = self
            .http
            .send(READ, token, Method::GET, &target, &[], nothing)
            .await?;
        Ok(chunks(READ, response))
    }

    /// Unpacks a tar archive into the guest's directory at `path`, which is made if it is not
    /// there. Chunks are taken no faster than the guest unpacks them. Says how many entries
    /// there were.
    ///
    /// # Errors
    /// When an entry leads out of the directory or cannot be written (507 where the disk is
    /// full), the connection breaks, or a chunk is an error. Earlier entries stay.
    pub async fn write_archive(
        &self,
        path: &str,
        chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    ) -> Result<u64, GuestError> {
        let target = target(ROUTE, path, self.user.as_deref());
        let body = StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync();
        let headers = [(header::CONTENT_TYPE, "application/x-tar".to_owned())];
        let token = self.token.as_ref();
        let response = self
            .http
            .send(WRITE, token, Method::POST, &target, &headers, body)
            .await?;
        let answer = collect(WRITE, response).await?;
        let unpacked: Unpacked =
            serde_json::from_slice(&answer).map_err(|error| GuestError::Protocol {
                what: WRITE,
                reason: error.to_string(),
            })?;
        Ok(unpacked.entries)
    }
}
