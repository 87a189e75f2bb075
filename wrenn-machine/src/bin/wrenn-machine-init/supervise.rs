//! Life after boot: the daemon runs, orphans are reaped, the power button is heard.

use std::fs::{self, File};
use std::io::{self, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::boot::BootError;
use crate::kernel_log;

const DAEMON: &str = "/usr/local/bin/wrenn-envd";
const DAEMON_ARGUMENTS: &[&str] = &["--token-file", "/run/wrenn/token"];
/// A daemon that dies at once is started again only after this long.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// `struct input_event` of linux/input.h on 64-bit: two times, then type, code and value.
const INPUT_EVENT_SIZE: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// The running guest daemon.
pub(crate) struct Daemon {
    child: Child,
    started: Instant,
}

enum Woken {
    ByChild,
    ToStop,
}

impl Daemon {
    /// Starts it.
    pub(crate) fn start() -> io::Result<Self> {
        let console = || File::options().write(true).open("/dev/console");
        let child = Command::new(DAEMON)
            .args(DAEMON_ARGUMENTS)
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .stdin(Stdio::null())
            .stdout(console()?)
            .stderr(console()?)
            .spawn()?;
        Ok(Self {
            child,
            started: Instant::now(),
        })
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

/// Runs until the machine is told to stop.
pub(crate) fn supervise(mut daemon: Daemon) -> BootError {
    let (sender, woken) = channel();
    listen_for_signals(sender.clone());
    listen_for_power_button(&sender);
    loop {
        match woken.recv() {
            Ok(Woken::ToStop) | Err(_) => return BootError::Stopped,
            Ok(Woken::ByChild) => {}
        }
        if !reap_all(daemon.pid()) {
            continue;
        }
        kernel_log::say("the daemon died and is started again");
        thread::sleep(RESTART_PAUSE.saturating_sub(daemon.started.elapsed()));
        daemon = match Daemon::start() {
            Ok(daemon) => daemon,
            Err(error) => return BootError::Daemon(error),
        };
    }
}

/// Reaps whoever has ended. Returns whether the daemon was among them.
fn reap_all(daemon: u32) -> bool {
    let mut daemon_ended = false;
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => {
                daemon_ended |= u32::try_from(pid.as_raw()).is_ok_and(|pid| pid == daemon);
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return daemon_ended,
            _ => {}
        }
    }
}

fn listen_for_signals(sender: Sender<Woken>) {
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGPWR,
    ] {
        signals.add(signal);
    }
    // Blocked here, before any thread starts that does not block them itself, so that all
    // threads inherit it and the signals wait for the one that takes them.
    if let Err(errno) = signals.thread_block() {
        kernel_log::say(&format!("cannot block signals: {errno}"));
    }
    thread::spawn(move || {
        // The daemon may have ended before the signals were blocked.
        let mut woken = Woken::ByChild;
        while sender.send(woken).is_ok() {
            woken = match signals.wait() {
                Ok(Signal::SIGCHLD) | Err(_) => Woken::ByChild,
                Ok(_) => Woken::ToStop,
            };
        }
    });
}

fn listen_for_power_button(sender: &Sender<Woken>) {
    let inputs = fs::read_dir("/dev/input").into_iter().flatten().flatten();
    for path in inputs.map(|entry| entry.path()) {
        let Ok(mut input) = File::open(&path) else {
            continue;
        };
        let sender = sender.clone();
        thread::spawn(move || {
            let mut event = [0; INPUT_EVENT_SIZE];
            while input.read_exact(&mut event).is_ok() {
                if is_power_pressed(&event) && sender.send(Woken::ToStop).is_err() {
                    return;
                }
            }
        });
    }
}

fn is_power_pressed(event: &[u8; INPUT_EVENT_SIZE]) -> bool {
    let kind = u16::from_ne_bytes([event[16], event[17]]);
    let code = u16::from_ne_bytes([event[18], event[19]]);
    let value = i32::from_ne_bytes([event[20], event[21], event[22], event[23]]);
    kind == EV_KEY && code == KEY_POWER && value == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_key_is_told_from_others() {
        let mut event = [0; INPUT_EVENT_SIZE];
        event[16..18].copy_from_slice(&EV_KEY.to_ne_bytes());
        event[18..20].copy_from_slice(&KEY_POWER.to_ne_bytes());
        event[20..24].copy_from_slice(&1_i32.to_ne_bytes());
        assert!(is_power_pressed(&event));
        event[20] = 0;
        assert!(!is_power_pressed(&event), "release");
        event[20] = 1;
        event[18] = 30;
        assert!(!is_power_pressed(&event), "another key");
    }
}
