//! What of a machine is not memory. Each part is plain data that its owner defines: vCPUs
//! in [`crate::cpu::state`], devices beside the device, the virtual machine here.
//!
//! All of this is in the state file. A change needs a new [`super::file::FORMAT_VERSION`].

use kvm_bindings::{kvm_clock_data, kvm_irqchip, kvm_pit_state2};
use serde::{Deserialize, Serialize};

use crate::cpu::state::VcpuState;
use crate::devices::keyboard::KeyboardState;
use crate::devices::serial::SerialState;
use crate::virtio::transport::TransportState;

/// A paused machine.
#[derive(Serialize, Deserialize)]
pub struct MachineState {
    /// What the machine was made of, as `GET /vm/config` shows it: drives, network
    /// interfaces, size. JSON, so that a new optional setting leaves old files readable.
    pub configuration: String,
    /// Guest memory: start and length of each region, in the order of the memory file.
    pub memory: Vec<(u64, u64)>,
    /// Interrupt controllers, timer, clock.
    pub virtual_machine: VirtualMachineState,
    /// By number.
    pub vcpus: Vec<VcpuState>,
    /// Devices.
    pub devices: DeviceStates,
}

/// What KVM keeps for all vCPUs together.
#[derive(Serialize, Deserialize)]
pub struct VirtualMachineState {
    /// The interval timer.
    pub timer: kvm_pit_state2,
    /// The guest's monotonic clock, and the host's time at that moment.
    pub clock: kvm_clock_data,
    /// The first legacy interrupt controller.
    pub first_controller: kvm_irqchip,
    /// The second legacy interrupt controller.
    pub second_controller: kvm_irqchip,
    /// The I/O APIC.
    pub io_apic: kvm_irqchip,
}

/// All devices. A virtio device keeps nothing but what its transport has and what the
/// configuration says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceStates {
    /// In the order of the configuration.
    pub drives: Vec<TransportState>,
    /// In the order of the configuration.
    pub networks: Vec<TransportState>,
    /// If there is one.
    pub entropy: Option<TransportState>,
    /// The serial port.
    pub serial: SerialState,
    /// The keyboard controller.
    pub keyboard: KeyboardState,
    /// If there is one. Last of all, where files of format 1 end.
    pub balloon: Option<TransportState>,
}
