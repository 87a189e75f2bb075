//! Processes: started, followed, fed, signalled, ended.
//!
//! ```text
//!            Start                        exit, then outputs drained        30 s
//!  (none) ──────────▶ running ─────────────────────────────▶ ended ───────────▶ (none)
//!                       │ List, SendInput, SendSignal, …       │ Connect only
//!                       │ Connect: start, data…, end           │ start, what nobody read, end
//! ```
//!
//! One task owns a process from its start to its end ([`owner`]). Its outputs flow
//! through one [`Hub`](hub::Hub) to everybody who follows:
//!
//! ```text
//!   stdout ─▶ pump ─┐          ┌─▶ 8 chunks ─▶ Start stream   ─▶ client
//!   stderr ─▶ pump ─┼─▶ hub ───┼─▶ 8 chunks ─▶ Connect stream ─▶ client
//!   (or pty)        ┘          └─▶ backlog, while nobody follows
//! ```
//!
//! What holds:
//! - **Nothing is dropped on the way to a follower.** A pump waits for room in every
//!   follower's channel before it reads on, so that a slow reader slows the process
//!   down: the pipe fills and its writes block. The slowest follower sets the pace.
//! - **A process whose last follower left goes on.** A server must not freeze because
//!   its terminal was closed. While nobody follows, output is kept, and the next
//!   follower gets it first; past [`hub::BACKLOG_LIMIT`] the oldest goes.
//! - **Every stream ends with exactly one end event**, which is not sent through the
//!   channels: a stream makes it itself once its channel is closed, and the hub
//!   closes all of them when it learns of the end. No follower can hold up another's.
//! - **All that was written before the exit comes before the end event**, but the end
//!   does not wait for others who hold the pipe open: when the process has exited, a
//!   pump reads what was in the pipe at that moment and lingers briefly
//!   ([`LINGER`]) for a helper that is just finishing. After that, output of
//!   left-over children is read and thrown away, so that they don't block or die.
//! - **Signals reach the whole process group**, and KILL everything in the session.

pub mod hub;
pub mod launch;
pub mod owner;
mod pump;
pub mod service;
mod signal;
pub mod stdio;
pub mod table;

use std::process::ExitStatus;
use std::time::Duration;

use wrenn_proto::process::process_event::EndEvent;

/// How long a process's end waits for others to let go of its output:
/// `cmd > >(tee log)` leaves a `tee` behind that is about to write its last.
pub const LINGER: Duration = Duration::from_millis(100);

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct End {
    pub status: ExitStatus,
    /// The deadline of its Start request passed, and it was killed for that.
    pub deadline: bool,
}

impl End {
    /// As clients see it: by themselves with a code, or -1 and the signal's name.
    pub fn event(&self) -> EndEvent {
        use std::os::unix::process::ExitStatusExt as _;

        let (exit_code, exited, mut status) = match (self.status.code(), self.status.signal()) {
            (Some(code), _) => (code, true, format!("exit status {code}")),
            (None, Some(number)) => (-1, false, format!("signal: {}", signal::describe(number))),
            (None, None) => (-1, false, "unknown".to_owned()),
        };
        if self.status.core_dumped() {
            status.push_str(" (core dumped)");
        }
        let error = (exit_code != 0).then(|| status.clone());
        let signal = self.status.signal().map_or(0, i32::unsigned_abs);
        EndEvent {
            exit_code,
            exited,
            status,
            error,
            signal,
            deadline: self.deadline,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    fn event(wait_status: i32) -> EndEvent {
        End {
            status: ExitStatus::from_raw(wait_status),
            deadline: false,
        }
        .event()
    }

    #[test]
    fn tells_exits_from_signals() {
        let plain = event(0);
        assert_eq!(
            (plain.exit_code, plain.exited, plain.error),
            (0, true, None)
        );
        let failed = event(3 << 8);
        assert_eq!((failed.exit_code, failed.exited), (3, true));
        assert_eq!(failed.error.as_deref(), Some("exit status 3"));
        let killed = event(9);
        assert_eq!((killed.exit_code, killed.exited), (-1, false));
        assert_eq!((killed.signal, failed.signal), (9, 0));
        assert_eq!(killed.status, "signal: killed");
        assert_eq!(
            event(11 | 0x80).status,
            "signal: segmentation fault (core dumped)"
        );
    }
}
