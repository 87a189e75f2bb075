//! `wrenn template` in a root directory of this host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use serde_json::json;
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::SandboxImages;
use wrenn_core::template::{self, DeleteTemplateError, ListedTemplate};
use wrenn_images::import::{self, ImportError, ImportOptions, Imported};

use super::machine;
use crate::GlobalArgs;
use crate::commands::UsageError;
use crate::commands::machine::host_can_run_sandboxes;
use crate::commands::run::parse_variable;
use crate::progress::ImportBar;
use crate::{escape, output};

/// Options of `wrenn template build`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
What PATH holds is told by its contents:
  the tar archive of a root file system, plain or packed with gzip or zstd
  an ext4 image
  an OCI image layout, as a directory or an archive
  what docker save writes, packed or not

Examples:
  docker save python:3.13 -o python.tar && wrenn template build python --from python.tar
  wrenn template build alpine --from alpine-minirootfs.tar.gz --size-mib 512
  wrenn template build web --from layout/ --start 'nginx -g \"daemon off;\"' --env MODE=test

A name that is there already gets the new contents; sandboxes that were made before keep the
old ones. Where sandboxes run in the machine, the template is sent there, unless --root is given.")]
pub(super) struct Build {
    /// The name that the template gets.
    name: String,
    /// What it is made from.
    #[arg(long, value_name = "PATH")]
    from: PathBuf,
    /// Kernel that boots it; Debian's that was installed last unless set.
    #[arg(long, value_name = "ID")]
    kernel: Option<String>,
    /// Size of the disk in MiB; as much as is in it and 1024 more unless set.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=16 << 20))]
    size_mib: Option<u64>,
    /// Who runs commands; whom the image names unless set, else user.
    #[arg(long, value_name = "USER")]
    default_user: Option<String>,
    /// Variable of every command's environment; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Command that each new sandbox runs in the background; what the image names unless
    /// set.
    #[arg(long, value_name = "COMMAND")]
    start: Option<String>,
    /// The guest daemon; the wrenn-envd beside this program unless set.
    #[arg(long, value_name = "PATH")]
    envd: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Options of `wrenn template delete`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn template delete python

A template that sandboxes were made from stays, and they are named.")]
pub(super) struct Delete {
    /// The template.
    pub(super) name: String,
    /// Print JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// Makes a template, where the sandboxes of this host run.
pub(super) async fn build(global: &GlobalArgs, args: Build) -> anyhow::Result<ExitCode> {
    if sandboxes_run_in_machine(global).await {
        return machine::build(args).await;
    }
    blocking(global, move |root| {
        let (name, json) = (args.name.clone(), args.json);
        let imported = build_in(root.path(), args)?;
        warn_unless_pruned(template::prune(root, &name, &SandboxImages::of(root)));
        print_built(&imported, json)?;
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Whether the machine is meant: no directory is named, and no sandbox runs on this host itself.
/// If that cannot be found out, the directory is.
async fn sandboxes_run_in_machine(global: &GlobalArgs) -> bool {
    !global.root_is_given && !host_can_run_sandboxes(global).await.unwrap_or(true)
}

/// Lists the templates of the root directory.
pub(super) async fn list(global: &GlobalArgs, json: bool) -> anyhow::Result<ExitCode> {
    blocking(global, move |root| list_in(root, json)).await
}

/// Deletes a template of the root directory, which lies where the sandboxes of this host run.
pub(super) async fn delete(global: &GlobalArgs, args: Delete) -> anyhow::Result<ExitCode> {
    if sandboxes_run_in_machine(global).await {
        return machine::delete(args).await;
    }
    blocking(global, move |root| delete_in(root, &args.name, args.json)).await
}

/// Puts a template that was sent here into the root directory.
pub(super) async fn receive(
    global: &GlobalArgs,
    args: machine::Receive,
) -> anyhow::Result<ExitCode> {
    blocking(global, move |root| {
        machine::receive(root.path(), &args)?;
        warn_unless_pruned(template::prune_all(root, &SandboxImages::of(root)));
        Ok(ExitCode::SUCCESS)
    })
    .await
}

/// Tells that older images were not removed. The template is there and good, and the next one
/// takes them along.
fn warn_unless_pruned<T>(pruned: Result<T, DeleteTemplateError>) {
    if let Err(error) = pruned {
        tracing::warn!(
            error = format!("{:#}", anyhow::Error::new(error)),
            "failed to remove older images"
        );
    }
}

/// All of it works on files and blocks its thread.
async fn blocking(
    global: &GlobalArgs,
    work: impl FnOnce(&RootDirectory) -> anyhow::Result<ExitCode> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    let root = RootDirectory::new(&global.root);
    tokio::task::spawn_blocking(move || work(&root))
        .await
        .context("a worker thread died")?
}

/// Makes a template in the root directory `root`, and says what was left out of it.
pub(super) fn build_in(root: &Path, args: Build) -> anyhow::Result<Imported> {
    let name = args.name.clone();
    let options = options(args)?;
    let bar = Arc::new(ImportBar::new(&name));
    let imported = import::import(root, &options, &|update| bar.show(update));
    bar.finish();
    let imported = imported.map_err(|error| match error {
        ImportError::Name(_) => UsageError(error.to_string()).into(),
        error => anyhow::Error::new(error).context(format!("cannot build the template {name}")),
    })?;
    for remark in &imported.remarks {
        drop_eprintln!("wrenn: {remark}");
    }
    Ok(imported)
}

fn options(args: Build) -> anyhow::Result<ImportOptions> {
    let envd = match args.envd {
        Some(path) => path,
        None => daemon_beside_this_program()?,
    };
    Ok(ImportOptions {
        kernel: args.kernel,
        size_mib: args.size_mib,
        default_user: args.default_user,
        env: args.env.into_iter().collect::<BTreeMap<_, _>>(),
        start_command: args.start,
        ..ImportOptions::new(args.name, args.from, envd)
    })
}

fn daemon_beside_this_program() -> anyhow::Result<PathBuf> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let envd = this.with_file_name("wrenn-envd");
    if envd.is_file() {
        Ok(envd)
    } else {
        Err(anyhow!(
            "there is no {}; install it there, or name it with --envd",
            envd.display()
        ))
    }
}

#[allow(clippy::print_stdout, reason = "the data that was asked for")]
pub(super) fn print_built(imported: &Imported, json: bool) -> anyhow::Result<()> {
    let description = &imported.description;
    if json {
        println!("{}", serde_json::to_string_pretty(description)?);
        return Ok(());
    }
    drop_eprintln!(
        "template {} ({}): {} MiB, kernel {}, commands run as {}",
        description.name,
        imported.kind.words(),
        description.size_mib,
        description.kernel,
        description.default_user
    );
    Ok(())
}

fn list_in(root: &RootDirectory, json: bool) -> anyhow::Result<ExitCode> {
    let templates = template::list(root)?;
    let users = SandboxImages::of(root);
    if json {
        let templates = templates
            .iter()
            .map(|template| in_json(template, &users))
            .collect::<anyhow::Result<Vec<_>>>()?;
        output::json(&templates)?;
        return Ok(ExitCode::SUCCESS);
    }
    let head = ["NAME", "SIZE", "ON DISK", "KERNEL", "USER", "IMAGE"];
    let rows = templates.iter().map(|template| {
        let on_disk = format!("{} MiB", template.disk_bytes.div_ceil(1 << 20));
        match &template.manifest {
            Ok(manifest) => [
                template.name.clone(),
                format!("{} MiB", manifest.size_mib),
                on_disk,
                manifest.kernel.clone(),
                manifest.default_user.clone(),
                format!("{:.12}", manifest.rootfs_sha256),
            ],
            Err(_) => {
                let unknown = "-".to_owned();
                let [size, kernel, user, image] = std::array::from_fn(|_| unknown.clone());
                [template.name.clone(), size, on_disk, kernel, user, image]
            }
        }
    });
    output::print(&output::table(head, &[1, 2], rows))?;
    for template in &templates {
        if let Err(error) = &template.manifest {
            drop_eprintln!(
                "wrenn: the template {} is damaged: {}",
                escape::line(&template.name),
                escape::line(&error.to_string())
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn in_json(template: &ListedTemplate, users: &SandboxImages) -> anyhow::Result<serde_json::Value> {
    use template::ImageUsers as _;
    let mut value = match &template.manifest {
        Ok(manifest) => {
            let mut value = serde_json::to_value(manifest)?;
            value["used_by"] = json!(users.users_of(&manifest.rootfs_sha256)?);
            value
        }
        Err(error) => json!({ "error": error.to_string() }),
    };
    value["name"] = json!(template.name);
    value["disk_bytes"] = json!(template.disk_bytes);
    Ok(value)
}

#[allow(clippy::print_stdout, reason = "the data that was asked for")]
fn delete_in(root: &RootDirectory, name: &str, json: bool) -> anyhow::Result<ExitCode> {
    template::delete(root, name, &SandboxImages::of(root)).map_err(|error| match error {
        DeleteTemplateError::Name(_) => anyhow::Error::new(UsageError(error.to_string())),
        error => error.into(),
    })?;
    if json {
        println!("{}", json!({ "deleted": name }));
    }
    Ok(ExitCode::SUCCESS)
}
