//! The calls that came to a fake host.

use tokio::sync::watch;

use crate::faults::Rpc;

/// A call that came.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Call {
    /// What was called.
    pub rpc: Rpc,
    /// The sandbox that it is about, or the name of a snapshot that is to be deleted.
    pub subject: Option<String>,
    /// Whether its effect is over, answered or not.
    pub ended: bool,
}

/// All calls, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Calls(watch::Sender<Vec<Call>>);

impl Default for Calls {
    fn default() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }
}

impl Calls {
    /// Notes a call, and gives its number.
    pub(crate) fn begin(&self, rpc: Rpc, subject: Option<String>) -> usize {
        let mut number = 0;
        self.0.send_modify(|calls| {
            number = calls.len();
            calls.push(Call {
                rpc,
                subject,
                ended: false,
            });
        });
        number
    }

    pub(crate) fn end(&self, number: usize) {
        self.0.send_modify(|calls| {
            if let Some(call) = calls.get_mut(number) {
                call.ended = true;
            }
        });
    }

    pub(crate) fn all(&self) -> Vec<Call> {
        self.0.borrow().clone()
    }

    pub(crate) fn count(&self, rpc: Rpc) -> usize {
        self.0
            .borrow()
            .iter()
            .filter(|call| call.rpc == rpc)
            .count()
    }

    pub(crate) async fn wait(&self, rpc: Rpc, count: usize, ended: bool) {
        let mut calls = self.0.subscribe();
        let came = calls.wait_for(|calls| {
            let fitting = calls.iter().filter(|call| call.rpc == rpc);
            fitting.filter(|call| call.ended || !ended).count() >= count
        });
        // The sender lives as long as this.
        came.await.ok();
    }
}
