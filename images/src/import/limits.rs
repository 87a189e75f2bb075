//! How much a source may unpack to, and the counter that holds it to that.

use std::cell::Cell;
use std::io::{self, Read};

/// What one import may take. A small archive can unpack to any size, so the count is of
/// what comes out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes that come out of all archives and layers together, headers included.
    pub unpacked_bytes: u64,
    /// Entries of all archives and layers together.
    pub entries: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            unpacked_bytes: 32 << 30,
            entries: 2_000_000,
        }
    }
}

/// A source holds more than it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    #[error("it unpacks to more than the {limit} bytes that an import may take")]
    Bytes { limit: u64 },
    #[error("it has more than the {limit} entries that an import may have")]
    Entries { limit: u64 },
}

/// What is left of the limits during one import.
#[derive(Debug)]
pub(super) struct Budget {
    limits: Limits,
    bytes: Cell<u64>,
    entries: Cell<u64>,
}

impl Budget {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            bytes: Cell::new(0),
            entries: Cell::new(0),
        }
    }

    pub(super) fn take_entry(&self) -> Result<(), LimitError> {
        self.entries.set(self.entries.get() + 1);
        if self.entries.get() > self.limits.entries {
            return Err(LimitError::Entries {
                limit: self.limits.entries,
            });
        }
        Ok(())
    }

    fn take_bytes(&self, count: usize) -> Result<(), LimitError> {
        self.bytes
            .set(self.bytes.get().saturating_add(count as u64));
        if self.bytes.get() > self.limits.unpacked_bytes {
            return Err(LimitError::Bytes {
                limit: self.limits.unpacked_bytes,
            });
        }
        Ok(())
    }
}

/// Takes all that is read through it from a budget.
#[derive(Debug)]
pub(super) struct Metered<'a, R> {
    inner: R,
    budget: &'a Budget,
}

impl<'a, R: Read> Metered<'a, R> {
    pub(super) fn new(inner: R, budget: &'a Budget) -> Self {
        Self { inner, budget }
    }
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.budget.take_bytes(count).map_err(io::Error::other)?;
        Ok(count)
    }
}

/// The limit behind an I/O error, if it was one.
pub(super) fn limit_behind(error: &io::Error) -> Option<LimitError> {
    error.get_ref()?.downcast_ref().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_past_the_limit_is_an_error_that_names_it() {
        let budget = Budget::new(Limits {
            unpacked_bytes: 1000,
            entries: 1,
        });
        let mut reader = Metered::new(io::repeat(0), &budget);
        let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
        assert_eq!(
            limit_behind(&error),
            Some(LimitError::Bytes { limit: 1000 })
        );
        budget.take_entry().unwrap();
        assert_eq!(budget.take_entry(), Err(LimitError::Entries { limit: 1 }));
    }
}
