//! Who has a block device open. Asked only when a device that should go does not.

use std::fmt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::table::DeviceNumber;

/// More than this tell nobody anything new.
const ENOUGH: usize = 8;

/// Somebody who has a device open.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say what they are")]
pub enum Holder {
    /// A process, with the name of its program.
    Process { pid: u32, name: String },
    /// A mount, as this process sees it.
    Mount { at: String },
    /// Another block device.
    Device { name: String },
}

/// Those who have a device open, for people to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(pub Vec<Holder>);

impl Holders {
    /// Looks through the processes that this one can see.
    pub(super) fn of(number: DeviceNumber) -> Self {
        let mut holders = devices(number);
        holders.extend(mounts(number));
        holders.extend(processes(number));
        holders.truncate(ENOUGH);
        Self(holders)
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nobody that can be seen");
        }
        for (index, holder) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match holder {
                Holder::Process { pid, name } => write!(f, "process {pid} ({name})")?,
                Holder::Mount { at } => write!(f, "the mount at {at}")?,
                Holder::Device { name } => write!(f, "block device {name}")?,
            }
        }
        Ok(())
    }
}

fn devices(number: DeviceNumber) -> Vec<Holder> {
    names(Path::new(&format!("/sys/dev/block/{number}/holders")))
        .map(|name| Holder::Device { name })
        .collect()
}

fn mounts(number: DeviceNumber) -> Vec<Holder> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| mount_of(line, number))
        .map(|at| Holder::Mount { at: at.to_owned() })
        .collect()
}

/// `36 35 252:0 / /mnt rw …`, see proc_pid_mountinfo(5).
fn mount_of(line: &str, number: DeviceNumber) -> Option<&str> {
    let mut words = line.split(' ').skip(2);
    let device: DeviceNumber = words.next()?.parse().ok()?;
    (device == number).then(|| words.nth(1))?
}

fn processes(number: DeviceNumber) -> Vec<Holder> {
    names(Path::new("/proc"))
        .filter_map(|name| name.parse::<u32>().ok())
        .filter(|pid| has_open(*pid, number))
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Holder::Process {
                pid,
                name: name.trim().to_owned(),
            }
        })
        .take(ENOUGH)
        .collect()
}

fn has_open(pid: u32, number: DeviceNumber) -> bool {
    let directory = format!("/proc/{pid}/fd");
    names(Path::new(&directory)).any(|name| {
        // Not by what the link says: the process may see the device under any name.
        std::fs::metadata(format!("{directory}/{name}")).is_ok_and(|found| {
            found.file_type().is_block_device() && DeviceNumber::from_raw(found.rdev()) == number
        })
    })
}

fn names(directory: &Path) -> impl Iterator<Item = String> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_recognised_by_its_device() {
        let line = "36 35 252:3 / /mnt/disk rw,noatime shared:1 - ext4 /dev/x rw";
        let number = |minor| DeviceNumber { major: 252, minor };
        assert_eq!(mount_of(line, number(3)), Some("/mnt/disk"));
        assert_eq!(mount_of(line, number(4)), None);
        assert_eq!(mount_of("", number(3)), None);
    }

    #[test]
    fn holders_are_named() {
        assert_eq!(Holders::default().to_string(), "nobody that can be seen");
        let holders = Holders(vec![
            Holder::Process {
                pid: 7,
                name: "vmm".into(),
            },
            Holder::Mount { at: "/mnt".into() },
        ]);
        assert_eq!(holders.to_string(), "process 7 (vmm), the mount at /mnt");
    }
}
