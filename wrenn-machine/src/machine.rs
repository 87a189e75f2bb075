//! Starting, finding, reaching and stopping a machine.
//!
//! ```text
//!            start                          healthy
//!  stopped ─────────▶ QEMU runs, no record ─────────▶ running, record written
//!     ▲                       │ we die                     │ stop
//!     │                       ▼                            ▼
//!     │◀── killed ── orphan, found by its pid file    power button, then kill
//!     └────────────────────────────────────────────────────┘
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use wrenn_core::guest::{AccessToken, GuestClient, InitRequest};
use wrenn_images::command::{self, CommandError, Program};
use wrenn_images::{Cache, Event, Progress, host_packages};

use crate::accelerator::{Accelerator, probe_kvm};
use crate::artifacts::{self, Artifacts};
use crate::client::{MachineClient, USER};
use crate::command_line::{CommandLine, QEMU};
use crate::config::{MachineConfig, MachineName, Programs};
use crate::error::{AtPath, MachineError};
use crate::forward::{self, PORT_TRIES, free_port};
use crate::qmp::Qmp;
use crate::state::{self, Locked, Record, StateDirectory, blocking, locked};
use wrenn_core::process::{LiveProcess, ProcessIdentity};

/// On hardware; emulation is given more by its slowness.
const BOOT_LIMIT: Duration = Duration::from_secs(20);
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(50);
/// What `wrenn-machine-init` says on the console once the daemon runs.
const READY: &str = "wrenn-machine: ready";

/// One machine, running or not, known by its name.
#[derive(Debug, Clone)]
pub struct Machine {
    state: StateDirectory,
    home: PathBuf,
    cache: Cache,
}

/// A running machine.
#[derive(Debug, Clone, Serialize)]
pub struct Running {
    pub name: MachineName,
    pub pid: i32,
    pub accelerator: Accelerator,
    /// Where the daemon inside is reached.
    pub address: SocketAddr,
    pub console: PathBuf,
    #[serde(skip)]
    token: AccessToken,
    #[serde(skip)]
    state: StateDirectory,
}

/// What is known of a machine.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Status {
    Running(Running),
    Stopped,
}

impl Machine {
    /// The machine `name` of this user.
    ///
    /// # Errors
    /// The user has no home directory.
    pub fn of_user(name: &MachineName) -> Result<Self, MachineError> {
        Ok(Self::new(name, &state::home()?, Cache::of_user()?))
    }

