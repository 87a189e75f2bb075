//! From HTTP requests to actions: routes, bodies, ids.

use serde::de::DeserializeOwned;

use crate::api::http::{HttpRequest, Method};
use crate::config::{
    ActionConfig, ActionType, BalloonConfig, BootSourceConfig, DriveConfig, DriveUpdate,
    EntropyConfig, LoggerConfig, MachineConfig, MachineConfigUpdate, MetricsConfig,
    NetworkInterfaceConfig, NetworkInterfaceUpdate, RequestedState, VmUpdate,
};
use crate::snapshot::config::{CreateSnapshotConfig, LoadSnapshotConfig};

/// What a client wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `GET /`
    GetInstance,
    /// `GET /version`
    GetVersion,
    /// `GET /machine-config`
    GetMachine,
    /// `GET /vm/config`
    GetConfig,
    /// `PUT` or `PATCH /machine-config`
    SetMachine(MachineConfigUpdate),
    /// `PUT /boot-source`
    SetBootSource(BootSourceConfig),
    /// `PUT /drives/{id}`
    SetDrive(DriveConfig),
    /// `PATCH /drives/{id}`
    UpdateDrive(DriveUpdate),
    /// `PUT /network-interfaces/{id}`
    SetNetwork(NetworkInterfaceConfig),
    /// `PATCH /network-interfaces/{id}`
    UpdateNetwork(NetworkInterfaceUpdate),
    /// `PUT /entropy`
    SetEntropy(EntropyConfig),
    /// `PUT /balloon`
    SetBalloon(BalloonConfig),
    /// `PUT /logger`
    SetLogger(LoggerConfig),
    /// `PUT /metrics`
    SetMetrics(MetricsConfig),
    /// `PUT /actions` `InstanceStart`
    Start,
    /// `PUT /actions` `SendCtrlAltDel`
    PressControlAltDelete,
    /// `PUT /actions` `FlushMetrics`
    FlushMetrics,
    /// `PATCH /vm` `Paused`
    Pause,
    /// `PATCH /vm` `Resumed`
    Resume,
    /// `PUT /snapshot/create`
    CreateSnapshot(CreateSnapshotConfig),
    /// `PUT /snapshot/load`
    LoadSnapshot(LoadSnapshotConfig),
}

/// A request that means nothing. The texts are Firecracker's.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// No id in the path.
    #[error("The ID cannot be empty.")]
    EmptyId,
    /// Strange characters in the id.
    #[error("API Resource IDs can only contain alphanumeric characters and underscores.")]
    InvalidId,
    /// Two ids.
    #[error("The id from the path does not match the id from the body!")]
    IdMismatch,
    /// No such route.
    #[error("Invalid request method and/or path: {method} {path}.", method = .method.name())]
    NoRoute {
        /// The method.
        method: Method,
        /// The first part of the path.
        path: String,
    },
    /// A body where none belongs, or none where one does.
    #[error("{0}")]
    Body(&'static str),
    /// Not the JSON that belongs here.
    #[error("An error occurred when deserializing the json body of a request: {0}.")]
    Json(#[from] serde_json::Error),
}

/// Understands a request.
///
/// # Errors
/// If it means nothing.
pub fn parse(request: &HttpRequest) -> Result<Action, RequestError> {
    // A query is not part of any route.
    let path = request.path.split('?').next().unwrap_or("");
    let mut parts = path.trim_start_matches('/').split_terminator('/');
    let resource = parts.next().unwrap_or("");
    let item = parts.next();
    match (request.method, request.body.as_deref()) {
        (Method::Get, Some(_)) => Err(RequestError::Body("GET request cannot have a body.")),
        (Method::Get, None) => get(resource, item),
        (Method::Put, None) => Err(RequestError::Body("Empty PUT request.")),
        (Method::Put, Some(body)) => put(resource, item, body),
        (Method::Patch, None) => Err(RequestError::Body("Empty PATCH request.")),
        (Method::Patch, Some(body)) => patch(resource, item, body),
        (Method::Delete, _) => no_route(Method::Delete, resource),
    }
}

fn no_route(method: Method, path: &str) -> Result<Action, RequestError> {
    Err(RequestError::NoRoute {
        method,
        path: path.to_owned(),
    })
}

fn get(resource: &str, item: Option<&str>) -> Result<Action, RequestError> {
    match (resource, item) {
        ("", _) => Ok(Action::GetInstance),
        ("version", _) => Ok(Action::GetVersion),
        ("machine-config", _) => Ok(Action::GetMachine),
        ("vm", Some("config")) => Ok(Action::GetConfig),
        _ => no_route(Method::Get, resource),
    }
}

fn put(resource: &str, item: Option<&str>, body: &[u8]) -> Result<Action, RequestError> {
    Ok(match resource {
        "actions" => match json::<ActionConfig>(body)?.action_type {
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::PressControlAltDelete,
            ActionType::FlushMetrics => Action::FlushMetrics,
        },
        "boot-source" => Action::SetBootSource(json(body)?),
        "drives" => {
            let id = checked(item)?;
            let drive: DriveConfig = json(body)?;
            matching(id, &drive.drive_id)?;
            Action::SetDrive(drive)
        }
        "network-interfaces" => {
            let id = checked(item)?;
            let interface: NetworkInterfaceConfig = json(body)?;
            matching(id, &interface.iface_id)?;
            Action::SetNetwork(interface)
        }
        "machine-config" => Action::SetMachine(json::<MachineConfig>(body)?.into()),
        "entropy" => Action::SetEntropy(json(body)?),
        "balloon" => Action::SetBalloon(json(body)?),
        "logger" => Action::SetLogger(json(body)?),
        "metrics" => Action::SetMetrics(json(body)?),
        "snapshot" => match item {
            Some("create") => Action::CreateSnapshot(json(body)?),
            Some("load") => Action::LoadSnapshot(json(body)?),
            Some(other) => return no_route(Method::Put, &format!("/snapshot/{other}")),
            None => return Err(RequestError::Body("Missing snapshot operation type.")),
        },
        _ => return no_route(Method::Put, resource),
    })
}

fn patch(resource: &str, item: Option<&str>, body: &[u8]) -> Result<Action, RequestError> {
    Ok(match resource {
        "drives" => {
            let id = checked(item)?;
            let update: DriveUpdate = json(body)?;
            matching(id, &update.drive_id)?;
            Action::UpdateDrive(update)
        }
        "network-interfaces" => {
            let id = checked(item)?;
            let update: NetworkInterfaceUpdate = json(body)?;
            matching(id, &update.iface_id)?;
            Action::UpdateNetwork(update)
        }
        "machine-config" => {
            let update: MachineConfigUpdate = json(body)?;
            if update == MachineConfigUpdate::default() {
                return Err(RequestError::Body("Empty PATCH request."));
            }
            Action::SetMachine(update)
        }
        "vm" => match json::<VmUpdate>(body)?.state {
            RequestedState::Paused => Action::Pause,
            RequestedState::Resumed => Action::Resume,
        },
        _ => return no_route(Method::Patch, resource),
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, RequestError> {
    Ok(serde_json::from_slice(body)?)
}

fn checked(id: Option<&str>) -> Result<&str, RequestError> {
    match id {
        None | Some("") => Err(RequestError::EmptyId),
        Some(id) if id.chars().all(|c| c == '_' || c.is_alphanumeric()) => Ok(id),
        Some(_) => Err(RequestError::InvalidId),
    }
}

fn matching(path: &str, body: &str) -> Result<(), RequestError> {
    if path == body {
        Ok(())
    } else {
        Err(RequestError::IdMismatch)
    }
}
