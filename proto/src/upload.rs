//! The messages of an upload, as the agent and stand-ins of it take them.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use connectrpc::ConnectError;
use futures::{Stream, StreamExt as _, TryStreamExt as _};

use crate::hostagent::{StreamWriteFileRequest, WriteArchiveRequest};

/// A message of an upload.
pub trait UploadMessage: Send + 'static {
    /// Its data, and whether it is the last one.
    fn into_data(self) -> (Bytes, bool);
}

impl UploadMessage for StreamWriteFileRequest {
    fn into_data(self) -> (Bytes, bool) {
        (self.data, self.finish_write)
    }
}

impl UploadMessage for WriteArchiveRequest {
    fn into_data(self) -> (Bytes, bool) {
        (self.data, self.finish_write)
    }
}

/// The state of an upload whose data is being read.
#[derive(Clone, Debug, Default)]
pub struct Upload {
    size: Arc<AtomicU64>,
    failure: Arc<OnceLock<ConnectError>>,
}

impl Upload {
    /// The data of an upload's messages. It ends without an error only behind the message that
    /// says `finish_write`: a caller whose stream breaks off may look like one that has ended it.
    pub fn receive<M: UploadMessage>(
        first: M,
        rest: impl Stream<Item = Result<M, ConnectError>> + Send + 'static,
    ) -> (Self, impl Stream<Item = io::Result<Bytes>> + Send + 'static) {
        let upload = Self::default();
        let messages = futures::stream::iter([Ok(first)]).chain(rest).boxed();
        let (size, failure) = (Arc::clone(&upload.size), Arc::clone(&upload.failure));
        let data = futures::stream::unfold(Some((messages, false)), |reading| async {
            let (mut messages, finished) = reading?;
            let error = match (messages.next().await, finished) {
                (None, true) => return None,
                (Some(Ok(message)), false) => {
                    let (data, last) = message.into_data();
                    return Some((Ok(data), Some((messages, last))));
                }
                (Some(Err(error)), _) => error,
                (None, false) => ConnectError::invalid_argument(
                    "the messages ended before one with finish_write: nothing was written",
                ),
                (Some(Ok(_)), true) => ConnectError::invalid_argument(
                    "a message came after the one with finish_write: nothing was written",
                ),
            };
            Some((Err(error), None))
        });
        let data = data
            .map_err(move |error| {
                // There is only one: the stream ends with it.
                drop(failure.set(error));
                io::Error::other("the caller's stream broke")
            })
            .try_filter(|data: &Bytes| futures::future::ready(!data.is_empty()))
            .inspect_ok(move |data| {
                size.fetch_add(data.len() as u64, Ordering::Relaxed);
            });
        (upload, data)
    }

    /// Bytes that were read so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// The error that ended the caller's messages early, where one did. Whoever reads the data
    /// only learns that the rest does not come.
    ///
    /// # Errors
    /// That error.
    pub fn check(&self) -> Result<(), ConnectError> {
        self.failure.get().cloned().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    fn message(data: &'static str, finish_write: bool) -> StreamWriteFileRequest {
        StreamWriteFileRequest {
            data: data.into(),
            finish_write,
            ..StreamWriteFileRequest::default()
        }
    }

    /// Data or the error's message, and how much was read.
    type Read = (Result<Vec<Bytes>, String>, u64);

    fn read(messages: Vec<Result<StreamWriteFileRequest, ConnectError>>) -> Read {
        let mut messages = messages.into_iter();
        let first = messages.next().unwrap().unwrap();
        let (upload, data) = Upload::receive(first, futures::stream::iter(messages));
        let data = block_on(data.try_collect());
        assert_eq!(data.is_err(), upload.check().is_err());
        let data = upload.check().map(|()| data.unwrap());
        let data = data.map_err(|error| error.message.unwrap());
        (data, upload.size())
    }

    #[test]
    fn finished_upload_is_read_whole() {
        let messages = vec![
            Ok(message("", false)),
            Ok(message("ab", false)),
            Ok(message("c", true)),
        ];
        assert_eq!(read(messages), (Ok(vec!["ab".into(), "c".into()]), 3));
        assert_eq!(
            read(vec![Ok(message("all", true))]),
            (Ok(vec!["all".into()]), 3)
        );
        assert_eq!(read(vec![Ok(message("", true))]), (Ok(vec![]), 0));
    }

    #[test]
    fn unfinished_upload_is_refused() {
        let (ended, size) = read(vec![Ok(message("ab", false)), Ok(message("c", false))]);
        assert!(ended.unwrap_err().contains("before"));
        assert_eq!(size, 3);

        let lost = ConnectError::unavailable("link lost");
        let (broken, _) = read(vec![Ok(message("ab", false)), Err(lost)]);
        assert_eq!(broken.unwrap_err(), "link lost");

        let (more, _) = read(vec![Ok(message("ab", true)), Ok(message("c", false))]);
        assert!(more.unwrap_err().contains("after"));
    }
}
