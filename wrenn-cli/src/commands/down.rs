//! `wrenn down`: ends what `wrenn up` started, never the sandboxes.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use super::up::{DataDirectory, stop_in_machine, stop_left_behind};
use crate::GlobalArgs;

/// How long a server and its agent may take to end. Pauses that are under way are finished.
const TIMEOUT: Duration = Duration::from_secs(180);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `wrenn down`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Sandboxes go on without server and agent; wrenn up finds them again. To end them:
  wrenn sandbox list --quiet | xargs -r wrenn sandbox destroy")]
pub struct Args {
    /// Directory of the database and the logs, as wrenn up was given it.
    #[arg(long, value_name = "DIR", env = "WRENN_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

/// Runs the sub-command.
///
/// # Errors
/// When something does not end.
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    let directory = DataDirectory::open(args.data_dir.as_deref())?;
    let mut ended = false;
    if directory.lock()?.is_none() {
        let Some(running) = directory.running()? else {
            bail!(
                "a wrenn up starts at this moment, or another server uses its directory; \
                 try again when it is up, or stop the other one"
            );
        };
        let pid = i32::try_from(running.pid).ok().and_then(Pid::from_raw);
        let pid = pid.context("the process of wrenn up is not known")?;
        kill_process(pid, Signal::TERM).context("cannot end wrenn up")?;
        let begun = Instant::now();
        while directory.lock()?.is_none() {
            if begun.elapsed() > TIMEOUT {
                bail!("wrenn up (process {}) does not end", running.pid);
            }
            sleep(POLL_INTERVAL).await;
        }
        ended = true;
    }
    // What a killed wrenn up left.
    directory.forget_running();
    ended |= stop_left_behind(&global.root).await?;
    ended |= stop_in_machine().await?;
    drop_eprintln!(
        "wrenn: {}",
        if ended {
            "stopped; sandboxes go on"
        } else {
            "nothing runs"
        }
    );
    Ok(ExitCode::SUCCESS)
}
