//! The log: lines on standard error or in a file.
//!
//! ```text
//! 2026-11-23T02:30:00.123456789 [sb1:main:WARN] drive: cannot read: …
//! ```
//!
//! Lines are paid from a budget; those beyond it are counted in the metrics. What devices and
//! vCPUs write, because of what a guest did, has a budget of its own, so that no guest silences
//! the rest. Unlike Firecracker, lines never go to standard output: that is the guest's console.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::{Mutex, OnceLock};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use log::{LevelFilter, Log, Metadata, Record};

use crate::budget::Budget;
use crate::config::LoggerConfig;
use crate::metrics::METRICS;
use crate::sync::lock;

/// Lines that may be written at once.
const BURST: u64 = 2000;
/// Lines a second that may be written for ever.
const RATE: u64 = 2;
/// Modules whose lines a guest causes.
const GUEST_MODULES: [&str; 4] = [
    "wrenn_vmm::cpu",
    "wrenn_vmm::devices",
    "wrenn_vmm::memory",
    "wrenn_vmm::virtio",
];

struct State {
    target: Option<File>,
    show_level: bool,
    show_origin: bool,
    module: Option<String>,
    budgets: Budgets,
}

struct Budgets {
    guest: Budget,
    own: Budget,
}

impl Budgets {
    const fn new(now: Instant) -> Self {
        Self {
            guest: Budget::new(BURST, RATE, now),
            own: Budget::new(BURST, RATE, now),
        }
    }

    /// Takes a line of this module, if there is one left.
    fn take(&mut self, module: &str, now: Instant) -> bool {
        let is_guests = GUEST_MODULES.iter().any(|name| module.starts_with(name));
        let budget = if is_guests {
            &mut self.guest
        } else {
            &mut self.own
        };
        budget.take(1, now)
    }
}

struct Logger {
    id: String,
    state: Mutex<State>,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// The log file could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("Failed to open target file: {0}")]
pub struct LogFileError(#[source] io::Error);

/// Starts logging to standard error, on behalf of instance `id`.
pub fn start(id: &str) {
    let logger = LOGGER.get_or_init(|| Logger {
        id: id.to_owned(),
        state: Mutex::new(State {
            target: None,
            show_level: false,
            show_origin: false,
            module: None,
            budgets: Budgets::new(Instant::now()),
        }),
    });
    // Fails only if a logger is set already, as when one test process starts twice.
    if log::set_logger(logger).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}

/// Changes what is logged and where.
///
/// # Errors
/// If the file cannot be opened; nothing has changed then.
pub fn configure(config: &LoggerConfig) -> Result<(), LogFileError> {
    let file = match &config.log_path {
        Some(path) => Some(open_sink(path).map_err(LogFileError)?),
        None => None,
    };
    let Some(logger) = LOGGER.get() else {
        return Ok(());
    };
    let mut state = lock(&logger.state);
    log::set_max_level(config.level.map_or(LevelFilter::Info, Into::into));
    if file.is_some() {
        state.target = file;
    }
    if let Some(show) = config.show_level {
        state.show_level = show;
    }
    if let Some(show) = config.show_log_origin {
        state.show_origin = show;
    }
    if config.module.is_some() {
        state.module.clone_from(&config.module);
    }
    Ok(())
}

/// Opens a file or named pipe for appending, without waiting for a pipe's reader and
/// without ever waiting for it to read.
///
/// # Errors
/// If it cannot be opened.
pub fn open_sink(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        // A pipe without a reader can only be opened for both.
        .read(true)
        .append(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
}

impl Log for Logger {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut state = lock(&self.state);
        let module = record.module_path().unwrap_or("");
        if state
            .module
            .as_deref()
            .is_some_and(|filter| !module.starts_with(filter))
        {
            return;
        }
        if !state.budgets.take(module, Instant::now()) {
            METRICS.logger.missed.add(1);
            return;
        }
        let mut line = String::with_capacity(128);
        push_time(&mut line, SystemTime::now());
        line.push_str(" [");
        line.push_str(&self.id);
        line.push(':');
        line.push_str(std::thread::current().name().unwrap_or("-"));
        if state.show_level {
            line.push(':');
            line.push_str(record.level().as_str());
        }
        if state.show_origin {
            line.push_str(&format!(
                ":{}:{}",
                record.file().unwrap_or("?"),
                record.line().unwrap_or(0)
            ));
        }
        line.push_str(&format!("] {}\n", record.args()));
        let written = match &mut state.target {
            Some(file) => file.write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
        if written.is_err() {
            METRICS.logger.missed.add(1);
        }
    }

    fn flush(&self) {}
}

/// Appends a moment in UTC, to the nanosecond.
fn push_time(line: &mut String, now: SystemTime) {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    let (year, month, day) = civil_date(days);
    line.push_str(&format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    ));
}

/// Year, month and day of a number of days since 1970-01-01 (Howard Hinnant,
/// "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
const fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn guest_does_not_silence_the_rest() {
        let now = Instant::now();
        let mut budgets = Budgets::new(now);
        let taken = (0..2 * BURST).filter(|_| budgets.take("wrenn_vmm::virtio::block", now));
        assert_eq!(taken.count() as u64, BURST);
        assert!(budgets.take("wrenn_vmm::api::controller", now));
        let later = now + Duration::from_secs(1);
        assert!(budgets.take("wrenn_vmm::cpu::thread", later));
    }

    #[test]
    fn dates_are_right() {
        let at = |seconds| {
            let mut text = String::new();
            push_time(&mut text, UNIX_EPOCH + Duration::new(seconds, 5));
            text
        };
        // Checked with `date -u -d @N`.
        assert_eq!(at(0), "1970-01-01T00:00:00.000000005");
        assert_eq!(at(951_827_696), "2000-02-29T12:34:56.000000005");
        assert_eq!(at(1_795_401_000), "2026-11-23T02:30:00.000000005");
        assert_eq!(at(4_107_542_399), "2100-02-28T23:59:59.000000005");
    }
}
