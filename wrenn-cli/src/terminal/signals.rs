//! Signals to this program.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{Signal as SignalStream, SignalKind, signal};
use tokio::sync::Notify;
use wrenn_sdk::Signal;

/// SIGHUP's bit among the signals that a process ignores, see proc_pid_status(5).
const HANGUP_BIT: u64 = 1;

/// The meaning of a signal to this program for the command.
#[derive(Clone, Copy, Debug)]
pub enum Received {
    /// The command gets it too.
    Forward(Signal),
    /// Our terminal has another size.
    Resized,
}

impl Received {
    pub(super) const fn asks_to_end(self) -> bool {
        matches!(self, Self::Forward(Signal::INT)) || self.ends_in_time()
    }

    /// Whether this program ends even if the command does not.
    pub(super) const fn ends_in_time(self) -> bool {
        matches!(self, Self::Forward(Signal::TERM | Signal::HUP))
    }

    /// Whether it says, after another that asked for it, that the end is to come at once. A
    /// SIGHUP often comes along with a SIGTERM.
    pub(crate) const fn insists(self) -> bool {
        matches!(self, Self::Forward(Signal::INT | Signal::TERM))
    }

    /// The exit code of a program that this signal ended.
    #[must_use]
    pub fn exit_code(self) -> ExitCode {
        let number = match self {
            Self::Forward(signal) => u8::try_from(signal.number()).unwrap_or_default(),
            Self::Resized => 0,
        };
        ExitCode::from(128 + number)
    }
}

/// The signals that this program hears.
#[derive(Debug)]
pub struct Signals {
    interrupt: SignalStream,
    terminate: SignalStream,
    hangup: Hangup,
    quit: SignalStream,
    resized: SignalStream,
    /// Told when our terminal is gone, which without a session comes with no signal.
    pub(super) terminal_gone: Arc<Notify>,
}

impl Signals {
    /// Listens from here on: the signals no longer end this program by themselves.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: Hangup::listen()?,
            quit: signal(SignalKind::quit())?,
            resized: signal(SignalKind::window_change())?,
            terminal_gone: Arc::default(),
        })
    }

    pub(super) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::Forward(Signal::INT),
            _ = self.terminate.recv() => Received::Forward(Signal::TERM),
            () = self.hangup.recv() => Received::Forward(Signal::HUP),
            () = self.terminal_gone.notified() => Received::Forward(Signal::HUP),
            _ = self.quit.recv() => Received::Forward(Signal::QUIT),
            _ = self.resized.recv() => Received::Resized,
        }
    }

    /// The next signal that says, after another, that the end is to come at once.
    pub(super) async fn next_to_insist(&mut self) -> Received {
        loop {
            let received = self.next().await;
            if received.insists() {
                return received;
            }
        }
    }

    /// The next signal that asks this program to end.
    pub async fn next_to_end(&mut self) -> Received {
        loop {
            let received = self.next().await;
            if received.asks_to_end() {
                return received;
            }
        }
    }
}

/// SIGHUP, unless this program was told to ignore it, as by nohup(1).
#[derive(Debug)]
pub(crate) struct Hangup(Option<SignalStream>);

impl Hangup {
    pub(crate) fn listen() -> io::Result<Self> {
        if hangup_is_ignored() {
            return Ok(Self(None));
        }
        Ok(Self(Some(signal(SignalKind::hangup())?)))
    }

    pub(crate) async fn recv(&mut self) {
        match &mut self.0 {
            Some(stream) => {
                stream.recv().await;
            }
            None => std::future::pending().await,
        }
    }
}

fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & HANGUP_BIT != 0)
}
