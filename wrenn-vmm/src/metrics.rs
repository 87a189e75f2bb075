//! Counters that `FlushMetrics` writes out, one JSON object a line, as Firecracker does
//! (the groups have its names; each holds what this VMM counts).

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};

use crate::sync::lock;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds to it.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Its value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.value())
    }
}

/// How long something took when it was done last.
#[derive(Debug, Default)]
pub struct Latency(AtomicU64);

impl Latency {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Keeps the time since `begun`, and logs it under Firecracker's name for the action.
    pub fn record(&self, begun: Instant, action: &str) {
        let elapsed = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.0.store(elapsed, Ordering::Relaxed);
        log::info!("'{action}' VMM action took {elapsed} us.");
    }
}

impl Serialize for Latency {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.load(Ordering::Relaxed))
    }
}

/// How long each kind of action took, in microseconds.
#[derive(Debug, Serialize)]
pub struct LatencyMetrics {
    /// Full snapshots.
    #[serde(rename = "vmm_full_create_snapshot")]
    pub full: Latency,
    /// Snapshots of the difference.
    #[serde(rename = "vmm_diff_create_snapshot")]
    pub diff: Latency,
    /// Loading.
    #[serde(rename = "vmm_load_snapshot")]
    pub load: Latency,
    /// Pausing.
    #[serde(rename = "vmm_pause_vm")]
    pub pause: Latency,
    /// Resuming.
    #[serde(rename = "vmm_resume_vm")]
    pub resume: Latency,
}

/// All drives together.
#[derive(Debug, Serialize)]
pub struct BlockMetrics {
    /// Bytes that guests read.
    #[serde(rename = "read_bytes")]
    pub read_bytes: Counter,
    /// Bytes that guests wrote.
    #[serde(rename = "write_bytes")]
    pub written_bytes: Counter,
    /// Flushes.
    #[serde(rename = "flush_count")]
    pub flushes: Counter,
    /// Requests that failed.
    #[serde(rename = "execute_fails")]
    pub failures: Counter,
    /// How often a queue stopped for want of tokens.
    #[serde(rename = "rate_limiter_throttled_events")]
    pub throttled: Counter,
}

/// All network interfaces together.
#[derive(Debug, Serialize)]
pub struct NetMetrics {
    /// Packets to the guest.
    #[serde(rename = "rx_packets_count")]
    pub received_packets: Counter,
    /// Bytes to the guest.
    #[serde(rename = "rx_bytes_count")]
    pub received_bytes: Counter,
    /// Failed reads from TAP.
    #[serde(rename = "tap_read_fails")]
    pub receive_failures: Counter,
    /// Packets from the guest.
    #[serde(rename = "tx_packets_count")]
    pub sent_packets: Counter,
    /// Bytes from the guest.
    #[serde(rename = "tx_bytes_count")]
    pub sent_bytes: Counter,
    /// Packets that TAP did not take.
    #[serde(rename = "tap_write_fails")]
    pub send_failures: Counter,
    /// How often receiving stopped for want of tokens.
    #[serde(rename = "rx_rate_limiter_throttled")]
    pub receive_throttled: Counter,
    /// How often sending stopped for want of tokens.
    #[serde(rename = "tx_rate_limiter_throttled")]
    pub send_throttled: Counter,
}

/// The entropy source.
#[derive(Debug, Serialize)]
pub struct EntropyMetrics {
    /// Random bytes that guests got.
    #[serde(rename = "entropy_bytes")]
    pub bytes: Counter,
}

/// The balloon.
#[derive(Debug, Serialize)]
pub struct BalloonMetrics {
    /// Blocks that the guest reported as free.
    #[serde(rename = "free_page_report_count")]
    pub reports: Counter,
    /// Bytes of them that were given back to the host.
    #[serde(rename = "free_page_report_freed")]
    pub discarded_bytes: Counter,
    /// Blocks that stayed.
    #[serde(rename = "free_page_report_fails")]
    pub failures: Counter,
}

/// Exits of vCPUs.
#[derive(Debug, Serialize)]
pub struct VcpuMetrics {
    /// Reads of I/O ports.
    #[serde(rename = "exit_io_in")]
    pub port_reads: Counter,
    /// Writes to I/O ports.
    #[serde(rename = "exit_io_out")]
    pub port_writes: Counter,
    /// Reads of device memory.
    #[serde(rename = "exit_mmio_read")]
    pub memory_reads: Counter,
    /// Writes to device memory.
    #[serde(rename = "exit_mmio_write")]
    pub memory_writes: Counter,
}

