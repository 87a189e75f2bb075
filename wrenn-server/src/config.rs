//! What a server is told: settings of the library, and the configuration of the program.

use std::time::Duration;

/// Settings of a server. The defaults are those of the documentation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// `local` for a server that one person runs beside an agent, else `server`.
    pub mode: String,
    /// Host names, besides loopback, under which the server answers.
    pub allowed_hosts: Vec<String>,
    /// How often rows are compared with what hosts say.
    pub reconcile_interval: Duration,
    /// How long a host may be silent before it counts as unreachable.
    pub host_stale_after: Duration,
    /// How old a snapshot without a name must be before it counts as interrupted.
    pub interrupted_after: Duration,
    /// How long a client has for the headers of a request, or the first frame of a
    /// WebSocket.
    pub headers_timeout: Duration,
    /// How long requests that are under way may take when the server stops.
    pub shutdown_grace: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: "server".to_owned(),
            allowed_hosts: Vec::new(),
            reconcile_interval: Duration::from_secs(5),
            host_stale_after: Duration::from_secs(90),
            interrupted_after: Duration::from_secs(3600),
            headers_timeout: Duration::from_secs(30),
            shutdown_grace: Duration::from_secs(10),
        }
    }
}
