//! What an action does, in each state of the machine.
//!
//! ```text
//! Configuring ──Start──▶ Running ◀──Resume── Paused ──CreateSnapshot──▶ Paused
//!    │ ▲ └ on failure       └────────Pause─────▶ ▲
//!    │ └──┘                                      │
//!    └────────────────LoadSnapshot───────────────┘ (and on to Running, if so asked)
//! ```
//!
//! A load must come before anything that a machine is booted from is configured. If it
//! fails, nothing of it is left and the next may follow; Firecracker ends in this case.
//!
//! An action that does not fit the state is answered with a sentence and changes nothing.

use std::error::Error;
use std::fmt::Write;
use std::time::Instant;

use serde::Serialize;

use crate::api::http::{HttpResponse, StatusCode};
use crate::api::request::Action;
use crate::config::{InstanceInfo, InstanceState, MachineConfigError};
use crate::cpu::thread::VcpuError;
use crate::devices::keyboard::KeyboardBufferFull;
use crate::logger::{self, LogFileError};
use crate::machine::{
    BalloonError, BootSourceError, CreateSnapshotError, DriveError, Environment, LoadSnapshotError,
    Machine, NetworkError, NoSuchInterface, Resources, StartError, UpdateDriveError,
};
use crate::metrics::{METRICS, MetricsError, MetricsFile};
use crate::seccomp::FilterError;
use crate::snapshot::config::{CreateSnapshotConfig, LoadSnapshotConfig, SnapshotType};

/// The answer to an action: nothing, or JSON.
pub type Answer = Result<Option<String>, ActionError>;

