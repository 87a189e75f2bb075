//! `multipart/form-data` as it arrives, RFC 7578 and RFC 2046 section 5.1.1.
//!
//! ```text
//!  preamble ─▶ --b CRLF ─▶ headers ─▶ CRLFCRLF ─▶ body ─▶ CRLF--b ─┬▶ CRLF ─▶ headers …
//!                                                                  └▶ --    ─▶ the rest is ignored
//! ```
//!
//! Bytes go in as they come, in pieces of any size, and come out as [`Event`]s. A body
//! passes through in pieces; what is held back is at most a boundary's length, or one
//! part's headers (`MAX_HEADERS`).

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes, BytesMut};
use memchr::memmem::{self, Finder};

/// Longest boundary that the RFC allows.
const MAX_BOUNDARY: usize = 70;
/// Headers of one part; a path in them has at most 4096 bytes.
const MAX_HEADERS: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A part begins.
    Part(PartHead),
    /// Some of its body.
    Data(Bytes),
    /// It is complete.
    PartEnd,
}

/// What the headers of a part say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartHead {
    pub name: Option<String>,
    pub filename: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MultipartError {
    #[error("the Content-Type has no boundary, or one longer than {MAX_BOUNDARY} bytes")]
    Boundary,
    #[error("the headers of a part are longer than {MAX_HEADERS} bytes")]
    HeadersTooLong,
    #[error("a boundary is followed by something other than a new line")]
    AfterBoundary,
    #[error("the request ended before its last boundary")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Preamble,
    AfterBoundary,
    Headers,
    Body,
    Epilogue,
}

#[derive(Debug)]
pub struct Parser {
    /// CRLF, two dashes and the boundary.
    delimiter: Finder<'static>,
    buffer: BytesMut,
    state: State,
    events: VecDeque<Event>,
}

impl Parser {
    /// For a request with that `Content-Type`.
    pub fn new(content_type: &str) -> Result<Self, MultipartError> {
        let boundary = parameter(content_type, "boundary")
            .filter(|boundary| (1..=MAX_BOUNDARY).contains(&boundary.len()))
            .ok_or(MultipartError::Boundary)?;
        let delimiter = format!("\r\n--{boundary}");
        Ok(Self {
            delimiter: Finder::new(delimiter.as_bytes()).into_owned(),
            // The first boundary has no line before it; with this one it has.
            buffer: BytesMut::from(&b"\r\n"[..]),
            state: State::Preamble,
            events: VecDeque::new(),
        })
    }

    /// Takes the next piece of the request.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), MultipartError> {
        if self.state == State::Epilogue {
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        while self.step()? {}
        Ok(())
    }

    /// The next thing that was understood.
    pub fn event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// To be called at the end of the request.
    pub fn finish(&self) -> Result<(), MultipartError> {
        match self.state {
            State::Epilogue => Ok(()),
            _ => Err(MultipartError::Truncated),
        }
    }

    /// Goes on by one state; `false` when that needs more bytes.
    fn step(&mut self) -> Result<bool, MultipartError> {
        match self.state {
            State::Preamble => Ok(self.up_to_delimiter(false)),
            State::Body => {
                let found = self.up_to_delimiter(true);
                if found {
                    self.events.push_back(Event::PartEnd);
                }
                Ok(found)
            }
            State::AfterBoundary => self.after_boundary(),
            State::Headers => self.headers(),
            State::Epilogue => {
                self.buffer.clear();
                Ok(false)
            }
        }
    }

    /// Passes on (or skips) what lies before the delimiter; `true` when it was found.
    fn up_to_delimiter(&mut self, pass_on: bool) -> bool {
        let delimiter = self.delimiter.needle().len();
        let found = self.delimiter.find(&self.buffer);
        // Without a match, the last bytes may be the beginning of one.
        let clear = found.unwrap_or_else(|| (self.buffer.len() + 1).saturating_sub(delimiter));
        if clear > 0 {
            let data = self.buffer.split_to(clear).freeze();
            if pass_on {
                self.events.push_back(Event::Data(data));
            }
        }
        if found.is_some() {
            self.buffer.advance(delimiter);
            self.state = State::AfterBoundary;
        }
        found.is_some()
    }

    fn after_boundary(&mut self) -> Result<bool, MultipartError> {
        // Spaces may follow a boundary.
        let padding = self
            .buffer
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t'))
            .count();
        if padding > MAX_BOUNDARY {
            return Err(MultipartError::AfterBoundary);
        }
        let Some(next) = self.buffer.get(padding..padding + 2) else {
            return Ok(false);
        };
        self.state = match next {
            // Kept, so that a part without headers begins with an empty line, too.
            b"\r\n" => State::Headers,
            b"--" => State::Epilogue,
            _ => return Err(MultipartError::AfterBoundary),
        };
        self.buffer.advance(padding);
        Ok(true)
    }

    fn headers(&mut self) -> Result<bool, MultipartError> {
        let Some(end) = memmem::find(&self.buffer, b"\r\n\r\n") else {
            if self.buffer.len() > MAX_HEADERS {
                return Err(MultipartError::HeadersTooLong);
            }
            return Ok(false);
        };
        if end > MAX_HEADERS {
            return Err(MultipartError::HeadersTooLong);
        }
        let head = PartHead::parse(&String::from_utf8_lossy(&self.buffer[..end]));
        self.buffer.advance(end + 4);
        self.events.push_back(Event::Part(head));
        self.state = State::Body;
        Ok(true)
    }
}

impl PartHead {
    fn parse(headers: &str) -> Self {
        let disposition = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim()
                .eq_ignore_ascii_case("content-disposition")
                .then_some(value)
        });
        let Some(disposition) = disposition else {
            return Self::default();
        };
        Self {
            name: parameter(disposition, "name"),
            filename: extended_filename(disposition)
                .or_else(|| parameter(disposition, "filename").map(|name| decode_quotes(&name))),
        }
    }
}

/// A parameter of a header value: `; name=value` or `; name="quoted \" value"`.
fn parameter(header: &str, wanted: &str) -> Option<String> {
    let mut rest = header.split_once(';')?.1;
    loop {
        rest = rest.trim_start_matches([' ', '\t', ';']);
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted_string(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// Up to the closing quote; what follows it.
fn quoted_string(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next() {
                // Old browsers write Windows paths without escaping.
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                Some((_, other)) => {
                    value.push('\\');
                    value.push(other);
                }
                None => return None,
            },
            other => value.push(other),
        }
    }
    None
}

/// Browsers write quotes and line breaks in names as `%22`, `%0D`, `%0A` and leave a
/// plain `%` alone, so only those are decoded.
fn decode_quotes(name: &str) -> String {
    name.replace("%22", "\"")
        .replace("%0D", "\r")
        .replace("%0A", "\n")
}

/// `filename*=UTF-8''percent%20encoded`, RFC 8187.
fn extended_filename(disposition: &str) -> Option<String> {
    let value = parameter(disposition, "filename*")?;
    let (charset, rest) = value.split_once('\'')?;
    let (_language, name) = rest.split_once('\'')?;
    if !charset.eq_ignore_ascii_case("utf-8") {
        return None;
    }
    percent_encoding::percent_decode_str(name)
        .decode_utf8()
        .ok()
        .map(Into::into)
}

#[cfg(test)]
#[path = "multipart_tests.rs"]
mod tests;
