//! The KVM side of a machine.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use vmm_sys_util::eventfd::EventFd;

use crate::layout;
use crate::memory::{GuestMemory, host_length};
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
        Ok(Self { kvm, vm })
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
