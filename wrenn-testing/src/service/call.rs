//! One call, and the fault that is scripted for it.

use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use wrenn_proto::connectrpc::{
    ConnectError, RequestContext, Response, ServiceResult, ServiceStream,
};

use crate::faults::{Behaviour, Rpc};
use crate::host::Host;
use crate::listener::Wire;

/// A stream that is reset drops the messages before, unless they are on their way.
const FLUSH: Duration = Duration::from_millis(50);

/// A call that has come, and had no effect yet.
#[derive(Debug)]
pub(super) struct Arrived {
    host: Arc<Host>,
    wire: Wire,
    number: usize,
    fault: Option<Behaviour>,
}

/// A call that may have its effect now.
#[derive(Debug)]
pub(super) struct Entered {
    call: Arrived,
}

impl Arrived {
    pub(super) fn new(
        host: &Arc<Host>,
        rpc: Rpc,
        subject: Option<&str>,
        ctx: &RequestContext,
    ) -> Self {
        Self {
            wire: ctx.extensions().get().cloned().unwrap_or_default(),
            number: host.calls.begin(rpc, subject.map(str::to_owned)),
            fault: host.faults.take(rpc, subject),
            host: Arc::clone(host),
        }
    }

    /// Waits, or refuses it, as the test wants.
    pub(super) async fn enter(self) -> Result<Entered, ConnectError> {
        match &self.fault {
            Some(Behaviour::Fail(error)) => return Err((**error).clone()),
            Some(Behaviour::HangUp) => {
                self.wire.cut();
                return Err(cut());
            }
            Some(Behaviour::Delay(delay)) => tokio::time::sleep(*delay).await,
            Some(Behaviour::Hold(gate)) => gate.pass().await,
            Some(
                Behaviour::HoldAnswer(_)
                | Behaviour::LoseAnswer
                | Behaviour::NeverAnswer
                | Behaviour::Omit(_)
                | Behaviour::CutAfter(_),
            )
            | None => {}
        }
        Ok(Entered { call: self })
    }
}

impl Drop for Arrived {
    fn drop(&mut self) {
        self.host.calls.end(self.number);
    }
}

impl Entered {
    /// Sandboxes that a list leaves out.
    pub(super) fn omitted(&self) -> Vec<String> {
        match &self.call.fault {
            Some(Behaviour::Omit(ids)) => ids.clone(),
            _ => Vec::new(),
        }
    }

    /// Answers, as far as the test wants it.
    pub(super) async fn leave<T>(
        self,
        answered: Result<T, ConnectError>,
    ) -> Result<T, ConnectError> {
        let Arrived {
            host,
            wire,
            number,
            fault,
        } = &self.call;
        host.calls.end(*number);
        match fault {
            Some(Behaviour::HoldAnswer(gate)) => gate.pass().await,
            Some(Behaviour::LoseAnswer) => {
                wire.cut();
                return Err(cut());
            }
            Some(Behaviour::NeverAnswer) => {
                host.shutdown.cancelled().await;
                wire.cut();
                return Err(cut());
            }
            _ => {}
        }
        answered
    }

    /// The same for an answer that is a stream.
    pub(super) async fn stream<T: Send + 'static>(
        self,
        begun: Result<impl Stream<Item = Result<T, ConnectError>> + Send + 'static, ConnectError>,
    ) -> ServiceResult<ServiceStream<T>> {
        let (cut_after, wire) = match &self.call.fault {
            Some(Behaviour::CutAfter(messages)) => (Some(*messages), self.call.wire.clone()),
            _ => (None, Wire::default()),
        };
        let messages = self.leave(begun).await?;
        let Some(count) = cut_after else {
            return Ok(Response::stream(messages));
        };
        let broken = futures::stream::once(async move {
            tokio::time::sleep(FLUSH).await;
            wire.cut();
            Err(cut())
        });
        Ok(Response::stream(messages.take(count).chain(broken)))
    }
}

/// Nobody sees it: the connection is broken.
fn cut() -> ConnectError {
    ConnectError::unavailable("the test wants this connection to break")
}
