//! What a test sees of a fake host.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use wrenn_proto::hostagent::{Egress, Sandbox as SandboxMessage, State};

use super::config::{FakeHostBuilder, HostConfig};
use super::sandbox::{Sandbox, Token};
use super::{Host, HostState, random_root_id};
use crate::calls::{Call, Calls};
use crate::clock::Clock;
use crate::faults::{Fault, Faults, Gate, Rpc};
use crate::guest::{FindEnvdError, Guard, Isolation, MARKER, find_program};
use crate::listener::Listener;

/// How long files may keep coming into a directory that is removed.
const REMOVE_DEADLINE: Duration = Duration::from_secs(2);

/// Why a fake host did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartFakeHostError {
    /// There is no guest daemon.
    #[error(transparent)]
    Envd(#[from] FindEnvdError),
    /// There is no room for its files.
    #[error("cannot make a directory for the files of guests")]
    Directory(#[source] io::Error),
    /// The process that ends the guests of a killed test did not start.
    #[error("cannot start the guard of guests, which is /bin/sh")]
    Guard(#[source] io::Error),
    /// It is not known as whom programs are to run.
    #[error("cannot find out how guests can be isolated")]
    Isolation(#[source] io::Error),
    /// There is no port.
    #[error("cannot listen on a loopback port")]
    Listen(#[source] io::Error),
}

/// A host agent in memory, with a real guest daemon for each sandbox. Dropping it ends all of
/// its guests, and removes their files.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use wrenn_testing::{FakeHost, Rpc};
///
/// let host = FakeHost::start().await?;
/// println!("the agent is at {} with the token {:?}", host.url(), host.token());
/// let gate = host.hold(Rpc::PauseSandbox);
/// // … something pauses a sandbox …
/// gate.reached().await;
/// gate.release();
/// host.wait_for_calls(Rpc::PauseSandbox, 1).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct FakeHost {
    host: Arc<Host>,
    listener: Listener,
    poll: JoinHandle<()>,
    // Dropped last: until then it may have to end the guests.
    _guard: Guard,
}

impl FakeHost {
    /// Starts one with the templates `base` and `minimal`, room for many sandboxes and a
    /// random token.
    ///
    /// # Errors
    /// As [`FakeHostBuilder::start`].
    pub async fn start() -> Result<Self, StartFakeHostError> {
        Self::builder().start().await
    }

    /// Chooses what it has.
    pub fn builder() -> FakeHostBuilder {
        FakeHostBuilder::default()
    }

    pub(super) async fn with(config: HostConfig) -> Result<Self, StartFakeHostError> {
        let prepared = tokio::task::spawn_blocking(|| {
            let program = find_program()?;
            let isolation = Isolation::probe().map_err(StartFakeHostError::Isolation)?;
            let directory = tempfile::Builder::new()
                .prefix("wrenn-testing-")
                .tempdir()
                .map_err(StartFakeHostError::Directory)?;
            let marker = format!("{:032x}.", rand::random::<u128>());
            let variable = format!("{MARKER}={marker}");
            let guard = Guard::start(&variable, directory.path());
            let guard = guard.map_err(StartFakeHostError::Guard)?;
            Ok::<_, StartFakeHostError>((program, isolation, directory, marker, guard))
        });
        let prepared = prepared.await.map_err(io::Error::other);
        let (program, isolation, directory, marker, guard) =
            prepared.map_err(StartFakeHostError::Directory)??;
        let host = Arc::new(Host {
            config,
            clock: Clock::default(),
            faults: Faults::default(),
            calls: Calls::default(),
            shutdown: CancellationToken::new(),
            program,
            isolation,
            marker,
            directory,
            number: AtomicU64::new(0),
            state: Mutex::new(HostState {
                root_id: random_root_id(),
                ..HostState::default()
            }),
        });
        let listener = Listener::start(Arc::clone(&host)).await;
        let listener = listener.map_err(StartFakeHostError::Listen)?;
        let poll = tokio::spawn({
            let host = Arc::clone(&host);
            async move {
                loop {
                    tokio::time::sleep(host.config.poll_interval).await;
                    host.pause_idle().await;
                }
            }
        });
        Ok(Self {
            host,
            listener,
            poll,
            _guard: guard,
        })
    }

    /// Where it listens: `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The token that callers must send, if one is wanted.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.host.config.token.as_deref()
    }

    /// The identity of its root directory.
    #[must_use]
    pub fn root_id(&self) -> String {
        self.host.state().root_id.clone()
    }

    /// Whether each guest has a mount namespace: a `/tmp`, a `/home` and a user `user` of its
    /// own. It takes root.
    #[must_use]
    pub fn has_mount_namespaces(&self) -> bool {
        self.host.isolation == Isolation::Mounts
    }

    // Faults

    /// Scripts what happens to a call.
    pub fn fault(&self, rpc: Rpc) -> Fault<'_> {
        Fault::new(&self.host.faults, rpc)
    }

    /// Holds the next call before its effect.
    pub fn hold(&self, rpc: Rpc) -> Gate {
        self.fault(rpc).hold()
    }

    /// Lets the next call have its effect, and holds its answer.
    pub fn hold_answer(&self, rpc: Rpc) -> Gate {
        self.fault(rpc).hold_answer()
    }

    /// Forgets all faults that no call met yet.
    pub fn clear_faults(&self) {
        self.host.faults.clear();
    }

    /// The host is down: connections break, and new ones are reset. Sandboxes go on.
    pub fn disconnect(&self) {
        self.listener.disconnect();
    }

    /// The host is back, as it was.
    pub fn reconnect(&self) {
        self.listener.reconnect();
    }

    /// All sandboxes and snapshots are lost, and the root directory is another one.
    pub async fn wipe(&self) {
        for sandbox in self.host.sandboxes() {
            self.vanish(&sandbox.id).await;
        }
        let mut state = self.host.state();
        state.snapshots.clear();
        state.root_id = random_root_id();
    }

    /// Gives the root directory another identity, and changes nothing else.
    pub fn set_root_id(&self, root_id: impl Into<String>) {
        self.host.state().root_id = root_id.into();
    }

    // Calls

    /// How many calls came.
    #[must_use]
    pub fn calls(&self, rpc: Rpc) -> usize {
        self.host.calls.count(rpc)
    }

    /// All calls that came, in their order.
    #[must_use]
    pub fn log(&self) -> Vec<Call> {
        self.host.calls.all()
    }

    /// Waits until a call came.
    pub async fn wait_for_call(&self, rpc: Rpc) {
        self.wait_for_calls(rpc, 1).await;
    }

    /// Waits until so many calls came, since the host started.
    pub async fn wait_for_calls(&self, rpc: Rpc, count: usize) {
        self.host.calls.wait(rpc, count, false).await;
    }

    /// Waits until so many calls had their effect, or were refused, since the host started.
    pub async fn wait_for_effects(&self, rpc: Rpc, count: usize) {
        self.host.calls.wait(rpc, count, true).await;
    }

    // Sandboxes

    /// The ids of its sandboxes, sorted.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<String> {
        self.host.state().sandboxes.keys().cloned().collect()
    }

    /// A sandbox as GetSandbox tells it, if it is there.
    #[must_use]
    pub fn sandbox(&self, id: &str) -> Option<SandboxMessage> {
        self.find(id).map(|sandbox| sandbox.describe(Token::Shown))
    }

    /// The state of a sandbox, if it is there.
    #[must_use]
    pub fn state(&self, id: &str) -> Option<State> {
        self.find(id).map(|sandbox| sandbox.state())
    }

    /// What a sandbox may connect to, if that was ever said.
    #[must_use]
    pub fn egress(&self, id: &str) -> Option<Egress> {
        self.find(id)?.status().egress
    }

    /// The names of its snapshots, sorted.
    #[must_use]
    pub fn snapshots(&self) -> Vec<String> {
        self.host.state().snapshots.keys().cloned().collect()
    }

    /// The home directory of a sandbox's user, as this test can open it. It is the same files
    /// that the guest sees.
    #[must_use]
    pub fn home(&self, id: &str) -> Option<PathBuf> {
        Some(self.find(id)?.guest()?.files().home())
    }

    /// The pids of a sandbox's processes, its guest daemon among them.
    #[must_use]
    pub fn pids(&self, id: &str) -> Vec<i32> {
        let guest = self.find(id).and_then(|sandbox| sandbox.guest());
        guest.map_or_else(Vec::new, |guest| guest.pids())
    }

    /// Pauses a sandbox as its idle timeout would, and says whether it ran.
    pub async fn auto_pause(&self, id: &str) -> bool {
        match self.find(id) {
            Some(sandbox) => self.host.auto_pause(&sandbox, true).await,
            None => false,
        }
    }

    /// Moves the host's clock, by which idle time is counted, and pauses what was idle for
    /// too long by then.
    pub async fn advance(&self, by: Duration) {
        self.host.clock.advance(by);
        self.host.pause_idle().await;
    }

    /// The sandbox's VM ends: it is in `STATE_ERROR` from then on.
    pub async fn break_sandbox(&self, id: &str, reason: impl Into<String>) {
        if let Some(sandbox) = self.find(id) {
            self.host.break_sandbox(&sandbox, reason.into()).await;
        }
    }

    /// The host says that the sandbox is in this state, for this reason, whatever is true.
    pub fn pretend(&self, id: &str, state: State, reason: impl Into<String>) {
        if let Some(sandbox) = self.find(id) {
            let pretended = (state, reason.into());
            sandbox.change(|status| status.pretended = Some(pretended));
        }
    }

    /// The host tells the truth about the sandbox again.
    pub fn stop_pretending(&self, id: &str) {
        if let Some(sandbox) = self.find(id) {
            sandbox.change(|status| status.pretended = None);
        }
    }

    /// The sandbox is gone, and no caller asked for it.
    pub async fn vanish(&self, id: &str) {
        // Nothing of it can be left that matters to the test.
        self.host.destroy(id).await.ok();
    }

    /// Says why a sandbox that runs is suspended; empty when it no longer is.
    pub fn suspend(&self, id: &str, reason: impl Into<String>) {
        if let Some(sandbox) = self.find(id) {
            sandbox.change(|status| status.reason = reason.into());
        }
    }

    /// Adds to the log of a sandbox's console.
    pub fn write_console(&self, id: &str, bytes: &[u8]) {
        if let Some(sandbox) = self.find(id) {
            sandbox
                .console
                .send_modify(|log| log.extend_from_slice(bytes));
        }
    }

    /// Empties the log of a sandbox's console, as a guest leaves it that boots quietly.
    pub fn clear_console(&self, id: &str) {
        if let Some(sandbox) = self.find(id) {
            sandbox.console.send_modify(Vec::clear);
        }
    }

    /// Where it keeps everything. Removed when it is dropped, and when this process ends in
    /// any way.
    pub(crate) fn directory(&self) -> &Path {
        self.host.directory.path()
    }

    fn find(&self, id: &str) -> Option<Arc<Sandbox>> {
        self.host.state().sandboxes.get(id).map(Arc::clone)
    }
}

impl Drop for FakeHost {
    fn drop(&mut self) {
        self.poll.abort();
        self.host.shutdown.cancel();
        let sandboxes: BTreeMap<_, _> = std::mem::take(&mut self.host.state().sandboxes);
        for sandbox in sandboxes.values() {
            sandbox.set_state(State::STATE_STOPPED);
            sandbox.destroyed.cancel();
            if let Some(guest) = sandbox.take_guest() {
                guest.kill();
            }
        }
        // Tasks of callers may hold the host, and with it the directory, for a moment longer,
        // and a server that ends may still close its database in there.
        let directory = self.host.directory.path();
        let since = Instant::now();
        while std::fs::remove_dir_all(directory).is_err()
            && directory.exists()
            && since.elapsed() < REMOVE_DEADLINE
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
