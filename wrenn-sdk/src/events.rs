//! Lifecycle events, as server-sent events.
//!
//! Source: WHATWG HTML, "Server-sent events", section "Interpreting an event stream".

use std::collections::VecDeque;
use std::time::Duration;

use http::{HeaderValue, Method};
use reqwest::Response;
use wrenn_api::event::Event;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::retry::backoff;

/// The longest line of a stream.
const MAX_LINE: usize = 1 << 20;
/// How long a broken connection is tried again.
const RECONNECT: Duration = Duration::from_secs(60);

/// The events of a team. A connection that breaks is made again, and events go on where they
/// stopped. An event of the kind `resync` says that some were missed: read the lists again.
#[derive(Debug)]
pub struct Events {
    client: Client,
    /// The last event's place in the sequence.
    last: Option<u64>,
    stream: Option<Response>,
    parser: Parser,
}

impl Events {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            last: None,
            stream: None,
            parser: Parser::default(),
        }
    }

    /// Begins after this event; with what happens from then on unless set.
    #[must_use]
    pub const fn after(mut self, seq: u64) -> Self {
        self.last = Some(seq);
        self
    }

    /// The next event.
    ///
    /// # Errors
    /// When the server refuses, or is away for a minute.
    ///
    /// # Cancel safety
    /// Safe: no event is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Event> {
        let mut failed = 0;
        let began = tokio::time::Instant::now();
        loop {
            if let Some(event) = self.parser.next() {
                // `resync` has no place of its own.
                if event.seq > 0 {
                    self.last = Some(event.seq);
                }
                return Ok(event);
            }
            let error = match self.read().await {
                Ok(()) => continue,
                Err(error) => error,
            };
            self.stream = None;
            self.parser = Parser::default();
            // The first connection says at once why there is none.
            let resumable = self.last.is_some() || matches!(error, Error::Disconnected { .. });
            if !resumable || !error.is_retryable() || began.elapsed() > RECONNECT {
                return Err(error);
            }
            tokio::time::sleep(backoff(failed)).await;
            failed += 1;
        }
    }

    async fn read(&mut self) -> Result<()> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let mut call = self.client.call(Method::GET, &["v1", "events"])?;
                call = call.header("accept", HeaderValue::from_static("text/event-stream"));
                if let Some(last) = self.last {
                    call = call.header("last-event-id", HeaderValue::from(last));
                }
                self.stream.insert(self.client.transport.send(call).await?)
            }
        };
        let broken = |source| Error::Disconnected {
            request: "GET /v1/events".to_owned(),
            request_id: None,
            source,
        };
        match stream.chunk().await {
            Ok(Some(chunk)) => self.parser.push(&chunk),
            Ok(None) => Err(broken("the server closed it".into())),
            Err(error) => Err(broken(error.without_url().into())),
        }
    }
}

/// Lines to events. Names and ids of events stand in their data, too.
#[derive(Debug, Default)]
struct Parser {
    line: Vec<u8>,
    data: String,
    ready: VecDeque<Event>,
}

impl Parser {
    fn push(&mut self, chunk: &[u8]) -> Result<()> {
        for part in chunk.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if self.line.len() > MAX_LINE {
                return Err(problem("a line that is too long".to_owned()));
            }
            if self.line.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.line);
                let line = String::from_utf8_lossy(&line);
                self.line(line.trim_end_matches(['\n', '\r']))?;
            }
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<()> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            if !data.is_empty() {
                let event = serde_json::from_str(&data);
                self.ready
                    .push_back(event.map_err(|error| problem(error.to_string()))?);
            }
        } else if let Some(data) = line.strip_prefix("data:") {
            if !self.data.is_empty() {
                self.data.push('\n');
            }
            self.data.push_str(data.strip_prefix(' ').unwrap_or(data));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }
}

fn problem(problem: String) -> Error {
    Error::Protocol {
        request: "GET /v1/events".to_owned(),
        problem,
        request_id: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_parse_across_chunks() {
        let text = ": hello\n\nid: 7\r\nevent: sandbox.status\r\ndata: {\"seq\":7,\ndata:\"type\":\"later\",\"at\":\"2026-01-02T03:04:05Z\"}\n\n";
        for size in [1, 3, 1000] {
            let mut parser = Parser::default();
            for chunk in text.as_bytes().chunks(size) {
                parser.push(chunk).unwrap();
            }
            assert_eq!(parser.next().unwrap().seq, 7);
            assert!(parser.next().is_none());
        }
    }

    #[test]
    fn endless_line_is_refused() {
        let mut parser = Parser::default();
        let long = vec![b'x'; MAX_LINE + 1];
        assert!(parser.push(&long).is_err());
        assert!(Parser::default().push(b"data: {}\n\n").is_err());
    }
}
