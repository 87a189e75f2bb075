//! Whether there is room for one more.
//!
//! Memory is counted by what guests may touch, not by what they have touched so far: a
//! guest's memory is only taken as it is used, so without this the host would run out
//! later, at the cost of all. vCPUs may be promised more often than there are processors.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::RootDirectory;
use crate::vm::Resources;

/// Memory of a VMM beyond its guest's, in MiB.
const VMM_OVERHEAD_MIB: u64 = 8;
/// What the host keeps for itself unless told otherwise, in MiB.
const HOST_MEMORY_MIB: u64 = 512;
/// How often a processor is promised unless told otherwise.
const VCPU_OVERCOMMIT: u32 = 8;
/// Free room on the disk below which nothing is created, in MiB.
const DISK_RESERVE_MIB: u64 = 1024;
/// Most sandboxes unless told otherwise: the number of network slots.
const MAX_SANDBOXES: u32 = 32_767;

/// How much a host gives to its sandboxes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sandboxes that exist at a time.
    pub sandboxes: u32,
    /// vCPUs of all of them together.
    pub vcpus: u32,
    /// Memory of all of them together, in MiB.
    pub memory_mib: u64,
    /// Room on the disk that must be left when one is created, in MiB. Below half of it,
    /// sandboxes that run are halted and paused.
    pub disk_reserve_mib: u64,
}

impl Limits {
    /// What fits this host: each processor promised eight times, all memory but half a
    /// GiB, and a GiB of disk left free.
    #[must_use]
    pub fn of_this_host() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let memory_mib = total_memory_mib().unwrap_or(HOST_MEMORY_MIB);
        Self {
            sandboxes: MAX_SANDBOXES,
            vcpus: u32::try_from(processors)
                .unwrap_or(u32::MAX)
                .saturating_mul(VCPU_OVERCOMMIT),
            memory_mib: memory_mib.saturating_sub(HOST_MEMORY_MIB.min(memory_mib / 4)),
            disk_reserve_mib: DISK_RESERVE_MIB,
        }
    }
}

/// What sandboxes have been promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserved {
    /// How many there are.
    pub sandboxes: u32,
    /// Their vCPUs.
    pub vcpus: u32,
    /// Their memory and their VMMs', in MiB.
    pub memory_mib: u64,
}

/// The host has no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too many sandboxes.
    #[error("this host runs {0} sandboxes, which is its limit; destroy one, or raise the limit")]
    Sandboxes(u32),
    /// Too many vCPUs.
    #[error(
        "{asked} vCPUs are asked for and {free} of this host's {limit} are free; ask for fewer, or destroy a sandbox"
    )]
    Vcpus {
        /// What was asked for.
        asked: u32,
        /// What is left.
        free: u32,
        /// What there is.
        limit: u32,
    },
    /// Too much memory.
    #[error(
        "{asked_mib} MiB of memory are asked for and {free_mib} of this host's {limit_mib} MiB are free; ask for less, or destroy a sandbox"
    )]
    Memory {
        /// What was asked for, the VMM's own included.
        asked_mib: u64,
        /// What is left.
        free_mib: u64,
        /// What there is.
        limit_mib: u64,
    },
    /// Too little room on the disk.
    #[error(
        "{free_mib} MiB are free on this host's disk, and {reserve_mib} MiB must stay free; remove something, or move the root directory to a larger disk"
    )]
    Disk {
        /// What is left.
        free_mib: u64,
        /// What must be left.
        reserve_mib: u64,
    },
}

/// Counts what is promised.
#[derive(Clone, Debug)]
pub(super) struct Admission(Arc<Counted>);

#[derive(Debug)]
struct Counted {
    limits: Limits,
    reserved: Mutex<Reserved>,
}

/// One sandbox's share, until this is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    admission: Admission,
    resources: Resources,
}

impl Admission {
    pub(super) fn new(limits: Limits) -> Self {
        Self(Arc::new(Counted {
            limits,
            reserved: Mutex::new(Reserved::default()),
        }))
    }

    /// Promises what a new sandbox needs, or says what is missing.
    pub(super) fn admit(
        &self,
        resources: Resources,
        root: &RootDirectory,
    ) -> Result<Reservation, Refusal> {
        let limits = self.0.limits;
        self.disk_room(root)?;
        let mut reserved = self.lock();
        let after = added(*reserved, resources);
        if after.sandboxes > limits.sandboxes {
            return Err(Refusal::Sandboxes(limits.sandboxes));
        }
        if after.vcpus > limits.vcpus {
            return Err(Refusal::Vcpus {
                asked: u32::from(resources.vcpus()),
                free: limits.vcpus.saturating_sub(reserved.vcpus),
                limit: limits.vcpus,
            });
        }
        if after.memory_mib > limits.memory_mib {
            return Err(Refusal::Memory {
                asked_mib: memory_of(resources),
                free_mib: limits.memory_mib.saturating_sub(reserved.memory_mib),
                limit_mib: limits.memory_mib,
            });
        }
        *reserved = after;
        drop(reserved);
        Ok(self.reservation(resources))
    }

