//! Whether this host can run a guest that knows another host's CPU: what the guest has seen
//! of the CPUID instruction it goes on using.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

/// The guest of a snapshot cannot run on this host's CPU.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IncompatibleCpuError {
    /// Another maker's.
    #[error(
        "the snapshot is of a CPU by {saved}, and this host's is by {host}; load it on a host \
         with a CPU by {saved}"
    )]
    Vendor {
        /// The maker by the snapshot.
        saved: String,
        /// The maker here.
        host: String,
    },
    /// It can do less.
    #[error(
        "this host's CPU lacks features that the guest uses: {}; load the snapshot on a host \
         like that on which it was made", Listed(.0)
    )]
    Features(Vec<Feature>),
}

/// A bit of a register that the CPUID instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The leaf (EAX).
    pub leaf: u32,
    /// The sub-leaf (ECX).
    pub index: u32,
    /// The register.
    pub register: Register,
    /// The bit, 0 to 31.
    pub bit: u32,
}

/// A register that the CPUID instruction returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names of registers")]
pub enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    const fn of(self, entry: &kvm_cpuid_entry2) -> u32 {
        match self {
            Self::Eax => entry.eax,
            Self::Ebx => entry.ebx,
            Self::Ecx => entry.ecx,
            Self::Edx => entry.edx,
        }
    }
}

use Register::{Eax, Ebx, Ecx, Edx};

/// Registers that hold features, and the bits among them that are the guest's own doing or
/// this VMM's: timer, hypervisor and topology bits, and what control registers switch on.
const FEATURES: [(u32, u32, Register, u32); 15] = [
    (0x1, 0, Ecx, 1 << 3 | 1 << 24 | 1 << 27 | 1 << 31),
    (0x1, 0, Edx, 1 << 9 | 1 << 28),
    (0x7, 0, Ebx, 0),
    (0x7, 0, Ecx, 1 << 4),
    (0x7, 0, Edx, 0),
    (0x7, 1, Eax, 0),
    (0x7, 1, Edx, 0),
    (0x7, 2, Edx, 0),
    (0xd, 0, Eax, 0),
    (0xd, 1, Eax, 0),
    (0x4000_0001, 0, Eax, 0),
    (0x8000_0001, 0, Ecx, 1 << 1 | 1 << 22),
    (0x8000_0001, 0, Edx, 1 << 9),
    (0x8000_0007, 0, Edx, 0),
    (0x8000_0008, 0, Ebx, 0),
];

/// Names of those that people know, as Linux writes them in `/proc/cpuinfo`.
const NAMES: [(u32, u32, Register, u32, &str); 26] = [
    (0x1, 0, Ecx, 0, "pni"),
    (0x1, 0, Ecx, 1, "pclmulqdq"),
    (0x1, 0, Ecx, 9, "ssse3"),
    (0x1, 0, Ecx, 12, "fma"),
    (0x1, 0, Ecx, 17, "pcid"),
    (0x1, 0, Ecx, 19, "sse4_1"),
    (0x1, 0, Ecx, 20, "sse4_2"),
    (0x1, 0, Ecx, 21, "x2apic"),
    (0x1, 0, Ecx, 25, "aes"),
    (0x1, 0, Ecx, 26, "xsave"),
    (0x1, 0, Ecx, 28, "avx"),
    (0x1, 0, Ecx, 29, "f16c"),
    (0x1, 0, Ecx, 30, "rdrand"),
    (0x7, 0, Ebx, 3, "bmi1"),
    (0x7, 0, Ebx, 5, "avx2"),
    (0x7, 0, Ebx, 8, "bmi2"),
    (0x7, 0, Ebx, 16, "avx512f"),
    (0x7, 0, Ebx, 18, "rdseed"),
    (0x7, 0, Ebx, 29, "sha_ni"),
    (0x7, 0, Ebx, 30, "avx512bw"),
    (0x7, 0, Ebx, 31, "avx512vl"),
    (0x7, 0, Ecx, 3, "pku"),
    (0x7, 0, Ecx, 9, "vaes"),
    (0x7, 1, Eax, 4, "avx_vnni"),
    (0x7, 1, Eax, 5, "avx512_bf16"),
    (0x8000_0001, 0, Edx, 27, "rdtscp"),
];

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            leaf,
            index,
            register,
            bit,
        } = *self;
        let known = NAMES
            .iter()
            .find(|(a, b, c, d, _)| (*a, *b, *c, *d) == (leaf, index, register, bit));
        if let Some((.., name)) = known {
            write!(f, "{name} ")?;
        }
        let register = format!("{register:?}").to_uppercase();
        write!(f, "(CPUID {leaf:#x}.{index} {register} bit {bit})")
    }
}

