//! The checksum of everything in a build: CRC-64/NVME.
//!
//! A CRC finds every flipped bit and every burst of up to 64 of them with certainty, and
//! runs at the speed of memory. It is no signature: who can write a build can make its
//! checksums fit.

use crc_fast::{CrcAlgorithm, Digest};

const ALGORITHM: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

/// The checksum of some bytes.
pub(super) fn of(bytes: &[u8]) -> u64 {
    crc_fast::checksum(ALGORITHM, bytes)
}

/// A checksum of bytes that come in parts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Running(Digest);

impl Running {
    pub(super) fn new() -> Self {
        Self(Digest::new(ALGORITHM))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(super) fn value(&self) -> u64 {
        self.0.finalize()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_one_that_the_layout_names() {
        // The check value of the catalogue of CRCs.
        assert_eq!(of(b"123456789"), 0xae8b_1486_0a79_9888);
        let mut parts = Running::new();
        parts.update(b"1234");
        parts.update(b"56789");
        assert_eq!(parts.value(), of(b"123456789"));
    }
}
