//! Where serial output goes.
//!
//! ```text
//! vCPU ──byte──▶ ring, 64 KiB ──wake──▶ main thread ──▶ standard output
//!                 full: counted, dropped      as fast as the reader takes it,
//!                                              within the budget
//! ```
//!
//! A vCPU only ever touches the ring, so a reader that stopped reading cannot stop the
//! guest. What the guest prints is paid from a budget: a burst, then a steady rate. A
//! regular file has an absolute limit besides, because nobody else bounds it. Whatever
//! is dropped is reported in the stream, once output flows again.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use vmm_sys_util::eventfd::EventFd;

use crate::budget::Budget;
use crate::sync::lock;

/// Bytes that wait for the main thread.
const RING_CAPACITY: usize = 64 << 10;
/// What the guest may print at once.
const BURST: u64 = 1 << 20;
/// What it may print for ever, in bytes a second.
const RATE: u64 = 64 << 10;
/// The most that a regular file gets.
const FILE_LIMIT: u64 = 16 << 20;
/// The most that is written at once: pipes promise room for this much once they are writable
/// (PIPE_BUF).
const CHUNK: usize = 4096;

#[derive(Debug, Default)]
struct Ring {
    bytes: VecDeque<u8>,
    dropped: u64,
}

/// The end that the serial port writes to.
#[derive(Clone, Debug)]
pub struct ConsoleInput {
    ring: Arc<Mutex<Ring>>,
    wake: Arc<EventFd>,
}

impl Write for ConsoleInput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut ring = lock(&self.ring);
        let room = RING_CAPACITY - ring.bytes.len();
        let taken = &bytes[..bytes.len().min(room)];
        let was_empty = ring.bytes.is_empty();
        ring.bytes.extend(taken);
        ring.dropped += (bytes.len() - taken.len()) as u64;
        drop(ring);
        if was_empty && !taken.is_empty() {
            self.wake.write(1)?;
        }
        // Bytes that found no room count as written: a UART has no way to refuse one.
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What [`ConsoleOutput::drain`] wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing is left; the wake-up event says when there is.
    Empty,
    /// The reader is slow: come back when standard output can be written.
    Blocked,
}

/// The end that the main thread drains.
#[derive(Debug)]
pub struct ConsoleOutput<W> {
    ring: Arc<Mutex<Ring>>,
    wake: Arc<EventFd>,
    sink: W,
    budget: Budget,
    /// What a regular file still takes.
    left: Option<u64>,
    dropped: u64,
}

/// A place that console output goes to.
pub trait Sink: Write {
    /// Whether a write of up to 4 KiB would not block now.
    fn ready(&self) -> bool;

    /// Whether it is a regular file, which grows without anybody reading it.
    fn grows(&self) -> bool;
}

/// Makes both ends.
///
/// # Errors
/// If no event can be made.
pub fn console<W: Sink>(sink: W) -> io::Result<(ConsoleInput, ConsoleOutput<W>)> {
    let ring = Arc::new(Mutex::new(Ring::default()));
    let wake = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
    let left = sink.grows().then_some(FILE_LIMIT);
    Ok((
        ConsoleInput {
            ring: ring.clone(),
            wake: wake.clone(),
        },
        ConsoleOutput {
            ring,
            wake,
            sink,
            budget: Budget::new(BURST, RATE, Instant::now()),
            left,
            dropped: 0,
        },
    ))
}

impl<W: Sink> ConsoleOutput<W> {
    /// Becomes readable when output waits.
    pub fn wake_event(&self) -> &EventFd {
        &self.wake
    }

    /// The sink.
    pub fn sink(&self) -> &W {
        &self.sink
    }

    /// Writes what waits, without ever blocking.
    pub fn drain(&mut self, now: Instant) -> Drained {
        // An empty event is no error: a drain may be asked for without one.
        self.wake.read().ok();
        loop {
            if !self.sink.ready() {
                let waits = !lock(&self.ring).bytes.is_empty();
                return if waits {
                    Drained::Blocked
                } else {
                    Drained::Empty
                };
            }
            let mut ring = lock(&self.ring);
            self.dropped += std::mem::take(&mut ring.dropped);
            // With what is dropped said before, in the same write.
            let mut chunk = match self.dropped {
                0 => Vec::new(),
                dropped => {
                    format!("\r\n[wrenn-vmm: {dropped} bytes of output dropped]\r\n").into_bytes()
                }
            };
            let count = ring.bytes.len().min(CHUNK - chunk.len());
            chunk.extend(ring.bytes.drain(..count));
            drop(ring);
            if count == 0 {
                return Drained::Empty;
            }
            if self.emit(&chunk, now) {
                self.dropped = 0;
            } else {
                self.dropped += count as u64;
            }
        }
    }

