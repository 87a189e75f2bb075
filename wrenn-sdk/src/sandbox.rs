//! One sandbox.

use std::time::Duration;

use http::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use wrenn_api::exec::Processes;
use wrenn_api::id::SandboxId;
use wrenn_api::sandbox::{
    self as wire, ForkSandbox, Forked, ForkedItem, Metrics, MetricsPoint, PauseSandbox,
    PingSandbox, ResumeSandbox, UpdateSandbox,
};
use wrenn_api::status::Status;
use wrenn_api::template::Template;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::exec::Exec;
use crate::files::Files;
use crate::logs::Logs;
use crate::process::{Attach, ProcessId, Spawn, send_signal, whole_seconds};
use crate::signal::Signal;
use crate::snapshots::SnapshotOptions;
use crate::transport::Call;

/// For a command without arguments: `sandbox.exec("true", NO_ARGS)`.
pub const NO_ARGS: [&str; 0] = [];

/// The longest that the server waits in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A sandbox: a handle on it, and what the server last said of it.
///
/// Dropping the value does nothing to the sandbox; [`destroy`](Self::destroy) ends it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    client: Client,
    info: wire::Sandbox,
}

impl Sandbox {
    pub(crate) const fn new(client: Client, info: wire::Sandbox) -> Self {
        Self { client, info }
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> &SandboxId {
        &self.info.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.info.name.as_deref()
    }

    /// Its status, as of the last answer.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.info.status
    }

    /// All that the server says of it, as of the last answer.
    #[must_use]
    pub const fn info(&self) -> &wire::Sandbox {
        &self.info
    }

    /// The server that it is on.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Asks again.
    ///
    /// # Errors
    /// `not_found` when it is gone.
    pub async fn refresh(&mut self) -> Result<&wire::Sandbox> {
        self.info = self.fetch(self.call(Method::GET, &[])?).await?;
        Ok(&self.info)
    }

