//! `wrenn up --detach`: the same program again, in the background, until it is up.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Args;
use super::state::{DataDirectory, Running};
use crate::GlobalArgs;

const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// What the background process logs: warnings, and each request.
const LOG_FILTER: &str = "info";

/// Starts the background process, shows its steps, and returns when it is up.
pub(super) async fn start(
    args: &Args,
    global: &GlobalArgs,
    directory: &DataDirectory,
) -> anyhow::Result<Running> {
    match directory.lock()? {
        // Free: the child takes it.
        Some(lock) => drop(lock),
        None => {
            if let Some(running) = directory.running()? {
                drop_eprintln!("wrenn: it runs already (process {})", running.pid);
                return Ok(running);
            }
            bail!("another wrenn up starts at this moment; try again");
        }
    }
    directory.forget_running();
    let path = directory.log();
    let opened = File::options().create(true).append(true).open(&path);
    let log = opened.with_context(|| format!("cannot write {}", path.display()))?;
    let begun = log.metadata().map_or(0, |metadata| metadata.len());
    let mut child = Command::new(std::env::current_exe().context("cannot find this program")?)
        .args(words(args, global, directory))
        .env(
            "WRENN_LOG",
            std::env::var("WRENN_LOG").unwrap_or_else(|_| LOG_FILTER.to_owned()),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        // A Ctrl-C of this terminal is not for it.
        .process_group(0)
        .spawn()
        .context("cannot start the background process")?;
    let mut reader =
        File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
    reader.seek(SeekFrom::Start(begun))?;
    loop {
        show_steps(&mut reader)?;
        if let Some(running) = directory.running()?
            && running.pid == child.id()
        {
            return Ok(running);
        }
        if let Some(status) = child.try_wait()? {
            show_steps(&mut reader)?;
            bail!(
                "it ended with {status} before it was up; see {}",
                path.display()
            );
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Copies what the background process says of its steps, without the lines of its log.
fn show_steps(log: &mut File) -> anyhow::Result<()> {
    let mut text = String::new();
    log.read_to_string(&mut text)?;
    for line in text.lines().filter(|line| line.starts_with("wrenn: ")) {
        drop_eprintln!("{line}");
    }
    Ok(())
}

/// The options of the background process.
fn words(args: &Args, global: &GlobalArgs, directory: &DataDirectory) -> Vec<String> {
    let mut words = vec![
        "up".to_owned(),
        "--daemon".to_owned(),
        format!("--root={}", global.root.display()),
        format!("--data-dir={}", directory.path().display()),
        format!("--listen={}", args.listen),
        format!("--agent-listen={}", args.agent_listen),
        format!("--machine-network={}", args.machine_network),
    ];
    if !args.allowed_hosts.is_empty() {
        words.push(format!("--allowed-hosts={}", args.allowed_hosts.join(",")));
    }
    words.extend(
        args.vmm
            .iter()
            .map(|vmm| format!("--vmm={}", vmm.display())),
    );
    words.extend(args.here.then(|| "--here".to_owned()));
    words
}
