//! The program: understands its command line, runs, and says how it went.

use std::process::ExitCode as ProcessExit;

use wrenn_vmm::api::controller::chain;
use wrenn_vmm::arguments::{self, Command, HELP};
use wrenn_vmm::exit::{self, ExitCode};

#[expect(
    clippy::print_stdout,
    reason = "help and version are this program's output"
)]
fn main() -> ProcessExit {
    exit::abort_on_panic();
    let code = match arguments::parse(std::env::args().skip(1)) {
        Ok(Command::Version) => {
            println!("wrenn-vmm v{}", env!("CARGO_PKG_VERSION"));
            ExitCode::Ok
        }
        Ok(Command::Help) => {
            print!("{HELP}");
            ExitCode::Ok
        }
        Ok(Command::Run(arguments)) => match wrenn_vmm::run::run(*arguments) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("wrenn-vmm: {}", chain(&error));
                error.exit_code()
            }
        },
        Err(error) => {
            eprintln!("wrenn-vmm: {error}\nFor more information try --help.");
            ExitCode::BadArguments
        }
    };
    code.into()
}