    /// Waits until it has a status, for at most `timeout`. A status that it cannot leave by
    /// itself ends the wait early; what it has then is in [`status`](Self::status).
    ///
    /// # Errors
    /// `not_found` when it is gone.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn wait_for(&mut self, status: Status, timeout: Duration) -> Result<Status> {
        let deadline = tokio::time::Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            let wait = left.min(LONGEST_WAIT).as_millis();
            let query = [
                ("wait_for", status.to_string()),
                ("wait_ms", wait.to_string()),
            ];
            let path = ["v1", "sandboxes", self.info.id.as_str()];
            let call = self.client.call_with(Method::GET, &path, &query)?;
            self.info = self.fetch(call).await?;
            let now = self.info.status;
            if now == status || left.is_zero() || matches!(now, Status::Stopped | Status::Error) {
                return Ok(now);
            }
        }
    }

    /// Changes its name, metadata, idle timeout or network.
    ///
    /// # Errors
    /// When a value cannot be used or the name is taken.
    pub async fn update(&mut self, change: &UpdateSandbox) -> Result<&wire::Sandbox> {
        let call = self.call(Method::PATCH, &[])?.json(change)?;
        self.info = self.fetch(call).await?;
        Ok(&self.info)
    }

    /// Pauses it: memory and disk go to the host's disk. A paused one stays as it is.
    ///
    /// # Errors
    /// `invalid_state` where its status does not allow it.
    pub async fn pause(&mut self) -> Result<()> {
        self.change("pause", &PauseSandbox::default()).await
    }

    /// Resumes it. One that runs goes on running.
    ///
    /// # Errors
    /// `data_lost` when its snapshot is damaged; `invalid_state` where its status does not
    /// allow it.
    pub async fn resume(&mut self) -> Result<()> {
        self.change("resume", &ResumeSandbox::default()).await
    }

    /// Resumes it with another idle timeout; zero for none.
    ///
    /// # Errors
    /// Like [`resume`](Self::resume).
    pub async fn resume_with_timeout(&mut self, idle_timeout: Duration) -> Result<()> {
        let body = ResumeSandbox {
            timeout_sec: Some(whole_seconds(idle_timeout)),
            end_after_sec: None,
        };
        self.change("resume", &body).await
    }

    /// Counts as use, so that its idle time begins anew.
    ///
    /// # Errors
    /// `invalid_state` when it does not run.
    pub async fn ping(&mut self) -> Result<()> {
        self.change("ping", &PingSandbox::default()).await
    }

    /// Counts as use, and sets another idle timeout; zero for none.
    ///
    /// # Errors
    /// `invalid_state` when it does not run.
    pub async fn ping_with_timeout(&mut self, idle_timeout: Duration) -> Result<()> {
        let body = PingSandbox {
            timeout_sec: Some(whole_seconds(idle_timeout)),
        };
        self.change("ping", &body).await
    }

    /// Creates sandboxes that go on where this one is now. Each succeeds or fails for
    /// itself. Takes how many, or [`ForkOptions`].
    ///
    /// # Errors
    /// When none is tried: it does not run, or the number is not 1 to 64.
    ///
    /// # Cancel safety
    /// The children may come to be after the future was dropped.
    pub async fn fork(&self, options: impl Into<ForkOptions>) -> Result<Vec<Result<Self>>> {
        let options = options.into();
        let call = self
            .call(Method::POST, &["fork"])?
            .json(&options.body)?
            .idempotent(None)?;
        let forked: Forked = self.fetch(call).await?;
        let item = |item| match item {
            ForkedItem::Sandbox(info) => Ok(Self::new(self.client.clone(), info)),
            ForkedItem::Error(error) => {
                let status = error.code.http_status();
                Err(Error::api(error, status))
            }
        };
        Ok(forked.items.into_iter().map(item).collect())
    }

    /// Makes a snapshot, of which sandboxes can be created. This one goes on. Takes a name,
    /// or [`SnapshotOptions`].
    ///
    /// # Errors
    /// `template_name_taken` or `conflict` when the name is taken.
    pub async fn snapshot(&self, options: impl Into<SnapshotOptions>) -> Result<Template> {
        let snapshots = self.client.snapshots();
        snapshots.create(self.info.id.as_str(), options).await
    }

    /// Ends it, its data included. Returns whether it is gone already: a host that is away
    /// destroys it when it is back.
    ///
    /// # Errors
    /// `not_found` when it is gone.
    pub async fn destroy(&self) -> Result<bool> {
        let call = self.call(Method::DELETE, &[])?;
        let answer = self.client.transport.send(call).await?;
        Ok(answer.status() != http::StatusCode::ACCEPTED)
    }

    /// Runs a command to its end and collects its output, up to 16 MiB. It is killed after
    /// 30 seconds unless [`Exec::timeout`] says otherwise. [`spawn`](Self::spawn) is for
    /// what runs longer or says more.
    ///
    /// ```no_run
    /// # async fn example(sandbox: wrenn_sdk::Sandbox) -> wrenn_sdk::Result<()> {
    /// let result = sandbox.exec("ls", ["-l", "/"]).user("root").await?;
    /// println!("{}", result.stdout_text());
    /// # Ok(())
    /// # }
    /// ```
    pub fn exec<A>(&self, cmd: impl Into<String>, args: A) -> Exec
    where
        A: IntoIterator,
        A::Item: Into<String>,
    {
        let args = args.into_iter().map(Into::into).collect();
        Exec::new(self.client.clone(), self.info.id.clone(), cmd.into(), args)
    }

    /// Runs a line of shell, as [`exec`](Self::exec) of `sh -c` does.
    pub fn shell(&self, script: impl Into<String>) -> Exec {
        self.exec("sh", ["-c".to_owned(), script.into()])
    }

    /// Starts a command and streams its output.
    pub fn spawn<A>(&self, cmd: impl Into<String>, args: A) -> Spawn
    where
        A: IntoIterator,
        A::Item: Into<String>,
    {
        let args = args.into_iter().map(Into::into).collect();
        Spawn::new(self.client.clone(), self.info.id.clone(), cmd.into(), args)
    }

    /// Follows a process that runs already, by its number or tag.
    pub fn attach(&self, process: impl Into<ProcessId>) -> Attach {
        Attach::new(self.client.clone(), self.info.id.clone(), process.into())
    }

    /// Lists the processes that were started through the API and run.
    ///
    /// # Errors
    /// `invalid_state` when it does not run.
    pub async fn processes(&self) -> Result<Vec<wrenn_api::exec::Process>> {
        let call = self.call(Method::GET, &["processes"])?;
        let processes: Processes = self.fetch(call).await?;
        Ok(processes.items)
    }

    /// Sends a signal to a process and its process group.
    ///
    /// # Errors
    /// `not_found` when it has ended.
    pub async fn signal(&self, process: impl Into<ProcessId>, signal: Signal) -> Result<()> {
        send_signal(&self.client, &self.info.id, &process.into(), signal).await
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(self.client.clone(), self.info.id.clone())
    }

    /// Its resource usage, the newest sample last. Reading it does not count as use.
    ///
    /// # Errors
    /// `not_found` when it is gone.
    pub async fn metrics(&self) -> Result<Vec<MetricsPoint>> {
        let call = self.call(Method::GET, &["metrics"])?;
        let metrics: Metrics = self.fetch(call).await?;
        Ok(metrics.points)
    }

    /// Its console: what the kernel and the first process said.
    pub fn logs(&self) -> Logs {
        Logs::new(self.client.clone(), self.info.id.clone())
    }

    fn call(&self, method: Method, more: &[&str]) -> Result<Call> {
        let path = ["v1", "sandboxes", self.info.id.as_str()];
        self.client.call(method, &[&path[..], more].concat())
    }

    async fn fetch<T: DeserializeOwned>(&self, call: Call) -> Result<T> {
        self.client.transport.fetch(call).await
    }

    async fn change(&mut self, operation: &str, body: &impl Serialize) -> Result<()> {
        let call = self.call(Method::POST, &[operation])?.json(body)?;
        self.info = self.fetch(call).await?;
        Ok(())
    }
}

/// How a sandbox is forked.
#[derive(Clone, Debug, Default)]
pub struct ForkOptions {
    body: ForkSandbox,
}

impl From<u32> for ForkOptions {
    fn from(count: u32) -> Self {
        Self::default().count(count)
    }
}

impl ForkOptions {
    /// One child without a name.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many children, 1 to 64.
    #[must_use]
    pub const fn count(mut self, count: u32) -> Self {
        self.body.count = count;
        self
    }

    /// Their names; as many as there are children.
    #[must_use]
    pub fn names<N>(mut self, names: N) -> Self
    where
        N: IntoIterator,
        N::Item: Into<String>,
    {
        self.body.names = names.into_iter().map(Into::into).collect();
        self
    }
}
