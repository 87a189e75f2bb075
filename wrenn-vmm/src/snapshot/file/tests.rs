use kvm_bindings::{kvm_msr_entry, kvm_regs};

use super::*;
use crate::cpu::state::VcpuState;
use crate::devices::keyboard::KeyboardState;
use crate::devices::serial::SerialState;
use crate::snapshot::state::{DeviceStates, VirtualMachineState};
use crate::virtio::queue::QueueState;
use crate::virtio::transport::TransportState;

/// A state in which every part has something of its own.
fn sample() -> MachineState {
    let vcpu = || VcpuState {
        cpuid: vec![Default::default(); 2],
        mp_state: Default::default(),
        registers: kvm_regs {
            rip: 0x1234_5678,
            ..Default::default()
        },
        special_registers: Default::default(),
        xsave: Default::default(),
        xcrs: Default::default(),
        debug_registers: Default::default(),
        local_apic: Default::default(),
        msrs: vec![kvm_msr_entry {
            index: 0x10,
            data: 77,
            ..Default::default()
        }],
        events: Default::default(),
        tsc_khz: Some(2_500_000),
    };
    let queue = QueueState {
        max_size: 256,
        size: 128,
        ready: true,
        descriptor_table: 0x1000,
        available_ring: 0x2000,
        used_ring: 0x3000,
        next_available: 5,
        next_used: 4,
        event_idx: true,
    };
    let transport = TransportState {
        version: 1,
        status: 0xf,
        device_features_select: 1,
        driver_features_select: 1,
        driver_features: 1 << 32,
        queue_select: 0,
        configuration_generation: 3,
        interrupt_status: 1,
        queues: vec![queue],
    };
    MachineState {
        configuration: "{}".to_owned(),
        memory: vec![(0, 128 << 20)],
        virtual_machine: VirtualMachineState {
            timer: Default::default(),
            clock: Default::default(),
            first_controller: Default::default(),
            second_controller: Default::default(),
            io_apic: Default::default(),
        },
        vcpus: vec![vcpu(), vcpu()],
        devices: DeviceStates {
            drives: vec![transport.clone()],
            networks: vec![transport.clone()],
            entropy: None,
            serial: SerialState {
                version: 1,
                baud_divisor_low: 12,
                baud_divisor_high: 0,
                interrupt_enable: 1,
                interrupt_identification: 1,
                line_control: 3,
                line_status: 0x60,
                modem_control: 8,
                modem_status: 0xb0,
                scratch: 0,
                in_buffer: b"abc".to_vec(),
            },
            keyboard: KeyboardState::default(),
            balloon: Some(transport),
        },
    }
}

/// A file of a state without vCPUs, which are most of it.
fn small() -> Vec<u8> {
    let mut state = sample();
    state.vcpus.clear();
    encode(&state).unwrap()
}

/// The same file with one byte changed, and a checksum that fits.
fn forged(at: usize, value: u8) -> Vec<u8> {
    let mut bytes = encode(&sample()).unwrap();
    bytes[at] = value;
    let end = bytes.len() - CHECKSUM_LENGTH;
    let checksum = Sha256::digest(&bytes[..end]);
    bytes[end..].copy_from_slice(&checksum);
    bytes
}

#[test]
fn state_survives_the_round_trip() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state");
    std::fs::write(&path, vec![1; 100_000]).unwrap();
    write(&path, &sample()).unwrap();
    let restored = read(&path).unwrap();
    assert_eq!(restored.vcpus[1].registers.rip, 0x1234_5678);
    assert_eq!(restored.vcpus[1].msrs[0].data, 77);
    assert_eq!(restored.devices, sample().devices);
    assert!(encode(&restored).unwrap() == encode(&sample()).unwrap());
}

/// If this fails, the encoding of the state has changed: old files would be read as
/// nonsense. Raise `FORMAT_VERSION`, then put the new number here.
#[test]
fn format_changes_with_its_version_only() {
    let body = postcard::to_allocvec(&sample()).unwrap();
    let digest = Sha256::digest(&body);
    let digest = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]);
    assert_eq!(
        (FORMAT_VERSION, format!("{digest:08x}").as_str()),
        (2, "d3845752")
    );
}

/// The state of a guest that ran, written by an earlier build of this program. A file like it
/// is made at every pause of a sandbox, as `vmstate.bin` in its build; there is one here for
/// each format that is read.
const FORMAT_1: &[u8] = include_bytes!("format-1.bin");
const FORMAT_2: &[u8] = include_bytes!("format-2.bin");

#[test]
fn what_an_earlier_build_wrote_is_read() {
    let body = |file: &[u8]| file[HEADER_LENGTH..file.len() - CHECKSUM_LENGTH].to_vec();
    for (earlier, memory_mib, completion) in
        [(FORMAT_1, 128, &NO_BALLOON[..]), (FORMAT_2, 256, &[])]
    {
        let state = decode(earlier).unwrap();
        assert_eq!(state.memory, [(0, memory_mib << 20)]);
        assert_eq!(state.vcpus.len(), 1);
        let devices = &state.devices;
        assert_eq!((devices.drives.len(), devices.networks.len()), (1, 1));
        assert!(devices.entropy.is_some());
        assert_eq!(devices.balloon.is_some(), completion.is_empty());
        assert!(state.configuration.contains("/run/wrenn/vm/rootfs.ext4"));
        assert!(body(&encode(&state).unwrap()) == [&body(earlier)[..], completion].concat());
        for at in (0..earlier.len()).step_by(97) {
            let mut damaged = earlier.to_vec();
            damaged[at] ^= 1;
            assert!(decode(&damaged).is_err(), "byte {at}");
        }
    }
}

#[test]
fn every_flipped_byte_is_refused() {
    let bytes = small();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert!(decode(&damaged).is_err(), "byte {at}");
    }
}

#[test]
fn every_cut_and_any_growth_is_refused() {
    let mut bytes = small();
    for length in 0..bytes.len() {
        assert!(decode(&bytes[..length]).is_err(), "{length} bytes");
    }
    bytes.push(0);
    assert!(matches!(decode(&bytes), Err(ReadStateError::Length { .. })));
}

#[test]
fn foreign_files_are_told_from_damaged_ones() {
    for foreign in [
        &b""[..],
        b"short",
        &[0; 4096],
        b"\x7fELF and so on, for more than 32 bytes",
    ] {
        assert!(matches!(decode(foreign), Err(ReadStateError::Foreign)));
    }
}

#[test]
fn other_versions_and_architectures_are_named() {
    let later = decode(&forged(8, 9)).err().unwrap();
    assert!(matches!(later, ReadStateError::Version { found: 9, .. }));
    assert!(
        later.to_string().contains(env!("CARGO_PKG_VERSION")),
        "{later}"
    );
    let older = decode(&forged(8, 0)).err().unwrap();
    assert!(matches!(older, ReadStateError::Version { found: 0, .. }));
    let other = decode(&forged(10, 2)).err().unwrap();
    assert!(matches!(other, ReadStateError::Architecture(2)));
}

#[test]
fn body_that_is_another_structure_is_refused() {
    // The length of the first string, made longer than the file.
    let error = decode(&forged(HEADER_LENGTH, 0x7f)).err().unwrap();
    assert!(matches!(error, ReadStateError::Decode(_)), "{error}");
}

#[test]
fn missing_file_is_named() {
    let error = read("/nonexistent/state".as_ref()).err().unwrap();
    assert!(error.to_string().contains("/nonexistent/state"), "{error}");
}
