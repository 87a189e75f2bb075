//! Vector registers.

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;

/// Sets the vector registers of a vCPU.
///
/// # Errors
/// If KVM refuses them.
pub fn set(vcpu: &VcpuFd, registers: &kvm_xsave) -> Result<(), kvm_ioctls::Error> {
    // SAFETY: KVM reads as many bytes as the guest's state has. More than the 4096 of
    // the structure only come with features that a process must ask for
    // (`ARCH_REQ_XCOMP_GUEST_PERM`), which this program never does.
    unsafe { vcpu.set_xsave(registers) }
}
