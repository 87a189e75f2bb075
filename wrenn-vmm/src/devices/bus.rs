//! Finds the device behind an address: one bus for I/O ports, one for memory.

use std::sync::Arc;

/// Registers that a vCPU can reach. Called from vCPU threads, so it must not block for
/// long, and with offsets and lengths of the guest's choice.
pub trait BusDevice: Send + Sync {
    /// Answers a read. `data` comes filled with ones, as an empty bus would answer.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes a write.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A range that is taken already.
#[derive(Debug, thiserror::Error)]
#[error("bus range {start:#x}+{length:#x} is taken")]
pub struct RangeTaken {
    /// Its first address.
    pub start: u64,
    /// Its length.
    pub length: u64,
}

struct Range {
    start: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address range, built before vCPUs run and never changed after.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, without overlap.
    ranges: Vec<Range>,
}

impl Bus {
    /// Puts a device on the bus.
    ///
    /// # Errors
    /// If any part of the range is taken.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), RangeTaken> {
        let place = self.ranges.partition_point(|range| range.start < start);
        let end = start.saturating_add(length);
        let overlaps = |range: &Range| range.start < end && start < range.start + range.length;
        let before = place
            .checked_sub(1)
            .and_then(|index| self.ranges.get(index));
        if before.is_some_and(overlaps) || self.ranges.get(place).is_some_and(overlaps) {
            return Err(RangeTaken { start, length });
        }
        self.ranges.insert(
            place,
            Range {
                start,
                length,
                device,
            },
        );
        Ok(())
    }

    fn find(&self, address: u64, length: usize) -> Option<(&dyn BusDevice, u64)> {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let offset = address - range.start;
        let fits = offset.checked_add(length as u64)? <= range.length;
        fits.then_some((range.device.as_ref(), offset))
    }

    /// Reads; an address without a device answers ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; an address without a device swallows it.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::sync::lock;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }

        fn write(&self, offset: u64, data: &[u8]) {
            lock(&self.0).push((offset, data.to_vec()));
        }
    }

    #[test]
    fn access_reaches_the_device_at_its_offset() {
        let mut bus = Bus::default();
        let device = Arc::new(Recorder::default());
        bus.insert(0x100, 8, device.clone()).unwrap();
        bus.insert(0x200, 8, Arc::new(Recorder::default())).unwrap();
        bus.write(0x103, &[1, 2]);
        assert_eq!(*lock(&device.0), [(3, vec![1, 2])]);
        let mut data = [0; 2];
        bus.read(0x104, &mut data);
        assert_eq!(data, [4, 4]);
    }

    #[test]
    fn empty_addresses_read_ones_and_swallow_writes() {
        let mut bus = Bus::default();
        let device = Arc::new(Recorder::default());
        bus.insert(0x100, 8, device.clone()).unwrap();
        for address in [0, 0xff, 0x107, 0x108, u64::MAX] {
            let mut data = [0; 2];
            bus.read(address, &mut data);
            assert_eq!(data, [0xff, 0xff], "{address:#x}");
            bus.write(address, &[1, 2]);
        }
        assert!(lock(&device.0).is_empty());
    }

    #[test]
    fn ranges_do_not_overlap() {
        let mut bus = Bus::default();
        bus.insert(0x100, 8, Arc::new(Recorder::default())).unwrap();
        for (start, length) in [(0x100, 8), (0xff, 2), (0x107, 1), (0, u64::MAX)] {
            assert!(
                bus.insert(start, length, Arc::new(Recorder::default()))
                    .is_err()
            );
        }
        bus.insert(0xf8, 8, Arc::new(Recorder::default())).unwrap();
        bus.insert(0x108, 8, Arc::new(Recorder::default())).unwrap();
    }
}
