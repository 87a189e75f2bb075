//! Work inside a running machine: commands with their streams, and files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use wrenn_core::guest::{Command, ExitStatus, GuestClient, GuestError, GuestProcess, ProcessEvent};
use wrenn_images::recipe::sha256_of_file;

/// Who everything in the machine is done as.
pub(crate) const USER: &str = "root";
/// Remembers the hash of each pushed file until the machine ends, as the files do.
const PUSHED: &str = "/run/wrenn/pushed";
const CHUNK: usize = 32 * 1024;

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

    /// Runs a command as root, with its streams connected, to its end.
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
        let mut process = self.start(command.with_stdin()).await?;
        let input = process.input();
        let feeding = tokio::spawn(feed(stdin, input));
        let status = loop {
            match process.next().await? {
                ProcessEvent::Stdout(bytes) | ProcessEvent::Pty(bytes) => {
                    write(&mut stdout, &bytes).await?;
                }
                ProcessEvent::Stderr(bytes) => write(&mut stderr, &bytes).await?,
                ProcessEvent::Exit(status) => break status,
            }
        };
        // A read of a terminal would go on for ever.
        feeding.abort();
        Ok(status)
    }

    /// Copies the file `local` to `remote` in the machine, with the permissions `mode`. One
    /// that is there with the same contents is not sent again. Returns whether it was sent.
    ///
    /// # Errors
    /// The file cannot be read, sent or put in place. The old one is then still there.
    pub async fn push(&self, local: &Path, remote: &str, mode: u32) -> Result<bool, WorkError> {
        let unreadable = |source| WorkError::ReadLocal {
            path: local.to_path_buf(),
            source,
        };
        let path = local.to_path_buf();
        let hash = tokio::task::spawn_blocking(move || sha256_of_file(&path))
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(unreadable)?;
        let mark = format!("{PUSHED}/{}", remote.replace('/', "%"));
        let stamp = format!("{hash} {mode:o}");
        let known = self.guest.read_file(&mark).await.ok();
        if known.is_some_and(|known| known.trim_ascii() == stamp.as_bytes()) {
            return Ok(false);
        }
        let file = File::open(local).map_err(unreadable)?;
        let aside = format!("{remote}.new");
        let source = tokio::fs::File::from_std(file);
        self.guest.upload(&aside, Some(USER), source).await?;
        // A running program cannot be written to, but another can take its name. The mark
        // goes first and comes last, so that it never speaks of a file that is not there.
        let script = r#"rm -f "$4" && chmod "$3" "$1" && mv "$1" "$2" && mkdir -p "${4%/*}" && echo "$5" > "$4""#;
        let mode = format!("{mode:o}");
        let command =
            Command::new("sh").args(["-c", script, "sh", &aside, remote, &mode, &mark, &stamp]);
        let placed = self.guest.output(&command.user(USER)).await?;
        if placed.status.shell_code() == 0 {
            return Ok(true);
        }
        let reason = String::from_utf8_lossy(&placed.stderr).trim().to_owned();
        Err(WorkError::Place {
            remote: remote.to_owned(),
            reason,
        })
    }
}

async fn write(out: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<(), WorkError> {
    let written = match out.write_all(bytes).await {
        Ok(()) => out.flush().await,
        failed => failed,
    };
    written.map_err(WorkError::WriteOutput)
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
