use std::io::{Read, Write};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::memory::{HugePages, allocate};
use crate::rate_limiter::MonotonicClock;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::VirtQueue;
use crate::virtio::test_queue::{INDIRECT, NEXT, RawDescriptor, TestDriver, WRITE};

const MEMORY_MIB: u64 = 1;
const RINGS: u64 = 0x1_0000;
const HEADER: u64 = 0x2_0000;
const DATA: u64 = 0x3_0000;
const STATUS: u64 = 0x4_0000;
const SECTORS: u64 = 64;

struct Bench {
    memory: GuestMemory,
    device: Block,
    file: tempfile::NamedTempFile,
}

impl Bench {
    fn new(read_only: bool) -> Self {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..SECTORS)
            .flat_map(|sector| [u8::try_from(sector).unwrap(); 512])
            .collect();
        file.write_all(&content).unwrap();
        let backing = Backing::open(file.path(), read_only).unwrap();
        let limiter = RateLimiter::new(None, MonotonicClock).unwrap();
        let device = Block::new(backing, "root", read_only, CacheType::Writeback, limiter);
        let memory = allocate(MEMORY_MIB, HugePages::None, true).unwrap();
        memory.write_obj(0xeeu8, GuestAddress(STATUS)).unwrap();
        Self {
            memory,
            device,
            file,
        }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory
            .write_obj(sector, GuestAddress(HEADER + 8))
            .unwrap();
    }

    /// Runs the device over everything the driver has published.
    fn run(&mut self, driver: &TestDriver<'_>) -> Result<Progress, QueueBroken> {
        self.run_on(&mut [driver.queue(0)])
    }

    fn run_on(&mut self, queues: &mut [VirtQueue]) -> Result<Progress, QueueBroken> {
        self.run_until(queues, &StopFlag::default())
    }

    fn run_until(
        &mut self,
        queues: &mut [VirtQueue],
        stop: &StopFlag,
    ) -> Result<Progress, QueueBroken> {
        let interrupt = Interrupt::new(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        self.device.process(
            Cause::Queue(0),
            &mut Active {
                queues,
                memory: &self.memory,
                interrupt: &interrupt,
                features: 0,
                stop,
            },
        )
    }

    /// One request with these buffers; gives the used entry and the status byte.
    fn request(&mut self, buffers: &[(u64, u32, u16)]) -> ((u32, u32), u8) {
        let memory = self.memory.clone();
        let mut driver = TestDriver::new(&memory, RINGS);
        driver.request(buffers);
        self.run(&driver).unwrap();
        let used = driver.used_entries();
        assert_eq!(used.len(), 1);
        (used[0], memory.read_obj(GuestAddress(STATUS)).unwrap())
    }

    fn byte(&self, address: u64) -> u8 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn disk(&self) -> Vec<u8> {
        let mut content = Vec::new();
        self.file
            .reopen()
            .unwrap()
            .read_to_end(&mut content)
            .unwrap();
        content
    }
}

#[test]
fn read_fills_scattered_buffers() {
    let mut bench = Bench::new(false);
    bench.header(0, 3);
    let buffers = [
        (HEADER, 16, 0),
        (DATA, 100, WRITE),
        (DATA + 0x1000, 924, WRITE),
        (STATUS, 1, WRITE),
    ];
    assert_eq!(bench.request(&buffers), ((0, 1025), 0));
    assert_eq!(bench.byte(DATA), 3);
    assert_eq!(bench.byte(DATA + 0x1000 + 411), 3);
    assert_eq!(bench.byte(DATA + 0x1000 + 412), 4);
}

#[test]
fn every_page_that_the_device_writes_is_recorded() {
    use crate::snapshot::memory_file::{bitmap_of, forget_changes};
    use vm_memory::GuestMemoryBackend;

    let mut bench = Bench::new(false);
    bench.header(0, 3);
    let memory = bench.memory.clone();
    let mut driver = TestDriver::new(&memory, RINGS);
    driver.request(&[
        (HEADER, 16, 0),
        (DATA + 0xff0, 512, WRITE),
        (STATUS, 1, WRITE),
    ]);
    forget_changes(&memory);
    bench.run(&driver).unwrap();
    let bitmap = bitmap_of(memory.iter().next().unwrap()).unwrap();
    let changed: Vec<u64> = (0..MEMORY_MIB << 20)
        .step_by(0x1000)
        .filter(|address| bitmap.is_addr_set(crate::memory::host_length(*address)))
        .collect();
    // The used ring, both pages of the data, the status.
    assert_eq!(changed, [RINGS + 0x2000, DATA, DATA + 0x1000, STATUS]);
}

