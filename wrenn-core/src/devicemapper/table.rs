//! The two lines of text in which the kernel speaks of a snapshot: its table and its
//! status. See `Documentation/admin-guide/device-mapper/snapshot.rst` and
//! `snapshot_status()` in `drivers/md/dm-snap.c`.
//!
//! ```text
//! table    0 2097152 snapshot 7:0 7:1 PO 8        origin, store, persistence, chunk
//! status   0 2097152 snapshot 4096/2109456 24     used/total, metadata, all in sectors
//! ```

use std::fmt;
use std::str::FromStr;

use super::store::ChunkSize;

/// Bytes of a sector, the unit of the device mapper.
pub(super) const SECTOR: u64 = 512;

/// Major and minor number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl DeviceNumber {
    /// From the packed form of `stat` and of the kernel's `huge_encode_dev`.
    pub(super) fn from_raw(raw: u64) -> Self {
        Self {
            major: rustix::fs::major(raw),
            minor: rustix::fs::minor(raw),
        }
    }

    pub(super) fn to_raw(self) -> u64 {
        rustix::fs::makedev(self.major, self.minor)
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// A line of the kernel that is not what it should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no {1} of a snapshot")]
pub struct UnknownLine(String, &'static str);

impl FromStr for DeviceNumber {
    type Err = UnknownLine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (major, minor) = text.split_once(':')?;
            Some(Self {
                major: major.parse().ok()?,
                minor: minor.parse().ok()?,
            })
        };
        parse().ok_or_else(|| UnknownLine(text.to_owned(), "device"))
    }
}

/// The parameters of a snapshot target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SnapshotTable {
    pub(super) origin: DeviceNumber,
    pub(super) store: DeviceNumber,
    pub(super) chunk: ChunkSize,
}

impl fmt::Display for SnapshotTable {
    /// `PO` is a persistent store that, when it is full, refuses writes and stays readable.
    /// With `P`, the kernel would throw all of it away.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chunk = self.chunk.sectors();
        write!(f, "{} {} PO {chunk}", self.origin, self.store)
    }
}

impl FromStr for SnapshotTable {
    type Err = UnknownLine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut words = text.split_ascii_whitespace();
            let origin = words.next()?.parse().ok()?;
            let store = words.next()?.parse().ok()?;
            if !matches!(words.next()?, "P" | "PO") {
                return None;
            }
            let chunk = ChunkSize::from_sectors(words.next()?.parse().ok()?)?;
            // Feature arguments may follow, such as "0".
            Some(Self {
                origin,
                store,
                chunk,
            })
        };
        parse().ok_or_else(|| UnknownLine(text.to_owned(), "table"))
    }
}

/// How full the store of a disk is, or what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreStatus {
    /// All is well.
    Active {
        /// Sectors in use, metadata among them.
        used_sectors: u64,
        /// Sectors that there are.
        total_sectors: u64,
        /// Sectors of metadata.
        metadata_sectors: u64,
    },
    /// It was full when a write came. Writes fail from now on; what was written before can
    /// be read.
    Overflow,
    /// The kernel lost track: what was written is gone.
    Invalid,
}

impl StoreStatus {
    /// Used share in percent, rounded down. 100 where there is nothing left to use.
    #[must_use]
    pub fn used_percent(&self) -> u8 {
        match *self {
            Self::Active {
                used_sectors,
                total_sectors,
                ..
            } => {
                let percent = u128::from(used_sectors) * 100 / u128::from(total_sectors.max(1));
                u8::try_from(percent.min(100)).unwrap_or(100)
            }
            Self::Overflow | Self::Invalid => 100,
        }
    }
}

impl FromStr for StoreStatus {
    type Err = UnknownLine;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fraction = || {
            let (share, metadata) = text.trim().split_once(' ')?;
            let (used, total) = share.split_once('/')?;
            Some(Self::Active {
                used_sectors: used.parse().ok()?,
                total_sectors: total.parse().ok()?,
                metadata_sectors: metadata.trim().parse().ok()?,
            })
        };
        match text.trim() {
            "Invalid" => Ok(Self::Invalid),
            "Overflow" => Ok(Self::Overflow),
            _ => fraction().ok_or_else(|| UnknownLine(text.to_owned(), "status")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_table_is_read_as_it_was_written(
            numbers in any::<[u16; 4]>(), log in ChunkSize::SMALLEST_LOG..=ChunkSize::LARGEST_LOG,
        ) {
            let [a, b, c, d] = numbers.map(u32::from);
            let table = SnapshotTable {
                origin: DeviceNumber { major: a, minor: b },
                store: DeviceNumber { major: c, minor: d },
                chunk: ChunkSize::from_bytes(1 << log).unwrap(),
            };
            prop_assert_eq!(table.to_string().parse(), Ok(table));
            prop_assert_eq!(format!("{table} 0").parse(), Ok(table));
        }

        #[test]
        fn a_device_number_survives_its_packed_form(major in 0_u32..4096, minor in 0_u32..1 << 20) {
            let number = DeviceNumber { major, minor };
            prop_assert_eq!(DeviceNumber::from_raw(number.to_raw()), number);
        }

        #[test]
        fn a_status_is_read(used in any::<u64>(), total in any::<u64>(), metadata in any::<u64>()) {
            let status: StoreStatus = format!("{used}/{total} {metadata}").parse().unwrap();
            prop_assert_eq!(status, StoreStatus::Active {
                used_sectors: used, total_sectors: total, metadata_sectors: metadata,
            });
            prop_assert!(status.used_percent() <= 100);
        }

        #[test]
        fn nonsense_is_refused_and_never_panics(text in ".{0,60}") {
            let _table = text.parse::<SnapshotTable>();
            let _status = text.parse::<StoreStatus>();
        }
    }

    #[test]
    fn states_without_numbers_are_known() {
        assert_eq!("Invalid".parse(), Ok(StoreStatus::Invalid));
        assert_eq!("Overflow\n".parse(), Ok(StoreStatus::Overflow));
        for text in ["", "Merge failed", "Unknown", "1/2", "16/x 3"] {
            assert!(text.parse::<StoreStatus>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_table_of_another_kind_is_refused() {
        for text in [
            "7:0 7:1 N 8",
            "7:0 7:1 PO 7",
            "7:0 PO 8",
            "/dev/loop0 7:1 P 8",
        ] {
            assert!(text.parse::<SnapshotTable>().is_err(), "{text}");
        }
    }
}