    /// Writes all of it, or nothing where limits or the reader do not allow it.
    fn emit(&mut self, chunk: &[u8], now: Instant) -> bool {
        let length = chunk.len() as u64;
        let within_limit = self.left.is_none_or(|left| left >= length);
        if !within_limit || !self.budget.take(length, now) {
            return false;
        }
        if let Some(left) = &mut self.left {
            *left -= length;
        }
        // One that fails has no reader any more: the guest goes on, its output does not.
        self.sink.write_all(chunk).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[derive(Default)]
    struct TestSink {
        bytes: Vec<u8>,
        ready: bool,
        grows: bool,
    }

    impl Write for TestSink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Sink for TestSink {
        fn ready(&self) -> bool {
            self.ready
        }

        fn grows(&self) -> bool {
            self.grows
        }
    }

    #[test]
    fn output_arrives_in_order() {
        let (mut input, mut output) = console(TestSink {
            ready: true,
            ..Default::default()
        })
        .unwrap();
        input.write_all(b"hello ").unwrap();
        assert_eq!(output.drain(Instant::now()), Drained::Empty);
        input.write_all(b"world").unwrap();
        assert_eq!(output.drain(Instant::now()), Drained::Empty);
        assert_eq!(output.sink.bytes, b"hello world");
    }

    #[test]
    fn slow_reader_never_stops_the_guest_and_learns_what_it_missed() {
        let (mut input, mut output) = console(TestSink::default()).unwrap();
        for _ in 0..(RING_CAPACITY + 100) {
            assert_eq!(input.write(b"x").unwrap(), 1);
        }
        assert_eq!(output.drain(Instant::now()), Drained::Blocked);
        output.sink.ready = true;
        assert_eq!(output.drain(Instant::now()), Drained::Empty);
        let text = String::from_utf8(output.sink.bytes).unwrap();
        assert!(
            text.contains("[wrenn-vmm: 100 bytes of output dropped]"),
            "{}",
            text.len()
        );
        assert_eq!(text.matches('x').count(), RING_CAPACITY);
    }

    #[test]
    fn notice_and_output_are_one_write() {
        #[derive(Default)]
        struct Pipe(Vec<usize>);

        impl Write for Pipe {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.push(bytes.len());
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        impl Sink for Pipe {
            fn ready(&self) -> bool {
                true
            }

            fn grows(&self) -> bool {
                false
            }
        }

        let (mut input, mut output) = console(Pipe::default()).unwrap();
        input.write_all(&[b'x'; 2 * RING_CAPACITY]).unwrap();
        assert_eq!(output.drain(Instant::now()), Drained::Empty);
        // The notice takes its room from the first chunk, and each chunk is one write.
        assert!(output.sink.0.iter().all(|length| *length <= CHUNK));
        assert_eq!(output.sink.0.len(), RING_CAPACITY / CHUNK + 1);
    }

    #[test]
    fn budget_bounds_a_flood_and_refills() {
        let (mut input, mut output) = console(TestSink {
            ready: true,
            ..Default::default()
        })
        .unwrap();
        let start = Instant::now();
        for _ in 0..64 {
            input.write_all(&[b'x'; RING_CAPACITY]).unwrap();
            output.drain(start);
        }
        let written = output.sink.bytes.len() as u64;
        assert!(
            (BURST - CHUNK as u64..=BURST).contains(&written),
            "{written}"
        );
        input.write_all(b"later").unwrap();
        output.drain(start + Duration::from_secs(1));
        assert!(output.sink.bytes.ends_with(b"dropped]\r\nlater"));
    }

    #[test]
    fn file_has_an_absolute_limit() {
        let (mut input, mut output) = console(TestSink {
            ready: true,
            grows: true,
            ..Default::default()
        })
        .unwrap();
        let mut now = Instant::now();
        for _ in 0..(2 * FILE_LIMIT / RING_CAPACITY as u64) {
            now += Duration::from_secs(60);
            input.write_all(&[b'x'; RING_CAPACITY]).unwrap();
            output.drain(now);
        }
        let written = output.sink.bytes.len() as u64;
        let most = FILE_LIMIT - CHUNK as u64..=FILE_LIMIT;
        assert!(most.contains(&written), "{written}");
    }
}