#[test]
fn framing_is_the_drivers_choice() {
    let mut bench = Bench::new(false);
    bench.header(0, 9);
    // Header in three pieces, data and status in one.
    let buffers = [
        (HEADER, 1, 0),
        (HEADER + 1, 7, 0),
        (HEADER + 8, 8, 0),
        (DATA, 513, WRITE),
    ];
    let (used, _) = bench.request(&buffers);
    assert_eq!(used, (0, 513));
    assert_eq!((bench.byte(DATA + 511), bench.byte(DATA + 512)), (9, 0));
}

#[test]
fn write_reaches_the_file_and_nothing_else() {
    let mut bench = Bench::new(false);
    bench.header(1, 2);
    bench
        .memory
        .write_slice(&[0xab; 512], GuestAddress(DATA))
        .unwrap();
    let before = bench.disk();
    assert_eq!(
        bench.request(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]),
        ((0, 1), 0)
    );
    let after = bench.disk();
    assert_eq!(after[1024..1536], [0xab; 512]);
    assert_eq!(
        (&after[..1024], &after[1536..]),
        (&before[..1024], &before[1536..])
    );
}

#[test]
fn read_only_disk_refuses_writes() {
    let mut bench = Bench::new(true);
    bench.header(1, 0);
    let before = bench.disk();
    let answer = bench.request(&[(HEADER, 16, 0), (DATA, 512, 0), (STATUS, 1, WRITE)]);
    assert_eq!(answer, ((0, 1), 1));
    assert_eq!(bench.disk(), before);
    assert_ne!(bench.device.features() & FEATURE_READ_ONLY, 0);
}

#[test]
fn requests_beyond_the_end_or_of_part_sectors_fail() {
    for (sector, length) in [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (0, 511),
    ] {
        let mut bench = Bench::new(false);
        bench.header(0, sector);
        let answer = bench.request(&[(HEADER, 16, 0), (DATA, length, WRITE), (STATUS, 1, WRITE)]);
        assert_eq!(answer, ((0, 1), 1), "{sector} {length}");
    }
}