struct Listed<'a>(&'a [Feature]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, feature) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{feature}")?;
        }
        Ok(())
    }
}

/// Compares what a guest was told with what this host supports.
///
/// # Errors
/// When the CPU is another maker's, or lacks something.
pub fn check(
    saved: &[kvm_cpuid_entry2],
    supported: &[kvm_cpuid_entry2],
) -> Result<(), IncompatibleCpuError> {
    if let (Some(saved), Some(host)) = (vendor(saved), vendor(supported))
        && saved != host
    {
        return Err(IncompatibleCpuError::Vendor { saved, host });
    }
    let mut lacking = Vec::new();
    for (leaf, index, register, ignored) in FEATURES {
        let bits = |table| find(table, leaf, index).map_or(0, |entry| register.of(entry));
        let missing = bits(saved) & !bits(supported) & !ignored;
        let missing = (0..u32::BITS).filter(|bit| missing & (1 << bit) != 0);
        lacking.extend(missing.map(|bit| Feature {
            leaf,
            index,
            register,
            bit,
        }));
    }
    if lacking.is_empty() {
        Ok(())
    } else {
        Err(IncompatibleCpuError::Features(lacking))
    }
}

fn find(table: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    table
        .iter()
        .find(|entry| (entry.function, entry.index) == (leaf, index))
}

fn vendor(table: &[kvm_cpuid_entry2]) -> Option<String> {
    let entry = find(table, 0, 0)?;
    let text = [entry.ebx, entry.edx, entry.ecx].map(u32::to_le_bytes);
    Some(String::from_utf8_lossy(text.as_flattened()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn vendor_leaf(name: &str) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(name.as_bytes()[at..at + 4].try_into().unwrap());
        leaf(0, 0, [0x1f, word(0), word(8), word(4)])
    }

    fn intel() -> Vec<kvm_cpuid_entry2> {
        vec![
            vendor_leaf("GenuineIntel"),
            leaf(0x1, 0, [0, 0, 1 << 28, 1]),
            leaf(0x7, 0, [0, 1 << 5 | 1 << 16, 0, 0]),
            leaf(0xd, 0, [0b1110_0111, 0, 0, 0]),
        ]
    }

    #[test]
    fn same_or_larger_cpu_is_compatible() {
        assert_eq!(check(&intel(), &intel()), Ok(()));
        let mut larger = intel();
        larger[2].ebx |= 1 << 30;
        assert_eq!(check(&intel(), &larger), Ok(()));
    }

    #[test]
    fn lacking_features_are_named() {
        let mut smaller = intel();
        smaller[2].ebx = 1 << 5;
        smaller[3].eax = 0b111;
        let error = check(&intel(), &smaller).unwrap_err().to_string();
        assert!(
            error.contains("avx512f (CPUID 0x7.0 EBX bit 16)"),
            "{error}"
        );
        assert!(error.contains("(CPUID 0xd.0 EAX bit 7)"), "{error}");
        // A leaf that is not there has no feature.
        smaller.remove(2);
        let error = check(&intel(), &smaller).unwrap_err().to_string();
        assert!(error.contains("avx2"), "{error}");
    }

    #[test]
    fn other_vendor_is_named() {
        let mut other = intel();
        other[0] = vendor_leaf("AuthenticAMD");
        let error = check(&intel(), &other).unwrap_err();
        assert_eq!(
            error,
            IncompatibleCpuError::Vendor {
                saved: "GenuineIntel".to_owned(),
                host: "AuthenticAMD".to_owned()
            }
        );
    }

    #[test]
    fn bits_of_the_guest_are_ignored() {
        let mut running = intel();
        running[1].ecx |= 1 << 24 | 1 << 27 | 1 << 31;
        running[1].edx |= 1 << 9 | 1 << 28;
        running[2].ecx |= 1 << 4;
        assert_eq!(check(&running, &intel()), Ok(()));
    }
}
