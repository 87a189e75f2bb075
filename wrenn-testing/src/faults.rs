//! Faults that a test scripts: an RPC that fails, waits, or loses its answer.
//!
//! Every call passes here twice, before its effect and after it:
//!
//! ```text
//!  call ──▶ delay, hold, fail, hang up ──▶ effect ──▶ hold_answer, lose_answer, never_answer ──▶ answer
//! ```
//!
//! The faults of an RPC are a queue: each call takes the first one that applies to it.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::{Reason, State};
use wrenn_proto::reason::with_reason;

macro_rules! rpcs {
    ($($name:ident),* $(,)?) => {
        /// An RPC of the agent, named as in `hostagent.proto`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rpc {
            $(
                #[doc = concat!("`", stringify!($name), "`")]
                $name,
            )*
        }

        impl Rpc {
            /// Its name on the wire.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

rpcs! {
    GetHost,
    CreateSandbox,
    GetSandbox,
    ListSandboxes,
    PingSandbox,
    PauseSandbox,
    ResumeSandbox,
    PauseAll,
    AcknowledgeAutoPaused,
    ForkSandbox,
    CreateSnapshot,
    ListSnapshots,
    DeleteSnapshot,
    DestroySandbox,
    SetEgress,
    GetMetrics,
    GetConsole,
    FollowConsole,
    Exec,
    ExecStream,
    ConnectProcess,
    ListProcesses,
    SignalProcess,
    WriteFile,
    ReadFile,
    StreamWriteFile,
    StreamReadFile,
    Stat,
    ListDir,
    MakeDir,
    MovePath,
    RemovePath,
    WatchDir,
    ReadArchive,
    WriteArchive,
    ListTemplates,
}

impl std::fmt::Display for Rpc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What happens to a call.
#[derive(Clone, Debug)]
pub(crate) enum Behaviour {
    Fail(Box<ConnectError>),
    Delay(Duration),
    Hold(Arc<GateState>),
    HoldAnswer(Arc<GateState>),
    HangUp,
    LoseAnswer,
    NeverAnswer,
    Omit(Vec<String>),
    CutAfter(usize),
}

#[derive(Debug)]
struct Scripted {
    behaviour: Behaviour,
    sandbox_id: Option<String>,
    /// Calls that pass unharmed first.
    skip: usize,
    /// Calls that it is for; `None` for all.
    left: Option<usize>,
}

/// The faults of one host.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<HashMap<Rpc, VecDeque<Scripted>>>);

impl Faults {
    /// The fault for a call about this sandbox, if there is one.
    pub(crate) fn take(&self, rpc: Rpc, sandbox_id: Option<&str>) -> Option<Behaviour> {
        let mut faults = self.lock();
        let queue = faults.get_mut(&rpc)?;
        let index = queue.iter().position(|scripted| {
            scripted.sandbox_id.is_none() || scripted.sandbox_id.as_deref() == sandbox_id
        })?;
        let scripted = queue.get_mut(index)?;
        if scripted.skip > 0 {
            scripted.skip -= 1;
            return None;
        }
        let behaviour = scripted.behaviour.clone();
        if let Some(left) = &mut scripted.left {
            *left -= 1;
            if *left == 0 {
                queue.remove(index);
            }
        }
        Some(behaviour)
    }

    pub(crate) fn clear(&self) {
        self.lock().clear();
    }

    fn push(&self, rpc: Rpc, scripted: Scripted) {
        self.lock().entry(rpc).or_default().push_back(scripted);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Rpc, VecDeque<Scripted>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A fault that is being scripted: choose the calls that it is for, then what happens to
/// them. Without a choice it is for the next call alone.
///
/// ```no_run
/// # use wrenn_testing::{FakeHost, Rpc};
/// # use wrenn_testing::proto::{ErrorCode, Reason};
/// # async fn example(host: &FakeHost) {
/// host.fault(Rpc::CreateSandbox)
///     .times(2)
///     .fail(ErrorCode::ResourceExhausted, Reason::REASON_HOST_FULL);
/// host.fault(Rpc::PauseSandbox).lose_answer();
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is scripted before it is said what happens"]
pub struct Fault<'a> {
    faults: &'a Faults,
    rpc: Rpc,
    sandbox_id: Option<String>,
    skip: usize,
    left: Option<usize>,
}

impl<'a> Fault<'a> {
    pub(crate) fn new(faults: &'a Faults, rpc: Rpc) -> Self {
        Self {
            faults,
            rpc,
            sandbox_id: None,
            skip: 0,
            left: Some(1),
        }
    }

    /// For the next `count` calls.
    pub fn times(mut self, count: usize) -> Self {
        self.left = Some(count.max(1));
        self
    }

    /// For all calls, until the faults are cleared.
    pub fn always(mut self) -> Self {
        self.left = None;
        self
    }

    /// After `count` calls that nothing happens to.
    pub fn after(mut self, count: usize) -> Self {
        self.skip = count;
        self
    }

    /// For calls about this sandbox alone.
    pub fn of(mut self, sandbox_id: impl Into<String>) -> Self {
        self.sandbox_id = Some(sandbox_id.into());
        self
    }

    /// Refused, without effect.
    pub fn fail(self, code: ErrorCode, reason: Reason) {
        self.fail_with(code, reason, None, "the test wants this call to fail");
    }

    /// Refused, without effect, with the state of the sandbox and these words.
    pub fn fail_with(
        self,
        code: ErrorCode,
        reason: Reason,
        state: Option<State>,
        message: impl Into<String>,
    ) {
        let error = with_reason(ConnectError::new(code, message.into()), reason, state);
        self.script(Behaviour::Fail(Box::new(error)));
    }

    /// Refused, without effect, as if there were no such sandbox.
    pub fn deny(self) {
        self.fail(ErrorCode::NotFound, Reason::REASON_SANDBOX_NOT_FOUND);
    }

    /// Waits this long before its effect.
    pub fn delay(self, delay: Duration) {
        self.script(Behaviour::Delay(delay));
    }

    /// Waits before its effect until the gate is released. A caller that leaves meanwhile
    /// changes nothing: the effect of a call that changes a sandbox comes all the same.
    pub fn hold(self) -> Gate {
        let (gate, state) = Gate::new();
        self.script(Behaviour::Hold(state));
        gate
    }

    /// Has its effect, and waits with the answer until the gate is released.
    pub fn hold_answer(self) -> Gate {
        let (gate, state) = Gate::new();
        self.script(Behaviour::HoldAnswer(state));
        gate
    }

    /// The connection breaks before the effect.
    pub fn hang_up(self) {
        self.script(Behaviour::HangUp);
    }

    /// Has its effect, and then the connection breaks.
    pub fn lose_answer(self) {
        self.script(Behaviour::LoseAnswer);
    }

    /// Has its effect, and is never answered.
    pub fn never_answer(self) {
        self.script(Behaviour::NeverAnswer);
    }

    /// For ListSandboxes: these are left out of the list.
    pub fn omit<T: Into<String>>(self, sandbox_ids: impl IntoIterator<Item = T>) {
        let ids = sandbox_ids.into_iter().map(Into::into).collect();
        self.script(Behaviour::Omit(ids));
    }

    /// For RPCs that answer with a stream: the connection breaks after so many messages.
    pub fn cut_after(self, messages: usize) {
        self.script(Behaviour::CutAfter(messages));
    }

    fn script(self, behaviour: Behaviour) {
        let scripted = Scripted {
            behaviour,
            sandbox_id: self.sandbox_id,
            skip: self.skip,
            left: self.left,
        };
        self.faults.push(self.rpc, scripted);
    }
}

/// Holds calls until it is released or dropped.
#[derive(Debug)]
#[must_use = "dropping it releases the calls that it holds"]
pub struct Gate(Arc<GateState>);

#[derive(Debug)]
pub(crate) struct GateState {
    reached: watch::Sender<usize>,
    open: watch::Sender<bool>,
}

impl Gate {
    fn new() -> (Self, Arc<GateState>) {
        let state = Arc::new(GateState {
            reached: watch::Sender::new(0),
            open: watch::Sender::new(false),
        });
        (Self(Arc::clone(&state)), state)
    }

    /// Waits until a call is held.
    pub async fn reached(&self) {
        self.reached_by(1).await;
    }

    /// Waits until so many calls came.
    pub async fn reached_by(&self, calls: usize) {
        let mut reached = self.0.reached.subscribe();
        // The sender lives as long as this.
        reached.wait_for(|count| *count >= calls).await.ok();
    }

    /// Lets all calls go on.
    pub fn release(self) {
        drop(self);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.0.open.send_replace(true);
    }
}

impl GateState {
    pub(crate) async fn pass(&self) {
        let mut open = self.open.subscribe();
        self.reached.send_modify(|count| *count += 1);
        open.wait_for(|open| *open).await.ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_gives_each_call_its_fault() {
        let faults = Faults::default();
        Fault::new(&faults, Rpc::GetHost)
            .after(1)
            .times(2)
            .hang_up();
        Fault::new(&faults, Rpc::GetHost).of("sb1").lose_answer();
        assert!(faults.take(Rpc::GetHost, None).is_none(), "skipped");
        for _ in 0..2 {
            let fault = faults.take(Rpc::GetHost, None);
            assert!(matches!(fault, Some(Behaviour::HangUp)));
        }
        assert!(faults.take(Rpc::GetHost, Some("sb2")).is_none());
        let fault = faults.take(Rpc::GetHost, Some("sb1"));
        assert!(matches!(fault, Some(Behaviour::LoseAnswer)));
        assert!(faults.take(Rpc::GetHost, Some("sb1")).is_none());
        assert!(faults.take(Rpc::GetMetrics, None).is_none());
    }
}
