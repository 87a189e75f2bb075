//! `wrenn run`: one command in one throw-away sandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use wrenn_core::RootDirectory;
use wrenn_core::guest::Command;
use wrenn_core::sandbox::{
    Host, HostConfig, NamedSnapshot, Sandbox, SandboxConfig, default_config,
};
use wrenn_core::vm::Resources;

use super::UsageError;
use crate::GlobalArgs;
use crate::completion;
use crate::size::parse_mib;
use crate::terminal::{self, Attach, Signals};

/// Options of `wrenn run`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn run -- uname -a
  wrenn run --template minimal --memory 128M -- ls /
  tar c src | wrenn run -i -- sh -c 'tar x && ls -l src'
  wrenn run -it -- bash
  wrenn run --from warmed-up -- python3 -c 'print(model(1))'

The exit code is the command's own; 128 and the signal's number if it died by a signal;
124 if --timeout ended it; 1 if the sandbox failed; 2 for a usage error.")]
pub struct Args {
    /// Template that the sandbox is made from.
    #[arg(long, value_name = "NAME", default_value = "base", add = completion::templates())]
    pub template: String,
    /// Snapshot that the sandbox goes on from, in place of a template.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["template", "kernel"])]
    pub from: Option<String>,
    /// Kernel that boots the sandbox; the template's unless set.
    #[arg(long, value_name = "ID")]
    pub kernel: Option<String>,
    /// Virtual CPUs; 1 unless set, or those of the snapshot.
    #[arg(long, value_name = "N")]
    pub vcpus: Option<u64>,
    /// Memory: 512M, 2G, or a number of MiB; 512M unless set, or that of the snapshot.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    pub memory: Option<u64>,
    /// Variable of the command's environment; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    pub env: Vec<(String, String)>,
    /// Directory that the command starts in.
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<String>,
    /// User of the guest that the command runs as.
    #[arg(long, short, value_name = "USER")]
    pub user: Option<String>,
    /// End the command after this long: 30s, 5m, 1h30m.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// Pass standard input on to the command.
    #[arg(long, short)]
    pub interactive: bool,
    /// Give the command a terminal; implies -i.
    #[arg(long, short)]
    pub tty: bool,
    /// Program that runs the VM: wrenn-vmm or firecracker.
    #[arg(long, value_name = "PATH", env = "WRENN_VMM")]
    pub vmm: Option<PathBuf>,
    /// Run on this host even if it seems unable to, never in the machine.
    #[arg(long)]
    pub here: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

pub(super) use crate::variable::parse as parse_variable;

impl Args {
    /// These options as words for the same command elsewhere, without those that say
    /// where and with which VMM it runs.
    pub(super) fn for_another_host(&self) -> Vec<String> {
        let mut words = vec![match &self.from {
            Some(from) => format!("--from={from}"),
            None => format!("--template={}", self.template),
        }];
        words.extend(self.vcpus.map(|vcpus| format!("--vcpus={vcpus}")));
        words.extend(self.memory.map(|memory| format!("--memory={memory}")));
        words.extend(
            self.kernel
                .iter()
                .map(|kernel| format!("--kernel={kernel}")),
        );
        words.extend(
            self.env
                .iter()
                .map(|(name, value)| format!("--env={name}={value}")),
        );
        words.extend(
            self.cwd
                .iter()
                .map(|directory| format!("--cwd={directory}")),
        );
        words.extend(self.user.iter().map(|user| format!("--user={user}")));
        let timeout = self.timeout.map(humantime::format_duration);
        words.extend(
            timeout.map(|timeout| format!("--timeout={}", timeout.to_string().replace(' ', ""))),
        );
        words.extend(self.interactive.then(|| "--interactive".to_owned()));
        words.extend(self.tty.then(|| "--tty".to_owned()));
        words.push("--".to_owned());
        words.extend(self.command.iter().cloned());
        words
    }
}

/// Runs the command.
///
/// # Errors
/// When the sandbox cannot be made or breaks. A command that fails is no error here.
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    // What makes no sense anywhere is refused before anything is started.
    resources(&args, Resources::default())?;
    refuse_volume(global, &args)?;
    attach(&args).check()?;
    if !args.here && !super::machine::host_can_run_sandboxes(global).await? {
        return super::machine::run_inside(global, &args).await;
    }
    run_here(global, &args).await
}

/// `-v /src:/src` is a volume to people who come from Docker; here `-v` takes no value, and the
/// volume would be the command.
fn refuse_volume(global: &GlobalArgs, args: &Args) -> Result<(), UsageError> {
    let command = args.command.first().map(String::as_str).unwrap_or_default();
    if global.verbose > 0 && command.contains(":/") {
        return Err(UsageError(format!(
            "sandboxes have no volumes, and -v is --verbose: '{command}' would be the command; \
             copy files in over standard input (tar c DIR | wrenn run -i -- …), or with wrenn \
             sandbox cp"
        )));
    }
    Ok(())
}

