//! The KVM side of a machine.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE,
    KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pit_config,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::cpu::msrs;
use crate::layout;
use crate::memory::{GuestMemory, host_length};
use crate::snapshot::memory_file::{bitmap_of, merge_log};
use crate::snapshot::state::VirtualMachineState;
use crate::sys;

/// What the VMM cannot do without.
const NEEDED: [Cap; 7] = [
    Cap::Irqchip,
    Cap::Ioeventfd,
    Cap::Irqfd,
    Cap::ImmediateExit,
    Cap::Pit2,
    Cap::SetTssAddr,
    Cap::UserMemory,
];

/// KVM does not do what is needed.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// No `/dev/kvm`.
    #[error("cannot open /dev/kvm (is KVM available, and may this user use it?)")]
    Open(#[source] kvm_ioctls::Error),
    /// Another API.
    #[error("KVM has API version {0} where 12 is needed")]
    Version(i32),
    /// An old or reduced KVM.
    #[error("KVM lacks the capability {0:?}")]
    Missing(Cap),
    /// The clock was saved on a kernel that does not know the time.
    #[error("the snapshot does not say when it was made, which clock_realtime needs")]
    NoRealTime,
    /// A call failed.
    #[error("KVM cannot {what}")]
    Call {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
}

const fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> HypervisorError {
    move |source| HypervisorError::Call { what, source }
}

/// One virtual machine with its interrupt controllers.
pub(super) struct Hypervisor {
    kvm: Kvm,
    vm: VmFd,
    /// The model-specific registers that a snapshot keeps.
    msrs: Arc<[u32]>,
}

/// What becomes of the guest's clock on load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClockOnLoad {
    /// It goes on where it was.
    Continues,
    /// It jumps by the time that has passed on the host.
    Jumps,
}

