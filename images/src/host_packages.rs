//! The Debian packages that the host must have, each with its reason.
//!
//! This is the only list of them: set-up installs from it, the doctor checks it, and an
//! error about a missing program names its package from it.

use crate::command;

/// A package that the host must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPackage {
    /// Its name in Debian.
    pub name: &'static str,
    /// The program of it that we run; its presence tells that the package is there.
    pub program: &'static str,
    /// What we need it for.
    pub reason: &'static str,
}

/// Needed to build guest kernels and root file systems.
pub const FOR_IMAGES: &[HostPackage] = &[
    HostPackage {
        name: "mmdebstrap",
        program: "mmdebstrap",
        reason: "builds the base root file system from Debian packages",
    },
    HostPackage {
        name: "e2fsprogs",
        program: "mke2fs",
        reason: "makes ext4 images without mounting anything",
    },
    HostPackage {
        name: "tar",
        program: "tar",
        reason: "unpacks the bootstrapped root file system",
    },
];

/// Needed to run the machine, on hosts that cannot run microVMs themselves.
pub const FOR_MACHINE: &[HostPackage] = &[
    HostPackage {
        name: "qemu-system-x86",
        program: "qemu-system-x86_64",
        reason: "runs the machine where the host has no usable KVM",
    },
    HostPackage {
        name: "xfsprogs",
        program: "mkfs.xfs",
        reason: "makes the machine's data disk, whose file system shares blocks between copies",
    },
];

/// All packages, without doubles.
pub fn all() -> impl Iterator<Item = &'static HostPackage> {
    FOR_IMAGES.iter().chain(FOR_MACHINE)
}

/// The packages among `wanted` that are not installed.
pub fn missing<'a>(
    wanted: impl IntoIterator<Item = &'a HostPackage>,
) -> impl Iterator<Item = &'a HostPackage> {
    wanted
        .into_iter()
        .filter(|package| command::find(package.program).is_none())
}

/// The package that provides `program`.
#[must_use]
pub fn providing(program: &str) -> Option<&'static str> {
    match program {
        "debugfs" | "e2fsck" => Some("e2fsprogs"),
        "apt-get" | "apt-cache" => Some("apt"),
        "dpkg" | "dpkg-deb" => Some("dpkg"),
        _ => all()
            .find(|package| package.program == program)
            .map(|package| package.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        let names: Vec<_> = all().map(|package| package.name).collect();
        let distinct: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(names.len(), distinct.len());
    }

    #[test]
    fn a_program_that_is_nowhere_makes_its_package_missing() {
        let package = HostPackage {
            name: "x",
            program: "wrenn-no-such-program",
            reason: "test",
        };
        let shell = HostPackage {
            name: "y",
            program: "sh",
            reason: "test",
        };
        assert_eq!(missing([&package, &shell]).collect::<Vec<_>>(), [&package]);
    }
}
