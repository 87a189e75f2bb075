//! Carries one output of a process to the hub.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::hub::{CHUNK, Channel, Hub};
use super::stdio::Stdio;

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
                Some(count) => hub.publish(self.channel, &buffer[..count]).await,
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
                Some(count) => {
                    owed = owed.saturating_sub(count as u64);
                    hub.publish(self.channel, &buffer[..count]).await;
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
            Channel::Stdout | Channel::Stderr => vec![0; CHUNK],
        }
    }

    /// How much was read; `None` at the end.
    async fn read(&self, buffer: &mut [u8]) -> Option<usize> {
        match self.source.read(buffer).await {
            Ok(0) => None,
            Ok(count) => Some(count),
            Err(error) => {
                tracing::warn!(channel = ?self.channel, %error, "cannot read a process's output");
                None
            }
        }
    }
}