/// The size that is asked for, over one that is not.
fn resources(args: &Args, default: Resources) -> Result<Resources, UsageError> {
    let vcpus = args.vcpus.unwrap_or(default.vcpus().into());
    let memory = args.memory.unwrap_or(default.memory_mib().into());
    Resources::new(vcpus, memory).map_err(|error| UsageError(error.to_string()))
}

/// What is to run, and from what.
fn sandbox_config(root: &RootDirectory, args: &Args) -> anyhow::Result<SandboxConfig> {
    if let Some(name) = &args.from
        && NamedSnapshot::find(root, name)?.is_none()
    {
        anyhow::bail!(
            "there is no snapshot '{name}' in {}; `wrenn agent snapshot create` makes one",
            root.named_snapshots().display()
        );
    }
    let template = args.from.as_ref().unwrap_or(&args.template);
    let config = default_config(root, template)?;
    Ok(SandboxConfig {
        kernel: args.kernel.clone(),
        resources: resources(args, config.resources)?,
        env: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        ..config
    })
}

async fn run_here(global: &GlobalArgs, args: &Args) -> anyhow::Result<ExitCode> {
    let root = RootDirectory::new(&global.root);
    let sandbox_config = sandbox_config(&root, args)?;
    let config = HostConfig {
        root,
        vmm: args.vmm.clone(),
        search_path: std::env::var_os("PATH"),
        ..HostConfig::default()
    };
    // A signal while the sandbox is made takes it down in order instead of leaving it to
    // the next sweep.
    let mut signals = Signals::listen()?;
    let opened = tokio::select! {
        opened = Host::open(config) => opened,
        received = signals.next_to_end() => return Ok(received.exit_code()),
    };
    let host = opened.context("this host cannot run sandboxes")?;
    let created = tokio::select! {
        created = host.create(sandbox_config) => created,
        received = signals.next_to_end() => {
            host.settled().await;
            return Ok(received.exit_code());
        }
    };
    let sandbox = created.context("cannot create a sandbox")?;
    let outcome = tokio::select! {
        outcome = terminal::run(signals, sandbox.guest(), command(args), attach(args)) => outcome,
        reason = sandbox.exited() => Err(anyhow::anyhow!(ended_early(&sandbox, reason))),
    };
    let destroyed = sandbox.destroy().await;
    host.settled().await;
    let code = outcome?;
    destroyed.context("the command ran, but its sandbox was not given back whole")?;
    Ok(code)
}

fn ended_early(sandbox: &Sandbox, reason: wrenn_core::vm::ExitReason) -> String {
    let console = sandbox.vm().console_tail();
    let said = if console.is_empty() {
        String::new()
    } else {
        format!("; its console says: {console}")
    };
    format!("the sandbox's VM ended under the command ({reason}){said}")
}

fn command(args: &Args) -> Command {
    let mut words = args.command.iter().cloned();
    let mut command = Command::new(words.next().unwrap_or_default()).args(words);
    if let Some(directory) = &args.cwd {
        command = command.cwd(directory);
    }
    if let Some(user) = &args.user {
        command = command.user(user);
    }
    command
}

fn attach(args: &Args) -> Attach {
    Attach {
        stdin: args.interactive || args.tty,
        tty: args.tty,
        timeout: args.timeout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn volume_is_refused_in_words() {
        let global = |line: &str| {
            let words = line.split(' ').map(std::ffi::OsString::from);
            let cli = crate::parse(words.collect::<Vec<_>>().into_iter()).unwrap();
            let crate::commands::Command::Run(args) = cli.command else {
                panic!("{line} is another command");
            };
            (cli.global, args)
        };
        let (volume, args) = global("wrenn run -v /src:/src -- ls");
        let error = refuse_volume(&volume, &args).unwrap_err().to_string();
        assert!(error.contains("no volumes"), "{error}");
        let (verbose, args) = global("wrenn run -v -- ls a:/b");
        assert!(refuse_volume(&verbose, &args).is_ok());
    }

    #[test]
    fn options_survive_the_way_to_another_host() {
        let words = [
            "run",
            "-e",
            "A=b c=d",
            "--kernel",
            "wrenn-6.1",
            "--memory",
            "1G",
            "--timeout",
            "1h30m",
            "-it",
            "--user",
            "root",
            "--cwd",
            "/a b",
            "--",
            "sh",
            "-c",
            "echo \"$A\" --timeout",
        ];
        let first = Line::try_parse_from(words).unwrap().args;
        let again = first.for_another_host();
        let again = Line::try_parse_from(std::iter::once("run".to_owned()).chain(again)).unwrap();
        assert_eq!(format!("{first:?}"), format!("{:?}", again.args));
    }
}
