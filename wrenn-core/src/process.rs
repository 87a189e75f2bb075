//! Processes that outlive the program that started them: found again by a later one, and
//! told apart from whoever got their number since.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Ends this program at a panic of any thread, once it is told. What the thread had begun may
/// be half done; a later program adopts or sweeps it.
pub fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}

/// Names one process for ever: numbers are used again, but not with the same start time in
/// the same boot of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// Its number.
    pub pid: i32,
    /// Clock ticks from the host's boot to the process's start, from /proc/PID/stat.
    start_ticks: u64,
    boot_id: String,
}

/// A process that was alive, and was the right one, when this was made.
#[derive(Debug)]
pub struct LiveProcess {
    descriptor: OwnedFd,
}

impl ProcessIdentity {
    /// The identity of the process that has this number now.
    ///
    /// # Errors
    /// When there is none, or /proc cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let start_ticks = start_ticks(&stat).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self {
            pid,
            start_ticks,
            boot_id: boot_id()?,
        })
    }

    /// Opens the process; `None` if it has ended.
    ///
    /// # Errors
    /// When that cannot be found out, for want of descriptors or memory.
    pub fn open(&self) -> io::Result<Option<LiveProcess>> {
        let Some(pid) = Pid::from_raw(self.pid) else {
            return Ok(None);
        };
        let descriptor = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(descriptor) => descriptor,
            // The second: the number is another process's thread by now.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        // Compared after opening: from here on the descriptor means one process only.
        let process = LiveProcess { descriptor };
        let same = match Self::of(self.pid) {
            Ok(found) => found == *self,
            Err(error) if has_ended(&error) => false,
            Err(error) => return Err(error),
        };
        // A zombie has a number and a start time too.
        let alive = same && !process.ends_within(Duration::ZERO)?;
        Ok(alive.then_some(process))
    }
}

impl LiveProcess {
    /// Whether it ends within `limit`. Blocks the thread for as long.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn ends_within(&self, limit: Duration) -> io::Result<bool> {
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&limit)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::INTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// When the kernel refuses; not when it has ended already.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl From<LiveProcess> for OwnedFd {
    fn from(process: LiveProcess) -> Self {
        process.descriptor
    }
}

/// Adjustment of the OOM killer's score for the processes of a sandbox: they go before every
/// daemon of the host, which have 0 or less.
const OOM_SCORE_ADJ: i32 = 500;

/// Sets the `oom_score_adj` of a child that belongs to a sandbox. It would inherit that of this
/// program, which may be one that the OOM killer must spare.
pub(crate) fn set_oom_score(pid: u32) {
    let path = format!("/proc/{pid}/oom_score_adj");
    match fs::write(&path, OOM_SCORE_ADJ.to_string()) {
        Err(error) if !has_ended(&error) => tracing::warn!(%error, path, "failed to write"),
        _ => {}
    }
}

/// Whether /proc says that a process has ended: before its file was opened, or after.
fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(Errno::SRCH.raw_os_error())
}

/// The identifier of this boot of the host.
///
/// # Errors
/// When /proc cannot be read.
pub fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

/// Whether one of the process's arguments is exactly `argument`.
#[must_use]
pub fn has_argument(pid: i32, argument: &str) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        line.split(|byte| *byte == 0)
            .any(|one| one == argument.as_bytes())
    })
}

/// Field 22 of /proc/PID/stat. The second field is the program's name in parentheses, which
/// may hold spaces and parentheses itself; so fields are counted from the last one.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(22 - 3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use std::process::Command;

    use super::*;

    #[test]
    fn start_time_is_found_behind_a_strange_name() {
        let stat = "42 (a) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 2 3 0 0 20 0 1 0 987654 1 2";
        assert_eq!(start_ticks(stat), Some(987_654));
        assert_eq!(start_ticks("42 (x) S 1"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_process_is_itself_until_it_ends() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(child.id().cast_signed()).unwrap();
        let live = identity.open().unwrap().unwrap();
        assert!(!live.ends_within(Duration::ZERO).unwrap());
        // The kernel lets the parent go on a moment before the new arguments can be read.
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !has_argument(identity.pid, "1000") {
            assert!(
                std::time::Instant::now() < deadline,
                "its arguments never appeared"
            );
            std::thread::yield_now();
        }
        live.kill().unwrap();
        assert!(live.ends_within(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(identity.open().unwrap().is_none());
    }

    #[test]
    fn another_process_with_the_same_number_is_not_it() {
        let pid = std::process::id().cast_signed();
        let mut identity = ProcessIdentity::of(pid).unwrap();
        assert!(identity.open().unwrap().is_some());
        identity.start_ticks += 1;
        assert!(identity.open().unwrap().is_none());
    }

    #[test]
    fn process_is_not_ended_for_want_of_descriptors() {
        let identity = ProcessIdentity::of(std::process::id().cast_signed()).unwrap();
        let mut taken = Vec::new();
        let limit = getrlimit(Resource::Nofile);
        let few = Rlimit {
            current: Some(64),
            ..limit
        };
        setrlimit(Resource::Nofile, few).unwrap();
        while let Ok(file) = fs::File::open("/dev/null") {
            taken.push(file);
        }
        let opened = identity.open();
        drop(taken);
        setrlimit(Resource::Nofile, limit).unwrap();
        assert_eq!(
            opened.unwrap_err().raw_os_error(),
            Some(Errno::MFILE.raw_os_error())
        );
    }
}
