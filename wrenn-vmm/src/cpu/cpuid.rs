//! What the CPUID instruction tells the guest: everything that KVM can give on this
//! host, with the topology of *this* guest written over the host's.
//!
//! All vCPUs are cores of one package, numbered without gaps; with `smt` two
//! neighbours are threads of one core. Sources: Intel manual 2A ("CPUID"), AMD manual
//! 3 appendix E.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The shape of the guest's processor.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// How many vCPUs there are, 1 to 32.
    pub vcpus: u8,
    /// Whether neighbours share a core.
    pub smt: bool,
}

impl Topology {
    const fn threads_per_core(self) -> u8 {
        if self.smt && self.vcpus > 1 { 2 } else { 1 }
    }

    /// How many low bits of an APIC id tell threads of a core apart.
    const fn thread_bits(self) -> u32 {
        self.threads_per_core().trailing_zeros()
    }

    /// How many low bits of an APIC id tell threads of the package apart.
    const fn package_bits(self) -> u32 {
        self.vcpus.next_power_of_two().trailing_zeros()
    }

    fn cores(self) -> u32 {
        u32::from(self.vcpus.div_ceil(self.threads_per_core()))
    }
}

const LEAF_FEATURES: u32 = 0x1;
const LEAF_INTEL_CACHE: u32 = 0x4;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_DEADLINE_TIMER: u32 = 1 << 24;
const ECX_HYPERVISOR: u32 = 1 << 31;
const ECX_PERFORMANCE_MSR: u32 = 1 << 15;
const EDX_HYPER_THREADING: u32 = 1 << 28;
const AMD_ECX_LEGACY_MULTICORE: u32 = 1 << 1;
const AMD_ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

/// Replaces `bits` of `register` starting at bit `low`.
const fn put(register: u32, low: u32, bits: u32, value: u32) -> u32 {
    let mask = ((1u32 << bits) - 1) << low;
    (register & !mask) | ((value << low) & mask)
}

/// Makes the table for one vCPU out of what KVM supports.
pub fn for_vcpu(supported: &CpuId, topology: Topology, index: u8) -> CpuId {
    let mut cpuid = supported.clone();
    // Leaves whose sub-leaves are written as a whole below.
    cpuid.retain(|entry| !matches!(entry.function, LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2));
    for entry in cpuid.as_mut_slice() {
        adapt(entry, topology, index);
    }
    for leaf in [LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2] {
        if supported
            .as_slice()
            .iter()
            .any(|entry| entry.function == leaf)
        {
            for entry in topology_leaf(leaf, topology, index) {
                // The table has room for 256 entries and KVM knows about 100 leaves.
                if cpuid.push(entry).is_err() {
                    log::warn!("no room for CPUID leaf {leaf:#x}");
                }
            }
        }
    }
    cpuid
}

