//! The life of sandboxes: created, paused, resumed, forked, destroyed.
//!
//! ```text
//! pending ──▶ running ──▶ pausing ──▶ paused ──▶ resuming ──▶ running
//! ```
//!
//! A paused guest is stopped by signals, so that its processes go on when it is resumed. The
//! guest of a fork, or of a snapshot, has a copy of the files, and no processes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::{Reason, Snapshot as SnapshotMessage, State};

use super::sandbox::{Properties, Sandbox};
use super::{Host, HostState, Snapshot};
use crate::errors::{destroyed, full, internal, invalid, refuse, sandbox_not_found};
use crate::guest::{Guest, GuestConfig, GuestFiles, random_token};

/// Sandboxes that PauseAll pauses, and why others could not be.
type PausedAll = (Vec<String>, BTreeMap<String, String>);

/// Where the files of a new guest come from.
#[derive(Clone, Debug)]
enum Source {
    Template,
    Copy(GuestFiles),
}

impl Host {
    pub(crate) fn sandbox(&self, id: &str) -> Result<Arc<Sandbox>, ConnectError> {
        check_id(id)?;
        let state = self.state();
        let found = state.sandboxes.get(id).map(Arc::clone);
        found.ok_or_else(|| sandbox_not_found(id))
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.state().sandboxes.values().map(Arc::clone).collect()
    }

    /// The same request again gives the same sandbox, or waits for it.
    pub(crate) async fn create(
        self: &Arc<Self>,
        id: String,
        mut properties: Properties,
    ) -> Result<Arc<Sandbox>, ConnectError> {
        check_id(&id)?;
        let source = self.source_of(&mut properties)?;
        self.begin(id, properties, source).await
    }

    /// Fills in what the template says of a sandbox's size.
    fn source_of(&self, properties: &mut Properties) -> Result<Source, ConnectError> {
        let state = self.state();
        let name = &properties.template;
        if let Some(snapshot) = state.snapshots.get(name) {
            let of = &snapshot.properties;
            let asked = (properties.vcpus, properties.memory_mib);
            let size = (
                or_default(asked.0, of.vcpus),
                or_default(asked.1, of.memory_mib),
            );
            if size != (of.vcpus, of.memory_mib) {
                return Err(invalid(format!(
                    "the snapshot has {} vCPUs and {} MiB, which cannot be changed; {} vCPUs and \
                     {} MiB were asked for",
                    of.vcpus, of.memory_mib, size.0, size.1
                )));
            }
            (properties.vcpus, properties.memory_mib) = size;
            return Ok(Source::Copy(snapshot.files.clone()));
        }
        if !self.config.templates.contains(name) {
            check_name(name, "template name")?;
            let known = self.config.templates.join(", ");
            return Err(refuse(
                ErrorCode::NotFound,
                Reason::REASON_TEMPLATE_NOT_FOUND,
                format!("there is no template '{name}' on this host; it has: {known}"),
            ));
        }
        properties.vcpus = or_default(properties.vcpus, 1);
        properties.memory_mib = or_default(properties.memory_mib, 512);
        if properties.vcpus > 32 {
            return Err(invalid(format!(
                "{} vCPUs cannot be given; ask for 1 to 32",
                properties.vcpus
            )));
        }
        if !(96..=1 << 20).contains(&properties.memory_mib) {
            return Err(invalid(format!(
                "{} MiB of memory cannot be given; ask for 96 to 1048576",
                properties.memory_mib
            )));
        }
        Ok(Source::Template)
    }

    async fn begin(
        self: &Arc<Self>,
        id: String,
        properties: Properties,
        source: Source,
    ) -> Result<Arc<Sandbox>, ConnectError> {
        let existing = {
            let mut state = self.state();
            match state.sandboxes.get(&id) {
                Some(sandbox) if sandbox.properties == properties => Ok(Arc::clone(sandbox)),
                Some(_) => {
                    return Err(refuse(
                        ErrorCode::AlreadyExists,
                        Reason::REASON_EXISTS,
                        format!(
                            "sandbox {id} exists already, and was asked for with other properties"
                        ),
                    ));
                }
                None => {
                    self.admit(&state, &properties)?;
                    let clock = self.clock.clone();
                    let sandbox = Sandbox::new(id.clone(), properties, clock);
                    state.sandboxes.insert(id, Arc::clone(&sandbox));
                    Err(sandbox)
                }
            }
        };
        let sandbox = match existing {
            Ok(sandbox) => {
                sandbox.created().await?;
                return Ok(sandbox);
            }
            Err(sandbox) => sandbox,
        };
        let _operation = sandbox.operation.lock().await;
        let started = tokio::select! {
            biased;
            () = sandbox.destroyed.cancelled() => Err(destroyed(&sandbox.id)),
            started = self.boot(&sandbox, source) => started,
        };
        match started {
            Ok((guest, phases)) => {
                sandbox.set_guest(guest);
                sandbox.activity.touch();
                sandbox.change(|status| {
                    status.state = State::STATE_RUNNING;
                    status.phases_ms = phases;
                });
                if self.shutdown.is_cancelled() {
                    drop(sandbox.take_guest());
                }
                Ok(Arc::clone(&sandbox))
            }
            Err(error) => {
                // It was set once at most: by this, its only creation.
                drop(sandbox.failure.set(error.clone()));
                self.forget(&sandbox);
                self.remove_files(&sandbox.id);
                sandbox.set_state(State::STATE_STOPPED);
                Err(error)
            }
        }
    }

