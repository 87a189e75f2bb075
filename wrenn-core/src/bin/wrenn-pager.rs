//! Serves the memory of one restored VM, see `wrenn_core::uffd::program`.

use std::process::ExitCode;

fn main() -> ExitCode {
    wrenn_core::process::abort_on_panic();
    wrenn_core::uffd::program::main()
}
