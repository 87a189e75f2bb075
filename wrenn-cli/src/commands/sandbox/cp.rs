//! `wrenn sandbox cp`.
//!
//! As `cp -r` does it: what is copied onto a directory goes into it, under its own name.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use wrenn_sdk::api::file::FileKind;
use wrenn_sdk::{Client, Error, Files, Skipped};

use super::transfer_bar::TransferBar;
use crate::commands::UsageError;
use crate::{completion, escape};

/// Options of `wrenn sandbox cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn sandbox cp ./data.csv web:/tmp/
  wrenn sandbox cp ./src web:app
  wrenn sandbox cp web:/var/log ./logs
  wrenn sandbox cp web:/etc/os-release -
  pg_dump shop | wrenn sandbox cp - web:shop.sql

A path in the sandbox that is not absolute begins in the user's home. Files keep their modes,
and directories are copied whole: onto a directory that is there, they go into it. Write ./a:b
for a local name with a colon. Symbolic links of a directory are kept, and nothing is written
through one; those of a sandbox lead where it wants, so --safe-links leaves out what leads out
of the directory. Where something is left out, as devices are, the exit code is 1.")]
pub(super) struct Args {
    /// User of the guest whose files they are.
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
    /// Leave out symbolic links of a sandbox that lead out of the directory that is copied.
    #[arg(long)]
    safe_links: bool,
    /// Show no progress.
    #[arg(long, short)]
    quiet: bool,
    /// A local path, `-` for standard input, or SANDBOX:PATH.
    #[arg(add = completion::copy_ends())]
    from: String,
    /// A local path, `-` for standard output, or SANDBOX:PATH.
    #[arg(add = completion::copy_ends())]
    to: String,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Local(PathBuf),
    Streams,
    Sandbox { id: String, path: String },
}

fn end(text: &str) -> End {
    match text.split_once(':') {
        Some((id, path)) if is_name(id) => End::Sandbox {
            id: id.to_owned(),
            path: path.to_owned(),
        },
        _ if text == "-" => End::Streams,
        _ => End::Local(text.into()),
    }
}

/// Whether it is an id, or has the form of a name.
fn is_name(text: &str) -> bool {
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(letters)
}

/// A copy, with what it is shown by.
struct Copying {
    files: Files,
    bar: TransferBar,
    safe_links: bool,
}