    /// Starts the guest of a new sandbox, and says how long each step took.
    async fn boot(
        &self,
        sandbox: &Sandbox,
        source: Source,
    ) -> Result<(Arc<Guest>, BTreeMap<&'static str, f64>), ConnectError> {
        let started = Instant::now();
        let path = self.directory_of(&sandbox.id);
        let files = {
            let (path, isolation) = (path.join("files"), self.isolation.clone());
            blocking(move || match source {
                Source::Template => GuestFiles::create(path, isolation),
                Source::Copy(files) => files.copy(path),
            })
            .await?
            .map_err(|error| internal(&error))?
        };
        let prepared = Instant::now();
        let config = GuestConfig {
            program: self.program.clone(),
            marker: format!("{}{}", self.marker, sandbox.id),
            files,
            log: path.join("envd.log"),
            env: sandbox.properties.env.clone(),
            token: random_token(),
        };
        let guest = Guest::start(config).await;
        let guest = guest.map_err(|error| internal(&error))?;
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let phases = BTreeMap::from([
            ("disk", milliseconds(prepared - started)),
            ("guest", milliseconds(prepared.elapsed())),
            ("total", milliseconds(started.elapsed())),
        ]);
        Ok((guest, phases))
    }

    /// Whether there is room for one more that runs.
    fn admit(&self, state: &HostState, properties: &Properties) -> Result<(), ConnectError> {
        let used = state.used();
        let limits = &self.config;
        if used.sandboxes >= limits.max_sandboxes {
            return Err(full(format!(
                "this host runs {} sandboxes, which is its limit; destroy one, or raise the limit",
                limits.max_sandboxes
            )));
        }
        if used.vcpus + properties.vcpus > limits.max_vcpus {
            return Err(full(format!(
                "{} vCPUs are asked for and {} of this host's {} are free; ask for fewer, or \
                 destroy a sandbox",
                properties.vcpus,
                limits.max_vcpus.saturating_sub(used.vcpus),
                limits.max_vcpus
            )));
        }
        let memory_mib = u64::from(properties.memory_mib);
        if used.memory_mib + memory_mib > limits.max_memory_mib {
            return Err(full(format!(
                "{memory_mib} MiB of memory are asked for and {} of this host's {} MiB are free; \
                 ask for less, or destroy a sandbox",
                limits.max_memory_mib.saturating_sub(used.memory_mib),
                limits.max_memory_mib
            )));
        }
        Ok(())
    }

    pub(crate) async fn pause(&self, sandbox: &Arc<Sandbox>) -> Result<(), ConnectError> {
        let _operation = sandbox.operation.lock().await;
        self.pause_locked(sandbox, false).await
    }

    /// Pauses it if it was idle for as long as it may be, or whenever it runs with `force`.
    pub(crate) async fn auto_pause(&self, sandbox: &Arc<Sandbox>, force: bool) -> bool {
        let _operation = sandbox.operation.lock().await;
        if sandbox.state() != State::STATE_RUNNING || !(force || is_idle(sandbox)) {
            return false;
        }
        self.pause_locked(sandbox, true).await.is_ok()
    }

    async fn pause_locked(&self, sandbox: &Arc<Sandbox>, auto: bool) -> Result<(), ConnectError> {
        match sandbox.state() {
            State::STATE_PAUSED => return Ok(()),
            State::STATE_RUNNING => {}
            _ => return Err(sandbox.refusal("only one that is running can be paused")),
        }
        sandbox.set_state(State::STATE_PAUSING);
        if let Some(guest) = sandbox.guest() {
            blocking(move || guest.stop()).await?;
        }
        sandbox.change(|status| {
            status.state = State::STATE_PAUSED;
            status.auto_paused = auto;
            status.reason = if auto {
                "idle timeout".to_owned()
            } else {
                String::new()
            };
        });
        Ok(())
    }

