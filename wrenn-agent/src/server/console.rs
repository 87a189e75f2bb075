//! Logs of consoles: a part of one, or all that is added to it. Looking at a console is no use
//! of its sandbox.
//!
//! The VMM appends to the log. The host cuts one that is too long: it keeps the end, and the
//! file begins anew with it. A resumed VM begins it anew as well. So a follower remembers the
//! last bytes that it gave and holds them against the file before it reads on: where they no
//! longer stand before its place, it looks for them, and goes on behind them, or from the
//! beginning if they are gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use tokio::time::Instant;
use wrenn_core::fleet::SandboxHandle;
use wrenn_core::sandbox::{self as engine, State};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::{
    FollowConsoleRequest, FollowConsoleResponse, GetConsoleRequest, GetConsoleResponse,
};

use super::host::blocking;
use super::{KEEP_ALIVE, State as Agent};
use crate::errors::{internal, stopping};
use crate::metrics::OpenStream;

/// How much of a console is given unless asked otherwise, and at most.
const PART_BYTES: u32 = 64 << 10;
const MAX_PART_BYTES: u32 = 1 << 20;
/// How much of it is read at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// How many of the last bytes a follower remembers.
const TAIL_BYTES: usize = 1024;
/// How often a follower looks for more.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

fn part(asked: u32) -> u64 {
    match asked {
        0 => PART_BYTES.into(),
        asked => asked.min(MAX_PART_BYTES).into(),
    }
}

pub(super) async fn get(
    agent: &Arc<Agent>,
    request: GetConsoleRequest,
) -> Result<GetConsoleResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    let length = part(request.max_bytes);
    let log = engine::console_log(agent.fleet.root(), sandbox.id());
    let read = blocking(move || {
        let Some(file) = open(&log)? else {
            return Ok(Vec::new());
        };
        let start = match request.from_start {
            true => 0,
            false => file.metadata()?.len().saturating_sub(length),
        };
        // It may grow meanwhile.
        read_at(&file, start, usize::try_from(length).unwrap_or(CHUNK_BYTES))
    });
    let data = read
        .await?
        .map_err(|error| internal("read a console's log", &error))?;
    Ok(GetConsoleResponse { data: data.into() })
}

pub(super) async fn follow(
    agent: &Arc<Agent>,
    request: FollowConsoleRequest,
) -> Result<
    impl Stream<Item = Result<FollowConsoleResponse, ConnectError>> + Send + use<>,
    ConnectError,
