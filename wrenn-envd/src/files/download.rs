//! `GET /files`.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::header::{
    ACCEPT_ENCODING, ACCEPT_RANGES, CONTENT_DISPOSITION, CONTENT_ENCODING, CONTENT_LENGTH,
    CONTENT_RANGE, CONTENT_TYPE, IF_RANGE, RANGE, VARY,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::StreamBody;
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::CHUNK;
use super::range::Selection;
use crate::guest::Guest;
use crate::paths;
use crate::query::Query;
use crate::reply::{self, Body, BodyError, HttpError};

pub async fn download(guest: &Arc<Guest>, parts: &Parts) -> Result<Response<Body>, HttpError> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let user = super::user(parts, &query, &guest.settings())?;
    let path = paths::resolve(query.get("path").unwrap_or_default(), &user);
    let opened = tokio::task::spawn_blocking({
        let path = path.clone();
        move || open(&path)
    });
    let (file, length) = opened
        .await
        .map_err(|_| HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "gave up"))??;

    // A range that depends on a validator can't be checked: files have none here.
    let range = parts
        .headers
        .get(RANGE)
        .filter(|_| !parts.headers.contains_key(IF_RANGE));
    let selection = match (range.and_then(|range| range.to_str().ok()), length) {
        (Some(range), Some(length)) => Selection::parse(range, length),
        _ => Selection::Whole,
    };
    let gzip = selection == Selection::Whole && accepts_gzip(&parts.headers);
    let (status, start, count) = match (selection, length) {
        (Selection::Unsatisfiable, length) => {
            let mut response = HttpError::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                format!("the range lies outside of '{}'", path.display()),
            )
            .into_response();
            let range = format!("bytes */{}", length.unwrap_or(0));
            response.headers_mut().insert(CONTENT_RANGE, header(&range));
            return Ok(response);
        }
        (Selection::Part { start, length }, _) => {
            (StatusCode::PARTIAL_CONTENT, start, Some(length))
        }
        (Selection::Whole, length) => (StatusCode::OK, 0, length),
    };

    let body = if parts.method == Method::HEAD {
        reply::boxed(http_body_util::Empty::new())
    } else {
        let encoder = gzip.then(|| GzEncoder::new(Vec::new(), Compression::fast()));
        stream(Source {
            file,
            offset: start,
            left: count,
            encoder,
            done: false,
        })
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(CONTENT_DISPOSITION, disposition(&path));
    headers.insert(VARY, HeaderValue::from_static("Accept-Encoding"));
    if length.is_some() {
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    if gzip {
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    } else if let Some(count) = count {
        headers.insert(CONTENT_LENGTH, count.into());
    }
    if let (
        Selection::Part {
            start,
            length: count,
        },
        Some(length),
    ) = (selection, length)
    {
        let range = format!("bytes {start}-{}/{length}", start + count - 1);
        headers.insert(CONTENT_RANGE, header(&range));
    }
    Ok(response)
}

/// Opens a file and tells its length. Files that the kernel makes up as they are read
/// (in /proc, say) claim to be empty, and devices have no length: those are read to
/// their end.
fn open(path: &Path) -> Result<(File, Option<u64>), HttpError> {
    let failed = |error: &io::Error| {
        let what = format!("cannot read '{}'", path.display());
        HttpError::from_io(&what, error)
    };
    // A pipe that nobody writes must not hold the request.
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(HttpError::bad_request(format!(
            "path '{}' is a directory",
            path.display()
        )));
    }
    if !metadata.is_file() {
        return Ok((file, None));
    }
    if metadata.len() == 0 {
        let mut probe = [0; 1];
        let made_up = file.read(&mut probe).map_err(|error| failed(&error))? > 0;
        file.seek(SeekFrom::Start(0))
            .map_err(|error| failed(&error))?;
        return Ok((file, if made_up { None } else { Some(0) }));
    }
    Ok((file, Some(metadata.len())))
}

/// Where a download stands.
struct Source {
    file: File,
    offset: u64,
    /// What is still to be read; `None`: to the end.
    left: Option<u64>,
    encoder: Option<GzEncoder<Vec<u8>>>,
    done: bool,
}

impl Source {
    /// The next piece of the body; empty only at its end.
    fn next(&mut self) -> io::Result<Bytes> {
        while !self.done {
            let want = self.left.map_or(CHUNK, |left| {
                usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
            });
            let mut piece = vec![0; want];
            let count = if want == 0 { 0 } else { self.read(&mut piece)? };
            piece.truncate(count);
            self.offset += count as u64;
            if let Some(left) = &mut self.left {
                *left -= count as u64;
                if count == 0 && *left > 0 {
                    // The length was promised; the client must not take this for the end.
                    return Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the file became shorter while it was read",
                    ));
                }
            }
            self.done = count == 0 || self.left == Some(0);
            let Some(encoder) = &mut self.encoder else {
                return Ok(piece.into());
            };
            encoder.write_all(&piece)?;
            if self.done {
                encoder.try_finish()?;
            }
            let compressed = std::mem::take(encoder.get_mut());
            if !compressed.is_empty() {
                return Ok(compressed.into());
            }
        }
        Ok(Bytes::new())
    }

    fn read(&mut self, piece: &mut [u8]) -> io::Result<usize> {
        if self.left.is_some() {
            self.file.read_at(piece, self.offset)
        } else {
            // What has no length may have no offsets either.
            self.file.read(piece)
        }
    }
}

/// Reads one piece whenever the client has taken the last one.
fn stream(source: Source) -> Body {
    let pieces = futures::stream::unfold(Some(source), |source| async move {
        let mut source = source?;
        let read = tokio::task::spawn_blocking(move || {
            let piece = source.next();
            (source, piece)
        });
        match read.await {
            Ok((_, Ok(piece))) if piece.is_empty() => None,
            Ok((source, Ok(piece))) => Some((Ok(Frame::data(piece)), Some(source))),
            Ok((_, Err(error))) => Some((Err(BodyError::from(error)), None)),
            Err(error) => Some((Err(BodyError::from(error)), None)),
        }
    });
    reply::boxed(StreamBody::new(pieces))
}

/// Whether the client asks for gzip. It must name it: plain bytes are cheaper for both
/// sides, as most connections are local.
fn accepts_gzip(headers: &HeaderMap) -> bool {
    headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|offer| {
            let (coding, weight) = offer.split_once(';').unwrap_or((offer, ""));
            let refused = weight
                .trim()
                .strip_prefix("q=")
                .and_then(|weight| weight.trim().parse::<f32>().ok())
                .is_some_and(|weight| weight <= 0.0);
            coding.trim().eq_ignore_ascii_case("gzip") && !refused
        })
}

fn disposition(path: &Path) -> HeaderValue {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    let name = String::from_utf8_lossy(name);
    header(&format!(
        "inline; filename*=UTF-8''{}",
        utf8_percent_encode(&name, NON_ALPHANUMERIC)
    ))
}

/// Only for text that we made of visible ASCII.
fn header(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_must_be_asked_for() {
        let accepts = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(value));
            accepts_gzip(&headers)
        };
        assert!(accepts("gzip") && accepts("br, GZIP;q=0.5") && accepts("gzip; q=1"));
        assert!(!accepts("identity") && !accepts("gzip;q=0") && !accepts("*"));
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_not_an_end() {
        let file = tempfile::tempfile().unwrap();
        let mut source = Source {
            file,
            offset: 0,
            left: Some(10),
            encoder: None,
            done: false,
        };
        assert_eq!(
            source.next().unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }
}
