//! The `wrenn` program: parse, run, map the result to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    #[cfg(feature = "host")]
    wrenn_core::process::abort_on_panic();
    wrenn_cli::broken_pipe::exit_when_print_fails();
    wrenn_cli::main(std::env::args_os())
}
