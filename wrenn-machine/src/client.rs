//! Work inside a running machine: commands with their streams, and files.

use std::convert::Infallible;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wrenn_core::guest::{Command, ExitStatus, GuestClient, GuestError, GuestProcess, ProcessEvent};
use wrenn_images::recipe::sha256_of_file;
use wrenn_images::strip;

/// Who everything in the machine is done as.
pub(crate) const USER: &str = "root";
/// Remembers the hash of each pushed file until the machine ends, as the files do.
const PUSHED: &str = "/run/wrenn/pushed";
const CHUNK: usize = 32 * 1024;
/// Writes its input to the file `$1` with the mode `$2`. The length `$3` tells an input that
/// was cut off.
const WRITE: &str = r#"
new=$1.new.$$
mkdir -p "${1%/*}" || exit 1
umask 077
cat >"$new" && [ "$(wc -c <"$new")" -eq "$3" ] && chmod "$2" "$new" && mv "$new" "$1" || {
    rm -f "$new"
    echo "not written" >&2
    exit 1
}
"#;
/// How often a machine hears from whoever waits for it, see [`keep_awake`].
const WAKE_INTERVAL: Duration = Duration::from_secs(5);

/// Work in the machine failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    #[error("cannot read {}", path.display())]
    ReadLocal {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write the command's output")]
    WriteOutput(#[source] io::Error),
    #[error("the machine's daemon failed")]
    Guest(#[from] GuestError),
    #[error("cannot put {remote} in place in the machine: {reason}")]
    Place { remote: String, reason: String },
    #[error("cannot start {name} in the machine: {reason}")]
    StartDetached { name: String, reason: String },
    #[error("{name} runs on in the machine although it was killed")]
    StopDetached { name: String },
}

/// A client of a running machine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MachineClient {
    guest: GuestClient,
}

impl MachineClient {
    pub(crate) fn new(guest: GuestClient) -> Self {
        Self { guest }
    }

    /// The daemon's own client, for all that is not here.
    #[must_use]
    pub fn guest(&self) -> &GuestClient {
        &self.guest
    }

    /// Starts a command as root.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn start(&self, command: Command) -> Result<GuestProcess, GuestError> {
        self.guest.start(&command.user(USER)).await
    }

    /// Runs a command as root, with its streams connected, to its end. It is terminated when this
    /// program is gone.
    ///
    /// # Errors
    /// It cannot be started, the connection breaks, or an output cannot be written. What the
    /// input says when it cannot be read is that it ended.
    pub async fn exec(
        &self,
        command: Command,
        stdin: impl AsyncRead + Send + Unpin + 'static,
        mut stdout: impl AsyncWrite + Unpin,
        mut stderr: impl AsyncWrite + Unpin,
    ) -> Result<ExitStatus, WorkError> {
        let mut process = self
            .start(command.with_stdin().terminate_on_disconnect())
            .await?;
        let input = process.input();
        let feeding = tokio::spawn(feed(stdin, input));
        let following = async {
            loop {
                match process.next().await? {
                    ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => {
                        write(&mut stdout, &bytes).await?;
                    }
                    ProcessEvent::Stderr(bytes) => write(&mut stderr, &bytes).await?,
                    ProcessEvent::Exit(status) => return Ok(status),
                }
            }
        };
        let status = tokio::select! {
            status = following => status,
            never = keep_awake(&self.guest) => match never {},
        };
        // A read of a terminal would go on for ever.
        feeding.abort();
        status
    }

    /// Copies the file `local` to `remote` in the machine, with the permissions `mode`. One
    /// that is there with the same contents is not sent again. Returns whether it was sent.
    ///
    /// # Errors
    /// The file cannot be read, sent or put in place. The old one is then still there.
    pub async fn push(&self, local: &Path, remote: &str, mode: u32) -> Result<bool, WorkError> {
        let placement = Placement::of(local, remote, mode).await?;
        if self.holds(&placement).await {
            return Ok(false);
        }
        let file = File::open(local).map_err(unreadable(local))?;
        self.place(&placement, tokio::fs::File::from_std(file))
            .await?;
        Ok(true)
    }

    /// As [`Self::push`], for one of our programs, which is sent without its symbols.
    ///
    /// # Errors
    /// As for [`Self::push`].
    pub async fn push_program(
        &self,
        local: &Path,
        remote: &str,
        mode: u32,
    ) -> Result<bool, WorkError> {
        let placement = Placement::of(local, remote, mode).await?;
        if self.holds(&placement).await {
            return Ok(false);
        }
        let program = strip::program(local).map_err(unreadable(local))?;
        self.place(&placement, io::Cursor::new(program)).await?;
        Ok(true)
    }

    /// Writes the file `remote` in the machine, and the directories above it, with the
    /// permissions `mode`, which nobody ever sees it without. It is there whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written. The old one is then still there.
    pub async fn write_file(
        &self,
        remote: &str,
        contents: impl Into<Bytes>,
        mode: u32,
    ) -> Result<(), WorkError> {
        let contents = contents.into();
        let (length, mode) = (contents.len().to_string(), format!("{mode:o}"));
        let command = Command::new("sh").args(["-c", WRITE, "sh", remote, &mode, &length]);
        let mut reason = Vec::new();
        let status = self
            .exec(
                command,
                io::Cursor::new(contents),
                tokio::io::sink(),
                &mut reason,
            )
            .await?;
        if status.shell_code() == 0 {
            return Ok(());
        }
        Err(WorkError::Place {
            remote: remote.to_owned(),
            reason: String::from_utf8_lossy(&reason).trim().to_owned(),
        })
    }

    async fn holds(&self, placement: &Placement) -> bool {
        let known = self.guest.read_file(&placement.mark).await;
        known.is_ok_and(|known| known.trim_ascii() == placement.stamp.as_bytes())
    }

    async fn place(
        &self,
        placement: &Placement,
        source: impl AsyncRead + Send + 'static,
    ) -> Result<(), WorkError> {
        let Placement {
            remote,
            mode,
            mark,
            stamp,
        } = placement;
        let aside = format!("{remote}.new");
        self.guest.upload(&aside, Some(USER), source).await?;
        // A running program cannot be written to, but another can take its name. The mark
        // goes first and comes last, so that it never speaks of a file that is not there.
        let script = r#"rm -f "$4" && chmod "$3" "$1" && mv "$1" "$2" &&
            mkdir -p "${4%/*}" && echo "$5" > "$4""#;
        let command =
            Command::new("sh").args(["-c", script, "sh", &aside, remote, mode, mark, stamp]);
        let placed = self.guest.output(&command.user(USER)).await?;
        if placed.status.shell_code() == 0 {
            return Ok(());
        }
        let reason = String::from_utf8_lossy(&placed.stderr).trim().to_owned();
        Err(WorkError::Place {
            remote: remote.clone(),
            reason,
        })
    }
}

