//! The way into a guest: finds the sandbox, counts as its use, and gives up when it ends.

use std::sync::Arc;

use wrenn_core::fleet::SandboxHandle;
use wrenn_core::guest::{GuestClient, GuestError};
use wrenn_core::sandbox::InUse;
use wrenn_proto::connectrpc::ConnectError;

use super::{State, input};
use crate::errors::{answer, unknown};

/// A running sandbox that is in use for as long as this is there.
#[derive(Debug)]
pub(super) struct Visit {
    pub(super) sandbox: SandboxHandle,
    pub(super) guest: GuestClient,
    _in_use: InUse,
}

impl State {
    /// The sandbox of this id.
    pub(super) fn sandbox(&self, id: &str) -> Result<SandboxHandle, ConnectError> {
        let id = input::sandbox_id(id)?;
        self.fleet.get(&id).ok_or_else(|| unknown(&id))
    }

    /// Enters the guest of a running sandbox.
    pub(super) fn visit(self: &Arc<Self>, id: &str) -> Result<Visit, ConnectError> {
        let sandbox = self.sandbox(id)?;
        let lease = sandbox.guest().map_err(|error| answer(&error))?;
        Ok(Visit {
            guest: lease.guest,
            _in_use: lease.in_use,
            sandbox,
        })
    }

    /// The same, for work on files by `user`, or the default one where it is empty.
    pub(super) fn visit_as(self: &Arc<Self>, id: &str, user: &str) -> Result<Visit, ConnectError> {
        let user = input::user(user)?;
        let mut visit = self.visit(id)?;
        if let Some(user) = user {
            visit.guest = visit.guest.as_user(user).map_err(|error| answer(&error))?;
        }
        Ok(visit)
    }
}

impl Visit {
    /// Waits for the guest's answer, or for the sandbox's end: a VM that is gone closes no
    /// connection, and its answer would be waited for in vain.
    pub(super) async fn ask<T>(
        &self,
        asked: impl Future<Output = Result<T, GuestError>>,
    ) -> Result<T, ConnectError> {
        tokio::select! {
            biased;
            answered = asked => answered.map_err(|error| answer(&error)),
            gone = self.sandbox.not_running() => Err(answer(&gone)),
        }
    }
}
