//! `wrenn template build` and `delete` where sandboxes run in the machine. A template is built on
//! this host, in a root directory of the user's cache, which has all programs for it; the result
//! is then sent into the machine, without its holes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use tokio_util::io::SyncIoBridge;
use wrenn_core::guest::Command;
use wrenn_images::{Cache, transfer};
use wrenn_machine::{Machine, MachineClient, MachineConfig, MachineName};

use super::root::{Build, Delete, build_in, print_built};
use crate::commands::machine::{self, bring_this_program, run_this_program_inside};
use crate::progress::SendBar;

/// The root directory in the machine.
const ROOT: &str = "/var/lib/wrenn";
/// Bytes between the thread that packs and the connection.
const PIPE_BYTES: usize = 1 << 20;
/// Prints the descriptions of the kernels that are installed.
const KERNEL_DESCRIPTIONS: &str = "tar -cf - kernels/*/kernel.json";

/// Options of the hidden `wrenn template receive`.
#[derive(Debug, clap::Args)]
pub(super) struct Receive {
    /// The archive, which is removed.
    archive: PathBuf,
}

/// Builds a template on this host and sends it into the machine, which is started if need be.
pub(super) async fn build(args: Build) -> anyhow::Result<ExitCode> {
    let running = machine::start(
        &Machine::of_user(&MachineName::default())?,
        &MachineConfig::default(),
    )
    .await?;
    let client = running.client()?;
    let kernels = kernel_descriptions(&client).await?;
    let json = args.json;
    let (build_root, imported) = tokio::task::spawn_blocking(move || {
        let root = BuildRoot::lock(&Cache::of_user()?)?;
        transfer::unpack(&kernels[..], &root.path)?;
        let imported = build_in(&root.path, args)?;
        anyhow::Ok((root, imported))
    })
    .await
    .context("a worker thread died")??;
    let name = &imported.description.name;
    send(&client, &build_root.path, name)
        .await
        .with_context(|| format!("cannot bring the template {name} into the machine"))?;
    print_built(&imported, json)?;
    Ok(ExitCode::SUCCESS)
}

/// Deletes a template in the machine.
pub(super) async fn delete(args: Delete) -> anyhow::Result<ExitCode> {
    let mut words = ["template", "delete", "--root", ROOT]
        .map(str::to_owned)
        .to_vec();
    words.extend(args.json.then(|| "--json".to_owned()));
    words.extend(["--".to_owned(), args.name]);
    run_this_program_inside(words).await
}

/// Puts a template that was sent into `root`.
pub(super) fn receive(root: &Path, args: &Receive) -> anyhow::Result<()> {
    let archive = File::open(&args.archive)
        .with_context(|| format!("cannot open {}", args.archive.display()))?;
    // It goes even if this program is killed while it unpacks.
    fs::remove_file(&args.archive)
        .with_context(|| format!("cannot remove {}", args.archive.display()))?;
    Ok(transfer::unpack(archive, root)?)
}

/// A tar archive of the descriptions of the machine's kernels, one of which boots the template.
async fn kernel_descriptions(client: &MachineClient) -> anyhow::Result<Vec<u8>> {
    let command = Command::new("sh")
        .args(["-c", KERNEL_DESCRIPTIONS])
        .cwd(ROOT)
        .user("root");
    let listed = client.guest().output(&command).await;
    let listed = listed.context("cannot list the kernels in the machine")?;
    if listed.status.shell_code() != 0 {
        bail!(
            "cannot list the kernels in the machine: {}",
            String::from_utf8_lossy(&listed.stderr).trim()
        );
    }
    Ok(listed.stdout)
}

async fn send(client: &MachineClient, root: &Path, name: &str) -> anyhow::Result<()> {
    let wrenn = bring_this_program(client).await?;
    let archive = format!("{ROOT}/{}/{name}.tar", transfer::RECEIVED);
    let (writer, reader) = tokio::io::duplex(PIPE_BYTES);
    let bar = SendBar::new(name);
    let packing = {
        let (root, name) = (root.to_path_buf(), name.to_owned());
        let writer = bar.counting(SyncIoBridge::new(writer));
        tokio::task::spawn_blocking(move || transfer::pack(&root, &name, writer))
    };
    let sent = client.guest().upload(&archive, Some("root"), reader).await;
    // A connection that broke is why the packing failed, and not the other way round; a template
    // that could not be read would leave an archive that is cut off.
    sent?;
    packing.await.context("a worker thread died")??;
    bar.finish();
    let command = Command::new(wrenn)
        .args(["template", "receive", "--root", ROOT, &archive])
        .user("root");
    let received = client.guest().output(&command).await?;
    if received.status.shell_code() != 0 {
        bail!("{}", String::from_utf8_lossy(&received.stderr).trim());
    }
    Ok(())
}

/// The root directory in the user's cache where templates for the machine are built, one at a
/// time. What is built there goes with this value, or with the next one.
#[derive(Debug)]
struct BuildRoot {
    path: PathBuf,
    _lock: File,
}

impl BuildRoot {
    fn lock(cache: &Cache) -> anyhow::Result<Self> {
        let path = cache.dir().join("template-build");
        let lock_path = path.join("lock");
        let lock = fs::create_dir_all(&path)
            .and_then(|()| File::create(&lock_path))
            .and_then(|file| file.lock().map(|()| file))
            .with_context(|| format!("cannot lock {}", lock_path.display()))?;
        let root = Self { path, _lock: lock };
        root.clear()
            .with_context(|| format!("cannot clear {}", root.path.display()))?;
        Ok(root)
    }

    fn clear(&self) -> std::io::Result<()> {
        for directory in ["kernels", "templates"] {
            match fs::remove_dir_all(self.path.join(directory)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for BuildRoot {
    fn drop(&mut self) {
        // The next build clears it otherwise.
        self.clear().ok();
    }
}
