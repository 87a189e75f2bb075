//! What the CPUID instruction tells the guest: what KVM can give on this host, with the
//! topology of *this* guest written over the host's. Left out are:
//!
//! - virtualisation (VMX, SVM): a guest that runs VMs of its own reaches the part of KVM with
//!   the most faults, and its state would be lost in snapshots;
//! - AMX: its registers need permission of the kernel and are larger than what
//!   `KVM_GET_XSAVE` saves, and with one half of it, as Linux 5.17 to 6.3 report it without
//!   that permission, guests crash as they start;
//! - performance counters, which do not survive a snapshot on another host.
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
const LEAF_EXTENDED_FEATURES: u32 = 0x7;
const LEAF_PERFORMANCE: u32 = 0xa;
const LEAF_TOPOLOGY: u32 = 0xb;
const LEAF_XSAVE: u32 = 0xd;
const LEAF_TILES: u32 = 0x1d;
const LEAF_TILE_MULTIPLICATION: u32 = 0x1e;
const LEAF_TOPOLOGY_V2: u32 = 0x1f;
const LEAF_AMD_FEATURES: u32 = 0x8000_0001;
const LEAF_AMD_SIZES: u32 = 0x8000_0008;
const LEAF_AMD_VIRTUALISATION: u32 = 0x8000_000a;
const LEAF_AMD_CACHE: u32 = 0x8000_001d;
const LEAF_AMD_TOPOLOGY: u32 = 0x8000_001e;

