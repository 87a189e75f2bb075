//! What init has to say goes to the kernel's log, where the console shows what is grave.

use std::error::Error;
use std::fs::OpenOptions;
use std::io::Write as _;

/// Something is wrong, and the guest goes on without it.
pub(super) fn warn(text: &str) {
    log(4, text);
}

/// The guest can't go on.
pub(super) fn fatal(error: &dyn Error) {
    log(2, &format!("cannot start the guest: {}", chain(error)));
}

pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}

/// Levels as in syslog(2); one write is one line.
fn log(level: u8, text: &str) {
    let line = format!("<{level}>wrenn-init: {}\n", text.replace('\n', " "));
    let written = OpenOptions::new()
        .write(true)
        .open("/dev/kmsg")
        .and_then(|mut kmsg| kmsg.write_all(line.as_bytes()));
    if written.is_err() {
        eprint!("{line}");
    }
}