/// Where a pushed file goes, and how it is known that it is there.
struct Placement {
    remote: String,
    mode: String,
    mark: String,
    stamp: String,
}

impl Placement {
    async fn of(local: &Path, remote: &str, mode: u32) -> Result<Self, WorkError> {
        let path = local.to_path_buf();
        let hash = tokio::task::spawn_blocking(move || sha256_of_file(&path))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(unreadable(local))?;
        Ok(Self {
            remote: remote.to_owned(),
            mode: format!("{mode:o}"),
            mark: format!("{PUSHED}/{}", remote.replace('/', "%")),
            stamp: format!("{hash} {mode:o}"),
        })
    }
}

fn unreadable(path: &Path) -> impl Fn(io::Error) -> WorkError {
    move |source| WorkError::ReadLocal {
        path: path.to_path_buf(),
        source,
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), WorkError> {
    let written = match out.write_all(bytes).await {
        Ok(()) => out.flush().await,
        failed => failed,
    };
    written.map_err(WorkError::WriteOutput)
}

/// Asks for the machine's health from time to time. An emulated processor now and then misses
/// its timer and sleeps until an interrupt comes from a device. `wrenn-machine-init` sees to it
/// that the clock sends one each second; this is the net under it.
async fn keep_awake(guest: &GuestClient) -> Infallible {
    loop {
        tokio::time::sleep(WAKE_INTERVAL).await;
        if let Err(error) = guest.wait_healthy(WAKE_INTERVAL).await {
            tracing::debug!(%error, "the machine is slow to answer");
        }
    }
}

/// Passes `source` on until it ends or the command does not want more.
async fn feed(
    mut source: impl AsyncRead + Unpin,
    mut input: wrenn_core::guest::ProcessInput,
) -> Result<(), GuestError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) | Err(_) => return input.close().await,
            Ok(length) => {
                input
                    .write(Bytes::copy_from_slice(&buffer[..length]))
                    .await?
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Stdio;

    use super::*;

    /// Runs [`WRITE`] here, as the daemon does in the machine.
    fn write_here(path: &Path, mode: &str, length: usize, contents: &[u8]) -> bool {
        let mut child = std::process::Command::new("sh")
            .args(["-c", WRITE, "sh"])
            .arg(path)
            .args([mode, &length.to_string()])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(contents).unwrap();
        child.wait().unwrap().success()
    }

    #[test]
    fn written_file_has_contents_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/token");
        assert!(write_here(&path, "600", 6, b"secret"));
        assert_eq!(fs::read(&path).unwrap(), b"secret");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert!(write_here(&path, "755", 0, b""), "empty");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }

    #[test]
    fn truncated_input_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "old").unwrap();
        assert!(!write_here(&path, "600", 6, b"sec"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