> {
    let sandbox = agent.sandbox(&request.id)?;
    let path = engine::console_log(agent.fleet.root(), sandbox.id());
    let begin = match request.from_start {
        true => Begin::Start,
        false => Begin::Last(part(request.max_bytes)),
    };
    let following = Following {
        _open: agent.metrics.stream_opened(),
        agent: Arc::clone(agent),
        sandbox,
        reader: Some(LogReader::new(path, begin)),
        said: Instant::now(),
    };
    Ok(futures::stream::unfold(
        Some(following),
        |following| async {
            let mut following = following?;
            match following.next().await {
                Ok(Some(data)) => Some((Ok(FollowConsoleResponse { data }), Some(following))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        },
    ))
}

/// A console that somebody follows.
struct Following {
    agent: Arc<Agent>,
    sandbox: SandboxHandle,
    /// On loan while it reads.
    reader: Option<LogReader>,
    /// When something was sent last.
    said: Instant,
    _open: OpenStream,
}

impl Following {
    /// New bytes, none for a keep-alive; `None` once the sandbox has ended.
    async fn next(&mut self) -> Result<Option<Bytes>, ConnectError> {
        loop {
            // Known before the log is read: what came before the end is not missed.
            let ended = self.sandbox.status().state == State::Stopped;
            let data = self.read().await?;
            if !data.is_empty() {
                self.said = Instant::now();
                return Ok(Some(data));
            }
            if ended {
                return Ok(None);
            }
            if self.said.elapsed() >= KEEP_ALIVE {
                self.said = Instant::now();
                return Ok(Some(Bytes::new()));
            }
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = self.agent.shutdown.cancelled() => return Err(stopping()),
            }
        }
    }

    async fn read(&mut self) -> Result<Bytes, ConnectError> {
        let Some(mut reader) = self.reader.take() else {
            return Ok(Bytes::new());
        };
        let (reader, read) = blocking(move || {
            let read = reader.next();
            (reader, read)
        })
        .await?;
        self.reader = Some(reader);
        read.map(Bytes::from)
            .map_err(|error| internal("read a console's log", &error))
    }
}

#[derive(Clone, Copy, Debug)]
enum Begin {
    Start,
    /// With so many of the last bytes.
    Last(u64),
}

/// Reads a log that grows, is cut, and begins anew.
struct LogReader {
    path: PathBuf,
    begin: Begin,
    file: Option<File>,
    offset: u64,
    /// The last bytes that were given, which stand before `offset`.
    tail: Vec<u8>,
    /// Whether the last look found another beginning, which may have been half written.
    lost: bool,
}

impl LogReader {
    fn new(path: PathBuf, begin: Begin) -> Self {
        Self {
            path,
            begin,
            file: None,
            offset: 0,
            tail: Vec::new(),
            lost: false,
        }
    }

    /// The bytes that were added since the last call; empty if there are none.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let Some(file) = self
            .file
            .take()
            .map_or_else(|| open(&self.path), |file| Ok(Some(file)))?
        else {
            return Ok(Vec::new());
        };
        if let Begin::Last(length) = std::mem::replace(&mut self.begin, Begin::Start) {
            self.offset = file.metadata()?.len().saturating_sub(length);
        }
        let data = self.read(&file);
        self.file = Some(file);
        data
    }

    fn read(&mut self, file: &File) -> io::Result<Vec<u8>> {
        if !self.is_at_its_place(file)? && !self.find_place(file)? {
            return Ok(Vec::new());
        }
        let data = read_at(file, self.offset, CHUNK_BYTES)?;
        self.offset += data.len() as u64;
        self.tail.extend_from_slice(&data);
        self.tail
            .drain(..self.tail.len().saturating_sub(TAIL_BYTES));
        Ok(data)
    }

    fn is_at_its_place(&self, file: &File) -> io::Result<bool> {
        let Some(start) = self.offset.checked_sub(self.tail.len() as u64) else {
            return Ok(false);
        };
        if file.metadata()?.len() < self.offset {
            return Ok(false);
        }
        Ok(read_at(file, start, self.tail.len())? == self.tail)
    }

    /// Finds where the file goes on that was cut. Says whether that is known.
    fn find_place(&mut self, file: &File) -> io::Result<bool> {
        if self.tail.is_empty() {
            self.offset = 0;
            return Ok(true);
        }
        let mut start = 0;
        let mut window = Vec::new();
        loop {
            let chunk = read_at(file, start + window.len() as u64, CHUNK_BYTES)?;
            let at_end = chunk.is_empty();
            window.extend_from_slice(&chunk);
            let found = window
                .windows(self.tail.len())
                .position(|bytes| bytes == self.tail);
            if let Some(position) = found {
                self.offset = start + (position + self.tail.len()) as u64;
                self.lost = false;
                return Ok(true);
            }
            if at_end {
                break;
            }
            // The tail may lie across two chunks.
            let passed = window.len().saturating_sub(self.tail.len());
            window.drain(..passed);
            start += passed as u64;
        }
        // The part that is kept may not be written yet.
        if !std::mem::replace(&mut self.lost, true) {
            return Ok(false);
        }
        self.lost = false;
        self.offset = 0;
        self.tail.clear();
        Ok(true)
    }
}

