//! Takes the ELF kernel out of a bzImage, for VMMs that load nothing else.
//!
//! ```text
//! bzImage = boot sector, setup code      (setup_sects + 1) × 512 bytes
//!           protected-mode code          payload at payload_offset, payload_length long
//!
//! payload = compressed vmlinux, then its size as a u32
//! ```
//!
//! Sources: Documentation/x86/boot.rst; arch/x86/boot/compressed/Makefile; for the "legacy"
//! LZ4 framing, lib/decompress_unlz4.c: a magic number, then blocks, each with its
//! compressed size before it, unpacking to at most 8 MiB.

/// Offsets in the setup header.
const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

const LZ4_LEGACY_MAGIC: u32 = 0x184c_2102;
const LZ4_LEGACY_BLOCK: usize = 8 << 20;
/// An unpacked kernel is tens of MiB. More means that the size field is not one.
const MAX_UNPACKED: usize = 512 << 20;

/// The bzImage could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    #[error("it ends early, at byte {0}")]
    Short(usize),
    #[error("it is no bzImage: the header magic is missing")]
    NotBzImage,
    #[error("its payload is packed with {0}, and only LZ4 is known")]
    UnknownPacking(&'static str),
    #[error("an LZ4 block of its payload is damaged")]
    BadBlock(#[source] lz4_flex::block::DecompressError),
    #[error("its payload unpacks to {got} bytes where {want} were announced")]
    WrongSize { want: usize, got: usize },
    #[error("its payload is no ELF file")]
    NotElf,
}

/// Returns the ELF kernel inside `image`.
///
/// # Errors
/// `image` is no bzImage with an LZ4 payload, or is damaged.
pub fn unpack(image: &[u8]) -> Result<Vec<u8>, UnpackError> {
    if part(image, HEADER_MAGIC, 4)? != b"HdrS" {
        return Err(UnpackError::NotBzImage);
    }
    let sectors = match part(image, SETUP_SECTS, 1)?[0] {
        // Zero stands for four, says the boot protocol.
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(image, PAYLOAD_OFFSET)? as usize;
    let payload = part(image, start, word(image, PAYLOAD_LENGTH)? as usize)?;
    let kernel = unpack_payload(payload)?;
    if kernel.starts_with(b"\x7fELF") {
        Ok(kernel)
    } else {
        Err(UnpackError::NotElf)
    }
}

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, UnpackError> {
    if word(payload, 0)? != LZ4_LEGACY_MAGIC {
        return Err(UnpackError::UnknownPacking(packing_of(payload)));
    }
    let end = payload.len() - 4;
    let want = word(payload, end)? as usize;
    if want > MAX_UNPACKED {
        return Err(UnpackError::WrongSize { want, got: 0 });
    }
    let mut kernel = Vec::with_capacity(want);
    let mut at = 4;
    while at < end {
        let size = word(payload, at)? as usize;
        let block = part(&payload[..end], at + 4, size)?;
        let room = LZ4_LEGACY_BLOCK.min(want - kernel.len());
        let unpacked = lz4_flex::block::decompress(block, room).map_err(UnpackError::BadBlock)?;
        kernel.extend_from_slice(&unpacked);
        at += 4 + size;
    }
    if kernel.len() == want {
        Ok(kernel)
    } else {
        Err(UnpackError::WrongSize {
            want,
            got: kernel.len(),
        })
    }
}

fn packing_of(payload: &[u8]) -> &'static str {
    match payload {
        [0x1f, 0x8b, ..] => "gzip",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "xz",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "zstd",
        [b'B', b'Z', b'h', ..] => "bzip2",
        [0x5d, 0, 0, ..] => "lzma",
        [0x89, b'L', b'Z', b'O', ..] => "lzo",
        _ => "something unknown",
    }
}

fn part(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], UnpackError> {
    at.checked_add(length)
        .and_then(|end| bytes.get(at..end))
        .ok_or(UnpackError::Short(bytes.len()))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, UnpackError> {
    let bytes = part(bytes, at, 4)?;
    Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image_with(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[SETUP_SECTS] = 1;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0xcc; 16]);
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn packed(kernel: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY_MAGIC.to_le_bytes().to_vec();
        for chunk in kernel.chunks(LZ4_LEGACY_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(block);
        }
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        payload
    }

    fn kernel() -> Vec<u8> {
        let mut kernel = b"\x7fELF".to_vec();
        // More than one block, and not a whole number of them.
        kernel.extend((0..=250_u8).cycle().take(LZ4_LEGACY_BLOCK + 12_345));
        kernel
    }

    #[test]
    fn finds_and_unpacks_the_payload() {
        let kernel = kernel();
        assert!(unpack(&image_with(&packed(&kernel))).unwrap() == kernel);
    }

    #[test]
    fn refuses_what_it_does_not_know_by_name() {
        let error = unpack(&image_with(b"\xfd7zXZ\0 and so on")).unwrap_err();
        assert!(
            matches!(error, UnpackError::UnknownPacking("xz")),
            "{error}"
        );
        assert!(matches!(unpack(&[0; 4096]), Err(UnpackError::NotBzImage)));
        let no_elf = packed(b"#!/bin/sh, and long enough for a block");
        assert!(matches!(
            unpack(&image_with(&no_elf)),
            Err(UnpackError::NotElf)
        ));
    }

    #[test]
    fn damaged_images_are_errors_not_panics() {
        let payload = packed(b"\x7fELF and the rest of a rather small kernel");
        let image = image_with(&payload);
        for length in 0..image.len() - b"what follows the payload".len() {
            assert!(unpack(&image[..length]).is_err(), "cut to {length}");
        }
        for at in 0..image.len() {
            let mut damaged = image.clone();
            damaged[at] ^= 0x55;
            // Any answer will do, as long as it is an answer.
            drop(unpack(&damaged));
        }
    }
}
