//! Starts a machine, runs a command in it, and leaves it running.
//!
//! `cargo run -p wrenn-machine --example machine -- uname -a`

use std::process::ExitCode;
use std::sync::Arc;

use wrenn_core::guest::Command;
use wrenn_images::{Event, Progress};
use wrenn_machine::{Machine, MachineConfig, MachineName, Programs};

struct Lines;

impl Progress for Lines {
    fn report(&self, event: Event<'_>) {
        eprintln!("{event:?}");
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (program, arguments) = words
        .split_first()
        .ok_or("usage: machine COMMAND [ARGUMENT]...")?;
    let programs = Programs::beside_this_program()
        .map_err(|path| format!("{} is missing: cargo build --workspace", path.display()))?;
    let machine = Machine::of_user(&MachineName::default())?;
    let config = MachineConfig::default();
    let running = machine.start(&config, &programs, Arc::new(Lines)).await?;
    let command = Command::new(program).args(arguments.to_vec());
    let (stdout, stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let status = running
        .client()?
        .exec(command, tokio::io::empty(), stdout, stderr)
        .await?;
    Ok(ExitCode::from(status.shell_code()))
}
