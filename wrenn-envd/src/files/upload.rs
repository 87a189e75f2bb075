//! `POST /files`: one file as the body, or several as a form.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use wrenn_proto::http::{FILE_MODE_HEADER, FileEntry, FileEntryType};

use super::CHUNK;
use super::multipart::{Event, Parser};
use super::staging::StagedFile;
use crate::filesystem::metadata;
use crate::guest::Guest;
use crate::paths;
use crate::query::Query;
use crate::reply::{self, Body, HttpError};
use crate::users::User;

/// The part of a form that holds a file; others are skipped.
const FORM_FIELD: &str = "file";

pub async fn upload(
    guest: &Arc<Guest>,
    parts: &Parts,
    mut body: Incoming,
) -> Result<Response<Body>, HttpError> {
    let query = Query::parse(parts.uri.query().unwrap_or_default());
    let user = super::user(parts, &query, &guest.settings())?;
    let metadata = metadata::from_headers(&parts.headers)
        .map_err(|error| HttpError::bad_request(error.to_string()))?;
    let content_type = header(&parts.headers, CONTENT_TYPE).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let path = query.get("path").filter(|path| !path.is_empty());

    let shape = if media_type.eq_ignore_ascii_case("multipart/form-data") {
        let parser = Parser::new(&content_type)
            .map_err(|error| HttpError::bad_request(error.to_string()))?;
        Shape::Form {
            parser: Box::new(parser),
            skipping: false,
        }
    } else if media_type.is_empty() || media_type.eq_ignore_ascii_case("application/octet-stream") {
        if path.is_none() {
            return Err(HttpError::bad_request(
                "an upload of bytes needs the path in the query",
            ));
        }
        Shape::Bytes
    } else {
        return Err(HttpError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("content type '{media_type}' can't be uploaded"),
        ));
    };
    let mode = mode(&parts.headers)?;
    let receiver = Receiver {
        user,
        mode,
        path: path.map(str::to_owned),
        metadata,
        shape,
        current: None,
        written: Vec::new(),
    };
    let pipeline = match header(&parts.headers, CONTENT_ENCODING).as_deref() {
        None | Some("" | "identity") => Pipeline::Plain(Box::new(receiver)),
        Some(coding) if coding.eq_ignore_ascii_case("gzip") => {
            Pipeline::Gzip(Box::new(MultiGzDecoder::new(receiver)))
        }
        Some(other) => {
            return Err(HttpError::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                format!("content encoding '{other}' is not supported"),
            ));
        }
    };
    match receive(Box::new(pipeline), &mut body).await {
        Ok(written) => reply::json(&written),
        Err(error) => {
            reply::drain(&mut body).await;
            Err(error)
        }
    }
}

/// The permission bits that a request names.
fn mode(headers: &HeaderMap) -> Result<Option<u32>, HttpError> {
    let Some(value) = headers.get(FILE_MODE_HEADER) else {
        return Ok(None);
    };
    let text = value.to_str().unwrap_or_default().trim();
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match u32::from_str_radix(text, 8) {
        Ok(mode) if digits && mode <= 0o7777 => Ok(Some(mode)),
        _ => Err(HttpError::bad_request(format!(
            "'{text}' is no file mode; one is like 644 or 4755"
        ))),
    }
}

fn header(headers: &HeaderMap, name: http::HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.trim().to_owned())
}

/// Takes the body as fast as the disk does. Pieces are gathered, since each step to a
/// blocking thread has its price.
async fn receive(
    mut pipeline: Box<Pipeline>,
    body: &mut Incoming,
) -> Result<Vec<FileEntry>, HttpError> {
    let mut gathered: Vec<Bytes> = Vec::new();
    let mut size = 0;
    loop {
        let frame = match body.frame().await {
            Some(Ok(frame)) => Some(frame),
            // Dropping the pipeline removes what has arrived.
            Some(Err(error)) => {
                return Err(HttpError::bad_request(format!(
                    "the upload broke off: {error}"
                )));
            }
            None => None,
        };
        let last = frame.is_none();
        if let Some(data) = frame.and_then(|frame| frame.into_data().ok()) {
            size += data.len();
            gathered.push(data);
        }
        if size < CHUNK && !last {
            continue;
        }
        size = 0;
        let pieces = std::mem::take(&mut gathered);
        let step = tokio::task::spawn_blocking(move || {
            for piece in pieces {
                pipeline.write(&piece)?;
            }
            if last {
                pipeline.finish().map(Progress::Done)
            } else {
                Ok(Progress::More(pipeline))
            }
        });
        match step.await.map_err(|_| {
            HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "the upload was given up")
        })?? {
            Progress::More(next) => pipeline = next,
            Progress::Done(written) => return Ok(written),
        }
    }
}

enum Progress {
    More(Box<Pipeline>),
    Done(Vec<FileEntry>),
}

/// From the bytes of the body to files.
enum Pipeline {
    Plain(Box<Receiver>),
    Gzip(Box<MultiGzDecoder<Receiver>>),
}

