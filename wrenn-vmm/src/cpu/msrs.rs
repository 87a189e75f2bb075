//! Model-specific registers: those that firmware would have set before the kernel starts,
//! and those that a snapshot keeps.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::cpu::state::{VcpuStateError, msr_list};

const IA32_TIME_STAMP_COUNTER: u32 = 0x10;
const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_TSC_DEADLINE: u32 = 0x6e0;
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

/// The most that KVM takes in one call (Linux `MAX_IO_MSRS`).
const CHUNK: usize = 256;

/// Registers that guests set and that KVM keeps, but does not name in its list: memory
/// type ranges (variable, fixed, default) and what machine checks are reported.
const UNLISTED: [std::ops::RangeInclusive<u32>; 6] = [
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    IA32_MTRR_DEFAULT_TYPE..=IA32_MTRR_DEFAULT_TYPE,
    0x400..=0x47f,
];

/// Which registers a snapshot keeps, given the list of those that KVM names.
pub fn to_save(listed: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = listed
        .iter()
        .copied()
        .chain(UNLISTED.into_iter().flatten())
        .collect();
    all.sort_unstable();
    all.dedup();
    // The deadline is compared with the counter, so that the counter comes first.
    all.sort_by_key(|index| *index == IA32_TSC_DEADLINE);
    all
}

/// Reads registers. Those that this kind of processor lacks are left out.
///
/// # Errors
/// If KVM fails.
pub(super) fn save(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, VcpuStateError> {
    let mut saved = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let wanted: Vec<_> = rest
            .iter()
            .take(CHUNK)
            .map(|index| kvm_msr_entry {
                index: *index,
                ..Default::default()
            })
            .collect();
        let mut list = msr_list(&wanted)?;
        let count = vcpu
            .get_msrs(&mut list)
            .map_err(|source| VcpuStateError::Kvm {
                what: "read the model-specific registers",
                source,
            })?;
        saved.extend_from_slice(&list.as_slice()[..count]);
        // KVM stops at the first that it does not have.
        rest = &rest[wanted.len().min(count + 1)..];
    }
    revive_deadline(&mut saved);
    Ok(saved)
}

/// A deadline that has passed reads as zero, and the interrupt that it raised may not
/// have reached the local APIC: it would be lost, and with it the guest's next tick. A
/// deadline of just now raises it again, and a guest expects no less from a timer that
/// it has not set.
fn revive_deadline(saved: &mut [kvm_msr_entry]) {
    let counter = saved
        .iter()
        .find(|entry| entry.index == IA32_TIME_STAMP_COUNTER)
        .map(|entry| entry.data);
    let passed = saved
        .iter_mut()
        .find(|entry| entry.index == IA32_TSC_DEADLINE && entry.data == 0);
    if let (Some(counter), Some(deadline)) = (counter, passed) {
        deadline.data = counter;
    }
}

/// Sets registers. KVM may refuse one that has its value already, as those have that can only
/// be read, or that the guest has never set.
///
/// # Errors
/// If KVM fails, or refuses another.
pub(super) fn restore(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), VcpuStateError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(CHUNK)];
        let count = vcpu
            .set_msrs(&msr_list(chunk)?)
            .map_err(|source| VcpuStateError::Kvm {
                what: "set the model-specific registers",
                source,
            })?;
        if let Some(refused) = chunk.get(count) {
            let mut present = msr_list(&[kvm_msr_entry {
                data: 0,
                ..*refused
            }])?;
            let read = vcpu.get_msrs(&mut present).unwrap_or(0);
            let same = present.as_slice()[..read]
                .iter()
                .any(|entry| entry.data == refused.data);
            if !same && refused.data != 0 {
                return Err(VcpuStateError::Msr {
                    index: refused.index,
                    value: refused.data,
                });
            }
        }
        rest = &rest[chunk.len().min(count + 1)..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_comes_before_the_deadline_and_none_twice() {
        let saved = to_save(&[0x6e0, 0x10, 0x2ff, 0xc000_0081, 0x10]);
        let place = |index| saved.iter().position(|other| *other == index).unwrap();
        assert!(place(IA32_TIME_STAMP_COUNTER) < place(IA32_TSC_DEADLINE));
        assert_eq!(saved.last(), Some(&IA32_TSC_DEADLINE));
        assert_eq!(saved.iter().filter(|index| **index == 0x2ff).count(), 1);
    }

    #[test]
    fn deadline_that_has_passed_is_due_at_once() {
        let entry = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let mut saved = [entry(0x10, 777), entry(0x6e0, 0)];
        revive_deadline(&mut saved);
        assert_eq!(saved[1].data, 777);
        let mut armed = [entry(0x10, 777), entry(0x6e0, 999)];
        revive_deadline(&mut armed);
        assert_eq!(armed[1].data, 999);
    }
}
