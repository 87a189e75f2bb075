//! Decoders in Rust for what archives and layers are packed with, told by their first bytes.

use std::io::{self, BufRead, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::StreamingDecoder;
use sha2::{Digest as _, Sha256};

use crate::recipe::hex;

/// How a stream is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

const ZSTD_FRAME: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

impl Compression {
    /// Tells from the first bytes of a stream.
    pub(super) fn of(start: &[u8]) -> Self {
        if start.starts_with(&[0x1f, 0x8b]) {
            Self::Gzip
        } else if start.starts_with(&ZSTD_FRAME) || is_skippable(start) {
            Self::Zstd
        } else {
            Self::None
        }
    }
}

/// A zstd frame without contents: the last hex digit of its magic number is free.
/// Source: RFC 8878, section 3.1.2.
fn is_skippable(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Reads `packed` as it is when unpacked.
pub(super) fn unpacked<'a>(packed: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut packed = BufReader::with_capacity(1 << 18, packed);
    Ok(match Compression::of(packed.fill_buf()?) {
        Compression::None => Box::new(packed),
        Compression::Gzip => Box::new(MultiGzDecoder::new(packed)),
        Compression::Zstd => Box::new(ZstdFrames {
            state: ZstdState::Between(packed),
        }),
    })
}

/// The decoder reads one frame; packers write several.
struct ZstdFrames<R: BufRead> {
    state: ZstdState<R>,
}

enum ZstdState<R: BufRead> {
    Between(R),
    In(Box<StreamingDecoder<R, ruzstd::decoding::FrameDecoder>>),
    /// An error was returned; there is nothing to go on with.
    Broken,
}

impl<R: BufRead> Read for ZstdFrames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            match std::mem::replace(&mut self.state, ZstdState::Broken) {
                ZstdState::Between(mut packed) => {
                    let start = packed.fill_buf()?;
                    if start.is_empty() {
                        self.state = ZstdState::Between(packed);
                        return Ok(0);
                    }
                    if is_skippable(start) {
                        let mut head = [0; 8];
                        packed.read_exact(&mut head)?;
                        let [.., a, b, c, d] = head;
                        let length = u64::from(u32::from_le_bytes([a, b, c, d]));
                        io::copy(&mut (&mut packed).take(length), &mut io::sink())?;
                        self.state = ZstdState::Between(packed);
                    } else {
                        let decoder = StreamingDecoder::new(packed).map_err(bad_zstd)?;
                        self.state = ZstdState::In(Box::new(decoder));
                    }
                }
                ZstdState::In(mut decoder) => {
                    let count = decoder.read(buffer)?;
                    if count > 0 {
                        self.state = ZstdState::In(decoder);
                        return Ok(count);
                    }
                    self.state = ZstdState::Between(decoder.into_inner());
                }
                ZstdState::Broken => {
                    return Err(io::Error::other("the zstd stream broke off before"));
                }
            }
        }
    }
}

fn bad_zstd(error: impl std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("bad zstd data: {error}"),
    )
}

/// Computes the SHA-256 of all that is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    digest: Sha256,
    length: u64,
}

impl<R: Read> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
            length: 0,
        }
    }

    /// Digest, in lower-case hex, and number of the bytes so far.
    pub(super) fn result(&self) -> (String, u64) {
        (hex(&self.digest.clone().finalize()), self.length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digest.update(&buffer[..count]);
        self.length += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read_all(packed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        unpacked(packed)?.read_to_end(&mut out)?;
        Ok(out)
    }

    fn gzip(contents: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(contents).unwrap();
        encoder.finish().unwrap()
    }

    fn zstd(contents: &[u8]) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(contents, ruzstd::encoding::CompressionLevel::Fastest)
    }

    #[test]
    fn each_packing_gives_the_contents_also_in_several_members() {
        let contents = vec![7_u8; 300_000];
        assert_eq!(read_all(&contents).unwrap(), contents);
        for pack in [gzip, zstd] {
            assert_eq!(read_all(&pack(&contents)).unwrap(), contents);
            let two = [pack(&contents), pack(b"end")].concat();
            assert_eq!(read_all(&two).unwrap(), [&contents[..], b"end"].concat());
        }
        let skippable = [
            &[0x53, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9],
            &zstd(b"x")[..],
        ]
        .concat();
        assert_eq!(read_all(&skippable).unwrap(), b"x");
        assert_eq!(read_all(b"").unwrap(), b"");
    }

    #[test]
    fn broken_streams_are_errors() {
        let contents: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        for pack in [gzip, zstd] {
            let packed = pack(&contents);
            read_all(&packed[..packed.len() / 2]).unwrap_err();
        }
        read_all(&[&ZSTD_FRAME[..], &[0xff; 40]].concat()).unwrap_err();
    }
}