impl Pipeline {
    fn write(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        match self {
            Self::Plain(receiver) => receiver.take(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes).map_err(unwrap_http_error),
        }
    }

    fn finish(self) -> Result<Vec<FileEntry>, HttpError> {
        match self {
            Self::Plain(receiver) => receiver.finish(),
            Self::Gzip(decoder) => decoder.finish().map_err(unwrap_http_error)?.finish(),
        }
    }
}

/// The decoder passes our own errors through as I/O errors; the rest is about its input.
fn unwrap_http_error(error: io::Error) -> HttpError {
    match error.downcast::<Carried>() {
        Ok(Carried(error)) => error,
        Err(error) => HttpError::bad_request(format!("the gzip data is broken: {error}")),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{}", .0.message)]
struct Carried(HttpError);

enum Shape {
    Bytes,
    Form { parser: Box<Parser>, skipping: bool },
}

/// Writes what arrives to where it belongs.
struct Receiver {
    user: User,
    /// Permission bits of what is written, where the request names them.
    mode: Option<u32>,
    /// From the query; a form with one file may have it, too.
    path: Option<String>,
    metadata: BTreeMap<String, String>,
    shape: Shape,
    current: Option<StagedFile>,
    written: Vec<FileEntry>,
}

impl Receiver {
    fn take(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        let Shape::Form { parser, .. } = &mut self.shape else {
            if self.current.is_none() {
                self.open(None)?;
            }
            return self.append(bytes);
        };
        parser
            .feed(bytes)
            .map_err(|error| HttpError::bad_request(error.to_string()))?;
        self.drain_events()
    }

    fn drain_events(&mut self) -> Result<(), HttpError> {
        loop {
            let Shape::Form { parser, skipping } = &mut self.shape else {
                return Ok(());
            };
            match parser.event() {
                None => return Ok(()),
                Some(Event::Part(head)) => {
                    *skipping = head.name.as_deref() != Some(FORM_FIELD);
                    if !*skipping {
                        self.open(head.filename.as_deref())?;
                    }
                }
                Some(Event::Data(_) | Event::PartEnd) if *skipping => {}
                Some(Event::Data(data)) => self.append(&data)?,
                Some(Event::PartEnd) => self.close()?,
            }
        }
    }

    fn open(&mut self, filename: Option<&str>) -> Result<(), HttpError> {
        let path = match (&self.path, filename) {
            (Some(path), _) if self.written.is_empty() => path.as_str(),
            (Some(_), _) => {
                return Err(HttpError::bad_request(
                    "a form with several files must not have a path in the query",
                ));
            }
            (None, Some(name)) if !name.is_empty() => name,
            (None, _) => {
                return Err(HttpError::bad_request("a file of the form has no name"));
            }
        };
        let path = paths::resolve(path, &self.user);
        let mut file = StagedFile::open(&path, &self.user, self.mode)
            .map_err(|error| cannot_write(&path, &error))?;
        metadata::write(file.file(), &self.metadata).map_err(|error| {
            HttpError::from_io(
                &format!("cannot attach metadata to '{}'", path.display()),
                &error,
            )
        })?;
        self.current = Some(file);
        Ok(())
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HttpError> {
        match &mut self.current {
            Some(file) => file
                .file()
                .write_all(bytes)
                .map_err(|error| cannot_write(file.destination(), &error)),
            None => Ok(()),
        }
    }

    fn close(&mut self) -> Result<(), HttpError> {
        if let Some(file) = self.current.take() {
            let path = file.destination().to_owned();
            file.commit().map_err(|error| cannot_write(&path, &error))?;
            self.written.push(entry(&path, self.metadata.clone()));
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<FileEntry>, HttpError> {
        match &self.shape {
            Shape::Bytes => {
                if self.current.is_none() {
                    self.open(None)?;
                }
                self.close()?;
            }
            Shape::Form { parser, .. } => {
                parser
                    .finish()
                    .map_err(|error| HttpError::bad_request(error.to_string()))?;
            }
        }
        if self.written.is_empty() {
            return Err(HttpError::bad_request("the form holds no file"));
        }
        Ok(self.written)
    }
}

impl Write for Receiver {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.take(bytes)
            .map_err(|error| io::Error::other(Carried(error)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn entry(path: &Path, metadata: BTreeMap<String, String>) -> FileEntry {
    let name = path.file_name().unwrap_or_default();
    FileEntry {
        path: path.to_string_lossy().into_owned(),
        name: name.to_string_lossy().into_owned(),
        kind: FileEntryType::File,
        metadata,
    }
}

pub(super) fn cannot_write(path: &Path, error: &io::Error) -> HttpError {
    if error.kind() == io::ErrorKind::IsADirectory {
        return HttpError::bad_request(format!("path '{}' is a directory", path.display()));
    }
    HttpError::from_io(&format!("cannot write '{}'", path.display()), error)
}