const ECX_VMX: u32 = 1 << 5;
const AMD_ECX_SVM: u32 = 1 << 2;
/// AMX-BF16, AMX-TILE and AMX-INT8.
const EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// AMX-FP16.
const SUB_1_EAX_AMX: u32 = 1 << 21;
/// AMX-COMPLEX.
const SUB_1_EDX_AMX: u32 = 1 << 8;
/// Components of XSAVE that hold tiles: their configuration, and their data.
const TILE_COMPONENTS: std::ops::RangeInclusive<u32> = 17..=18;
const XSAVE_TILES: u32 = 1 << 17 | 1 << 18;
/// Components that are switched off until their first use (XFD). Tiles are the only one.
const XSAVE_EAX_FAULTING: u32 = 1 << 4;
/// Legacy region and header, which are always there.
const XSAVE_LEAST_BYTES: u32 = 576;

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
    cpuid.retain(|entry| match entry.function {
        // Their sub-leaves are written as a whole below.
        LEAF_TOPOLOGY | LEAF_TOPOLOGY_V2 => false,
        LEAF_TILES | LEAF_TILE_MULTIPLICATION => false,
        LEAF_XSAVE => !TILE_COMPONENTS.contains(&entry.index),
        _ => true,
    });
    let xsave_bytes = xsave_bytes(&cpuid);
    for entry in cpuid.as_mut_slice() {
        adapt(entry, topology, index);
        if (entry.function, entry.index) == (LEAF_XSAVE, 0) {
            entry.eax &= !XSAVE_TILES;
            entry.ecx = xsave_bytes;
        }
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

/// The bytes that all components of XSAVE take that the guest may switch on.
fn xsave_bytes(cpuid: &CpuId) -> u32 {
    let components = cpuid.as_slice().iter().filter(|entry| {
        // Components that only the kernel sees (bit 0 of ECX) are not in this layout.
        entry.function == LEAF_XSAVE && entry.index >= 2 && entry.ecx & 1 == 0
    });
    let ends = components.map(|entry| entry.ebx.saturating_add(entry.eax));
    ends.max().unwrap_or(0).max(XSAVE_LEAST_BYTES)
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
            entry.ecx &= !(ECX_PERFORMANCE_MSR | ECX_VMX);
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
        LEAF_EXTENDED_FEATURES => match entry.index {
            0 => entry.edx &= !EDX_AMX,
            1 => {
                entry.eax &= !SUB_1_EAX_AMX;
                entry.edx &= !SUB_1_EDX_AMX;
            }
            _ => {}
        },
        LEAF_XSAVE if entry.index == 1 => entry.eax &= !XSAVE_EAX_FAULTING,
        LEAF_PERFORMANCE | LEAF_AMD_VIRTUALISATION => {
            (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        }
        LEAF_AMD_FEATURES => {
            entry.ecx |= AMD_ECX_TOPOLOGY_EXTENSIONS;
            entry.ecx &= !AMD_ECX_SVM;
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

    #[test]
    fn virtualisation_is_left_out() {
        let full = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: !0,
            ebx: !0,
            ecx: !0,
            edx: !0,
            ..Default::default()
        };
        let leaves = [
            full(LEAF_FEATURES, 0),
            full(LEAF_AMD_FEATURES, 0),
            full(LEAF_AMD_VIRTUALISATION, 0),
        ];
        let topology = Topology {
            vcpus: 1,
            smt: false,
        };
        let cpuid = for_vcpu(&CpuId::from_entries(&leaves).unwrap(), topology, 0);
        assert_eq!(find(&cpuid, LEAF_FEATURES, 0).ecx & ECX_VMX, 0);
        assert_eq!(find(&cpuid, LEAF_AMD_FEATURES, 0).ecx & AMD_ECX_SVM, 0);
        let svm = find(&cpuid, LEAF_AMD_VIRTUALISATION, 0);
        assert_eq!((svm.eax, svm.ebx, svm.ecx, svm.edx), (0, 0, 0, 0));
    }

    /// The leaves of a Sapphire Rapids, with and without permission for its tiles.
    #[test]
    fn tiles_are_left_out_with_their_sizes() {
        const KEPT: u32 = 0x2e7;
        let topology = Topology {
            vcpus: 1,
            smt: false,
        };
        for reported in [XSAVE_TILES, 1 << 17] {
            let leaf = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| kvm_cpuid_entry2 {
                function,
                index,
                eax,
                ebx,
                ecx,
                edx,
                ..Default::default()
            };
            let leaves = [
                leaf(LEAF_EXTENDED_FEATURES, 0, [2, 0, 0, EDX_AMX | 1 << 4]),
                leaf(
                    LEAF_EXTENDED_FEATURES,
                    1,
                    [SUB_1_EAX_AMX | 1 << 4, 0, 0, SUB_1_EDX_AMX],
                ),
                leaf(LEAF_XSAVE, 0, [KEPT | reported, 2696, 11008, 0]),
                leaf(LEAF_XSAVE, 1, [0x1f, 0, 0, 0]),
                leaf(LEAF_XSAVE, 2, [256, 576, 0, 0]),
                leaf(LEAF_XSAVE, 7, [1024, 1664, 0, 0]),
                leaf(LEAF_XSAVE, 9, [8, 2688, 0, 0]),
                leaf(LEAF_XSAVE, 11, [16, 0, 1, 0]),
                leaf(LEAF_XSAVE, 17, [64, 2752, 2, 0]),
                leaf(LEAF_XSAVE, 18, [8192, 2816, 6, 0]),
                leaf(LEAF_TILES, 0, [1, 0, 0, 0]),
                leaf(LEAF_TILE_MULTIPLICATION, 0, [0, 0x4010, 0, 0]),
            ];
            let cpuid = for_vcpu(&CpuId::from_entries(&leaves).unwrap(), topology, 0);
            assert_eq!(find(&cpuid, LEAF_EXTENDED_FEATURES, 0).edx, 1 << 4);
            assert_eq!(find(&cpuid, LEAF_EXTENDED_FEATURES, 1).eax, 1 << 4);
            assert_eq!(find(&cpuid, LEAF_EXTENDED_FEATURES, 1).edx, 0);
            let xsave = find(&cpuid, LEAF_XSAVE, 0);
            assert_eq!((xsave.eax, xsave.ecx), (KEPT, 2696));
            assert_eq!(find(&cpuid, LEAF_XSAVE, 1).eax, 0xf);
            let left = |entry: &&kvm_cpuid_entry2| {
                entry.function == LEAF_TILES
                    || entry.function == LEAF_TILE_MULTIPLICATION
                    || (entry.function == LEAF_XSAVE && entry.index > 11)
            };
            assert_eq!(cpuid.as_slice().iter().find(left), None);
        }
    }
}
