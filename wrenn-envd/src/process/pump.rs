//! Carries one output of a process to the hub.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hub::{Channel, Chunk, Hub};
use super::stdio::Stdio;

const PIPE_CHUNK: usize = 32 * 1024;
const TERMINAL_CHUNK: usize = 16 * 1024;

/// One output and where it goes.
pub(super) struct Pump {
    pub(super) source: Stdio,
    pub(super) channel: Channel,
}

/// What is left of an output after the end event.
pub(super) enum Rest {
    /// Nobody can write any more.
    Closed,
    /// A left-over child holds it open.
    Open(Pump),
}

impl Pump {
    /// Pumps until the output closes; or, once `exited`, until everything is through
    /// that was written before, and for as long as `linger`.
    pub(super) async fn run(self, hub: &Hub, exited: &CancellationToken, linger: Duration) -> Rest {
        let mut buffer = self.buffer();
        loop {
            let read = tokio::select! {
                biased;
                () = exited.cancelled() => break,
                read = self.read(&mut buffer) => read,
            };
            match read {
                Some(bytes) => self.publish(hub, bytes).await,
                None => return Rest::Closed,
            }
        }

        // Everything that the process itself wrote is in the pipe by now. Others may go
        // on writing for ever, so it is counted rather than read to an end.
        let mut owed = self.source.available();
        let linger = Instant::now() + linger;
        loop {
            let read = if owed > 0 {
                self.read(&mut buffer).await
            } else {
                match tokio::time::timeout_at(linger, self.read(&mut buffer)).await {
                    Ok(read) => read,
                    Err(_) => return Rest::Open(self),
                }
            };
            match read {
                Some(bytes) => {
                    owed = owed.saturating_sub(bytes.len() as u64);
                    self.publish(hub, bytes).await;
                    if owed == 0 && Instant::now() >= linger {
                        return Rest::Open(self);
                    }
                }
                None => return Rest::Closed,
            }
        }
    }

    /// Reads and throws away until the output closes: the children that hold it shall
    /// neither block on a full pipe nor die of a closed one.
    pub(super) async fn discard(self) {
        let mut buffer = self.buffer();
        while self.read(&mut buffer).await.is_some() {}
    }

    fn buffer(&self) -> Vec<u8> {
        match self.channel {
            Channel::Pty => vec![0; TERMINAL_CHUNK],
            Channel::Stdout | Channel::Stderr => vec![0; PIPE_CHUNK],
        }
    }

    /// The copy is on purpose: a line of ten bytes must not hold on to a whole buffer
    /// while it waits for its follower.
    async fn read(&self, buffer: &mut [u8]) -> Option<Bytes> {
        match self.source.read(buffer).await {
            Ok(0) => None,
            Ok(count) => Some(Bytes::copy_from_slice(&buffer[..count])),
            Err(error) => {
                tracing::warn!(channel = ?self.channel, %error, "cannot read a process's output");
                None
            }
        }
    }

    async fn publish(&self, hub: &Hub, bytes: Bytes) {
        hub.publish(Chunk {
            channel: self.channel,
            bytes,
        })
        .await;
    }
}
