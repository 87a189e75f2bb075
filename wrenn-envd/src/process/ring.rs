//! The last output of a process, over all its channels, in the order in which it came.
//!
//! ```text
//!   first                                             end       positions count every byte
//!     ▼                                                ▼
//!   ┌────────────┬────────────┬────────────┬────────┐
//!   │ block      │ block      │ block      │ block  ┆ …         BLOCK bytes each, the last fewer
//!   └────────────┴────────────┴────────────┴────────┘
//!   ├ stdout ────────┼ stderr ┼ stdout ──────────────┤          segments: whose bytes these are,
//!     from 4096        from 0   from 90112                      and where in their channel
//! ```
//!
//! Neighbouring output of one channel is one segment, so a flood of single bytes takes a byte
//! each. Blocks are allocated as output comes, and leave at the front, whole.

use std::collections::VecDeque;

use bytes::Bytes;

use super::hub::{Channel, Chunk};

/// The size in which memory comes and goes.
pub(super) const BLOCK: usize = 32 * 1024;

#[derive(Debug, Default)]
pub(super) struct Ring {
    blocks: VecDeque<Vec<u8>>,
    /// Position of the oldest byte that is kept.
    first: u64,
    /// Position after the newest byte.
    end: u64,
    segments: VecDeque<Segment>,
    /// How much of each channel has come.
    written: [u64; Channel::COUNT],
}

/// Neighbouring bytes of one channel; it ends where the next one starts.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: u64,
    channel: Channel,
    /// Where its first byte stands in the channel.
    offset: u64,
}

impl Ring {
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How much of a channel has come.
    pub(super) fn written(&self, channel: Channel) -> u64 {
        self.written[channel as usize]
    }

    /// Bytes that are allocated.
    pub(super) fn weight(&self) -> usize {
        let blocks: usize = match self.blocks.len() {
            0 => 0,
            count => (count - 1) * BLOCK + self.blocks.back().map_or(0, |newest| newest.capacity()),
        };
        blocks + self.segments.len() * size_of::<Segment>()
    }

    pub(super) fn push(&mut self, channel: Channel, mut bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        if self
            .segments
            .back()
            .is_none_or(|last| last.channel != channel)
        {
            self.segments.push_back(Segment {
                start: self.end,
                channel,
                offset: self.written(channel),
            });
        }
        self.end += bytes.len() as u64;
        self.written[channel as usize] += bytes.len() as u64;
        while !bytes.is_empty() {
            let block = match self.blocks.back_mut() {
                Some(block) if block.len() < BLOCK => block,
                _ => {
                    self.blocks.push_back(Vec::new());
                    continue;
                }
            };
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - block.len()));
            if block.capacity() - block.len() < now.len() {
                // Grows as a vector does, but never beyond a block.
                let wanted = (block.len() + now.len()).next_power_of_two().min(BLOCK);
                block.reserve_exact(wanted - block.len());
            }
            block.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Frees the oldest blocks until no more than `limit` is allocated, but nothing from
    /// position `needed` on.
    pub(super) fn shrink(&mut self, limit: usize, needed: u64) {
        while self.weight() > limit {
            let Some(length) = self.blocks.front().map(Vec::len) else {
                return;
            };
            // The oldest block begins at `first`, since blocks go whole.
            let after = self.first + length as u64;
            if after > needed {
                return;
            }
            self.blocks.pop_front();
            self.first = after;
            while self.segments.get(1).is_some_and(|next| next.start <= after) {
                self.segments.pop_front();
            }
            if after == self.end {
                self.segments.clear();
                // An empty ring keeps no memory.
                self.segments.shrink_to_fit();
            }
        }
    }

    /// The bytes from a position on: at most `limit` of them, all of one channel. `None` at the
    /// end. A position that is no longer kept gives the oldest bytes that are.
    pub(super) fn read(&self, position: u64, limit: usize) -> Option<(u64, Chunk)> {
        let position = position.max(self.first);
        if position >= self.end {
            return None;
        }
        let index = self
            .segments
            .partition_point(|segment| segment.start <= position);
        let segment = self.segments.get(index.checked_sub(1)?)?;
        let segment_end = self.segments.get(index).map_or(self.end, |next| next.start);
        let length = usize::try_from(segment_end - position).map_or(limit, |left| left.min(limit));
        Some((
            position,
            Chunk {
                channel: segment.channel,
                offset: segment.offset + (position - segment.start),
                bytes: self.copy(position, length),
            },
        ))
    }