fn adapt(entry: &mut kvm_cpuid_entry2, topology: Topology, index: u8) {
    let id = u32::from(index);
    let vcpus = u32::from(topology.vcpus);
    match entry.function {
        LEAF_FEATURES => {
            entry.ebx = put(entry.ebx, 8, 8, 8);
            entry.ebx = put(entry.ebx, 16, 8, 1 << topology.package_bits());
            entry.ebx = put(entry.ebx, 24, 8, id);
            // KVM emulates the deadline timer, though it reports it by a capability only.
            entry.ecx |= ECX_HYPERVISOR | ECX_DEADLINE_TIMER;
            entry.ecx &= !ECX_PERFORMANCE_MSR;
            entry.edx = put(entry.edx, 28, 1, u32::from(vcpus > 1));
            debug_assert_eq!(entry.edx & EDX_HYPER_THREADING != 0, vcpus > 1);
        }
        LEAF_INTEL_CACHE if entry.eax & 0x1f != 0 => {
            // The first two levels belong to a core, the last to the package.
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level < 3 {
                u32::from(topology.threads_per_core())
            } else {
                1 << topology.package_bits()
            };
            entry.eax = put(entry.eax, 14, 12, sharing - 1);
            entry.eax = put(entry.eax, 26, 6, topology.cores().next_power_of_two() - 1);
        }
        // No performance counters: they do not survive a snapshot on another host.
        LEAF_PERFORMANCE => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        LEAF_AMD_FEATURES => {
            entry.ecx |= AMD_ECX_TOPOLOGY_EXTENSIONS;
            entry.ecx = put(entry.ecx, 1, 1, u32::from(vcpus > 1));
            debug_assert_eq!(entry.ecx & AMD_ECX_LEGACY_MULTICORE != 0, vcpus > 1);
        }
        LEAF_AMD_SIZES => {
            entry.ecx = put(entry.ecx, 0, 8, vcpus - 1);
            entry.ecx = put(entry.ecx, 12, 4, topology.package_bits());
        }
        LEAF_AMD_CACHE if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level < 3 {
                u32::from(topology.threads_per_core())
            } else {
                vcpus
            };
            entry.eax = put(entry.eax, 14, 12, sharing - 1);
        }
        LEAF_AMD_TOPOLOGY => {
            entry.eax = id;
            let threads = u32::from(topology.threads_per_core());
            entry.ebx = put(entry.ebx, 0, 8, id >> topology.thread_bits());
            entry.ebx = put(entry.ebx, 8, 8, threads - 1);
            // One node, number zero.
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

/// Sub-leaves of the extended topology leaves: thread, core, end.
fn topology_leaf(leaf: u32, topology: Topology, index: u8) -> [kvm_cpuid_entry2; 3] {
    const LEVEL_THREAD: u32 = 1;
    const LEVEL_CORE: u32 = 2;
    let entry = |sub_leaf: u32, shift: u32, count: u32, level: u32| kvm_cpuid_entry2 {
        function: leaf,
        index: sub_leaf,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: (level << 8) | sub_leaf,
        edx: u32::from(index),
        ..Default::default()
    };
    [
        entry(
            0,
            topology.thread_bits(),
            u32::from(topology.threads_per_core()),
            LEVEL_THREAD,
        ),
        entry(
            1,
            topology.package_bits(),
            u32::from(topology.vcpus),
            LEVEL_CORE,
        ),
        entry(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let leaf = |function, index, eax| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[
            leaf(0, 0, 0x1f),
            leaf(LEAF_FEATURES, 0, 0),
            leaf(LEAF_INTEL_CACHE, 0, 1 | (1 << 5)),
            leaf(LEAF_INTEL_CACHE, 3, 3 | (3 << 5)),
            leaf(LEAF_PERFORMANCE, 0, 0x0808),
            leaf(LEAF_TOPOLOGY, 0, 0),
            leaf(LEAF_AMD_FEATURES, 0, 0),
            leaf(LEAF_AMD_SIZES, 0, 0),
            leaf(LEAF_AMD_TOPOLOGY, 0, 0),
        ])
        .unwrap()
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid
            .as_slice()
            .iter()
            .find(|entry| entry.function == function && entry.index == index)
            .unwrap()
    }

    #[test]
    fn each_vcpu_has_its_apic_id_everywhere() {
        let topology = Topology {
            vcpus: 32,
            smt: false,
        };
        for index in 0..32 {
            let cpuid = for_vcpu(&supported(), topology, index);
            assert_eq!(find(&cpuid, LEAF_FEATURES, 0).ebx >> 24, u32::from(index));
            assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 0).edx, u32::from(index));
            assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 1).edx, u32::from(index));
            assert_eq!(find(&cpuid, LEAF_AMD_TOPOLOGY, 0).eax, u32::from(index));
        }
    }

    #[test]
    fn one_vcpu_claims_no_threads() {
        let cpuid = for_vcpu(
            &supported(),
            Topology {
                vcpus: 1,
                smt: true,
            },
            0,
        );
        let features = find(&cpuid, LEAF_FEATURES, 0);
        assert_eq!(features.edx & EDX_HYPER_THREADING, 0);
        assert_eq!((features.ebx >> 16) & 0xff, 1);
        assert_eq!(find(&cpuid, LEAF_TOPOLOGY, 0).eax, 0);
    }

    #[test]
    fn threads_share_a_core_with_smt() {
        let cpuid = for_vcpu(
            &supported(),
            Topology {
                vcpus: 4,
                smt: true,
            },
            3,
        );
        let thread = find(&cpuid, LEAF_TOPOLOGY, 0);
        assert_eq!((thread.eax, thread.ebx, thread.ecx), (1, 2, 0x100));
        let core = find(&cpuid, LEAF_TOPOLOGY, 1);
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 4, 0x201));
        assert_eq!(find(&cpuid, LEAF_AMD_TOPOLOGY, 0).ebx, 1 | (1 << 8));
        // First-level cache shared by two threads, last level by the package.
        assert_eq!((find(&cpuid, LEAF_INTEL_CACHE, 0).eax >> 14) & 0xfff, 1);
        assert_eq!((find(&cpuid, LEAF_INTEL_CACHE, 3).eax >> 14) & 0xfff, 3);
    }

    #[test]
    fn leaves_that_the_host_lacks_are_not_invented() {
        let cpuid = for_vcpu(
            &supported(),
            Topology {
                vcpus: 2,
                smt: false,
            },
            0,
        );
        assert!(
            !cpuid
                .as_slice()
                .iter()
                .any(|entry| entry.function == LEAF_TOPOLOGY_V2)
        );
        assert_eq!(find(&cpuid, LEAF_PERFORMANCE, 0).eax, 0);
        assert_eq!(find(&cpuid, LEAF_AMD_SIZES, 0).ecx & 0xff, 1);
    }
}
