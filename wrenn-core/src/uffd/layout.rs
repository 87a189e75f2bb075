//! Where a VMM has its guest's memory, as it says in the message that hands it over.

use serde::Deserialize;

use super::{HUGE_PAGE_SIZE, PAGE_SIZE};

/// Firecracker sends one or two; hotplugged memory adds a few.
const MOST_REGIONS: usize = 256;

/// One region as it stands in the message.
///
/// Field names are those of Firecracker's `GuestRegionUffdMapping`. Its releases before
/// 1.10 know `page_size_kib` only, which holds bytes in spite of its name.
#[derive(Debug, Deserialize)]
struct Described {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: Option<u64>,
    page_size_kib: Option<u64>,
}

/// A region of guest memory in the address space of the VMM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it begins there.
    pub(super) host: u64,
    /// Its length.
    pub(super) size: u64,
    /// Where its contents are in the saved memory.
    pub(super) offset: u64,
    /// The size of its pages.
    pub(super) page_size: u64,
}

impl Region {
    /// Where the contents of this page end in the saved memory.
    pub(super) fn end(&self) -> u64 {
        self.offset + self.size
    }

    /// The address of an offset that lies within.
    pub(super) fn address(&self, offset: u64) -> u64 {
        self.host + (offset - self.offset)
    }
}

/// Why a VMM's description of its memory is refused.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// It is no JSON of the right kind.
    #[error("the VMM's message is not a list of memory regions")]
    NotRegions(#[source] serde_json::Error),
    /// There are none, or too many.
    #[error("the VMM names {0} memory regions; 1 to {MOST_REGIONS} make sense")]
    Count(usize),
    /// A page size that no kernel has, or that isn't supported.
    #[error("region {index} has pages of {page_size} bytes; 4096 and 2097152 are supported")]
    PageSize {
        /// Which region.
        index: usize,
        /// What it says.
        page_size: u64,
    },
    /// An address, size or offset is not a multiple of the page size, or a size is zero.
    #[error("region {0} is not made of whole pages")]
    NotWholePages(usize),
    /// A region ends beyond all addresses or beyond the saved memory.
    #[error("region {0} lies outside of the address space or of the saved memory")]
    Outside(usize),
    /// Two regions share addresses or contents.
    #[error("two memory regions overlap")]
    Overlap,
    /// The regions are not as large as the saved memory.
    #[error("the VMM has {regions} bytes of memory and the snapshot {saved}: it is another VM's")]
    OtherSize {
        /// Of all regions together.
        regions: u64,
        /// Of the source.
        saved: u64,
    },
}

/// All regions, disjoint in address and in offset.
#[derive(Debug)]
pub(super) struct Layout {
    by_address: Vec<Region>,
    by_offset: Vec<Region>,
}

impl Layout {
    /// Reads the message of a VMM whose saved memory has this many bytes.
    pub(super) fn parse(message: &[u8], saved: u64) -> Result<Self, LayoutError> {
        let described: Vec<Described> =
            serde_json::from_slice(message).map_err(LayoutError::NotRegions)?;
        if described.is_empty() || described.len() > MOST_REGIONS {
            return Err(LayoutError::Count(described.len()));
        }
        let mut regions = Vec::with_capacity(described.len());
        for (index, described) in described.iter().enumerate() {
            regions.push(checked(index, described, saved)?);
        }
        let (mut by_address, mut by_offset) = (regions.clone(), regions);
        by_address.sort_by_key(|region| region.host);
        by_offset.sort_by_key(|region| region.offset);
        let apart = by_address
            .windows(2)
            .all(|pair| pair[0].host + pair[0].size <= pair[1].host)
            && by_offset
                .windows(2)
                .all(|pair| pair[0].end() <= pair[1].offset);
        if !apart {
            return Err(LayoutError::Overlap);
        }
        // They are disjoint parts of the saved memory, so the sum is no more than that.
        let regions = by_offset.iter().map(|region| region.size).sum();
        if regions != saved {
            return Err(LayoutError::OtherSize { regions, saved });
        }
        Ok(Self {
            by_address,
            by_offset,
        })
    }

    /// The region of an address.
    pub(super) fn at_address(&self, address: u64) -> Option<Region> {
        let behind = self
            .by_address
            .partition_point(|region| region.host <= address);
        let region = *self.by_address.get(behind.checked_sub(1)?)?;
        (address - region.host < region.size).then_some(region)
    }

    /// The region of an offset.
    pub(super) fn at_offset(&self, offset: u64) -> Option<Region> {
        let behind = self
            .by_offset
            .partition_point(|region| region.offset <= offset);
        let region = *self.by_offset.get(behind.checked_sub(1)?)?;
        (offset < region.end()).then_some(region)
    }

    /// The parts of the saved memory that stand in this range of addresses.
    pub(super) fn offsets(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        self.by_address.iter().filter_map(move |region| {
            let from = start.max(region.host);
            let to = end.min(region.host + region.size);
            let offset = |address| region.offset + (address - region.host);
            (from < to).then(|| (offset(from), offset(to)))
        })
    }
}