    /// The machine `name` with its state under `home` and its products in `cache`.
    #[must_use]
    pub fn new(name: &MachineName, home: &Path, cache: Cache) -> Self {
        Self {
            state: StateDirectory::new(home, name),
            home: home.to_path_buf(),
            cache,
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &MachineName {
        self.state.name()
    }

    /// Where the console of this run, or of the last one, is written.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.state.console()
    }

    /// Whether the machine runs.
    ///
    /// # Errors
    /// Its state cannot be read.
    pub fn status(&self) -> Result<Status, MachineError> {
        Ok(match self.state.running()? {
            Some((record, _)) => Status::Running(self.running(&record)?),
            None => Status::Stopped,
        })
    }

    /// Starts the machine, or does nothing if it runs already with the same recipe. One that
    /// runs with another recipe is stopped first.
    ///
    /// # Errors
    /// Something is missing, cannot be built or does not start. Nothing is left running.
    pub async fn start(
        &self,
        config: &MachineConfig,
        programs: &Programs,
        progress: Arc<dyn Progress>,
    ) -> Result<Running, MachineError> {
        let lock = locked(&self.state).await?;
        for path in [&programs.envd, &programs.init] {
            if !path.is_file() {
                return Err(MachineError::NoProgram { path: path.clone() });
            }
        }
        if command::find(QEMU).is_none() {
            let package = host_packages::providing(QEMU);
            let missing = CommandError::Missing {
                program: QEMU.to_owned(),
                package,
            };
            return Err(MachineError::NoQemu(missing));
        }
        let artifacts = self.build(config, programs, &progress).await?;
        let accelerator = match config.accelerator {
            Some(accelerator) => accelerator,
            None => probe_kvm(&self.cache, &programs.init, &self.home, &*progress)
                .await?
                .accelerator(),
        };
        let name = self.state.name();
        // A record that cannot be read says nothing, and is replaced.
        let running = self.state.running().ok().flatten();
        let kept = running.as_ref().map(|(record, _)| record.hardware);
        let line = CommandLine {
            name,
            hardware: config.hardware(kept, accelerator),
            accelerator,
            artifacts: &artifacts,
            state: self.state.dir(),
        };
        let recipe = line.recipe();
        if let Some((record, process)) = running {
            if record.recipe == recipe {
                progress.report(Event::Reused { step: "machine" });
                return self.running(&record);
            }
            self.stop_process(&process).await?;
        }
        if let Some(orphan) = self.state.orphan() {
            self.stop_process(&orphan).await?;
        }
        self.state.clear(&lock)?;
        self.prepare_data_disk(config)?;

        let step = format!("boot the machine ({accelerator})");
        progress.report(Event::Started { step: &step });
        let started = Instant::now();
        let mut result = self.launch(&lock, &line, &recipe).await;
        for _ in 1..PORT_TRIES {
            if !matches!(result, Err(MachineError::PortTaken { .. })) {
                break;
            }
            result = self.launch(&lock, &line, &recipe).await;
        }
        progress.report(match &result {
            Ok(_) => Event::Finished {
                step: &step,
                elapsed: started.elapsed(),
            },
            Err(_) => Event::Failed { step: &step },
        });
        result
    }

    /// Stops the machine in order, or at once if it does not listen. Nothing to do if it does
    /// not run.
    ///
    /// # Errors
    /// Its process cannot be ended, or its state not removed.
    pub async fn stop(&self) -> Result<(), MachineError> {
        let lock = locked(&self.state).await?;
        if let Ok(Some((_, process))) = self.state.running() {
            self.stop_process(&process).await?;
        }
        if let Some(orphan) = self.state.orphan() {
            self.stop_process(&orphan).await?;
        }
        self.state.clear(&lock)
    }

    /// Throws the data disk away, and so all sandboxes in the machine. The machine must be
    /// stopped.
    ///
    /// # Errors
    /// It runs, or the disk cannot be removed.
    pub async fn discard_data(&self) -> Result<(), MachineError> {
        let _lock = locked(&self.state).await?;
        if self.state.running()?.is_some() {
            return Err(MachineError::DiskInUse {
                name: self.state.name().clone(),
            });
        }
        let disk = self.state.data_disk();
        match fs::remove_file(&disk) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.at("remove", &disk),
        }
    }

    async fn build(
        &self,
        config: &MachineConfig,
        programs: &Programs,
        progress: &Arc<dyn Progress>,
    ) -> Result<Artifacts, MachineError> {
        let (cache, config, programs) = (self.cache.clone(), config.clone(), programs.clone());
        let progress = Arc::clone(progress);
        blocking(move || Ok(artifacts::build(&cache, &config, &programs, &*progress)?)).await
    }

    fn running(&self, record: &Record) -> Result<Running, MachineError> {
        Ok(Running {
            state: self.state.clone(),
            name: self.state.name().clone(),
            pid: record.process.pid,
            accelerator: record.accelerator,
            address: (Ipv4Addr::LOCALHOST, record.port).into(),
            console: self.state.console(),
            token: self.state.token()?,
        })
    }

    async fn launch(
        &self,
        lock: &Locked,
        line: &CommandLine<'_>,
        recipe: &str,
    ) -> Result<Running, MachineError> {
        let token = self.state.new_token(lock)?;
        let port = free_port()?;
        let console = self.state.console();
        File::create(&console).at("create", &console)?;
        let (name, mib) = (line.name, line.hardware.memory_mib);
        let log = self.state.dir().join("qemu.log");
        let errors = File::create(&log).at("create", &log)?;
        let mut command = Program::new(QEMU).args(line.arguments(port)).into_command();
        command.stdout(Stdio::null()).stderr(errors);
        // The terminal's Ctrl-C is for us, and the machine outlives us.
        command.process_group(0);
        let started = |source| MachineError::Process {
            action: "start",
            source,
        };
        let mut child = command.spawn().map_err(started)?;
        let identity = ProcessIdentity::of(child.id().cast_signed());
        // Reaps it, should it end before we do.
        std::thread::spawn(move || child.wait());
        let identity = identity.map_err(started)?;

        let address = (Ipv4Addr::LOCALHOST, port).into();
        let limit = BOOT_LIMIT * line.accelerator.slowness();
        let Some(process) = identity.open().map_err(started)? else {
            let error = self.early_end(&log, name, mib, port);
            // The error of the start is the one to tell.
            self.state.clear(lock).ok();
            return Err(error);
        };
        let healthy = tokio::select! {
            healthy = self.healthy(address, token, limit) => healthy,
            ended = until_ended(&process) => {
                ended.and(Err(self.early_end(&log, name, mib, port)))
            }
        };
        if let Err(error) = healthy {
            // The boot's own error is the one to tell.
            process.kill().ok();
            until_ended(&process).await.ok();
            self.state.clear(lock).ok();
            return Err(error);
        }
        let record = Record {
            version: 1,
            process: identity,
            recipe: recipe.to_owned(),
            accelerator: line.accelerator,
            hardware: line.hardware,
            port,
            forwards: BTreeMap::new(),
        };
        self.state.write_record(lock, &record)?;
        self.running(&record)
    }

