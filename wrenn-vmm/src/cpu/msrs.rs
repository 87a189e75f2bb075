//! Model-specific registers that firmware would have set before the kernel starts.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MTRR_DEFAULT_TYPE: u32 = 0x2ff;

/// Fast string operations.
const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Memory type ranges on, everything outside of them write-back.
const MTRR_ENABLED_WRITE_BACK: u64 = (1 << 11) | 6;

/// A model-specific register could not be set.
#[derive(Debug, thiserror::Error)]
pub enum MsrsError {
    /// The list did not fit KVM's structure.
    #[error("cannot build the list of model-specific registers")]
    List,
    /// KVM failed.
    #[error("cannot set model-specific registers")]
    Set(#[source] kvm_ioctls::Error),
    /// KVM took only some.
    #[error("KVM does not know model-specific register {index:#x}")]
    Unknown {
        /// The first that it refused.
        index: u32,
    },
}

/// Sets the boot values.
///
/// # Errors
/// If KVM refuses one.
pub fn set_up_boot(vcpu: &VcpuFd) -> Result<(), MsrsError> {
    let entries = [
        (IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        (IA32_MTRR_DEFAULT_TYPE, MTRR_ENABLED_WRITE_BACK),
    ]
    .map(|(index, data)| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    });
    let list = Msrs::from_entries(&entries).map_err(|_| MsrsError::List)?;
    let count = vcpu.set_msrs(&list).map_err(MsrsError::Set)?;
    match entries.get(count) {
        None => Ok(()),
        Some(refused) => Err(MsrsError::Unknown {
            index: refused.index,
        }),
    }
}