impl Hypervisor {
    /// Creates the machine with local APICs, I/O APIC, legacy controllers and timer.
    ///
    /// # Errors
    /// If KVM is not there or cannot do it.
    pub(super) fn new() -> Result<Self, HypervisorError> {
        let kvm = Kvm::new().map_err(HypervisorError::Open)?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(HypervisorError::Version(version));
        }
        if let Some(missing) = NEEDED.into_iter().find(|cap| !kvm.check_extension(*cap)) {
            return Err(HypervisorError::Missing(missing));
        }
        let vm = create_vm(&kvm)?;
        vm.set_tss_address(host_length(layout::KVM_TSS_START))
            .map_err(call("place the task state segment"))?;
        vm.create_irq_chip()
            .map_err(call("create the interrupt controllers"))?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        vm.create_pit2(timer).map_err(call("create the timer"))?;
        // Now, since the seccomp filter of later times lets nothing through to /dev/kvm.
        let listed = kvm
            .get_msr_index_list()
            .map_err(call("list its model-specific registers"))?;
        let msrs = msrs::to_save(listed.as_slice()).into();
        Ok(Self { kvm, vm, msrs })
    }

    /// The model-specific registers that a snapshot keeps.
    pub(super) const fn msrs(&self) -> &Arc<[u32]> {
        &self.msrs
    }

    /// Reads what KVM keeps for all vCPUs together, which must not run.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub(super) fn save(&self) -> Result<VirtualMachineState, HypervisorError> {
        Ok(VirtualMachineState {
            timer: self.vm.get_pit2().map_err(call("read the timer"))?,
            clock: self.vm.get_clock().map_err(call("read the clock"))?,
            first_controller: self.controller(KVM_IRQCHIP_PIC_MASTER)?,
            second_controller: self.controller(KVM_IRQCHIP_PIC_SLAVE)?,
            io_apic: self.controller(KVM_IRQCHIP_IOAPIC)?,
        })
    }

    fn controller(&self, chip_id: u32) -> Result<kvm_irqchip, HypervisorError> {
        let mut controller = kvm_irqchip {
            chip_id,
            ..Default::default()
        };
        self.vm
            .get_irqchip(&mut controller)
            .map_err(call("read an interrupt controller"))?;
        Ok(controller)
    }

    /// Puts back what [`Self::save`] has read, once the vCPUs have their registers.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub(super) fn restore(
        &self,
        state: &VirtualMachineState,
        clock_on_load: ClockOnLoad,
    ) -> Result<(), HypervisorError> {
        self.vm
            .set_pit2(&state.timer)
            .map_err(call("set the timer"))?;
        let mut clock = state.clock;
        clock.flags &= KVM_CLOCK_REALTIME;
        match clock_on_load {
            ClockOnLoad::Continues => clock.flags = 0,
            ClockOnLoad::Jumps if clock.flags == 0 => return Err(HypervisorError::NoRealTime),
            ClockOnLoad::Jumps => {}
        }
        self.vm.set_clock(&clock).map_err(call("set the clock"))?;
        for controller in [
            &state.first_controller,
            &state.second_controller,
            &state.io_apic,
        ] {
            self.vm
                .set_irqchip(controller)
                .map_err(call("set an interrupt controller"))?;
        }
        Ok(())
    }

    /// Moves what KVM knows about changed pages into memory's own bitmaps. KVM forgets it,
    /// so that there is one place that knows, whatever becomes of the snapshot.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub(super) fn collect_changes(&self, memory: &GuestMemory) -> Result<(), HypervisorError> {
        for (slot, region) in (0u32..).zip(memory.iter()) {
            let Some(bitmap) = bitmap_of(region) else {
                continue;
            };
            let log = self
                .vm
                .get_dirty_log(slot, host_length(region.len()))
                .map_err(call("list the pages that changed"))?;
            merge_log(bitmap, &log);
        }
        Ok(())
    }

    /// Gives the guest its memory.
    ///
    /// # Errors
    /// If KVM refuses it.
    pub(super) fn set_memory(
        &self,
        memory: &GuestMemory,
        log_dirty: bool,
    ) -> Result<(), HypervisorError> {
        sys::memory::register(&self.vm, memory, log_dirty).map_err(call("register guest memory"))
    }

    /// Everything that a guest's CPUID may say on this host.
    ///
    /// # Errors
    /// If KVM does not tell.
    pub(super) fn supported_cpuid(&self) -> Result<CpuId, HypervisorError> {
        self.kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(call("list the supported CPU features"))
    }

    /// Creates a vCPU.
    ///
    /// # Errors
    /// If KVM cannot.
    pub(super) fn create_vcpu(&self, index: u8) -> Result<VcpuFd, HypervisorError> {
        self.vm
            .create_vcpu(u64::from(index))
            .map_err(call("create a vCPU"))
    }

    /// Connects an event to an interrupt line.
    ///
    /// # Errors
    /// If KVM cannot.
    pub(super) fn connect_interrupt(
        &self,
        event: &EventFd,
        line: u32,
    ) -> Result<(), HypervisorError> {
        self.vm
            .register_irqfd(event, line)
            .map_err(call("connect an interrupt"))
    }

    /// Makes a guest's write of `value` to `address` signal an event, without an exit.
    ///
    /// # Errors
    /// If KVM cannot.
    pub(super) fn connect_notification(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), HypervisorError> {
        self.vm
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(call("connect a queue notification"))
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, HypervisorError> {
    // A signal during the long set-up of a machine ends it with EINTR; nothing is wrong.
    const ATTEMPTS: usize = 5;
    let mut result = kvm.create_vm();
    for _ in 1..ATTEMPTS {
        match &result {
            Err(error) if error.errno() == libc::EINTR => result = kvm.create_vm(),
            _ => break,
        }
    }
    result.map_err(call("create a virtual machine"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::state::VcpuState;
    use crate::memory::{HugePages, allocate};

    /// What KVM gives, it takes back, byte for byte, but for what runs on.
    #[test]
    fn state_of_kvm_survives_the_round_trip() {
        let memory = allocate(4, HugePages::None, true).unwrap();
        let first = match Hypervisor::new() {
            Ok(hypervisor) => hypervisor,
            Err(error) => {
                eprintln!("SKIPPED: no KVM here: {error}");
                return;
            }
        };
        first.set_memory(&memory, true).unwrap();
        first.collect_changes(&memory).unwrap();
        let vcpu = first.create_vcpu(0).unwrap();
        let cpuid = first.supported_cpuid().unwrap();
        vcpu.set_cpuid2(&cpuid).unwrap();
        let mut registers = vcpu.get_regs().unwrap();
        registers.rbx = 0x1234_5678_9abc_def0;
        vcpu.set_regs(&registers).unwrap();
        let saved = VcpuState::save(&vcpu, first.msrs()).unwrap();
        let saved_machine = first.save().unwrap();

        let second = Hypervisor::new().unwrap();
        second.set_memory(&memory, true).unwrap();
        let vcpu = second.create_vcpu(0).unwrap();
        saved.restore(&vcpu).unwrap();
        second
            .restore(&saved_machine, ClockOnLoad::Continues)
            .unwrap();
        let restored = VcpuState::save(&vcpu, second.msrs()).unwrap();
        // Time goes on, and with it what is derived from it.
        let steady = |state: &VcpuState| {
            const CLOCKS: [u32; 3] = [0x10, 0x3b, 0x6e0];
            let mut msrs: Vec<_> = state.msrs.iter().map(|msr| (msr.index, msr.data)).collect();
            msrs.retain(|(index, _)| !CLOCKS.contains(index));
            msrs
        };
        assert_eq!(steady(&restored), steady(&saved));
        assert_eq!(restored.xsave.region, saved.xsave.region);
        assert_eq!(restored.xcrs, saved.xcrs);
        assert_eq!(restored.events, saved.events);
        assert_eq!(restored.mp_state, saved.mp_state);
        assert_eq!(restored.registers, saved.registers);
        assert_eq!(restored.special_registers, saved.special_registers);
        assert_eq!(restored.cpuid, saved.cpuid);
        assert_eq!(restored.local_apic.regs, saved.local_apic.regs);
        let clock = second.save().unwrap().clock.clock;
        assert!(clock >= saved_machine.clock.clock);
    }
}
