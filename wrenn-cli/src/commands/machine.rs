//! `wrenn machine`: the QEMU machine, for hosts that cannot run sandboxes themselves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use wrenn_core::guest::Command;
use wrenn_core::vm::VmmBinary;
use wrenn_images::Cache;
use wrenn_machine::{
    Machine, MachineClient, MachineConfig, MachineName, Programs, Running, Status, host,
};

use super::run;
use crate::GlobalArgs;
use crate::logging;
use crate::progress::Steps;
use crate::terminal::{self, Attach, Signals};

/// Where our programs lie in the machine.
pub(super) const PROGRAMS_INSIDE: &str = "/usr/local/bin";
/// Where a VMM lies that was named with --vmm: not on PATH, where everybody would find it.
pub(super) const VMMS_INSIDE: &str = "/usr/local/lib/wrenn";

/// Options of `wrenn machine`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn machine start
  wrenn machine exec -- ls /var/lib/wrenn
  wrenn machine shell
  wrenn machine stop --discard")]
pub struct Args {
    /// Which machine, where there are several.
    #[arg(long, global = true, value_name = "NAME", default_value = "default")]
    name: MachineName,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Build what is missing and start the machine; does nothing if it runs as it should.
    Start {
        /// Memory: 8G, or a number of MiB; as it is in a running machine, or 4G.
        #[arg(long, value_name = "SIZE", value_parser = crate::size::parse_mib)]
        memory: Option<u64>,
        /// Processors; as in a running machine, or those of this host, or one where they are
        /// emulated.
        #[arg(long, value_name = "N")]
        cpus: Option<usize>,
    },
    /// Power the machine off.
    Stop {
        /// Throw its data disk away too, with every sandbox on it.
        #[arg(long)]
        discard: bool,
    },
    /// Say whether it runs, and how.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// A shell inside, as root.
    Shell,
    /// Run a command inside, as root.
    Exec {
        /// Pass standard input on to the command.
        #[arg(long, short)]
        interactive: bool,
        /// Give the command a terminal; implies -i.
        #[arg(long, short)]
        tty: bool,
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

/// Runs the sub-command.
///
/// # Errors
/// When the machine cannot be built, started, reached or stopped.
pub async fn run(_global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    let machine = Machine::of_user(&args.name)?;
    match args.action {
        Action::Start { memory, cpus } => {
            let memory_mib = memory
                .map(|mib| {
                    u32::try_from(mib).map_err(|_| {
                        super::UsageError(format!("{mib} MiB is no size of a machine"))
                    })
                })
                .transpose()?;
            let config = MachineConfig {
                memory_mib,
                cpus,
                ..MachineConfig::default()
            };
            let running = start(&machine, &config).await?;
            drop_eprintln!(
                "the machine runs ({}); wrenn machine shell gets you in",
                running.accelerator
            );
        }
        Action::Stop { discard } => {
            machine.stop().await.context("cannot stop the machine")?;
            if discard {
                machine
                    .discard_data()
                    .await
                    .context("cannot throw the data disk away")?;
            }
        }
        Action::Status { json } => return status(&machine, json),
        Action::Shell => {
            let attach = Attach {
                stdin: true,
                tty: terminal::is_terminal(),
                timeout: None,
            };
            let shell = Command::new("sh").args(["-l"]);
            return run_as_root(&client(&machine)?, shell, attach).await;
        }
        Action::Exec {
            interactive,
            tty,
            command,
        } => {
            let mut words = command.into_iter();
            let command = Command::new(words.next().unwrap_or_default()).args(words);
            let attach = Attach {
                stdin: interactive || tty,
                tty,
                timeout: None,
            };
            attach.check()?;
            return run_as_root(&client(&machine)?, command, attach).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command in the machine, which ends with this program however that ends.
async fn run_as_root(
    client: &MachineClient,
    command: Command,
    attach: Attach,
) -> anyhow::Result<ExitCode> {
    let command = command.user("root").terminate_on_disconnect();
    terminal::run(Signals::listen()?, client.guest(), command, attach).await
}

#[allow(clippy::print_stdout, reason = "the data that was asked for")]
fn status(machine: &Machine, json: bool) -> anyhow::Result<ExitCode> {
    let status = machine.status()?;
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        match &status {
            Status::Stopped => println!("stopped"),
            Status::Running(running) => println!(
                "running: process {}, {}, daemon at {}, console in {}",
                running.pid,
                running.accelerator,
                running.address,
                running.console.display()
            ),
        }
    }
    Ok(match status {
        Status::Running(_) => ExitCode::SUCCESS,
        Status::Stopped => ExitCode::FAILURE,
    })
}

fn client(machine: &Machine) -> anyhow::Result<MachineClient> {
    match machine.status()? {
        Status::Running(running) => Ok(running.client()?),
        Status::Stopped => Err(anyhow!(
            "the machine does not run; wrenn machine start starts it"
        )),
    }
}

pub(super) async fn start(machine: &Machine, config: &MachineConfig) -> anyhow::Result<Running> {
    let steps = Arc::new(Steps::new());
    machine
        .start(config, &programs()?, steps)
        .await
        .context("cannot start the machine")
}

pub(super) fn programs() -> anyhow::Result<Programs> {
    Programs::beside_this_program().map_err(|missing| {
        anyhow!(
            "there is no {}; build the whole workspace, or install all its programs",
            missing.display()
        )
    })
}

/// Whether sandboxes run on this host itself.
///
/// # Errors
/// When that cannot be found out.
pub(super) async fn host_can_run_sandboxes(global: &GlobalArgs) -> anyhow::Result<bool> {
    let steps = Steps::new();
    host::runs_sandboxes(&global.root, &Cache::of_user()?, &programs()?, &steps)
        .await
        .context("cannot find out what this host can run")
}

/// Runs `wrenn run` with the same options in the machine, which is started if need be.
///
/// # Errors
/// When the machine or the connection to it fails.
pub(super) async fn run_inside(global: &GlobalArgs, args: &run::Args) -> anyhow::Result<ExitCode> {
    let machine = Machine::of_user(&MachineName::default())?;
    let running = start(&machine, &MachineConfig::default()).await?;
    let client = running.client()?;
    let this = std::env::current_exe().context("cannot find this program")?;
    let wrenn = bring_this_program(&client).await?;
    // It is found there beside the program.
    push(&client, &sibling(&this, "wrenn-pager"), PROGRAMS_INSIDE).await?;
    let vmm = match &args.vmm {
        Some(named) => {
            push(
                &client,
                VmmBinary::find(Some(named), None)?.path(),
                VMMS_INSIDE,
            )
            .await?
        }
        None => push(&client, &sibling(&this, "wrenn-vmm"), PROGRAMS_INSIDE).await?,
    };
    let mut command = Command::new(wrenn).args(words_inside(global, args, &vmm));
    for (name, value) in logging::environment_elsewhere() {
        command = command.env(name, value);
    }
    let attach = Attach {
        stdin: args.interactive || args.tty,
        tty: args.tty,
        timeout: None,
    };
    run_as_root(&client, command, attach).await
}

/// The words of `wrenn run` in the machine. It logs as much as this program does.
fn words_inside(global: &GlobalArgs, args: &run::Args, vmm: &str) -> Vec<String> {
    let mut words = ["run", "--here", "--vmm", vmm].map(str::to_owned).to_vec();
    words.extend(std::iter::repeat_n(
        "--verbose".to_owned(),
        global.verbose.into(),
    ));
    words.extend(args.for_another_host());
    words
}

/// Runs this program with other words in the machine, which must run already.
///
/// # Errors
/// When the machine does not run, or the connection to it fails.
pub(super) async fn run_this_program_inside(words: Vec<String>) -> anyhow::Result<ExitCode> {
    let machine = Machine::of_user(&MachineName::default())?;
    let client = client(&machine)?;
    let wrenn = bring_this_program(&client).await?;
    let attach = Attach {
        stdin: false,
        tty: false,
        timeout: None,
    };
    let command = Command::new(wrenn).args(words);
    run_as_root(&client, command, attach).await
}

/// Brings this program into the machine, and says where it lies there.
///
/// # Errors
/// When it cannot be read or sent.
pub(super) async fn bring_this_program(client: &MachineClient) -> anyhow::Result<String> {
    let this = std::env::current_exe().context("cannot find this program")?;
    push(client, &this, PROGRAMS_INSIDE).await
}

fn sibling(program: &Path, name: &str) -> PathBuf {
    program.with_file_name(name)
}

async fn push(client: &MachineClient, local: &Path, directory: &str) -> anyhow::Result<String> {
    let name = local.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} is no program", local.display()))?;
    let remote = format!("{directory}/{name}");
    let pushed = client.push_program(local, &remote, 0o755).await;
    pushed.with_context(|| format!("cannot bring {} into the machine", local.display()))?;
    Ok(remote)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn detail_is_asked_for_in_the_machine_too() {
        let parsed = |words: &[&str]| {
            let words = std::iter::once(&"wrenn").chain(words);
            let cli = crate::parse(words.map(Into::into)).unwrap();
            let crate::commands::Command::Run(args) = cli.command else {
                panic!("it is another command");
            };
            (cli.global, args)
        };
        for (words, verbose) in [
            (&["run", "--", "ls", "-v"][..], 0),
            (&["-v", "run", "ls"], 1),
            (&["run", "-vv", "ls"], 2),
        ] {
            let (global, args) = parsed(words);
            let inside = words_inside(&global, &args, "/vmm");
            let inside: Vec<_> = inside.iter().map(String::as_str).collect();
            let (global, again) = parsed(&inside);
            assert_eq!(global.verbose, verbose, "{words:?}");
            assert_eq!(again.command, args.command, "{words:?}");
        }
    }
}
