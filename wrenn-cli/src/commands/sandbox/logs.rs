//! `wrenn sandbox logs`.

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;

use wrenn_sdk::Client;

use crate::completion;
use crate::escape::Escaping;

/// Options of `wrenn sandbox logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox logs web
  wrenn sandbox logs web --start | head -50
  wrenn sandbox logs web --follow

The console has what the kernel and the first process say. A terminal shows its control codes
as \\u{1b}; a pipe gets the bytes as they are.")]
pub(super) struct Args {
    /// How many bytes of its end.
    #[arg(long, value_name = "BYTES", conflicts_with = "start")]
    tail: Option<u64>,
    /// From its start on, in place of its end.
    #[arg(long)]
    start: bool,
    /// Go on with what is said from now on.
    #[arg(long, short)]
    follow: bool,
    /// The sandbox.
    #[arg(value_name = "SANDBOX", add = completion::sandboxes())]
    sandbox: String,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let sandbox = client.sandboxes().get(&args.sandbox).await?;
    let mut logs = sandbox.logs();
    if let Some(bytes) = args.tail {
        logs = logs.tail(bytes);
    }
    if args.start {
        logs = logs.from_start();
    }
    let mut sink = Sink::of_stdout();
    if args.follow {
        let mut stream = logs.follow().await?;
        while let Some(chunk) = stream.next().await? {
            if !sink.show(&chunk)? {
                return Ok(ExitCode::SUCCESS);
            }
        }
    } else {
        let said = logs.await?;
        if said.is_empty() {
            drop_eprintln!("wrenn: the console is empty: a healthy guest boots quietly");
        }
        sink.show(&said)?;
    }
    sink.finish()?;
    Ok(ExitCode::SUCCESS)
}

enum Sink {
    Terminal(Escaping<io::Stdout>),
    Pipe(io::Stdout),
}

impl Sink {
    fn of_stdout() -> Self {
        let stdout = io::stdout();
        if stdout.is_terminal() {
            Self::Terminal(Escaping::new(stdout))
        } else {
            Self::Pipe(stdout)
        }
    }

    /// False when nobody reads any more.
    fn show(&mut self, bytes: &[u8]) -> io::Result<bool> {
        let shown = match self {
            Self::Terminal(escaping) => escaping.write_all(bytes).and_then(|()| escaping.flush()),
            Self::Pipe(stdout) => stdout.write_all(bytes).and_then(|()| stdout.flush()),
        };
        match shown {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            shown => shown.map(|()| true),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Terminal(escaping) => escaping.finish(),
            Self::Pipe(_) => Ok(()),
        }
    }
}
