//! Guests: a real daemon for each running sandbox, with files of its own.
//!
//! ```text
//!  Guest ──owns──▶ wrenn-envd ──starts──▶ commands        stopped and killed together
//!    └──owns──▶ files/                                    copied for forks and snapshots
//! ```

mod client;
mod files;
mod guard;
mod input;
mod launch;
mod program;
mod tree;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use wrenn_proto::http::InitRequest;

pub(crate) use client::{Client, ProcessEvents};
pub(crate) use files::{GuestFiles, Isolation};
pub(crate) use guard::Guard;
pub(crate) use input::Input;
pub(crate) use launch::LaunchError;
pub use program::FindEnvdError;
pub(crate) use program::find as find_program;
pub(crate) use tree::MARKER;

/// What a guest is started with.
#[derive(Debug)]
pub(crate) struct GuestConfig {
    pub(crate) program: PathBuf,
    /// Tells its processes from those of others.
    pub(crate) marker: String,
    pub(crate) files: GuestFiles,
    pub(crate) log: PathBuf,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) token: String,
}

/// A guest whose daemon runs. Dropping it kills all of its processes; its files stay.
#[derive(Debug)]
pub(crate) struct Guest {
    process: GuestProcess,
    files: GuestFiles,
    client: Client,
    /// Stopped while it is paused.
    stopped: Mutex<Vec<i32>>,
}

/// The daemon's process.
#[derive(Debug)]
struct GuestProcess {
    pid: i32,
    /// The marker's variable with its value.
    variable: String,
    /// `None` once it was killed.
    child: Mutex<Option<Child>>,
}

impl GuestProcess {
    fn new(child: Child, variable: String) -> Self {
        Self {
            pid: child.id().cast_signed(),
            variable,
            child: Mutex::new(Some(child)),
        }
    }

    /// Kills it with all that it started. Once it is waited for its pid may be another's.
    fn kill(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut child) = child.take() {
            tree::kill_all(self.pid, &self.variable);
            child.wait().ok();
        }
    }
}

impl Drop for GuestProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Guest {
    /// Starts a guest.
    pub(crate) async fn start(config: GuestConfig) -> Result<Arc<Self>, LaunchError> {
        let GuestConfig {
            program,
            marker,
            files,
            log,
            mut env,
            token,
        } = config;
        let (answer, launched) = tokio::sync::oneshot::channel();
        let launch = {
            let (files, marker) = (files.clone(), marker.clone());
            move || {
                let launched = launch::launch(&program, &files, &marker, &log);
                let launched = launched.map(|launched| {
                    // From here on it is killed, whether or not somebody waits for it.
                    let variable = format!("{MARKER}={marker}");
                    (
                        GuestProcess::new(launched.child, variable),
                        launched.address,
                    )
                });
                drop(answer.send(launched));
            }
        };
        std::thread::Builder::new()
            .name("guest launch".to_owned())
            .spawn(launch)
            .map_err(LaunchError::Enter)?;
        let (process, address) = launched.await.map_err(|_| LaunchError::Silent)??;
        let client = Client::new(address, token.clone(), files.clone());
        env.insert(MARKER.to_owned(), marker);
        let home = match files.isolation() {
            Isolation::Mounts => None,
            Isolation::Home { .. } => Some(files.home().to_string_lossy().into_owned()),
        };
        if let Some(home) = &home {
            env.entry("HOME".to_owned()).or_insert_with(|| home.clone());
        }
        let init = InitRequest {
            env_vars: Some(env),
            access_token: Some(token),
            default_workdir: home,
            ..InitRequest::default()
        };
        client
            .init(&init)
            .await
            .map_err(|error| LaunchError::Init(error.to_string()))?;
        Ok(Arc::new(Self {
            process,
            files,
            client,
            stopped: Mutex::new(Vec::new()),
        }))
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn files(&self) -> &GuestFiles {
        &self.files
    }

    /// The processes that have not ended.
    pub(crate) fn pids(&self) -> Vec<i32> {
        tree::pids(self.process.pid, &self.process.variable)
    }

    /// Kills all processes, also where the guest is still in use.
    pub(crate) fn kill(&self) {
        self.process.kill();
    }

    /// Stops all processes.
    pub(crate) fn stop(&self) {
        let stopped = tree::stop(self.process.pid, &self.process.variable);
        self.stopped().extend(stopped);
    }

    /// Continues what [`Guest::stop`] stopped.
    pub(crate) fn resume(&self) {
        let stopped = std::mem::take(&mut *self.stopped());
        tree::resume(&stopped);
    }

    fn stopped(&self) -> MutexGuard<'_, Vec<i32>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A new access token, from 256 bits of the operating system's randomness.
pub(crate) fn random_token() -> String {
    let bytes: [u8; 32] = rand::random();
    URL_SAFE_NO_PAD.encode(bytes)
}
