//! The registers of a vCPU, as KVM gives and takes them.
//!
//! Several calls have side effects on what others return (Linux
//! `Documentation/virt/kvm/api.rst` and `arch/x86/kvm/x86.c`), which sets the order:
//!
//! ```text
//! save     MP state first: it lets the local APIC accept pending INIT and SIPI
//!          … events last, since reading others may queue some
//! restore  CPUID before all: it decides what other calls accept
//!          special registers before the local APIC: they hold its base and mode
//!          local APIC before the deadline register: its timer mode must be set
//!          time stamp before the deadline, which is compared with it
//!          registers before events: setting them drops pending exceptions
//! ```

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use crate::cpu::msrs;
use crate::sys;

/// How far two hosts' time stamp counters may differ without scaling, in parts per
/// million: they are measured at boot, not known (Linux `tsc_tolerance_ppm`).
const TSC_TOLERANCE_PPM: u64 = 250;

/// Everything of one vCPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    /// What the CPUID instruction says.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Running, halted, or waiting to be started.
    pub mp_state: kvm_mp_state,
    /// General registers.
    pub registers: kvm_regs,
    /// Segments, tables and control registers.
    pub special_registers: kvm_sregs,
    /// Floating point and vectors.
    pub xsave: kvm_xsave,
    /// Which of them are on.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debug_registers: kvm_debugregs,
    /// The local APIC, its timer among it.
    pub local_apic: kvm_lapic_state,
    /// Model-specific registers, in the order in which they are set.
    pub msrs: Vec<kvm_msr_entry>,
    /// Exceptions and interrupts on their way.
    pub events: kvm_vcpu_events,
    /// Speed of the time stamp counter, if KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// Registers could not be saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum VcpuStateError {
    /// KVM refused.
    #[error("cannot {what} of a vCPU")]
    Kvm {
        /// What was tried.
        what: &'static str,
        /// Why.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// KVM does not set a model-specific register.
    #[error(
        "this host does not set model-specific register {index:#x} to {value:#x}, which the guest \
         uses; load the snapshot on a host like that on which it was made"
    )]
    Msr {
        /// The register.
        index: u32,
        /// Its value in the snapshot.
        value: u64,
    },
    /// A list is longer than KVM takes.
    #[error("the list of {0} of a vCPU is too long")]
    List(&'static str),
}

const fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuStateError {
    move |source| VcpuStateError::Kvm { what, source }
}