    fn copy(&self, position: u64, length: usize) -> Bytes {
        // Both fit: the ring is in memory.
        let skipped = usize::try_from(position - self.first).unwrap_or(usize::MAX);
        let (mut block, mut at) = (skipped / BLOCK, skipped % BLOCK);
        let mut copied = Vec::with_capacity(length);
        while copied.len() < length {
            let Some(bytes) = self.blocks.get(block).and_then(|bytes| bytes.get(at..)) else {
                break;
            };
            copied.extend_from_slice(&bytes[..bytes.len().min(length - copied.len())]);
            (block, at) = (block + 1, 0);
        }
        copied.into()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn everything(ring: &Ring, limit: usize) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        let mut position = 0;
        while let Some((start, chunk)) = ring.read(position, limit) {
            position = start + chunk.bytes.len() as u64;
            chunks.push(chunk);
        }
        chunks
    }

    #[test]
    fn single_bytes_take_a_byte_each() {
        let mut ring = Ring::default();
        for _ in 0..100_000 {
            ring.push(Channel::Stdout, b"x");
        }
        assert!(ring.weight() <= 4 * BLOCK + 100, "{}", ring.weight());
        assert_eq!(everything(&ring, 1 << 20).len(), 1);
    }

    #[test]
    fn little_output_takes_little_memory() {
        let mut ring = Ring::default();
        assert_eq!(ring.weight(), 0);
        ring.push(Channel::Stdout, b"hello");
        assert!(ring.weight() < 100, "{}", ring.weight());
    }

    #[test]
    fn needed_blocks_are_not_freed() {
        let mut ring = Ring::default();
        ring.push(Channel::Stdout, &vec![7; 10 * BLOCK]);
        ring.shrink(0, 3 * BLOCK as u64 + 1);
        assert_eq!(ring.first(), 3 * BLOCK as u64);
        ring.shrink(0, ring.end());
        assert_eq!((ring.first(), ring.weight()), (ring.end(), 0));
        assert!(ring.read(0, 1).is_none());
        ring.push(Channel::Stdout, b"more");
        let (position, chunk) = ring.read(0, 100).unwrap();
        assert_eq!(position, 10 * BLOCK as u64);
        assert_eq!(chunk.offset, 10 * BLOCK as u64);
        assert_eq!(&chunk.bytes[..], b"more");
    }

    proptest! {
        /// Against a plain list of what was written: what is kept is its end, in its order, and
        /// every offset is right.
        #[test]
        fn keeps_the_end_of_what_was_written(
            writes in prop::collection::vec((0usize..3, 1usize..100_000, 0usize..40), 1..40),
            limit in 1usize..50_000,
        ) {
            let mut ring = Ring::default();
            let mut all: Vec<(Channel, u64, u8)> = Vec::new();
            let mut written = [0u64; 3];
            for (channel, length, kept) in writes {
                let channel = [Channel::Stdout, Channel::Stderr, Channel::Pty][channel];
                let bytes: Vec<u8> = (0..length as u64)
                    .map(|n| u8::try_from((written[channel as usize] + n) % 251).unwrap())
                    .collect();
                for byte in &bytes {
                    all.push((channel, written[channel as usize], *byte));
                    written[channel as usize] += 1;
                }
                ring.push(channel, &bytes);
                let end = ring.end();
                ring.shrink(kept * 20_000, end);
                prop_assert!(ring.weight() <= kept * 20_000 || ring.first() == end);
            }
            prop_assert_eq!(ring.end(), all.len() as u64);
            let first = usize::try_from(ring.first()).unwrap();
            let mut expected = all[first..].iter();
            for chunk in everything(&ring, limit) {
                prop_assert!(!chunk.bytes.is_empty() && chunk.bytes.len() <= limit);
                for (n, byte) in chunk.bytes.iter().enumerate() {
                    let found = (chunk.channel, chunk.offset + n as u64, *byte);
                    prop_assert_eq!(Some(&found), expected.next());
                }
            }
            prop_assert_eq!(expected.next(), None);
        }
    }
}
