//! What a sandbox uses, as its host sees it. Its guest may say otherwise.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Processor time of a process since it started, in seconds; `None` once it has ended.
pub(crate) fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let ticks = cpu_ticks(&stat)?;
    let per_second = f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).ok()?);
    Some(f64::from(u32::try_from(ticks).unwrap_or(u32::MAX)) / per_second)
}

/// Fields 14 and 15 of proc_pid_stat(5): clock ticks in user mode and in the kernel, which
/// for KVM includes the guest's.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The name before may hold anything, spaces and parentheses too.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// Memory of a process that is in use, in bytes.
pub(crate) fn memory_bytes(pid: u32) -> Option<u64> {
    let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).ok()?)
}

/// Allocated blocks of everything below a directory, in bytes. Follows no link.
pub(crate) fn disk_bytes(directory: &Path) -> u64 {
    let mut total = 0;
    let mut open = vec![directory.to_owned()];
    while let Some(directory) = open.pop() {
        // What disappears meanwhile uses nothing.
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                open.push(entry.path());
            } else {
                total += metadata.blocks() * 512;
            }
        }
    }
    total
}

/// Free room of the file system that a path is on, in MiB.
pub(crate) fn free_mib(path: &Path) -> u64 {
    rustix::fs::statvfs(path).map_or(0, |numbers| {
        numbers.f_bavail.saturating_mul(numbers.f_frsize) >> 20
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_parentheses_confuses_nobody() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn we_use_memory_ourselves() {
        let pid = std::process::id();
        assert!(memory_bytes(pid).unwrap() > 1 << 16);
        assert!(cpu_seconds(pid).is_some());
    }

    #[test]
    fn a_hole_uses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let sparse = fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        fs::create_dir(directory.path().join("below")).unwrap();
        fs::write(directory.path().join("below/file"), vec![1; 8192]).unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        let used = disk_bytes(directory.path());
        assert!((8192..1 << 20).contains(&used), "{used}");
    }
}
