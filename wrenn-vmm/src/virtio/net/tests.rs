use proptest::prelude::*;

use super::*;
use crate::memory::{HugePages, allocate};
use crate::virtio::test_queue::{NEXT, RawDescriptor, TestDriver, WRITE};

const RINGS: u64 = 0x1_0000;
const DATA: u64 = 0x4_0000;

fn chain(memory: &GuestMemory, buffers: &[(u64, u32, u16)]) -> Chain {
    let mut driver = TestDriver::new(memory, RINGS);
    driver.request(buffers);
    driver.queue(0).pop(memory).unwrap().unwrap()
}

#[test]
fn packet_needs_header_and_content() {
    let memory = allocate(1, HugePages::None, false).unwrap();
    let packet = |buffers: &[(u64, u32, u16)]| {
        packet_of(&chain(&memory, buffers), &memory).map(|packet| packet.length())
    };
    assert_eq!(packet(&[(DATA, 12, 0), (DATA + 64, 60, 0)]), Some(72));
    assert_eq!(packet(&[(DATA, 72, 0)]), Some(72));
    assert_eq!(packet(&[(DATA, 12, 0)]), None);
    assert_eq!(packet(&[(DATA, 12, 0), (DATA + 64, 60, WRITE)]), None);
    assert_eq!(packet(&[(DATA, 12, 0), (1 << 20, 60, 0)]), None);
    assert_eq!(
        packet(&[(DATA, 12, 0), (DATA + 64, 0, 0), (DATA + 64, 60, 0)]),
        Some(72)
    );
    assert_eq!(packet(&[(DATA, 12, 0), (DATA, 65536, 0)]), Some(65548));
    assert_eq!(packet(&[(DATA, 12, 0), (DATA, 65600, 0)]), None);
}

#[test]
fn receive_buffers_are_gathered_until_a_packet_fits() {
    let memory = allocate(1, HugePages::None, false).unwrap();
    let mut driver = TestDriver::new(&memory, RINGS);
    let descriptors: Vec<_> = (0..8u16)
        .map(|index| RawDescriptor {
            address: DATA + 0x1000 * u64::from(index),
            length: 1000,
            flags: WRITE,
            next: 0,
        })
        .collect();
    driver.write_descriptors(&descriptors);
    for head in 0..8 {
        driver.publish(head);
    }
    let mut queue = driver.queue(RECEIVE);

    let heads =
        |buffers: &Buffers| -> Vec<_> { buffers.each.iter().map(|buffer| buffer.head).collect() };
    let mut buffers = Buffers::default();
    assert!(buffers.gather(&mut queue, &memory, 2500, true).unwrap());
    assert_eq!(heads(&buffers), [0, 1, 2]);
    assert!(buffers.gather(&mut queue, &memory, 2500, true).unwrap());
    assert_eq!(heads(&buffers), [0, 1, 2]);
    // A packet takes the first ones, which are told how many they are.
    assert_eq!(buffers.fill(1500, &memory), [(0, 1000), (1, 500)]);
    let address = GuestAddress(DATA + BUFFER_COUNT_OFFSET);
    assert_eq!(memory.read_obj::<u16>(address).unwrap(), 2);
    assert_eq!(heads(&buffers), [2]);
    assert_eq!(buffers.pieces, [(DATA + 0x2000, 1000)]);
    // Not enough is no reason to read a packet.
    assert!(!buffers.gather(&mut queue, &memory, 100_000, true).unwrap());
    assert_eq!(heads(&buffers), [2, 3, 4, 5, 6, 7]);
    // What is not used is put back and comes again.
    buffers.put_back(&mut queue);
    assert_eq!((heads(&buffers), buffers.length), (vec![], 0));
    assert_eq!(queue.state().next_available, 2);
    assert!(buffers.gather(&mut queue, &memory, 1, true).unwrap());
    assert_eq!(heads(&buffers), [2]);
}

#[test]
fn without_merging_each_packet_gets_one_buffer() {
    let memory = allocate(1, HugePages::None, false).unwrap();
    let mut driver = TestDriver::new(&memory, RINGS);
    driver.request(&[(DATA, 12, WRITE), (DATA + 0x100, 1530, WRITE)]);
    let mut queue = driver.queue(RECEIVE);
    let mut buffers = Buffers::default();
    assert!(
        buffers
            .gather(&mut queue, &memory, SMALL_PACKET, false)
            .unwrap()
    );
    assert_eq!((buffers.each.len(), buffers.length), (1, 1542));
    assert_eq!(buffers.fill(100, &memory), [(0, 100)]);
    assert_eq!((buffers.pieces.len(), buffers.length), (0, 0));
}

#[test]
fn receive_buffer_that_cannot_be_used_stops_the_device() {
    let memory = allocate(1, HugePages::None, false).unwrap();
    for wrong in [(DATA, 1000, 0), (1 << 20, 1000, WRITE), (DATA, 11, WRITE)] {
        let mut driver = TestDriver::new(&memory, RINGS);
        driver.request(&[wrong]);
        let mut queue = driver.queue(RECEIVE);
        let gathered = Buffers::default().gather(&mut queue, &memory, 2500, true);
        assert!(gathered.is_err(), "{wrong:?}");
    }
}

#[test]
fn large_packets_need_room_only_if_the_driver_takes_them() {
    assert_eq!(needed_capacity(0), SMALL_PACKET);
    assert_eq!(needed_capacity(FEATURE_GUEST_TSO4), LARGE_PACKET);
    assert_eq!(
        needed_capacity(FEATURE_GUEST_TSO6 | FEATURE_MERGE_BUFFERS),
        LARGE_PACKET
    );
}

proptest! {
    /// No chain, however strange, yields a packet outside of guest memory or beyond the
    /// largest size.
    #[test]
    fn hostile_chains_yield_bounded_packets(
        parts in proptest::collection::vec(
            (
                prop_oneof![0..(2u64 << 20), any::<u64>()],
                prop_oneof![0..70_000u32, any::<u32>()],
                prop_oneof![4 => Just(NEXT), 1 => any::<u16>()],
                prop_oneof![8 => 0..8u16, 1 => any::<u16>()],
            ),
            8,
        ),
    ) {
        let memory = allocate(1, HugePages::None, false).unwrap();
        let mut driver = TestDriver::new(&memory, RINGS);
        let descriptors: Vec<_> = parts
            .into_iter()
            .map(|(address, length, flags, next)| RawDescriptor { address, length, flags, next })
            .collect();
        driver.write_descriptors(&descriptors);
        driver.publish(0);
        if let Ok(Some(chain)) = driver.queue(0).pop(&memory) {
            if let Some(packet) = packet_of(&chain, &memory) {
                prop_assert!(packet.length() > HEADER_LENGTH);
                prop_assert!(packet.length() <= LARGE_PACKET + 4);
            }
            let mut buffers = Buffers::default();
            if buffers.add(&chain, &memory) {
                prop_assert!(buffers.pieces[0].1 >= HEADER_LENGTH);
                prop_assert!(Scatter::resolve(&memory, buffers.pieces.iter().copied()).is_ok());
            }
        }
    }
}