    pub(crate) async fn pause_all(&self) -> PausedAll {
        let (mut paused, mut failed) = (Vec::new(), BTreeMap::new());
        for sandbox in self.sandboxes() {
            let state = sandbox.state();
            if !matches!(state, State::STATE_RUNNING | State::STATE_PAUSING) {
                continue;
            }
            match self.pause(&sandbox).await {
                Ok(()) => paused.push(sandbox.id.clone()),
                Err(error) => {
                    failed.insert(sandbox.id.clone(), error.message.unwrap_or_default());
                }
            }
        }
        (paused, failed)
    }

    pub(crate) async fn resume(
        &self,
        sandbox: &Arc<Sandbox>,
        timeout: Option<Duration>,
    ) -> Result<(), ConnectError> {
        let _operation = sandbox.operation.lock().await;
        match sandbox.state() {
            State::STATE_RUNNING => {
                if let Some(timeout) = timeout {
                    sandbox.change(|status| status.timeout = timeout);
                }
                return Ok(());
            }
            State::STATE_PAUSED => {}
            _ => return Err(sandbox.refusal("only one that is paused can be resumed")),
        }
        {
            let state = self.state();
            self.admit(&state, &sandbox.properties)?;
            sandbox.change(|status| {
                status.state = State::STATE_RESUMING;
                status.timeout = timeout.unwrap_or(status.timeout);
            });
        }
        let started = Instant::now();
        if let Some(guest) = sandbox.guest() {
            blocking(move || guest.resume()).await?;
        }
        sandbox.activity.touch();
        sandbox.change(|status| {
            status.state = State::STATE_RUNNING;
            status.auto_paused = false;
            status.reason = String::new();
            status.phases_ms = BTreeMap::from([("total", started.elapsed().as_secs_f64() * 1e3)]);
        });
        Ok(())
    }

    /// Copies the files of a sandbox that runs or is paused. It is stopped meanwhile.
    async fn copy_files(
        &self,
        sandbox: &Arc<Sandbox>,
        to: std::path::PathBuf,
    ) -> Result<GuestFiles, ConnectError> {
        let state = sandbox.state();
        let guest = sandbox
            .guest()
            .filter(|_| matches!(state, State::STATE_RUNNING | State::STATE_PAUSED));
        let Some(guest) = guest else {
            let allowed = "only one that is running or paused can be snapshotted";
            return Err(sandbox.refusal(allowed));
        };
        let copied = blocking(move || {
            if state == State::STATE_RUNNING {
                guest.stop();
            }
            let copied = guest.files().copy(to);
            if state == State::STATE_RUNNING {
                guest.resume();
            }
            copied
        });
        copied.await?.map_err(|error| internal(&error))
    }

    /// Makes children, and says of each why it could not be made.
    pub(crate) async fn fork(
        self: &Arc<Self>,
        parent: &Arc<Sandbox>,
        children: Vec<String>,
    ) -> Result<Vec<(String, Result<Arc<Sandbox>, ConnectError>)>, ConnectError> {
        let path = self.directory.path().join(format!("fork-{}", self.next()));
        let files = {
            let _operation = parent.operation.lock().await;
            self.copy_files(parent, path).await?
        };
        let properties = Properties {
            timeout: parent.status().timeout,
            egress: parent.status().egress,
            ..parent.properties.clone()
        };
        let made = children.into_iter().map(|id| {
            let (properties, source) = (properties.clone(), Source::Copy(files.clone()));
            async move {
                let made = self.begin(id.clone(), properties, source).await;
                (id, made)
            }
        });
        let made = futures::future::join_all(made).await;
        blocking(move || files.remove()).await?.ok();
        Ok(made)
    }