/// Why an action was not done. The first part of each text is Firecracker's.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// Too late.
    #[error("The requested operation is not supported after starting the microVM.")]
    Started,
    /// Too early.
    #[error("The requested operation is not supported before starting the microVM.")]
    NotStarted,
    /// See the source, as for all that follow.
    #[error("Boot source error")]
    BootSource(#[from] BootSourceError),
    /// Drives and entropy.
    #[error("Drive config error")]
    Drive(#[from] DriveError),
    /// A running machine's drive.
    #[error("Drive config error: Unable to patch the block device")]
    UpdateDrive(#[from] UpdateDriveError),
    /// Network interfaces.
    #[error("Network config error: Could not create the network device")]
    Network(#[from] NetworkError),
    /// A network interface that is to change.
    #[error("Network config error: Unable to update the net device")]
    UpdateNetwork(#[from] NoSuchInterface),
    /// Balloon.
    #[error("Balloon config error")]
    Balloon(#[from] BalloonError),
    /// vCPUs and memory.
    #[error("Machine config error")]
    Machine(#[from] MachineConfigError),
    /// Log.
    #[error("Logger error")]
    Logger(#[from] LogFileError),
    /// Metrics.
    #[error("Metrics error")]
    Metrics(#[from] MetricsError),
    /// Start.
    #[error("Start microvm error")]
    Start(#[from] Box<StartError>),
    /// Snapshot.
    #[error("Create snapshot error")]
    CreateSnapshot(#[from] CreateSnapshotError),
    /// Load after configuration.
    #[error(
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring \
         boot-specific resources."
    )]
    Configured,
    /// Load.
    #[error("Load snapshot error: Failed to restore from snapshot")]
    LoadSnapshot(#[from] Box<LoadSnapshotError>),
    /// The main thread is not bound.
    #[error("Internal VMM error")]
    Filter(#[from] FilterError),
    /// vCPUs.
    #[error("Internal VMM error")]
    Vcpu(#[from] VcpuError),
    /// Keyboard.
    #[error("Internal VMM error")]
    Keyboard(#[from] KeyboardBufferFull),
    /// JSON.
    #[error("Internal VMM error: cannot write JSON")]
    Json(#[from] serde_json::Error),
}

/// An error with all its causes, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        write!(text, ": {error}").ok();
        cause = error.source();
    }
    text
}

/// The HTTP form of an answer.
pub fn response(answer: &Answer) -> HttpResponse {
    match answer {
        Ok(None) => HttpResponse {
            status: StatusCode::NoContent,
            body: None,
        },
        Ok(Some(body)) => HttpResponse {
            status: StatusCode::Ok,
            body: Some(body.clone()),
        },
        Err(error) => fault(StatusCode::BadRequest, &chain(error)),
    }
}

/// An error in the form that Firecracker's clients expect.
pub fn fault(status: StatusCode, message: &str) -> HttpResponse {
    let body = serde_json::json!({ "fault_message": message }).to_string();
    HttpResponse {
        status,
        body: Some(body),
    }
}

enum Phase {
    Configuring {
        resources: Box<Resources>,
        /// Whether anything was asked for that a machine is booted from.
        configured: bool,
    },
    Started {
        machine: Box<Machine>,
        paused: bool,
    },
}

/// Holds the machine, whatever state it is in.
pub struct Controller {
    id: String,
    metrics: MetricsFile,
    phase: Phase,
}

impl Controller {
    /// A machine with the default configuration.
    pub fn new(id: String) -> Self {
        Self {
            id,
            metrics: MetricsFile::default(),
            phase: Phase::Configuring {
                resources: Box::default(),
                configured: false,
            },
        }
    }

    /// The machine, once it has been started.
    pub fn machine(&self) -> Option<&Machine> {
        match &self.phase {
            Phase::Configuring { .. } => None,
            Phase::Started { machine, .. } => Some(machine),
        }
    }

    /// Does an action.
    ///
    /// # Errors
    /// If it does not fit the state or fails; the machine is as it was then.
    pub fn handle(&mut self, action: Action, environment: &mut Environment<'_>) -> Answer {
        match action {
            Action::GetInstance => return json(&self.instance()),
            Action::GetVersion => {
                return json(&serde_json::json!({
                    "firecracker_version": env!("CARGO_PKG_VERSION")
                }));
            }
            _ => {}
        }
        match &mut self.phase {
            Phase::Configuring { .. } => self.configure(action, environment),
            Phase::Started { machine, paused } => control(action, machine, paused, &self.metrics),
        }
    }

    fn instance(&self) -> InstanceInfo {
        InstanceInfo {
            id: self.id.clone(),
            state: match &self.phase {
                Phase::Configuring { .. } => InstanceState::NotStarted,
                Phase::Started { paused: true, .. } => InstanceState::Paused,
                Phase::Started { paused: false, .. } => InstanceState::Running,
            },
            vmm_version: env!("CARGO_PKG_VERSION").to_owned(),
            app_name: "Wrenn VMM".to_owned(),
        }
    }

    fn configure(&mut self, action: Action, environment: &mut Environment<'_>) -> Answer {
        let Phase::Configuring {
            resources,
            configured,
        } = &mut self.phase
        else {
            return Err(ActionError::Started);
        };
        *configured |= matches!(
            action,
            Action::SetMachine(_)
                | Action::SetBootSource(_)
                | Action::SetDrive(_)
                | Action::SetNetwork(_)
                | Action::SetEntropy(_)
                | Action::SetBalloon(_)
        );
        match action {
            Action::GetMachine => return json(&resources.machine),
            Action::GetConfig => return json(&resources.config()),
            Action::SetMachine(update) => resources.update_machine(&update)?,
            Action::SetBootSource(config) => resources.set_boot_source(config)?,
            Action::SetDrive(config) => resources.set_drive(config)?,
            Action::SetNetwork(config) => resources.set_network(config)?,
            Action::UpdateDrive(update) => resources.update_drive(update)?,
            Action::UpdateNetwork(update) => resources.update_network(&update)?,
            Action::SetEntropy(config) => resources.set_entropy(config)?,
            Action::SetBalloon(config) => resources.set_balloon(config)?,
            Action::SetLogger(config) => logger::configure(&config)?,
            Action::SetMetrics(config) => self.metrics.open(&config.metrics_path)?,
            Action::Start => {
                let machine = Machine::boot(resources, environment).map_err(Box::new)?;
                // The guest runs no instruction before.
                environment.filters.main.apply()?;
                machine.resume()?;
                self.phase = Phase::Started {
                    machine: Box::new(machine),
                    paused: false,
                };
            }
            Action::LoadSnapshot(_) if *configured => return Err(ActionError::Configured),
            Action::LoadSnapshot(config) => self.phase = load(&config, environment)?,
            Action::FlushMetrics
            | Action::Pause
            | Action::Resume
            | Action::CreateSnapshot(_)
            | Action::PressControlAltDelete => return Err(ActionError::NotStarted),
            Action::GetInstance | Action::GetVersion => {}
        }
        Ok(None)
    }
}

fn control(
    action: Action,
    machine: &mut Machine,
    paused: &mut bool,
    metrics: &MetricsFile,
) -> Answer {
    match action {
        Action::GetMachine => {
            return json(&machine.config().machine_config.clone().unwrap_or_default());
        }
        Action::GetConfig => return json(machine.config()),
        Action::FlushMetrics => metrics.flush()?,
        // Asking for what is already so is no error.
        Action::Pause if *paused => {}
        Action::Pause => {
            let begun = Instant::now();
            machine.pause()?;
            *paused = true;
            METRICS.latencies.pause.record(begun, "pause vm");
        }
        Action::Resume if !*paused => {}
        Action::Resume => {
            let begun = Instant::now();
            machine.resume()?;
            *paused = false;
            METRICS.latencies.resume.record(begun, "resume vm");
        }
        Action::CreateSnapshot(_) if !*paused => return Err(CreateSnapshotError::Running.into()),
        Action::CreateSnapshot(config) => create(&config, machine)?,
        Action::PressControlAltDelete => machine.press_control_alt_delete()?,
        Action::UpdateDrive(update) => machine.update_drive(update)?,
        Action::UpdateNetwork(update) => machine.update_network(&update)?,
        Action::SetMachine(_)
        | Action::SetBootSource(_)
        | Action::SetDrive(_)
        | Action::SetNetwork(_)
        | Action::SetEntropy(_)
        | Action::SetBalloon(_)
        | Action::SetLogger(_)
        | Action::SetMetrics(_)
        | Action::LoadSnapshot(_)
        | Action::Start => return Err(ActionError::Started),
        Action::GetInstance | Action::GetVersion => {}
    }
    Ok(None)
}

fn create(config: &CreateSnapshotConfig, machine: &Machine) -> Result<(), CreateSnapshotError> {
    let begun = Instant::now();
    machine.create_snapshot(config)?;
    let latencies = &METRICS.latencies;
    match config.snapshot_type {
        SnapshotType::Full => latencies.full.record(begun, "create full snapshot"),
        SnapshotType::Diff => latencies.diff.record(begun, "create diff snapshot"),
    }
    Ok(())
}

fn load(
    config: &LoadSnapshotConfig,
    environment: &mut Environment<'_>,
) -> Result<Phase, ActionError> {
    let begun = Instant::now();
    let machine = Machine::restore(config, environment).map_err(Box::new)?;
    environment.filters.main.apply()?;
    if config.resume_vm {
        machine.resume()?;
    }
    METRICS.latencies.load.record(begun, "load snapshot");
    Ok(Phase::Started {
        machine: Box::new(machine),
        paused: !config.resume_vm,
    })
}

fn json(value: &impl Serialize) -> Answer {
    Ok(Some(serde_json::to_string(value)?))
}

#[cfg(test)]
mod snapshot_tests;
#[cfg(test)]
mod tests;
