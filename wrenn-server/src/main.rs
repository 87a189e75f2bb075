//! The `wrenn-server` program: parse, run, map the result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    wrenn_server::program::main(std::env::args_os())
}
