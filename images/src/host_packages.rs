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
    /// The program of it that we run, or the path of a file of it where it has none: its
    /// presence tells that the package is there.
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

/// Needed to compile the guest kernel of our own, which is built on request only. A kernel
/// without modules signs nothing, so there is no OpenSSL among them.
pub const FOR_OWN_KERNEL: &[HostPackage] = &[
    HostPackage {
        name: "make",
        program: "make",
        reason: "runs the build of the Linux kernel",
    },
    HostPackage {
        name: "gcc",
        program: "gcc",
        reason: "compiles the kernel, and the tools of its build",
    },
    HostPackage {
        name: "libc6-dev",
        program: "/usr/include/stdio.h",
        reason: "headers for the tools of the kernel's build",
    },
    HostPackage {
        name: "binutils",
        program: "objcopy",
        reason: "links the kernel, and strips it of symbols",
    },
    HostPackage {
        name: "flex",
        program: "flex",
        reason: "makes the scanner of the kernel's configuration",
    },
    HostPackage {
        name: "bison",
        program: "bison",
        reason: "makes the parser of the kernel's configuration",
    },
    HostPackage {
        name: "bc",
        program: "bc",
        reason: "computes the kernel's time constants",
    },
    HostPackage {
        name: "libelf-dev",
        program: "/usr/include/libelf.h",
        reason: "lets objtool check the kernel's object files",
    },
    HostPackage {
        name: "xz-utils",
        program: "xz",
        reason: "unpacks the kernel's sources",
    },
];

/// What set-up installs, without doubles. What only [`FOR_OWN_KERNEL`] needs is not among it.
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
            .chain(FOR_OWN_KERNEL)
            .find(|package| package.program == program)
            .map(|package| package.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_listed_twice() {
        let names: Vec<_> = all()
            .chain(FOR_OWN_KERNEL)
            .map(|package| package.name)
            .collect();
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
        let header = HostPackage {
            name: "z",
            program: "/etc/passwd",
            reason: "test",
        };
        let wanted = [&package, &shell, &header];
        assert_eq!(missing(wanted).collect::<Vec<_>>(), [&package]);
    }
}
