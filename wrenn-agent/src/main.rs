//! The `wrenn-agent` program: parse, run, map the result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    wrenn_core::process::abort_on_panic();
    wrenn_agent::main(std::env::args_os())
}
