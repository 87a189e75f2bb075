//! The first process of a guest, in two stages.
//!
//! ```text
//!  kernel ──▶ /init (initramfs)                    stage one
//!               mount /proc /sys /dev
//!               load /modules/load, in order
//!               wait for root=, mount it
//!               empty the initramfs, move the mounts, switch root
//!               exec init=
//!                   │
//!         ──▶ init= (root file system)             stage two
//!               mount /proc /sys /dev, host name, lo and eth0
//!               start the daemon ◀─────────────┐
//!               mount and write the rest       │ dies
//!               reap, restart, wait for signals┘
//!               TERM, INT, PWR, USR1, USR2 ──▶ everything stops, sync, power off
//! ```
//!
//! A guest without an initramfs starts in stage two. Nothing waits for what a boot does
//! not need: there are no other programs, and the daemon is started as soon as it can be
//! reached.
//!
//! What the kernel command line may say, besides the kernel's own words:
//!
//! | word | meaning |
//! |---|---|
//! | `root=/dev/…`, `rootfstype=`, `rootflags=`, `ro`, `rw`, `init=` | stage one: as for the kernel |
//! | `wrenn.hostname=NAME` | host name |
//! | `wrenn.ip=ADDRESS/PREFIX`, or `none` | address of the first network interface |
//! | `wrenn.gateway=ADDRESS` | default route |
//! | `wrenn.dns=ADDRESS,ADDRESS` | name servers; without it an existing resolv.conf stays |
//! | `wrenn.token_file=PATH` | the daemon's `--token-file` |
//! | `wrenn.default_user=NAME` | the daemon's `--default-user` |
//! | `reboot=k` | ends by a reset, since the VMM does not know power-off |

pub mod cmdline;
mod console;
mod mounts;
mod network;
mod power;
mod stage_one;
mod stage_two;
mod supervise;

use std::process::ExitCode;

/// Runs as pid 1. Does not return while the guest lives; what it returns to is the end
/// of pid 1, and the kernel panics.
pub fn run() -> ExitCode {
    let first = std::env::args_os()
        .next()
        .is_some_and(|name| name == "/init");
    if first {
        match stage_one::run() {
            Ok(never) => match never {},
            Err(error) => console::fatal(&error),
        }
    } else {
        match stage_two::run() {
            Ok(never) => match never {},
            Err(error) => console::fatal(&error),
        }
    }
    ExitCode::FAILURE
}
