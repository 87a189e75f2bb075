//! Nothing is left behind.

use std::fs;
use std::process::Command;
use std::time::Duration;

use wrenn_core::uffd::stand_in::GuestMemory;
use wrenn_core::uffd::{HandshakeError, Outcome, PAGE_SIZE, Pager, ServeError};

use crate::saved::{Saved, ended};

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn threads() -> usize {
    fs::read_dir("/proc/self/task").unwrap().count()
}

/// In a process of its own, where there are no threads of other tests.
#[test]
fn two_hundred_cycles_leave_no_thread_descriptor_or_file() {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cycles::two_hundred", "--ignored", "--nocapture"])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
#[ignore = "for a process of its own"]
fn two_hundred() {
    let saved = Saved::of_pages(64);
    let files = || fs::read_dir(saved.path("")).unwrap().count();
    let before = (files(), descriptors(), threads());
    for cycle in 0..200 {
        let pager = Pager::bind(saved.config()).unwrap();
        if cycle % 3 == 0 {
            // The VMM never comes.
            pager.stopper().stop();
            let report = pager.serve();
            assert!(matches!(report.outcome, Outcome::Stopped), "{report:?}");
            continue;
        }
        let pager = std::thread::spawn(|| pager.serve());
        let memory = GuestMemory::new(saved.length()).unwrap();
        let connection = memory.hand_over(&saved.socket()).unwrap();
        let offset = cycle % 64 * PAGE_SIZE;
        assert_eq!(memory.load(offset), saved.word(offset));
        drop(connection);
        ended(pager);
    }
    // A joined thread may be in the list for a moment.
    while threads() != before.2 {
        std::thread::yield_now();
    }
    assert_eq!((files(), descriptors(), threads()), before);
}

#[test]
fn a_vmm_that_never_comes_is_not_awaited_for_ever() {
    let saved = Saved::of_pages(1);
    let mut config = saved.config();
    config.connect_timeout = Duration::from_millis(10);
    let report = Pager::bind(config).unwrap().serve();
    assert!(
        matches!(
            report.outcome,
            Outcome::Failed(ServeError::Handshake(HandshakeError::TimedOut(_)))
        ),
        "{report:?}"
    );
    assert!(!saved.socket().exists());
}

#[test]
fn a_pager_that_serves_can_be_stopped() {
    let saved = Saved::of_pages(8);
    let pager = Pager::bind(saved.config()).unwrap();
    let stopper = pager.stopper();
    let pager = std::thread::spawn(|| pager.serve());
    let memory = GuestMemory::new(saved.length()).unwrap();
    let _connection = memory.hand_over(&saved.socket()).unwrap();
    assert_eq!(memory.load(0), saved.word(0));
    stopper.stop();
    let report = pager.join().unwrap();
    assert!(matches!(report.outcome, Outcome::Stopped), "{report:?}");
    assert_eq!(report.counters.faults, 1);
}
