//! `GET /metrics`: how busy and how full the guest is.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use http::Response;
use wrenn_proto::http::Metrics;

use crate::guest::Guest;
use crate::reply::{self, Body, HttpError};

/// Remembers the processor times of the last look: a share needs two of them.
#[derive(Debug, Default)]
pub struct CpuSampler(Mutex<CpuTimes>);

/// From the first line of /proc/stat, in ticks since boot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct CpuTimes {
    busy: u64,
    total: u64,
}

impl CpuTimes {
    /// user, nice, system, idle, iowait, irq, softirq, steal; proc_stat(5). The rest is
    /// contained in the first two.
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> = line
            .split_ascii_whitespace()
            .take(8)
            .filter_map(|field| field.parse().ok())
            .collect();
        let total = ticks.iter().sum();
        let idle: u64 = ticks.iter().skip(3).take(2).sum();
        Some(Self {
            busy: total - idle,
            total,
        })
    }
}

impl CpuSampler {
    /// Busy share since the last call, 0 to 100; since boot at the first.
    fn used_percent(&self, stat: &str) -> f32 {
        let Some(now) = CpuTimes::parse(stat) else {
            return 0.0;
        };
        let mut last = self
            .0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let busy = now.busy.saturating_sub(last.busy);
        let total = now.total.saturating_sub(last.total);
        *last = now;
        if total == 0 {
            return 0.0;
        }
        // In hundredths of a percent, which both kinds of number hold exactly enough.
        let share = u16::try_from(busy * 10_000 / total).unwrap_or(10_000);
        f32::from(share) / 100.0
    }
}

pub async fn report(guest: &Arc<Guest>) -> Result<Response<Body>, HttpError> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = Memory::parse(&read("/proc/meminfo"));
    let (disk_total, disk_used) = disk();
    let used = memory.total.saturating_sub(memory.available);
    reply::json(&Metrics {
        ts: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
            }),
        cpu_count: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        cpu_used_pct: guest.cpu.used_percent(&read("/proc/stat")),
        mem_total: memory.total,
        mem_used: used,
        mem_cache: memory.cached,
        mem_total_mib: memory.total >> 20,
        mem_used_mib: used >> 20,
        disk_used,
        disk_total,
    })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Memory {
    total: u64,
    available: u64,
    cached: u64,
}

impl Memory {
    /// Lines like `MemTotal:  2097152 kB`, proc_meminfo(5).
    fn parse(meminfo: &str) -> Self {
        let bytes = |name: &str| {
            meminfo
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024)
        };
        Self {
            total: bytes("MemTotal"),
            available: bytes("MemAvailable"),
            cached: bytes("Cached"),
        }
    }
}

/// Total and used bytes of the root file system.
fn disk() -> (u64, u64) {
    rustix::fs::statvfs("/").map_or((0, 0), |fs| {
        let total = fs.f_blocks * fs.f_frsize;
        (total, total.saturating_sub(fs.f_bfree * fs.f_frsize))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_between_two_looks() {
        let sampler = CpuSampler::default();
        sampler.used_percent("cpu  100 0 100 800 0 0 0 0 0 0\ncpu0 1 2 3\n");
        let used = sampler.used_percent("cpu  150 0 125 875 0 0 0 0 0 0\n");
        assert!((used - 50.0).abs() < 0.01, "{used}");
        assert!(
            sampler
                .used_percent("cpu  150 0 125 875 0 0 0 0 0 0\n")
                .abs()
                < 0.01
        );
        assert!(sampler.used_percent("").abs() < 0.01);
    }

    #[test]
    fn reads_memory() {
        let memory = Memory::parse("MemTotal: 1024 kB\nMemAvailable:  512 kB\nCached: 1 kB\n");
        assert_eq!(
            memory,
            Memory {
                total: 1 << 20,
                available: 1 << 19,
                cached: 1024
            }
        );
    }
}
