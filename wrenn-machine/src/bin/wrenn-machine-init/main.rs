//! The first program inside the machine.
//!
//! ```text
//! kernel ─▶ /init   modules ─▶ root on tmpfs ─▶ disks ─▶ limits, network ─▶ wrenn-envd
//!             │                                                               │ dies: again
//!             └◀── power button, SIGTERM: stop all, sync, unmount, power off ─┘
//! ```
//!
//! It starts no process but the daemon: under emulation each one costs 50 ms and more. It holds
//! the real-time clock, so that an emulated processor does not sleep for good ([`keep_awake`]).

mod boot;
mod disks;
mod filesystems;
mod keep_awake;
mod kernel_log;
mod modules;
mod network;
mod power;
mod supervise;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    wrenn_core::process::abort_on_panic();
    if std::process::id() != 1 {
        kernel_log::say("wrenn-machine-init does something only as process 1 of a machine");
        return ExitCode::from(2);
    }
    // What follows `--` on the kernel's command line arrives here.
    if std::env::args().any(|argument| argument == "probe") {
        kernel_log::say("probe: kernel runs");
        power::off();
    }
    let error = match boot::boot() {
        Ok(daemon) => supervise::supervise(daemon),
        Err(error) => error,
    };
    kernel_log::failure(&error);
    // There is nobody to return to: a machine that cannot boot is over.
    power::off();
    ExitCode::FAILURE
}
