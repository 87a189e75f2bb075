//! `wrenn snapshot inspect`: the builds that snapshots are made of.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, ensure};
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::NamedSnapshot;
use wrenn_core::snapshot::{BuildId, Inspection, VerifyBuildError};
use wrenn_sdk::Client;

use crate::GlobalArgs;
use crate::commands::machine;
use crate::completion;
use crate::size::show;

/// Options of `wrenn snapshot inspect`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn snapshot inspect warmed-up
  wrenn snapshot inspect bd0123456789abcdefghij
  wrenn snapshot inspect /var/lib/wrenn/snapshots/builds/bd0123456789abcdefghij --verify
  wrenn snapshot inspect bd0123456789abcdefghij --json | jq '.chain[].allocated_bytes'

Where sandboxes run in the machine, builds are looked for there, unless --root is given.")]
pub(super) struct Args {
    /// A build's directory; or the id of a build, or the name of a snapshot.
    #[arg(value_name = "PATH|ID|NAME", add = completion::snapshots_or_paths())]
    build: PathBuf,
    /// Read all that it needs, and compare every checksum.
    #[arg(long)]
    verify: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the sub-command.
///
/// # Errors
/// When the build cannot be read, or does not verify.
pub(super) async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    let root = RootDirectory::new(&global.root);
    let mut args = args;
    if !global.root_is_given && !is_there(&root, &args.build)? {
        if let Some(id) = id_at_server(&args.build).await {
            args.build = PathBuf::from(id);
        }
        if !is_there(&root, &args.build)?
            && !machine::host_can_run_sandboxes(global)
                .await
                .unwrap_or(true)
        {
            return machine::run_this_program_inside(args.words(&root)).await;
        }
    }
    tokio::task::spawn_blocking(move || inspect(&root, &args)).await?
}

impl Args {
    /// The same command for another host with this root directory.
    fn words(&self, root: &RootDirectory) -> Vec<String> {
        let mut words = ["snapshot", "inspect", "--root"]
            .map(str::to_owned)
            .to_vec();
        words.push(root.path().display().to_string());
        words.extend(self.verify.then(|| "--verify".to_owned()));
        words.extend(self.json.then(|| "--json".to_owned()));
        words.push("--".to_owned());
        words.push(self.build.display().to_string());
        words
    }
}

fn is_there(root: &RootDirectory, build: &Path) -> anyhow::Result<bool> {
    Ok(directory_of(root, build)?.is_dir())
}

/// The id by which hosts know the snapshot that has this name at the server, if there is one.
async fn id_at_server(name: &Path) -> Option<String> {
    let client = Client::from_env().ok().filter(Client::has_key)?;
    let snapshot = client.templates().get(name.to_str()?).await.ok()?;
    Some(snapshot.id?.to_string())
}

#[allow(clippy::print_stdout, reason = "the data that was asked for")]
fn inspect(root: &RootDirectory, args: &Args) -> anyhow::Result<ExitCode> {
    let directory = directory_of(root, &args.build)?;
    let build = args.build.display();
    ensure!(
        directory.exists(),
        "there is no build, snapshot or directory '{build}'"
    );
    let inspection = Inspection::of(&directory)
        .with_context(|| format!("cannot inspect {}", args.build.display()))?;
    let verified = args.verify.then(|| inspection.verify());
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&json(&inspection, verified.as_ref())?)?
        );
    } else {
        print!("{}", describe(&inspection));
        if let Some(Ok(())) = &verified {
            println!("verified    everything is as it was written");
        }
    }
    match verified {
        Some(Err(error)) => Err(anyhow!(error).context("the build does not verify")),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Where a build lies that was named by its id, its snapshot, its directory, or a file in it.
fn directory_of(root: &RootDirectory, build: &Path) -> anyhow::Result<PathBuf> {
    let name = build.to_str().filter(|_| !build.exists());
    let id = name.and_then(|text| text.parse::<BuildId>().ok());
    let snapshot = match name {
        Some(name) if id.is_none() => NamedSnapshot::find(root, name)?,
        _ => None,
    };
    let id = id.or_else(|| snapshot.map(|snapshot| snapshot.build().clone()));
    Ok(match id {
        Some(id) => root.builds().join(id.as_str()),
        None => {
            // What lies beside it is found by its parent, so the path must have one.
            let whole = build.canonicalize().unwrap_or_else(|_| build.to_owned());
            match whole.parent() {
                Some(parent) if whole.is_file() => parent.to_owned(),
                _ => whole,
            }
        }
    })
}

fn json(
    inspection: &Inspection,
    verified: Option<&Result<(), VerifyBuildError>>,
) -> anyhow::Result<serde_json::Value> {
    let mut value = serde_json::to_value(inspection)?;
    if let Some(outcome) = verified {
        value["verified"] = outcome.is_ok().into();
    }
    Ok(value)
}

fn describe(inspection: &Inspection) -> String {
    let mut lines = vec![
        format!("build       {}", inspection.id),
        format!("generation  {}", inspection.generation),
    ];
    match &inspection.manifest {
        Some(manifest) => {
            if let Some(parent) = &manifest.parent {
                lines.push(format!("parent      {parent}"));
            }
            if let Some(origin) = &manifest.compacted_from {
                lines.push(format!("compacted   from {origin}"));
            }
            let details = &manifest.details;
            lines.push(format!(
                "VMM         {} {}",
                details.vmm, details.vmm_version
            ));
            lines.push(format!("vCPUs       {}", details.vcpus));
            for (name, value) in &details.labels {
                lines.push(format!("{name:<11} {value}"));
            }
            for (name, file) in &manifest.files {
                lines.push(format!("file        {name}, {}", show(file.length)));
            }
        }
        None => lines.push("manifest    cannot be read".to_owned()),
    }
    lines.push(format!(
        "memory      {} in pages of {}, {} zero ({})",
        show(inspection.memory_bytes),
        show(inspection.page_bytes),
        show(inspection.zero_bytes),
        share(inspection.zero_bytes, inspection.memory_bytes),
    ));
    lines.push(format!(
        "header      {} extents, {}",
        inspection.extents,
        show(inspection.header_bytes)
    ));
    lines.push(format!("VM state    {}", show(inspection.vmstate_bytes)));
    lines.push("memory comes from".to_owned());
    for layer in &inspection.chain {
        let file = if layer.present {
            format!(
                "of {} ({} on disk), checksums {} a {}",
                show(layer.apparent_bytes),
                show(layer.allocated_bytes),
                layer.sums_checksum,
                show(u64::from(layer.chunk_bytes)),
            )
        } else {
            "MISSING".to_owned()
        };
        lines.push(format!(
            "  {}  {:>10} {file}",
            layer.id,
            show(layer.used_bytes)
        ));
    }
    lines.join("\n") + "\n"
}

fn share(part: u64, whole: u64) -> String {
    format!("{} %", u128::from(part) * 100 / u128::from(whole.max(1)))
}

#[cfg(test)]
#[path = "inspect_tests.rs"]
mod tests;
