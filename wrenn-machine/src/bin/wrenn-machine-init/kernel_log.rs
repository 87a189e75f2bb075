//! Words to the console, through the kernel's log, so that they stand in order with its own.

use std::error::Error;
use std::fs::File;
use std::io::Write;

/// Says one line. What the log does not take is lost, and there is no better place for it.
pub(crate) fn say(text: &str) {
    // Level 3 is shown in spite of `quiet`.
    let line = format!("<3>wrenn-machine: {text}\n");
    let to_log = File::options().write(true).open("/dev/kmsg");
    let written = to_log.and_then(|mut log| log.write_all(line.as_bytes()));
    if written.is_err() {
        std::io::stderr().write_all(line.as_bytes()).ok();
    }
}

/// Says what failed and why, with the whole chain of causes.
pub(crate) fn failure(error: &dyn Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    say(&text);
}