    /// Waits until the daemon answers.
    async fn healthy(
        &self,
        address: SocketAddr,
        token: AccessToken,
        limit: Duration,
    ) -> Result<(), MachineError> {
        let late = || MachineError::BootDeadline {
            limit,
            console: self.state.console_tail(),
        };
        let deadline = Instant::now() + limit;
        // QEMU takes connections before the machine has a network, and holds them for
        // seconds. So the first one is made when there is somebody to answer.
        while !self.state.console_says(READY) {
            if Instant::now() > deadline {
                return Err(late());
            }
            tokio::time::sleep(POLL).await;
        }
        let mut client = GuestClient::new(address, Some(token))?;
        let left = deadline.saturating_duration_since(Instant::now());
        client.wait_healthy(left).await.map_err(|_| late())?;
        let root = Some(USER.to_owned());
        Ok(client
            .init(&InitRequest {
                default_user: root,
                ..InitRequest::default()
            })
            .await?)
    }

    /// Why QEMU ended before the machine was up.
    fn early_end(&self, log: &Path, name: &MachineName, mib: u32, port: u16) -> MachineError {
        match fs::read_to_string(log) {
            Ok(said) if !said.trim().is_empty() => {
                MachineError::of_qemu(said.trim().to_owned(), name, mib, port)
            }
            _ => MachineError::Died {
                console: self.state.console_tail(),
            },
        }
    }

    /// Asks it to power off, and kills it if it does not.
    async fn stop_process(&self, process: &LiveProcess) -> Result<(), MachineError> {
        let asked = match Qmp::connect(self.state.dir(), "qmp.sock").await {
            Ok(mut qmp) => qmp.execute("system_powerdown", None).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = asked {
            tracing::warn!(%error, "the machine cannot be asked to power off, and is killed");
        } else {
            let limit = SHUTDOWN_LIMIT * Accelerator::Emulation.slowness();
            if let Ok(ended) = tokio::time::timeout(limit, until_ended(process)).await {
                return ended;
            }
            tracing::warn!("the machine did not power off in time, and is killed");
        }
        process.kill().map_err(|source| MachineError::Process {
            action: "kill",
            source,
        })?;
        until_ended(process).await
    }

    /// Makes the data disk if there is none.
    fn prepare_data_disk(&self, config: &MachineConfig) -> Result<(), MachineError> {
        let disk = self.state.data_disk();
        if disk.is_file() {
            return Ok(());
        }
        let aside = self.state.dir().join("data.img.new");
        let file = File::create(&aside).at("create", &aside)?;
        file.set_len(config.data_gib << 30).at("size", &aside)?;
        drop(file);
        Program::new("mkfs.xfs")
            .args([
                "-q",
                "-f",
                "-K",
                "-m",
                "reflink=1,crc=1",
                "-L",
                "wrenn-data",
            ])
            .arg(&aside)
            .run()
            .map_err(wrenn_images::BuildError::from)?;
        fs::rename(&aside, &disk).at("rename the finished disk to", &disk)
    }
}

impl Running {
    /// Forwards a free port of the host's loopback to port `guest_port` of the machine, where
    /// programs must listen on all addresses to be reached. It stays until the machine ends:
    /// asking again, from whichever process, answers the same address.
    ///
    /// # Errors
    /// The machine ended or was restarted meanwhile, or QEMU refuses.
    pub async fn forward(&self, guest_port: u16) -> Result<SocketAddr, MachineError> {
        forward::forward(&self.state, self.pid, guest_port).await
    }

    /// A client for the daemon inside.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn client(&self) -> Result<MachineClient, MachineError> {
        Ok(MachineClient::new(GuestClient::new(
            self.address,
            Some(self.token.clone()),
        )?))
    }
}

async fn until_ended(process: &LiveProcess) -> Result<(), MachineError> {
    let failed = |source| MachineError::Process {
        action: "watch",
        source,
    };
    while !process.ends_within(Duration::ZERO).map_err(failed)? {
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}