fn checked(index: usize, described: &Described, saved: u64) -> Result<Region, LayoutError> {
    let page_size = described.page_size.or(described.page_size_kib);
    let page_size = page_size.unwrap_or(PAGE_SIZE);
    if page_size != PAGE_SIZE && page_size != HUGE_PAGE_SIZE {
        return Err(LayoutError::PageSize { index, page_size });
    }
    let (host, size, offset) = (
        described.base_host_virt_addr,
        described.size,
        described.offset,
    );
    let whole = |number: u64| number.is_multiple_of(page_size);
    if size == 0 || !whole(host) || !whole(size) || !whole(offset) {
        return Err(LayoutError::NotWholePages(index));
    }
    let end = offset.checked_add(size);
    if host.checked_add(size).is_none() || end.is_none_or(|end| end > saved) {
        return Err(LayoutError::Outside(index));
    }
    Ok(Region {
        host,
        size,
        offset,
        page_size,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, saved: u64) -> Result<Layout, LayoutError> {
        Layout::parse(json.as_bytes(), saved)
    }

    #[test]
    fn a_message_as_firecracker_sends_it() {
        let json = r#"[
            {"base_host_virt_addr":140000000000000,"size":8192,"offset":0,"page_size":4096,"page_size_kib":4096},
            {"base_host_virt_addr":139999999991808,"size":4096,"offset":8192,"page_size_kib":4096}
        ]"#;
        let layout = parse(json, 12288).unwrap();
        let first = layout.at_address(140_000_000_000_000).unwrap();
        assert_eq!((first.offset, first.size), (0, 8192));
        assert_eq!(layout.at_address(140_000_000_008_192), None);
        assert_eq!(layout.at_address(0), None);
        assert_eq!(layout.at_offset(8192).unwrap().host, 139_999_999_991_808);
        assert_eq!(layout.at_offset(12288), None);
        let all: Vec<_> = layout.offsets(0, u64::MAX).collect();
        assert_eq!(all, [(8192, 12288), (0, 8192)]);
        let part: Vec<_> = layout
            .offsets(140_000_000_004_096, 140_000_000_012_288)
            .collect();
        assert_eq!(part, [(4096, 8192)]);
    }

    #[test]
    fn hostile_messages_are_refused_by_kind() {
        let one = |host: u64, size: u64, offset: u64, page: u64| {
            format!(
                r#"{{"base_host_virt_addr":{host},"size":{size},"offset":{offset},"page_size":{page}}}"#
            )
        };
        let list = |regions: &[String]| format!("[{}]", regions.join(","));
        let error = |json: &str| parse(json, 8192).unwrap_err();
        for json in ["", "{}", "[1]", "[{}]", r#"[{"base_host_virt_addr":-1}]"#] {
            assert!(matches!(error(json), LayoutError::NotRegions(_)), "{json}");
        }
        assert!(matches!(error("[]"), LayoutError::Count(0)));
        let many = list(&vec![one(0, 4096, 0, 4096); MOST_REGIONS + 1]);
        assert!(matches!(error(&many), LayoutError::Count(_)));
        for page in [0, 1, 8192, u64::MAX] {
            let json = list(&[one(0, 8192, 0, page)]);
            assert!(matches!(error(&json), LayoutError::PageSize { .. }));
        }
        for region in [
            one(0, 0, 0, 4096),
            one(1, 8192, 0, 4096),
            one(0, 8191, 0, 4096),
            one(0, 8192, 1, 4096),
            one(0, 8192, 0, 2 << 20),
        ] {
            assert!(matches!(
                error(&list(&[region])),
                LayoutError::NotWholePages(0)
            ));
        }
        for region in [
            one(u64::MAX - 4095, 8192, 0, 4096),
            one(0, u64::MAX - 4095, 0, 4096),
            one(0, u64::MAX - 4095, 8192, 4096),
            one(0, 8192, 4096, 4096),
        ] {
            assert!(matches!(error(&list(&[region])), LayoutError::Outside(0)));
        }
        let same_address = list(&[one(4096, 4096, 0, 4096), one(4096, 4096, 4096, 4096)]);
        let same_offset = list(&[one(0, 4096, 0, 4096), one(4096, 4096, 0, 4096)]);
        for json in [same_address, same_offset] {
            assert!(matches!(error(&json), LayoutError::Overlap));
        }
        assert!(matches!(
            error(&list(&[one(0, 4096, 0, 4096)])),
            LayoutError::OtherSize { .. }
        ));
    }

    proptest! {
        #[test]
        fn no_message_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            Layout::parse(&bytes, 1 << 20).unwrap_err();
        }

        #[test]
        fn no_numbers_panic(
            regions in proptest::collection::vec(
                (any::<u64>(), any::<u64>(), any::<u64>(), 0..4u64, 0..64u32), 0..6),
            address in any::<u64>(),
        ) {
            let text: Vec<String> = regions.iter().map(|(host, size, offset, page, shift)| {
                let cut = |number: &u64| (number >> shift) & !4095;
                let page = [0, 4096, 2 << 20, 12345][usize::try_from(*page).unwrap()];
                format!(
                    r#"{{"base_host_virt_addr":{},"size":{},"offset":{},"page_size":{page}}}"#,
                    cut(host), cut(size), cut(offset),
                )
            }).collect();
            for saved in [4096, 1 << 40, !4095] {
                if let Ok(layout) = parse(&format!("[{}]", text.join(",")), saved) {
                    layout.at_address(address);
                    layout.at_offset(address);
                    layout.offsets(address, u64::MAX).for_each(drop);
                }
            }
        }
    }
}