    /// Whether as much of the disk is free as must be.
    pub(super) fn disk_room(&self, root: &RootDirectory) -> Result<(), Refusal> {
        let reserve_mib = self.0.limits.disk_reserve_mib;
        match free_disk_mib(root) {
            Some(free_mib) if free_mib < reserve_mib => Err(Refusal::Disk {
                free_mib,
                reserve_mib,
            }),
            _ => Ok(()),
        }
    }

    /// Counts what is there already.
    pub(super) fn count(&self, resources: Resources) -> Reservation {
        let mut reserved = self.lock();
        *reserved = added(*reserved, resources);
        drop(reserved);
        self.reservation(resources)
    }

    pub(super) fn reserved(&self) -> (Reserved, Limits) {
        (*self.lock(), self.0.limits)
    }

    fn reservation(&self, resources: Resources) -> Reservation {
        Reservation {
            admission: self.clone(),
            resources,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Reserved> {
        self.0
            .reserved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut reserved = self.admission.lock();
        reserved.sandboxes -= 1;
        reserved.vcpus -= u32::from(self.resources.vcpus());
        reserved.memory_mib -= memory_of(self.resources);
    }
}

fn added(reserved: Reserved, resources: Resources) -> Reserved {
    Reserved {
        sandboxes: reserved.sandboxes + 1,
        vcpus: reserved.vcpus + u32::from(resources.vcpus()),
        memory_mib: reserved.memory_mib + memory_of(resources),
    }
}

fn memory_of(resources: Resources) -> u64 {
    u64::from(resources.memory_mib()) + VMM_OVERHEAD_MIB
}

fn total_memory_mib() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

/// `None` where the file system does not say, or is not there yet.
pub(super) fn free_disk_mib(root: &RootDirectory) -> Option<u64> {
    let numbers = rustix::fs::statvfs(root.path()).ok()?;
    Some(numbers.f_bavail.saturating_mul(numbers.f_frsize) >> 20)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        sandboxes: 3,
        vcpus: 4,
        memory_mib: 1024,
        disk_reserve_mib: 0,
    };

    fn admit(admission: &Admission, vcpus: u64, memory_mib: u64) -> Result<Reservation, Refusal> {
        let root = RootDirectory::new("/");
        admission.admit(Resources::new(vcpus, memory_mib).unwrap(), &root)
    }

    #[test]
    fn each_limit_is_kept_and_named() {
        let admission = Admission::new(LIMITS);
        let first = admit(&admission, 3, 128).unwrap();
        assert_eq!(
            admit(&admission, 2, 128).unwrap_err(),
            Refusal::Vcpus {
                asked: 2,
                free: 1,
                limit: 4
            }
        );
        assert_eq!(
            admit(&admission, 1, 1000).unwrap_err(),
            Refusal::Memory {
                asked_mib: 1008,
                free_mib: 888,
                limit_mib: 1024
            }
        );
        drop(first);
        let all: Vec<_> = (0..3).map(|_| admit(&admission, 1, 128).unwrap()).collect();
        assert_eq!(
            admit(&admission, 1, 128).unwrap_err(),
            Refusal::Sandboxes(3)
        );
        drop(all);
        assert_eq!(admission.reserved().0, Reserved::default());
    }

    #[test]
    fn a_full_disk_is_named() {
        let admission = Admission::new(Limits {
            disk_reserve_mib: u64::MAX,
            ..LIMITS
        });
        let error = admit(&admission, 1, 128).unwrap_err().to_string();
        assert!(error.contains("MiB must stay free"), "{error}");
    }

    proptest! {
        /// Whatever comes and goes, in whichever order: never more than the limits, and
        /// nothing left at the end.
        #[test]
        fn what_is_promised_is_given_back(asks in prop::collection::vec((1_u64..4, 96_u64..600, any::<bool>()), 0..60)) {
            let admission = Admission::new(LIMITS);
            let mut held = Vec::new();
            for (vcpus, memory_mib, drop_one) in asks {
                if let Ok(reservation) = admit(&admission, vcpus, memory_mib) {
                    held.push(reservation);
                }
                let (reserved, limits) = admission.reserved();
                prop_assert!(reserved.sandboxes <= limits.sandboxes);
                prop_assert!(reserved.vcpus <= limits.vcpus);
                prop_assert!(reserved.memory_mib <= limits.memory_mib);
                if drop_one && !held.is_empty() {
                    held.swap_remove(0);
                }
            }
            drop(held);
            prop_assert_eq!(admission.reserved().0, Reserved::default());
        }
    }
}