#[test]
fn file_that_shrank_reports_the_part_that_was_read() {
    let mut bench = Bench::new(false);
    bench.file.as_file().set_len(512).unwrap();
    bench.header(0, 0);
    let answer = bench.request(&[(HEADER, 16, 0), (DATA, 1024, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(answer, ((0, 513), 1));
}

#[test]
fn identifier_flush_and_unknown_requests() {
    let mut bench = Bench::new(false);
    bench.header(8, 0);
    let answer = bench.request(&[(HEADER, 16, 0), (DATA, 20, WRITE), (STATUS, 1, WRITE)]);
    assert_eq!(answer, ((0, 21), 0));
    let mut id = [0u8; 20];
    bench
        .memory
        .read_slice(&mut id, GuestAddress(DATA))
        .unwrap();
    assert_eq!(&id, b"root\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");

    let mut bench = Bench::new(false);
    bench.header(4, 0);
    assert_eq!(
        bench.request(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]),
        ((0, 1), 0)
    );
    let mut bench = Bench::new(false);
    bench.header(99, 0);
    assert_eq!(
        bench.request(&[(HEADER, 16, 0), (STATUS, 1, WRITE)]),
        ((0, 1), 2)
    );
}

#[test]
fn chain_in_an_endless_loop_ends() {
    let mut bench = Bench::new(false);
    let memory = bench.memory.clone();
    let mut driver = TestDriver::new(&memory, RINGS);
    let turn = |next| RawDescriptor {
        address: DATA,
        length: 16,
        flags: NEXT,
        next,
    };
    driver.write_descriptors(&[turn(1), turn(0)]);
    driver.publish(0);
    bench.run(&driver).unwrap();
    assert_eq!(driver.used_entries(), [(0, 0)]);
}

#[test]
fn chain_through_a_huge_indirect_table_is_cut() {
    let mut bench = Bench::new(false);
    let memory = bench.memory.clone();
    let mut driver = TestDriver::new(&memory, RINGS);
    let table: Vec<_> = (1..2000)
        .map(|next| RawDescriptor {
            address: DATA,
            length: 1,
            flags: NEXT,
            next,
        })
        .collect();
    driver.write_table(0x8_0000, &table);
    driver.write_descriptors(&[RawDescriptor {
        address: 0x8_0000,
        length: 16 * 2000,
        flags: INDIRECT,
        next: 0,
    }]);
    driver.publish(0);
    bench.run(&driver).unwrap();
    assert_eq!(driver.used_entries(), [(0, 0)]);
}

#[test]
fn rings_that_contradict_themselves_stop_the_device() {
    let mut bench = Bench::new(false);
    let memory = bench.memory.clone();
    let mut driver = TestDriver::new(&memory, RINGS);
    driver.publish(5000);
    assert!(bench.run(&driver).is_err());

    let driver = TestDriver::new(&memory, RINGS);
    driver.set_available_index(1000);
    assert!(bench.run(&driver).is_err());
}

/// Addresses around everything that matters, and far away.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => prop_oneof![Just(HEADER), Just(DATA), Just(STATUS), Just(RINGS)],
        2 => 0..(MEMORY_MIB << 20),
        1 => ((MEMORY_MIB << 20) - 64)..((MEMORY_MIB << 20) + 64),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = RawDescriptor> {
    let length = prop_oneof![
        4 => prop_oneof![Just(1u32), Just(16), Just(20), Just(512), Just(4096)],
        1 => 0..9000u32,
        1 => any::<u32>(),
    ];
    // The flags mostly in sensible combinations.
    let flags = prop_oneof![8 => 0..4u16, 1 => 0..8u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..16u16, 1 => any::<u16>()];
    (address(), length, flags, next).prop_map(|(address, length, flags, next)| RawDescriptor {
        address,
        length,
        flags,
        next,
    })
}

#[test]
fn stopped_drive_keeps_its_request() {
    let mut bench = Bench::new(true);
    bench.header(0, 3);
    let memory = bench.memory.clone();
    let mut driver = TestDriver::new(&memory, RINGS);
    driver.request(&[(HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE)]);
    let queues = &mut [driver.queue(0)];
    let stop = StopFlag::default();
    stop.set(true);
    assert_eq!(bench.run_until(queues, &stop).unwrap(), Progress::Done);
    assert!(driver.used_entries().is_empty());
    stop.set(false);
    bench.run_until(queues, &stop).unwrap();
    assert_eq!(driver.used_entries(), [(0, 513)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever the guest puts into its rings, the device ends, gives back each chain
    /// once with no more bytes than the chain can hold, and a read-only disk stays as
    /// it is.
    #[test]
    fn hostile_rings_are_survived(
        descriptors in proptest::collection::vec(descriptor(), 16),
        heads in proptest::collection::vec(prop_oneof![9 => 0..16u16, 1 => any::<u16>()], 1..8),
        kind in prop_oneof![Just(0u32), Just(1), Just(4), Just(8), any::<u32>()],
        sector in prop_oneof![0..SECTORS, any::<u64>()],
    ) {
        let mut bench = Bench::new(true);
        let before = bench.disk();
        bench.header(kind, sector);
        let memory = bench.memory.clone();
        let mut driver = TestDriver::new(&memory, RINGS);
        driver.write_descriptors(&descriptors);
        for head in &heads {
            driver.publish(*head);
        }
        let result = bench.run(&driver);
        prop_assert_eq!(bench.disk(), before);
        if result.is_ok() && heads.iter().all(|head| *head < 16) {
            // A request may have overwritten the rings themselves, and then nothing can
            // be said about them.
            let touches_rings = descriptors.iter().any(|descriptor| {
                descriptor.address < RINGS + 0x3000
                    && descriptor.address.saturating_add(u64::from(descriptor.length)) > RINGS
            });
            if !touches_rings {
                let used: Vec<u32> = driver.used_entries().iter().map(|(head, _)| *head).collect();
                let published: Vec<u32> = heads.iter().copied().map(u32::from).collect();
                prop_assert_eq!(used, published);
            }
        }
    }

    #[test]
    fn good_requests_always_work(
        sector in 0..SECTORS,
        cuts in proptest::collection::vec(1..512u32, 0..6),
    ) {
        // The sector's 512 bytes, cut at random places.
        let mut cuts: Vec<u32> = cuts;
        cuts.sort_unstable();
        cuts.dedup();
        cuts.push(512);
        let mut buffers = vec![(HEADER, 16, 0)];
        let mut start = 0;
        for cut in cuts {
            buffers.push((DATA + u64::from(start), cut - start, WRITE));
            start = cut;
        }
        buffers.push((STATUS, 1, WRITE));
        let mut bench = Bench::new(true);
        bench.header(0, sector);
        prop_assert_eq!(bench.request(&buffers), ((0, 513), 0));
        let mut data = [0u8; 512];
        bench.memory.read_slice(&mut data, GuestAddress(DATA)).unwrap();
        prop_assert_eq!(data, [u8::try_from(sector).unwrap(); 512]);
    }
}