impl VcpuState {
    /// Reads the registers of a vCPU that does not run, those of `msrs` among them.
    ///
    /// # Errors
    /// If KVM refuses one.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, VcpuStateError> {
        let mp_state = vcpu.get_mp_state().map_err(kvm("read the state"))?;
        let registers = vcpu.get_regs().map_err(kvm("read the registers"))?;
        let special_registers = vcpu
            .get_sregs()
            .map_err(kvm("read the special registers"))?;
        let xsave = vcpu.get_xsave().map_err(kvm("read the vector registers"))?;
        let xcrs = vcpu
            .get_xcrs()
            .map_err(kvm("read the extended control registers"))?;
        let debug_registers = vcpu
            .get_debug_regs()
            .map_err(kvm("read the debug registers"))?;
        let local_apic = vcpu.get_lapic().map_err(kvm("read the local APIC"))?;
        let tsc_khz = vcpu.get_tsc_khz().ok();
        let cpuid = cpuid(vcpu)?;
        let msrs = msrs::save(vcpu, msrs)?;
        let events = vcpu
            .get_vcpu_events()
            .map_err(kvm("read the pending events"))?;
        Ok(Self {
            cpuid,
            mp_state,
            registers,
            special_registers,
            xsave,
            xcrs,
            debug_registers,
            local_apic,
            msrs,
            events,
            tsc_khz,
        })
    }

    /// All CPU features that a new vCPU can have: what it reports once it is given all that KVM
    /// supports. Saved features are read in the same way.
    ///
    /// # Errors
    /// If KVM refuses.
    pub fn cpuid_of(
        vcpu: &VcpuFd,
        supported: &CpuId,
    ) -> Result<Vec<kvm_cpuid_entry2>, VcpuStateError> {
        vcpu.set_cpuid2(supported)
            .map_err(kvm("set the CPU features"))?;
        cpuid(vcpu)
    }

    /// Puts the registers into a new vCPU.
    ///
    /// # Errors
    /// If KVM refuses one.
    pub fn restore(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        self.scale_time_stamps(vcpu)?;
        let cpuid =
            CpuId::from_entries(&self.cpuid).map_err(|_| VcpuStateError::List("CPU features"))?;
        vcpu.set_cpuid2(&cpuid)
            .map_err(kvm("set the CPU features"))?;
        vcpu.set_mp_state(self.mp_state)
            .map_err(kvm("set the state"))?;
        vcpu.set_regs(&self.registers)
            .map_err(kvm("set the registers"))?;
        vcpu.set_sregs(&self.special_registers)
            .map_err(kvm("set the special registers"))?;
        sys::xsave::set(vcpu, &self.xsave).map_err(kvm("set the vector registers"))?;
        vcpu.set_xcrs(&self.xcrs)
            .map_err(kvm("set the extended control registers"))?;
        vcpu.set_debug_regs(&self.debug_registers)
            .map_err(kvm("set the debug registers"))?;
        vcpu.set_lapic(&self.local_apic)
            .map_err(kvm("set the local APIC"))?;
        msrs::restore(vcpu, &self.msrs)?;
        vcpu.set_vcpu_events(&self.events)
            .map_err(kvm("set the pending events"))?;
        // The guest's watchdogs are not to take its absence for a lock-up. Guests that do
        // not use KVM's clock make this fail and have to cope.
        if let Err(error) = vcpu.kvmclock_ctrl() {
            log::debug!("KVM_KVMCLOCK_CTRL: {error}");
        }
        Ok(())
    }

    /// Has the counter tick at the speed that the guest knows, if this host's is another.
    fn scale_time_stamps(&self, vcpu: &VcpuFd) -> Result<(), VcpuStateError> {
        let (Some(saved), Ok(host)) = (self.tsc_khz, vcpu.get_tsc_khz()) else {
            return Ok(());
        };
        if !needs_scaling(saved, host) {
            return Ok(());
        }
        vcpu.set_tsc_khz(saved)
            .map_err(kvm("set the speed of the time stamp counter"))
    }
}

fn cpuid(vcpu: &VcpuFd) -> Result<Vec<kvm_cpuid_entry2>, VcpuStateError> {
    let table = vcpu
        .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
        .map_err(kvm("read the CPU features"))?;
    Ok(table.as_slice().iter().copied().filter(is_leaf).collect())
}

/// KVM leaves what it does not need of its list empty, and some kernels do not say where
/// that begins. No real leaf 0 is empty: it holds the number of the last one.
fn is_leaf(entry: &kvm_cpuid_entry2) -> bool {
    (entry.function, entry.index, entry.flags, entry.eax) != (0, 0, 0, 0)
}

fn needs_scaling(saved_khz: u32, host_khz: u32) -> bool {
    let difference = u64::from(saved_khz.abs_diff(host_khz));
    difference * 1_000_000 > u64::from(saved_khz) * TSC_TOLERANCE_PPM
}

/// Builds KVM's list of model-specific registers.
pub(super) fn msr_list(entries: &[kvm_msr_entry]) -> Result<Msrs, VcpuStateError> {
    Msrs::from_entries(entries).map_err(|_| VcpuStateError::List("model-specific registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_differences_of_speed_are_not_scaled() {
        assert!(!needs_scaling(2_500_000, 2_500_000));
        assert!(!needs_scaling(2_500_000, 2_500_625));
        assert!(needs_scaling(2_500_000, 2_500_626));
        assert!(needs_scaling(2_500_000, 2_499_374));
        assert!(needs_scaling(u32::MAX, 0));
    }
}
