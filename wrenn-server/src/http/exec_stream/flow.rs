//! How much output is on its way to the client: pings ask, and their pongs acknowledge.

use axum::extract::ws::Message;
use bytes::Bytes;
use tokio::sync::watch;

/// After how much output the client is asked whether it has it.
const PING_BYTES: u64 = 128 << 10;
/// The most output on its way to the client. Less than what the guest keeps for a client that
/// connects again, with what is on its way to us.
const MAX_UNACKNOWLEDGED: u64 = 1 << 20;

/// A ping that says how much output was sent before it: its pong acknowledges that.
pub(super) fn ping(sent: u64) -> Message {
    Message::Ping(Bytes::copy_from_slice(&sent.to_be_bytes()))
}

/// How much output is on its way to the client, wherever between it is held.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) sent: u64,
    pinged: u64,
}

impl Flow {
    pub(super) fn ping_is_due(&mut self) -> bool {
        let due = self.sent - self.pinged >= PING_BYTES;
        if due {
            self.pinged = self.sent;
        }
        due
    }

    /// Whether more may be sent: the client has acknowledged enough. Or its input waits:
    /// acknowledgements are behind it, and the command may wait for us.
    pub(super) fn has_room(&self, client: &watch::Receiver<ClientState>) -> bool {
        self.allows(&client.borrow())
    }

    fn allows(&self, client: &ClientState) -> bool {
        client.input_waits || self.sent.saturating_sub(client.acknowledged) < MAX_UNACKNOWLEDGED
    }

    /// Waits for room.
    pub(super) async fn until_acknowledged(&self, client: &mut watch::Receiver<ClientState>) {
        if client.wait_for(|client| self.allows(client)).await.is_err() {
            // The reader has ended, and with it this connection.
            std::future::pending::<()>().await;
        }
    }
}

/// What the reader knows of the client.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ClientState {
    /// How much output it has, by its last pong.
    pub(super) acknowledged: u64,
    /// Its input waits for the command: what comes behind it is not seen.
    pub(super) input_waits: bool,
}