/// Opens a log; none where there is no file yet.
fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// At most `length` bytes from a place on; fewer at the end of the file.
fn read_at(file: &File, offset: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match file.read_at(&mut bytes[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    struct Log {
        _directory: tempfile::TempDir,
        path: PathBuf,
        writer: File,
    }

    impl Log {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("console.log");
            let options = || File::options().create(true).append(true).clone();
            let writer = options().open(&path).unwrap();
            Self {
                _directory: directory,
                path,
                writer,
            }
        }

        fn lines(&mut self, numbers: std::ops::Range<u32>) -> String {
            let text: String = numbers.map(|n| format!("line {n:09}\n")).collect();
            self.writer.write_all(text.as_bytes()).unwrap();
            text
        }

        /// As the host cuts a log that is too long.
        fn cut(&self, kept: usize) {
            let text = std::fs::read(&self.path).unwrap();
            self.writer.set_len(0).unwrap();
            (&self.writer)
                .write_all(&text[text.len() - kept..])
                .unwrap();
        }
    }

    fn all(reader: &mut LogReader) -> String {
        let mut text = Vec::new();
        // A second look settles what a first one leaves open.
        for _ in 0..2 {
            loop {
                let data = reader.next().unwrap();
                if data.is_empty() {
                    break;
                }
                text.extend(data);
            }
        }
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn followers_begin_where_they_want_and_miss_nothing() {
        let mut log = Log::new();
        let none = log.path.with_extension("none");
        let mut early = LogReader::new(none.clone(), Begin::Last(100));
        assert_eq!(all(&mut early), "");
        std::fs::write(&none, "hello").unwrap();
        assert_eq!(all(&mut early), "hello");

        let first = log.lines(0..10_000);
        let mut from_start = LogReader::new(log.path.clone(), Begin::Start);
        let mut from_end = LogReader::new(log.path.clone(), Begin::Last(30));
        assert_eq!(all(&mut from_start), first);
        assert_eq!(all(&mut from_end), "line 000009998\nline 000009999\n");
        let more = log.lines(10_000..10_010);
        assert_eq!(all(&mut from_start), more);
        assert_eq!(all(&mut from_end), more);
    }

    #[test]
    fn a_log_that_is_cut_is_followed_on() {
        let mut log = Log::new();
        let mut caught_up = LogReader::new(log.path.clone(), Begin::Start);
        let mut behind = LogReader::new(log.path.clone(), Begin::Start);
        let first = log.lines(0..20_000);
        assert_eq!(all(&mut caught_up), first);
        let begun = behind.next().unwrap();
        assert_eq!(begun.len(), CHUNK_BYTES);
        let unseen = log.lines(20_000..20_010);
        // The part that is kept is longer than the slow one's offset.
        let mut silent = LogReader::new(log.path.clone(), Begin::Last(0));
        assert_eq!(silent.next().unwrap(), b"");
        log.cut(2 * CHUNK_BYTES);
        let more = log.lines(20_010..20_020);
        assert_eq!(all(&mut caught_up), unseen.clone() + &more);
        let kept =
            (first.clone() + &unseen)[first.len() + unseen.len() - 2 * CHUNK_BYTES..].to_owned();
        assert_eq!(all(&mut behind), kept.clone() + &more);
        assert_eq!(all(&mut silent), kept + &more);
    }

    #[test]
    fn a_log_that_begins_anew_is_followed_from_its_beginning() {
        let mut log = Log::new();
        let mut reader = LogReader::new(log.path.clone(), Begin::Start);
        log.lines(0..100);
        all(&mut reader);
        log.writer.set_len(0).unwrap();
        assert_eq!(all(&mut reader), "");
        let anew = log.lines(500..700);
        assert_eq!(all(&mut reader), anew);
        // And where it is longer than before when it is looked at again.
        log.writer.set_len(0).unwrap();
        let again = log.lines(1000..1500);
        assert_eq!(all(&mut reader), again);
    }

    #[test]
    fn a_log_that_is_half_cut_is_waited_for() {
        let mut log = Log::new();
        let mut reader = LogReader::new(log.path.clone(), Begin::Start);
        let first = log.lines(0..1000);
        assert_eq!(all(&mut reader), first);
        log.writer.set_len(0).unwrap();
        assert_eq!(reader.next().unwrap(), b"");
        log.writer
            .write_all(&first.as_bytes()[first.len() - 3000..])
            .unwrap();
        let more = log.lines(1000..1001);
        assert_eq!(all(&mut reader), more);
    }
}
