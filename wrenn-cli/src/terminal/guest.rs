//! A command in a guest that we reach ourselves.

use bytes::Bytes;
use wrenn_core::guest::{
    ExitStatus, GuestClient, GuestProcess, ProcessEvent, ProcessInput, PtySize, RpcCode, Signal,
};

use super::{Remote, RemoteInput};

pub(super) struct GuestCommand {
    client: GuestClient,
    process: GuestProcess,
}

impl GuestCommand {
    pub(super) fn new(client: GuestClient, process: GuestProcess) -> Self {
        Self { client, process }
    }
}

impl Remote for GuestCommand {
    type Input = ProcessInput;

    fn input(&mut self) -> ProcessInput {
        self.process.input()
    }

    async fn next(&mut self) -> anyhow::Result<ProcessEvent> {
        match self.process.next().await {
            Err(error) if error.code() == Some(RpcCode::DeadlineExceeded) => {
                Ok(ProcessEvent::Exit(ExitStatus::killed_by_timeout()))
            }
            next => Ok(next?),
        }
    }

    async fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(self.client.signal(self.process.pid(), signal).await?)
    }

    async fn resize(&self, size: PtySize) -> anyhow::Result<()> {
        Ok(self.client.resize(self.process.pid(), size).await?)
    }
}

impl RemoteInput for ProcessInput {
    async fn write(&mut self, bytes: Bytes) -> anyhow::Result<()> {
        Ok(Self::write(self, bytes).await?)
    }

    async fn close(self) -> anyhow::Result<()> {
        Ok(Self::close(self).await?)
    }
}
