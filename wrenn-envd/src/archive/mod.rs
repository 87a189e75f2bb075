//! Directories as tar archives: `GET` and `POST /archive`. Minimal images have no tar.
//!
//! ```text
//!  GET    tree ──▶ pack ──256 KiB──▶ pipe ──▶ body, as fast as the client takes it
//!  POST   body ──▶ pipe ──▶ reader ──▶ unpack ──▶ .wrenn-upload-… ──rename──▶ file
//! ```
//!
//! A thread packs or unpacks, and a bounded pipe lies between it and the connection. Whatever
//! the size, a transfer holds a few chunks in memory and a descriptor for each level of the
//! tree.
//!
//! Guarantees:
//! - **Reading** gives each entry relative to the directory, with mode, time and owner.
//!   Symbolic links are links, hard links are files, devices, pipes and sockets are left out.
//!   A file has the size in the archive that it had when it was opened: what was added
//!   meanwhile is left out, as with any copy of a log that grows; one that shrank is filled up
//!   with zeros, and the transfer ends with an error instead of the archive's end.
//! - **Unpacking** writes nothing outside of the directory. Names that are absolute or contain
//!   `..`, hard links that lead out, entries below a link, and devices are refused, and the
//!   refusal names the entry. Symbolic links are made as they are, and not followed. Earlier
//!   entries stay. A file takes its place when it is complete.

mod pack;
mod pipe;
mod reader;
mod unpack;

use std::fs::File;
use std::sync::Arc;

use futures::StreamExt as _;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use rustix::fs::OFlags;
use wrenn_proto::http::Unpacked;

use crate::files;
use crate::filesystem::ownership;
use crate::guest::Guest;
use crate::paths;
use crate::query::Query;
use crate::reply::{self, Body, BodyError, HttpError};
use pack::Source;

/// `GET /archive`: a directory, or a single file.
pub async fn read(guest: &Arc<Guest>, parts: &Parts) -> Result<Response<Body>, HttpError> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let user = files::user(parts, &query, &guest.settings())?;
    let path = paths::resolve(query.get("path").unwrap_or_default(), &user);
    // Opened before the answer begins, so that what is not there has a status of its own.
    let source = blocking(move || Source::open(&path)).await?;
    let (sink, chunks) = pipe::outward();
    // It ends with the archive, or as soon as nobody takes it any more.
    tokio::task::spawn_blocking(move || pack::pack(source, sink));
    let frames = chunks.map(|chunk| chunk.map(Frame::data).map_err(BodyError::from));
    let mut response = Response::new(reply::boxed(StreamBody::new(frames)));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// `POST /archive`: unpacks the body into a directory, which is made if it is not there.
pub async fn write(
    guest: &Arc<Guest>,
    parts: &Parts,
    mut body: Incoming,
) -> Result<Response<Body>, HttpError> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let user = files::user(parts, &query, &guest.settings())?;
    let Some(path) = query.get("path").filter(|path| !path.is_empty()) else {
        return Err(HttpError::bad_request(
            "an archive needs the path in the query",
        ));
    };
    let path = paths::resolve(path, &user);
    let (feed, incoming) = pipe::inward();
    let unpacking = tokio::task::spawn_blocking(move || {
        let cannot =
            |error| HttpError::from_io(&format!("cannot unpack into '{}'", path.display()), &error);
        ownership::make_dirs(&path, &user).map_err(cannot)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, rustix::fs::Mode::empty())
            .map_err(|errno| cannot(errno.into()))?;
        unpack::unpack(root, &user, incoming)
    });
    let broken = loop {
        match body.frame().await {
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data()
                    && feed.send(data).await.is_err()
                {
                    // It has given up, and says why.
                    break None;
                }
            }
            Some(Err(error)) => break Some(error),
            None => {
                feed.end().await;
                break None;
            }
        }
    };
    if let Some(error) = broken {
        return Err(HttpError::bad_request(format!(
            "the archive broke off: {error}"
        )));
    }
    match unpacking.await.map_err(|_| gave_up())? {
        Ok(entries) => reply::json(&Unpacked { entries }),
        Err(error) => {
            reply::drain(&mut body).await;
            Err(error)
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HttpError> + Send + 'static,
) -> Result<T, HttpError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| gave_up())?
}

fn gave_up() -> HttpError {
    HttpError::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the archive was given up",
    )
}

/// Whether a descriptor is a regular file.
fn is_regular(file: &File) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file())
}
