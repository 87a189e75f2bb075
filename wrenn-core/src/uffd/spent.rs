//! Which pages have no use for their saved contents any more.

use std::sync::atomic::{AtomicU64, Ordering};

use super::PAGE_SIZE;

/// One bit for each page: whether it was delivered, or given up by its owner. In both
/// cases, should it be missing again, it is zero.
#[derive(Debug)]
pub(super) struct Spent(Box<[AtomicU64]>);

impl Spent {
    /// For this many bytes of memory.
    pub(super) fn new(length: u64) -> Self {
        let words = length.div_ceil(PAGE_SIZE).div_ceil(64);
        Self((0..words).map(|_| AtomicU64::new(0)).collect())
    }

    pub(super) fn contains(&self, offset: u64) -> bool {
        let (word, bit) = place(offset / PAGE_SIZE);
        self.0
            .get(word)
            .is_none_or(|word| word.load(Ordering::Acquire) & 1 << bit != 0)
    }

    /// Whether all pages of a range are.
    pub(super) fn contains_all(&self, start: u64, end: u64) -> bool {
        pages(start, end).all(|page| self.contains(page))
    }

    /// Whether a page of a range is.
    pub(super) fn contains_any(&self, start: u64, end: u64) -> bool {
        pages(start, end).any(|page| self.contains(page))
    }

    /// Adds all pages that the range touches.
    pub(super) fn add(&self, start: u64, end: u64) {
        let (mut page, last) = (start / PAGE_SIZE, end.div_ceil(PAGE_SIZE));
        while page < last {
            let (word, bit) = place(page);
            let count = (64 - u64::from(bit)).min(last - page);
            let mask = (u64::MAX >> (64 - count)) << bit;
            if let Some(word) = self.0.get(word) {
                word.fetch_or(mask, Ordering::AcqRel);
            }
            page += count;
        }
    }
}

fn pages(start: u64, end: u64) -> impl Iterator<Item = u64> {
    (start / PAGE_SIZE..end.div_ceil(PAGE_SIZE)).map(|page| page * PAGE_SIZE)
}

fn place(page: u64) -> (usize, u32) {
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below 64")]
    let bit = (page % 64) as u32;
    (usize::try_from(page / 64).unwrap_or(usize::MAX), bit)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set_of_pages(ranges in proptest::collection::vec((0..300u64, 0..150u64), 0..8)) {
            let spent = Spent::new(300 * PAGE_SIZE);
            let mut model = vec![false; 300];
            for (start, length) in ranges {
                let end = (start + length).min(300);
                spent.add(start * PAGE_SIZE, end * PAGE_SIZE);
                (start..end).for_each(|page| model[usize::try_from(page).unwrap()] = true);
            }
            for (page, &is) in (0u64..).zip(&model) {
                prop_assert_eq!(spent.contains(page * PAGE_SIZE + 17), is);
            }
            let all = model.iter().all(|is| *is);
            prop_assert_eq!(spent.contains_all(0, 300 * PAGE_SIZE), all);
            prop_assert_eq!(spent.contains_any(0, 300 * PAGE_SIZE), model.contains(&true));
        }
    }
}