    pub(crate) async fn snapshot(
        &self,
        sandbox: &Arc<Sandbox>,
        name: String,
    ) -> Result<SnapshotMessage, ConnectError> {
        check_name(&name, "name of a template")?;
        let taken = || {
            refuse(
                ErrorCode::AlreadyExists,
                Reason::REASON_EXISTS,
                format!(
                    "there is a template '{name}' already; choose another name, or delete that one"
                ),
            )
        };
        if self.state().snapshots.contains_key(&name) || self.config.templates.contains(&name) {
            return Err(taken());
        }
        let build_id = format!("{:032x}", rand::random::<u128>());
        let path = self.directory.path().join(format!("build-{build_id}"));
        let files = {
            let _operation = sandbox.operation.lock().await;
            self.copy_files(sandbox, path).await?
        };
        let snapshot = Snapshot {
            name: name.clone(),
            source: sandbox.id.clone(),
            properties: sandbox.properties.clone(),
            created_at: SystemTime::now(),
            build_id,
            files: files.clone(),
        };
        let message = snapshot.describe();
        let is_taken = {
            let mut state = self.state();
            match state.snapshots.entry(name.clone()) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(snapshot);
                    false
                }
                std::collections::btree_map::Entry::Occupied(_) => true,
            }
        };
        if is_taken {
            blocking(move || files.remove()).await?.ok();
            return Err(taken());
        }
        Ok(message)
    }

    /// Takes a snapshot's name away, and gives the sandboxes that were made of it.
    pub(crate) fn delete_snapshot(&self, name: &str) -> Result<Vec<String>, ConnectError> {
        let mut state = self.state();
        let Some(snapshot) = state.snapshots.remove(name) else {
            return Err(refuse(
                ErrorCode::NotFound,
                Reason::REASON_SNAPSHOT_NOT_FOUND,
                format!("there is no snapshot '{name}' on this host"),
            ));
        };
        let of_it = state
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.properties.template == name);
        let still_needed_by = of_it.map(|sandbox| sandbox.id.clone()).collect();
        drop(state);
        // A creation that copies it at this moment fails, as a real one may.
        snapshot.files.remove().ok();
        Ok(still_needed_by)
    }

    /// Ends a sandbox with its files. One that is gone is no error.
    pub(crate) async fn destroy(&self, id: &str) -> Result<(), ConnectError> {
        check_id(id)?;
        let Some(sandbox) = self.state().sandboxes.get(id).map(Arc::clone) else {
            return Ok(());
        };
        sandbox.destroyed.cancel();
        let _operation = sandbox.operation.lock().await;
        self.end(&sandbox).await
    }

    async fn end(&self, sandbox: &Arc<Sandbox>) -> Result<(), ConnectError> {
        sandbox.set_state(State::STATE_STOPPED);
        if let Some(guest) = sandbox.take_guest() {
            blocking(move || guest.kill()).await?;
        }
        self.remove_files(&sandbox.id);
        self.forget(sandbox);
        Ok(())
    }

    /// The VM of a sandbox ends by itself.
    pub(crate) async fn break_sandbox(&self, sandbox: &Arc<Sandbox>, reason: String) {
        let _operation = sandbox.operation.lock().await;
        sandbox.change(|status| {
            status.state = State::STATE_ERROR;
            status.reason = reason;
        });
        if let Some(guest) = sandbox.guest() {
            // A thread that panicked has killed it all the same.
            blocking(move || guest.kill()).await.ok();
        }
    }

    /// Takes it off the list, unless another has its id by now.
    fn forget(&self, sandbox: &Arc<Sandbox>) {
        let mut state = self.state();
        let listed = state.sandboxes.get(&sandbox.id);
        if listed.is_some_and(|listed| Arc::ptr_eq(listed, sandbox)) {
            state.sandboxes.remove(&sandbox.id);
        }
    }

    fn remove_files(&self, id: &str) {
        let path = self.directory_of(id);
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(sandbox_id = id, %error, "failed to remove the files of a sandbox");
        }
    }

    fn directory_of(&self, id: &str) -> std::path::PathBuf {
        self.directory.path().join(id)
    }

    /// Pauses every sandbox that was idle for as long as it may be.
    pub(crate) async fn pause_idle(&self) {
        for sandbox in self.sandboxes() {
            if is_idle(&sandbox) {
                self.auto_pause(&sandbox, false).await;
            }
        }
    }
}

fn is_idle(sandbox: &Sandbox) -> bool {
    let timeout = sandbox.status().timeout;
    sandbox.state() == State::STATE_RUNNING
        && !timeout.is_zero()
        && sandbox.activity.idle() >= timeout
}

fn or_default(asked: u32, default: u32) -> u32 {
    if asked == 0 { default } else { asked }
}

pub(crate) fn check_id(id: &str) -> Result<(), ConnectError> {
    let is_id = id.strip_prefix("sb").is_some_and(|rest| {
        rest.len() == 20
            && rest
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    });
    if is_id {
        return Ok(());
    }
    let shown: String = id.chars().take(64).collect();
    Err(invalid(format!(
        "'{shown}' is no sandbox id: one is 'sb' and 20 lower-case letters or digits"
    )))
}

fn check_name(name: &str, kind: &str) -> Result<(), ConnectError> {
    let fits = (1..=128).contains(&name.len())
        && name != "."
        && name != ".."
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'));
    if fits {
        return Ok(());
    }
    let shown: String = name.chars().take(64).collect();
    Err(invalid(format!(
        "'{shown}' is no {kind}: one is made of up to 128 of a-z, 0-9, '.', '_' and '-'"
    )))
}

/// Does what waits for a disk or a process where that holds up nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| internal(&error))
}
