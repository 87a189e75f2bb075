//! The probes, one function each.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::sys::statvfs::statvfs;

use super::sys;
use super::{Ability, Finding, NeededBy};

/// Images, one template's sandboxes and some room.
const WANTED_SPACE_MIB: u64 = 8 * 1024;
/// One small sandbox and ourselves.
const WANTED_MEMORY_MIB: u64 = 1024;
const WANTED_CONTROLLERS: &[&str] = &["cpu", "memory", "pids"];

/// Runs all probes that start no process.
pub(super) fn all(root: &Path) -> Vec<Finding> {
    vec![
        is_root(),
        device_mapper(),
        userfaultfd(),
        tun(),
        nftables(),
        cgroups(),
        space(root),
        memory(),
    ]
}

/// A probe's outcome: what was seen, and how to mend it if it is not right.
type Outcome = Result<String, (String, String)>;

fn finding(
    name: &'static str,
    needed_by: NeededBy,
    purpose: &'static str,
    outcome: Outcome,
) -> Finding {
    let (ability, detail, fix) = match outcome {
        Ok(detail) => (Ability::Works, detail, None),
        Err((detail, fix)) => (Ability::Missing, detail, Some(fix)),
    };
    Finding {
        name,
        ability,
        needed_by,
        purpose,
        detail,
        fix,
    }
}

fn failed(what: &str, error: &io::Error, fix: &str) -> (String, String) {
    (format!("{what}: {error}"), fix.to_owned())
}

fn is_root() -> Finding {
    let outcome = if nix::unistd::geteuid().is_root() {
        Ok("runs as root".to_owned())
    } else {
        Err((
            "runs as an ordinary user".to_owned(),
            "run it with sudo".to_owned(),
        ))
    };
    finding(
        "root",
        NeededBy::Everything,
        "makes namespaces, devices and images",
        outcome,
    )
}

fn device_mapper() -> Finding {
    let outcome = File::options()
        .read(true)
        .write(true)
        .open("/dev/mapper/control")
        .map(|_| "/dev/mapper/control opens".to_owned())
        .map_err(|error| {
            failed(
                "/dev/mapper/control",
                &error,
                "modprobe -a dm_mod dm_snapshot",
            )
        });
    let purpose = "gives each sandbox a copy-on-write disk";
    finding("device_mapper", NeededBy::Sandboxes, purpose, outcome)
}

fn userfaultfd() -> Finding {
    let outcome = sys::open_userfaultfd()
        .map(|()| "a descriptor can be made".to_owned())
        .map_err(|error| {
            let fix = "run as root on a kernel with CONFIG_USERFAULTFD";
            failed("userfaultfd", &error, fix)
        });
    finding(
        "userfaultfd",
        NeededBy::Sandboxes,
        "resumes sandboxes lazily",
        outcome,
    )
}

fn tun() -> Finding {
    let outcome = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .map(|_| "/dev/net/tun opens".to_owned())
        .map_err(|error| failed("/dev/net/tun", &error, "modprobe tun"));
    finding(
        "tun",
        NeededBy::Sandboxes,
        "connects sandboxes to the host's network",
        outcome,
    )
}

fn nftables() -> Finding {
    let outcome = sys::ask_nftables()
        .map(|()| "the kernel answers".to_owned())
        .map_err(|error| failed("nf_tables", &error, "as root: modprobe nf_tables"));
    finding(
        "nftables",
        NeededBy::Sandboxes,
        "keeps sandboxes apart and inside",
        outcome,
    )
}

fn cgroups() -> Finding {
    let place = Path::new("/sys/fs/cgroup");
    let fix = "boot with systemd.unified_cgroup_hierarchy=1, or mount cgroup2 at /sys/fs/cgroup";
    let outcome = match statfs(place) {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => {
            let enabled = fs::read_to_string(place.join("cgroup.controllers")).unwrap_or_default();
            let missing: Vec<_> = WANTED_CONTROLLERS
                .iter()
                .copied()
                .filter(|wanted| !enabled.split_whitespace().any(|name| name == *wanted))
                .collect();
            if missing.is_empty() {
                Ok(format!("version 2 with {}", enabled.trim()))
            } else {
                Err((
                    format!("no controller {}", missing.join(", ")),
                    fix.to_owned(),
                ))
            }
        }
        Ok(_) => Err((
            "/sys/fs/cgroup is not cgroup version 2".to_owned(),
            fix.to_owned(),
        )),
        Err(errno) => Err(failed("/sys/fs/cgroup", &errno.into(), fix)),
    };
    finding(
        "cgroup_v2",
        NeededBy::Sandboxes,
        "limits what a sandbox takes",
        outcome,
    )
}

fn space(root: &Path) -> Finding {
    // The directory may be made later; it will lie on the file system of its parent.
    let place = root
        .ancestors()
        .find(|place| place.exists())
        .unwrap_or(Path::new("/"));
    let fix = || {
        format!(
            "free some space in {}, or choose another --root",
            place.display()
        )
    };
    let outcome = match statvfs(place) {
        Ok(found) => {
            let free = (found.blocks_available() * found.fragment_size()) >> 20;
            let detail = format!("{free} MiB free in {}", place.display());
            if free >= WANTED_SPACE_MIB {
                Ok(detail)
            } else {
                Err((detail, fix()))
            }
        }
        Err(errno) => Err(failed(&place.display().to_string(), &errno.into(), &fix())),
    };
    finding(
        "disk_space",
        NeededBy::Everything,
        "holds images and sandboxes",
        outcome,
    )
}

fn memory() -> Finding {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = available_mib(&meminfo).unwrap_or(0);
    let detail = format!("{available} MiB available");
    let outcome = if available >= WANTED_MEMORY_MIB {
        Ok(detail)
    } else {
        Err((detail, "end other programs".to_owned()))
    };
    finding(
        "memory",
        NeededBy::Everything,
        "is given to sandboxes",
        outcome,
    )
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace()
        .next()?
        .parse::<u64>()
        .ok()
        .map(|kib| kib >> 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_mib() {
        let meminfo = "MemTotal:       24000000 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mib(meminfo), Some(2048));
        assert_eq!(available_mib("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn space_of_a_directory_that_is_not_there_is_its_parents() {
        let finding = space(Path::new("/no-such-directory-of-wrenn/root"));
        assert!(
            finding.detail.ends_with("MiB free in /"),
            "{}",
            finding.detail
        );
    }

    #[test]
    fn names_differ() {
        let findings = all(Path::new("/"));
        let names: std::collections::HashSet<_> = findings.iter().map(|one| one.name).collect();
        assert_eq!(names.len(), findings.len());
    }
}
