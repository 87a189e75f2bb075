//! Stage two: makes the root file system a running guest.

use std::convert::Infallible;
use std::fs;
use std::io;

use super::cmdline::CommandLine;
use super::console::warn;
use super::{mounts, network, supervise};
use crate::hostname;
use crate::programs;
use crate::sys::signals::SignalSet;

#[derive(Debug, thiserror::Error)]
pub(super) enum StageTwoError {
    #[error("cannot block signals")]
    Signals(#[source] io::Error),
}

pub(super) fn run() -> Result<Infallible, StageTwoError> {
    // Before the first child, so that no end of one is missed.
    let signals = SignalSet::block(&[
        libc::SIGCHLD,
        libc::SIGTERM,
        libc::SIGINT,
        libc::SIGPWR,
        libc::SIGUSR1,
        libc::SIGUSR2,
    ])
    .map_err(StageTwoError::Signals)?;
    mounts::first();
    let line = CommandLine::read().unwrap_or_else(|error| {
        warn(&format!("cannot read the kernel command line: {error}"));
        CommandLine::default()
    });
    set_host_name(&line);
    network::bring_up(&line);
    // When memory runs out, neither this process nor the daemon is to go.
    fs::write("/proc/self/oom_score_adj", "-1000").ok();
    let daemon = supervise::Daemon::start(&line);

    mounts::second();
    if let Err(error) = programs::make() {
        warn(&format!("programs cannot be frozen: {error}"));
    }
    network::write_name_servers(&line);
    // Ctrl-Alt-Del comes as a signal then.
    if let Err(error) = rustix::system::reboot(rustix::system::RebootCommand::CadOff) {
        warn(&format!("cannot take Ctrl-Alt-Del over: {error}"));
    }
    daemon.watch(&signals, &line)
}

fn set_host_name(line: &CommandLine) {
    let name = match line.value("wrenn.hostname") {
        Some(name) => name.to_owned(),
        None => match fs::read_to_string("/etc/hostname") {
            Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
            _ => "localhost".to_owned(),
        },
    };
    if let Err(error) = hostname::set(&name) {
        warn(&format!("cannot set the host name {name}: {error}"));
    }
}
