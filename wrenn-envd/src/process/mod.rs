//! Processes: started, followed, fed, signalled, ended.
//!
//! ```text
//!            Start                        exit, then outputs drained        30 s
//!  (none) ──────────▶ running ─────────────────────────────▶ ended ───────────▶ (none)
//!                       │ List, SendInput, SendSignal, …       │ Connect only
//!                       │ Connect: start, data…, end           │ start, data…, end
//! ```
//!
//! One task owns a process from its start to its end ([`owner`]). Its outputs flow
//! through one [`Hub`](hub::Hub) to everybody who follows, and stay in its `ring` until
//! they are overwritten:
//!
//! ```text
//!   stdout ─▶ pump ─┐            ┌──────────── ring, 4 MiB ────────────┐
//!   stderr ─▶ pump ─┼─▶ hub ─────┤ sent before …     ▲         ▲       │◀─ the newest byte
//!   (or pty)        ┘            └───────────────────┼─────────┼───────┘
//!                                  Connect stream ◀──┘         └──▶ Start stream ─▶ client
//!                                     at most 256 KiB behind, else the pumps wait
//! ```
//!
//! What holds:
//! - **Nothing is dropped on the way to a follower.** A pump waits until every follower is
//!   less than [`hub::WINDOW`] behind before it reads on, so that a slow reader slows the
//!   process down: the pipe fills and its writes block. The slowest follower sets the pace.
//! - **A process whose last follower left goes on.** A server must not freeze because
//!   its terminal was closed. For a while ([`RECONNECT_GRACE`]) it still waits as if the
//!   follower were there, since a client may have lost its connection and come back. Without
//!   followers, output stays in the ring, and the next follower gets first what was sent to
//!   none; past [`hub::RING_LIMIT`] the oldest goes.
//! - **A process that was started with `terminate_on_disconnect` is terminated then.** The
//!   client holds it by its connection. When the wait for the client is over, its process group
//!   gets SIGTERM, and SIGHUP if it has a terminal, because interactive shells ignore SIGTERM;
//!   after [`TERMINATION_GRACE`] its session gets SIGKILL. So do processes of the session that
//!   outlive it.
//! - **A client that lost its connection loses no output.** Each event says where its first
//!   byte stands in its channel, and a client that connects again says how much of each
//!   channel it has. Bytes that were on their way to it come again out of the ring; where the
//!   ring has moved on, the offset shows the gap. All rings together take a sixteenth of the
//!   guest's memory at most ([`hub::Budget`]); they are freed with their process.
//! - **Every stream ends with exactly one end event**, which a follower makes itself once it
//!   has taken all output and the hub knows the end. No follower can hold up another's.
//! - **All that was written before the exit comes before the end event**, but the end
//!   does not wait for others who hold the pipe open: when the process has exited, a
//!   pump reads what was in the pipe at that moment and lingers briefly
//!   ([`LINGER`]) for a helper that is just finishing. After that, output of
//!   left-over children is read and thrown away, so that they don't block or die.
//! - **Signals reach the whole process group**, and KILL everything in the session.
//!
//! # Bytes in flight
//!
//! Bytes that a reconnecting client lacks have left the ring's follower and have not reached
//! the client. They must be fewer than the ring holds, so each hop is bounded:
//!
//! | hop | bytes |
//! |---|---|
//! | this daemon, between a follower and its socket: one event, and hyper's write buffer | 0.5 MiB |
//! | the socket's send buffer ([`crate::server::SEND_BUFFER`], which Linux doubles) | 0.25 MiB |
//! | the host's receive buffer and hyper's read buffer (`wrenn_core::guest`, doubled as well) | 0.75 MiB |
//! | the agent's send buffer of a stream (64 KiB) and one event | 0.1 MiB |
//! | the window that the agent's caller grants a stream, 2 MiB unless it says otherwise | 2 MiB |
//! | together | 3.6 MiB |

pub mod hub;
pub mod launch;
pub mod owner;
mod pump;
mod ring;
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

/// How long a process waits for its last follower after that one left, as if it were still
/// there: its client may have lost its connection and come back.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(10);

/// How long a process may take to end after it was terminated. A `wrenn run` removes a microVM
/// meanwhile.
pub const TERMINATION_GRACE: Duration = Duration::from_secs(30);

/// How long a daemon waits for processes and their clients.
#[derive(Debug, Clone, Copy)]
pub struct GracePeriods {
    /// See [`LINGER`].
    pub linger: Duration,
    /// See [`RECONNECT_GRACE`].
    pub reconnect: Duration,
    /// See [`TERMINATION_GRACE`].
    pub termination: Duration,
}

impl Default for GracePeriods {
    fn default() -> Self {
        Self {
            linger: LINGER,
            reconnect: RECONNECT_GRACE,
            termination: TERMINATION_GRACE,
        }
    }
}

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
