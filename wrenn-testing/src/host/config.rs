//! What a fake host is started with.

use std::time::Duration;

use super::fake::{FakeHost, StartFakeHostError};

/// What a fake host has, and who may call it.
#[derive(Clone, Debug)]
pub(crate) struct HostConfig {
    pub(crate) token: Option<String>,
    pub(crate) templates: Vec<String>,
    pub(crate) max_sandboxes: u32,
    pub(crate) max_vcpus: u32,
    pub(crate) max_memory_mib: u64,
    /// How often idle sandboxes are looked for.
    pub(crate) poll_interval: Duration,
    /// How long a stream is silent before it shows that it lives.
    pub(crate) keep_alive: Duration,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            token: Some(crate::guest::random_token()),
            templates: vec!["base".to_owned(), "minimal".to_owned()],
            max_sandboxes: 1000,
            max_vcpus: 4000,
            max_memory_mib: 1 << 22,
            poll_interval: Duration::from_millis(50),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// A fake host to be started.
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is started yet"]
pub struct FakeHostBuilder {
    config: HostConfig,
}

impl FakeHostBuilder {
    /// The token that callers must send; a random one if it is not set.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.config.token = Some(token.into());
        self
    }

    /// No token is wanted.
    pub fn without_token(mut self) -> Self {
        self.config.token = None;
        self
    }

    /// The names of its templates, in place of `base` and `minimal`.
    pub fn templates<T: Into<String>>(mut self, names: impl IntoIterator<Item = T>) -> Self {
        self.config.templates = names.into_iter().map(Into::into).collect();
        self
    }

    /// How many sandboxes may run at a time.
    pub fn max_sandboxes(mut self, count: u32) -> Self {
        self.config.max_sandboxes = count;
        self
    }

    /// How many vCPUs running sandboxes may have together.
    pub fn max_vcpus(mut self, count: u32) -> Self {
        self.config.max_vcpus = count;
        self
    }

    /// How much memory running sandboxes may have together.
    pub fn max_memory_mib(mut self, size_mib: u64) -> Self {
        self.config.max_memory_mib = size_mib;
        self
    }

    /// How long a stream is silent before a keep-alive is sent; 30 s if it is not set.
    pub fn keep_alive(mut self, interval: Duration) -> Self {
        self.config.keep_alive = interval;
        self
    }

    /// Starts it on a loopback port that the kernel chooses.
    ///
    /// # Errors
    /// When the guest daemon's program cannot be found or built, or something of the host
    /// cannot be had.
    pub async fn start(self) -> Result<FakeHost, StartFakeHostError> {
        FakeHost::with(self.config).await
    }
}