/// The log.
#[derive(Debug, Serialize)]
pub struct LogMetrics {
    /// Lines that were not written: too many, or nobody took them.
    #[serde(rename = "missed_log_count")]
    pub missed: Counter,
}

/// All counters.
#[derive(Debug, Serialize)]
pub struct Metrics {
    /// Durations.
    #[serde(rename = "latencies_us")]
    pub latencies: LatencyMetrics,
    /// Drives.
    pub block: BlockMetrics,
    /// Network interfaces.
    pub net: NetMetrics,
    /// Entropy source.
    pub entropy: EntropyMetrics,
    /// Balloon.
    pub balloon: BalloonMetrics,
    /// vCPUs.
    pub vcpu: VcpuMetrics,
    /// Log.
    pub logger: LogMetrics,
}

/// The counters of this process.
pub static METRICS: Metrics = Metrics {
    latencies: LatencyMetrics {
        full: Latency::new(),
        diff: Latency::new(),
        load: Latency::new(),
        pause: Latency::new(),
        resume: Latency::new(),
    },
    block: BlockMetrics {
        read_bytes: Counter::new(),
        written_bytes: Counter::new(),
        flushes: Counter::new(),
        failures: Counter::new(),
        throttled: Counter::new(),
    },
    net: NetMetrics {
        received_packets: Counter::new(),
        received_bytes: Counter::new(),
        receive_failures: Counter::new(),
        sent_packets: Counter::new(),
        sent_bytes: Counter::new(),
        send_failures: Counter::new(),
        receive_throttled: Counter::new(),
        send_throttled: Counter::new(),
    },
    entropy: EntropyMetrics {
        bytes: Counter::new(),
    },
    balloon: BalloonMetrics {
        reports: Counter::new(),
        discarded_bytes: Counter::new(),
        failures: Counter::new(),
    },
    vcpu: VcpuMetrics {
        port_reads: Counter::new(),
        port_writes: Counter::new(),
        memory_reads: Counter::new(),
        memory_writes: Counter::new(),
    },
    logger: LogMetrics {
        missed: Counter::new(),
    },
};

/// Metrics could not be set up or written.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Only once.
    #[error("the metrics file is set already")]
    AlreadySet,
    /// The file cannot be opened.
    #[error("cannot open the metrics file {path}")]
    Open {
        /// Which file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write metrics")]
    Write(#[source] io::Error),
}

/// Where metrics go.
#[derive(Debug, Default)]
pub struct MetricsFile(Mutex<Option<File>>);

#[derive(Serialize)]
struct Line<'a> {
    utc_timestamp_ms: u128,
    #[serde(flatten)]
    metrics: &'a Metrics,
}

impl MetricsFile {
    /// Opens the file, or the pipe that somebody reads.
    ///
    /// # Errors
    /// If there is one already, or it cannot be opened.
    pub fn open(&self, path: &Path) -> Result<(), MetricsError> {
        let mut file = lock(&self.0);
        if file.is_some() {
            return Err(MetricsError::AlreadySet);
        }
        *file = Some(
            crate::logger::open_sink(path).map_err(|source| MetricsError::Open {
                path: path.display().to_string(),
                source,
            })?,
        );
        Ok(())
    }

    /// Writes one line with all counters, if a file is set.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn flush(&self) -> Result<(), MetricsError> {
        let mut file = lock(&self.0);
        let Some(file) = file.as_mut() else {
            return Ok(());
        };
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let line = Line {
            utc_timestamp_ms: since.as_millis(),
            metrics: &METRICS,
        };
        let mut text = serde_json::to_vec(&line)
            .map_err(|error| MetricsError::Write(io::Error::other(error)))?;
        text.push(b'\n');
        file.write_all(&text).map_err(MetricsError::Write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttling_counters_have_firecrackers_names() {
        let metrics = serde_json::to_value(&METRICS).unwrap();
        assert!(metrics["block"]["rate_limiter_throttled_events"].is_u64());
        assert!(metrics["net"]["rx_rate_limiter_throttled"].is_u64());
        assert!(metrics["net"]["tx_rate_limiter_throttled"].is_u64());
    }
}
