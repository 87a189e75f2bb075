//! What pid 1 does for the rest of its life: it keeps the daemon running, buries the
//! dead, and waits to be told to stop.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitOptions, wait};

use super::cmdline::CommandLine;
use super::console::warn;
use super::power;
use crate::sys::signals::SignalSet;

/// Where the daemon keeps what `/init` told it, for the next daemon should it die.
const STATE_FILE: &str = "/run/wrenn-envd.json";

/// A daemon that dies at once is not started again at once.
const MIN_LIFE: Duration = Duration::from_secs(1);

pub(super) struct Daemon {
    arguments: Vec<String>,
    child: Option<Child>,
    started: Instant,
}

impl Daemon {
    pub(super) fn start(line: &CommandLine) -> Self {
        let mut arguments = vec![format!("--state-file={STATE_FILE}")];
        for (parameter, option) in [
            ("wrenn.token_file", "--token-file"),
            ("wrenn.default_user", "--default-user"),
        ] {
            if let Some(value) = line.value(parameter) {
                arguments.push(format!("{option}={value}"));
            }
        }
        let mut daemon = Self {
            arguments,
            child: None,
            started: Instant::now(),
        };
        daemon.spawn();
        daemon
    }

    fn spawn(&mut self) {
        self.started = Instant::now();
        let started = std::env::current_exe().and_then(|program| {
            Command::new(program)
                .args(&self.arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
        });
        match started {
            Ok(child) => self.child = Some(child),
            Err(error) => warn(&format!("cannot start the daemon: {error}")),
        }
    }

    fn pid(&self) -> Option<Pid> {
        self.child
            .as_ref()
            .and_then(|child| Pid::from_raw(child.id().cast_signed()))
    }

    /// Waits for signals for ever.
    pub(super) fn watch(mut self, signals: &SignalSet, line: &CommandLine) -> ! {
        loop {
            self.reap();
            let timeout = if self.child.is_some() {
                None
            } else {
                let rest = MIN_LIFE.saturating_sub(self.started.elapsed());
                if rest.is_zero() {
                    self.spawn();
                    continue;
                }
                Some(rest)
            };
            match signals.wait(timeout) {
                Some(libc::SIGCHLD) | None => {}
                Some(_) => power::off(line),
            }
        }
    }

    /// Buries every dead child, adopted ones too.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if Some(pid) == self.pid() {
                self.child = None;
                warn(&format!(
                    "the daemon has ended ({status:?}) and is started again"
                ));
            }
        }
    }
}
