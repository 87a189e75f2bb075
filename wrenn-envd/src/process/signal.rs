//! Signals: their names, and how one reaches a process with all that it started.

use std::fs;
use std::io;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};

/// A signal's words, as shells print them.
pub(super) fn describe(number: i32) -> String {
    let words = match number {
        libc::SIGHUP => "hangup",
        libc::SIGINT => "interrupt",
        libc::SIGQUIT => "quit",
        libc::SIGILL => "illegal instruction",
        libc::SIGTRAP => "trace/breakpoint trap",
        libc::SIGABRT => "aborted",
        libc::SIGBUS => "bus error",
        libc::SIGFPE => "floating point exception",
        libc::SIGKILL => "killed",
        libc::SIGUSR1 => "user defined signal 1",
        libc::SIGSEGV => "segmentation fault",
        libc::SIGUSR2 => "user defined signal 2",
        libc::SIGPIPE => "broken pipe",
        libc::SIGALRM => "alarm clock",
        libc::SIGTERM => "terminated",
        libc::SIGXCPU => "CPU time limit exceeded",
        libc::SIGXFSZ => "file size limit exceeded",
        libc::SIGSYS => "bad system call",
        other => return format!("signal {other}"),
    };
    words.to_owned()
}

/// Signals the process group of a session leader that was not reaped yet. KILL is
/// for the whole session: a shell with job control gives every job a group of its own.
pub(super) fn send(leader: Pid, signal: Signal) -> io::Result<()> {
    kill_process_group(leader, signal)?;
    if signal == Signal::KILL {
        // A process may fork between the look and the kill, so look until none is left.
        // The bound is for one that forks faster than we kill.
        for _ in 0..16 {
            if kill_session(leader) == 0 {
                break;
            }
        }
    }
    Ok(())
}

/// Kills every member of the session but the leader; says how many were alive.
fn kill_session(leader: Pid) -> usize {
    let Ok(entries) = fs::read_dir("/proc") else {
        return 0;
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(Pid::from_raw)
        .filter(|pid| *pid != leader && is_live_member(*pid, leader))
        .filter(|pid| {
            // The descriptor pins the process, and only then is its number trusted.
            pidfd_open(*pid, PidfdFlags::empty()).is_ok_and(|pidfd| {
                is_live_member(*pid, leader) && pidfd_send_signal(pidfd, Signal::KILL).is_ok()
            })
        })
        .count()
}

fn is_live_member(pid: Pid, leader: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))
        .ok()
        .and_then(|stat| state_and_session(&stat))
        .is_some_and(|(state, session)| {
            session == leader.as_raw_nonzero().get() && !matches!(state, 'Z' | 'X')
        })
}

/// Fields 3 and 6 of proc_pid_stat(5). The command before them may hold anything, so
/// the last parenthesis counts.
fn state_and_session(stat: &str) -> Option<(char, i32)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let session = fields.nth(2)?.parse().ok()?;
    Some((state, session))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_session_behind_a_nasty_name() {
        assert_eq!(
            state_and_session("7 (a) Z 1 (b)) S 1 7 6 0"),
            Some(('S', 6))
        );
        assert_eq!(state_and_session("7 (x"), None);
    }
}