pub(super) async fn run(client: &Client, args: Args) -> anyhow::Result<ExitCode> {
    let ends = (end(&args.from), end(&args.to));
    let (id, other) = match &ends {
        (End::Sandbox { .. }, End::Sandbox { .. }) => {
            let hint = "one of the two must be here; copy in two steps, or with `-` and a pipe";
            return Err(UsageError(hint.to_owned()).into());
        }
        (End::Sandbox { id, .. }, _) => (id.clone(), &args.from),
        (_, End::Sandbox { id, .. }) => (id.clone(), &args.from),
        _ => {
            let hint = "one of the two must be SANDBOX:PATH, a path in a sandbox";
            return Err(UsageError(hint.to_owned()).into());
        }
    };
    let sandbox = client.sandboxes().get(&id).await?;
    let copying = Copying {
        files: sandbox.files().user(args.user),
        bar: TransferBar::new(other, args.quiet),
        safe_links: args.safe_links,
    };
    let copy = async {
        match ends {
            (End::Sandbox { path, .. }, End::Streams) => copying.download_stdout(&path).await,
            (End::Sandbox { path, .. }, End::Local(local)) => copying.down(&path, local).await,
            (End::Streams, End::Sandbox { path, .. }) => copying.upload_stdin(&path).await,
            (End::Local(local), End::Sandbox { path, .. }) => copying.up(&local, &path).await,
            _ => Ok(Copied::default()),
        }
    };
    let copied = tokio::select! {
        copied = copy => copied,
        // Dropping the copy removes what it has begun to write.
        signal = tokio::signal::ctrl_c() => {
            signal?;
            copying.bar.finish();
            drop_eprintln!("wrenn: interrupted; the file that was being copied is as it was before");
            return Ok(ExitCode::from(130));
        }
    };
    copying.bar.finish();
    let copied = copied.map_err(|error| in_sandbox(error, &id))?;
    for entry in &copied.skipped {
        drop_eprintln!(
            "wrenn: left out {}: {}",
            escape::line(&entry.name),
            entry.reason
        );
    }
    if let Some(first) = copied.outward_links.first() {
        drop_eprintln!(
            "wrenn: symbolic links that lead out of the directory: {}, the first is {}; \
             --safe-links leaves them out",
            copied.outward_links.len(),
            escape::line(first)
        );
    }
    Ok(if copied.skipped.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The result of a copy.
#[derive(Debug, Default)]
struct Copied {
    skipped: Vec<Skipped>,
    /// Names of links that were made and lead out of the directory.
    outward_links: Vec<String>,
}

/// Says whose disk, files or rights an error of the server is about: those of this host could be
/// meant as well.
fn in_sandbox(error: anyhow::Error, id: &str) -> anyhow::Error {
    match error.downcast_ref() {
        Some(Error::Api { message, .. }) if !message.contains("sandbox") => {
            error.context(format!("sandbox {id}"))
        }
        _ => error,
    }
}

impl Copying {
    async fn download_stdout(&self, path: &str) -> anyhow::Result<Copied> {
        let mut stdout = tokio::io::stdout();
        match self.files.read_to(path, &mut stdout).await {
            // The reader has read enough, as `head` does.
            Err(Error::Stream { source, .. })
                if source.kind() == std::io::ErrorKind::BrokenPipe =>
            {
                Ok(Copied::default())
            }
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Copied::default()),
        }
    }

    async fn upload_stdin(&self, path: &str) -> anyhow::Result<Copied> {
        if path.is_empty() || path.ends_with('/') {
            let hint = "standard input has no name: give the file's path in the sandbox";
            return Err(UsageError(hint.to_owned()).into());
        }
        let upload = self.files.write_from(path, tokio::io::stdin());
        upload.on_progress(self.bar.observer()).await?;
        Ok(Copied::default())
    }

    async fn up(&self, local: &Path, path: &str) -> anyhow::Result<Copied> {
        let metadata = tokio::fs::metadata(local).await;
        let metadata = metadata.map_err(|source| Error::Io {
            operation: "read",
            path: local.to_owned(),
            source,
        })?;
        let target = self.target_inside(local, path).await?;
        if metadata.is_dir() {
            let upload = self.files.upload_dir(local, target);
            let uploaded = upload.on_progress(self.bar.observer()).await?;
            return Ok(Copied {
                skipped: uploaded.skipped,
                ..Copied::default()
            });
        }
        let upload = self.files.upload(local, target);
        upload.on_progress(self.bar.observer()).await?;
        Ok(Copied::default())
    }

    /// Where in the sandbox a local file or directory goes.
    async fn target_inside(&self, local: &Path, path: &str) -> anyhow::Result<String> {
        let into = path.is_empty() || path.ends_with('/') || self.is_directory(path).await?;
        if !into {
            return Ok(path.to_owned());
        }
        Ok(match own_name(local) {
            Some(name) if path.is_empty() || path.ends_with('/') => format!("{path}{name}"),
            Some(name) => format!("{path}/{name}"),
            // As `cp -r . there`: what is in it.
            None if path.is_empty() => ".".to_owned(),
            None => path.to_owned(),
        })
    }

    async fn down(&self, path: &str, local: PathBuf) -> anyhow::Result<Copied> {
        let entry = self.files.stat(path).await?;
        let directory = match entry.kind {
            FileKind::Directory => true,
            FileKind::Symlink => self
                .is_directory(&format!("{path}/."))
                .await
                .unwrap_or(false),
            _ => false,
        };
        let mut target = local;
        if target.is_dir() {
            // A name that the sandbox says is not taken for a path.
            target.extend(own_name(Path::new(path)));
        }
        if directory {
            let mut download = self.files.download_dir(path, &target);
            if self.safe_links {
                download = download.without_outward_links();
            }
            let downloaded = download.on_progress(self.bar.observer()).await;
            return match downloaded {
                Ok(downloaded) => Ok(Copied {
                    skipped: downloaded.skipped,
                    outward_links: downloaded.outward_links,
                }),
                // It names an entry, by its path in the directory.
                Err(error @ Error::Archive(_)) => Err(anyhow::Error::new(error)
                    .context(format!("cannot copy into {}", target.display()))),
                Err(error) => Err(error.into()),
            };
        }
        let download = self.files.download(path, target);
        download.on_progress(self.bar.observer()).await?;
        Ok(Copied::default())
    }

    async fn is_directory(&self, path: &str) -> anyhow::Result<bool> {
        match self.files.stat(path).await {
            Ok(entry) => Ok(entry.kind == FileKind::Directory),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// The last name of a path; none for `.`, `..` and `/`, whose contents are meant.
fn own_name(path: &Path) -> Option<String> {
    if path.as_os_str().to_string_lossy().ends_with("/.") {
        return None;
    }
    let name = path.file_name()?;
    Some(name.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_by_names_before_colons() {
        let inside = |id: &str, path: &str| End::Sandbox {
            id: id.to_owned(),
            path: path.to_owned(),
        };
        assert_eq!(end("web:/tmp/a:b"), inside("web", "/tmp/a:b"));
        assert_eq!(end("web:"), inside("web", ""));
        assert_eq!(end("-"), End::Streams);
        for local in ["C:/tmp", "./web:/tmp", "/a:b", "file", ":x"] {
            assert_eq!(end(local), End::Local(local.into()));
        }
    }

    #[test]
    fn contents_are_meant_by_dot() {
        let name = |path: &str| own_name(Path::new(path));
        assert_eq!(name("a/b/"), Some("b".to_owned()));
        for path in [".", "..", "/", "a/.", "a/.."] {
            assert_eq!(name(path), None, "{path}");
        }
    }
}
