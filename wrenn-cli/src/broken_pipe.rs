//! Ends the program quietly where nobody reads what it prints, as in `wrenn doctor | head -1`.

use std::panic::PanicHookInfo;
use std::process::exit;

/// The beginnings of what `println!` and `eprintln!` panic with.
const STDOUT_FAILED: &str = "failed printing to stdout";
const STDERR_FAILED: &str = "failed printing to stderr";

/// Makes a print that fails end the program: with success where its reader has read enough, and
/// with a failure where not even errors can be told. SIGPIPE stays ignored, since it would end
/// the program at connections that break as well.
pub fn exit_when_print_fails() {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| match exit_code(panic) {
        #[allow(clippy::exit, reason = "a panic has nothing to return to")]
        Some(code) => exit(code),
        None => previous(panic),
    }));
}

fn exit_code(panic: &PanicHookInfo<'_>) -> Option<i32> {
    let message = panic.payload_as_str()?;
    if message.starts_with(STDOUT_FAILED) {
        Some(0)
    } else if message.starts_with(STDERR_FAILED) {
        Some(1)
    } else {
        None
    }
}
