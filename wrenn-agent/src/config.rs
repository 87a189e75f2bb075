//! What the agent is told: flags over environment over `.env` over defaults, read once and
//! checked before anything is bound.

use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{CommandFactory as _, Parser, ValueEnum};
use ipnet::Ipv4Net;
use wrenn_core::RootDirectory;
use wrenn_core::fleet::Limits;
use wrenn_core::network::{ConfigError as NetworkError, ConnectionLimits, NetworkConfig};
use wrenn_core::vm::{DeviceLimits, DiskLimits, RateLimit};

use crate::access::AllowedHost;

/// The file with more environment variables, in the working directory.
const DOT_ENV: &str = ".env";

/// Runs the sandboxes of one host.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "wrenn-agent",
    version,
    after_help = "\
Each option is also read from the environment, and from a file `.env` in the working
directory: flags go before the environment, the environment before `.env`.

Examples:
  wrenn-agent
  wrenn-agent --root /data/wrenn --max-memory-mib 32768
  wrenn-agent --show-config        print what is in effect, and leave

SIGTERM and SIGINT stop it; sandboxes keep running, and its next start takes them over."
)]
struct Options {
    /// Directory from which every other path is derived.
    #[arg(
        long,
        value_name = "DIR",
        env = "AGENT_FILES_ROOTDIR",
        default_value = RootDirectory::DEFAULT
    )]
    root: PathBuf,
    /// Address of the RPCs, /metrics and /healthz. There is no TLS: beyond loopback, only in
    /// a network where nobody else listens.
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "AGENT_LISTEN_ADDR",
        default_value = "127.0.0.1:7410"
    )]
    listen: SocketAddr,
    /// A second address, for /metrics and /healthz alone; none unless set.
    #[arg(long, value_name = "ADDRESS", env = "AGENT_METRICS_ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// File of the token that callers present, made at the first start; agent-token of the
    /// root directory unless set.
    #[arg(long, value_name = "PATH", env = "AGENT_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Another name that callers may have in Host, beside addresses of this host and localhost.
    #[arg(
        long,
        value_name = "NAME",
        env = "AGENT_ALLOWED_HOSTS",
        value_delimiter = ','
    )]
    allowed_host: Vec<AllowedHost>,
    /// Most sandboxes at a time.
    #[arg(long, value_name = "N", env = "AGENT_MAX_SANDBOXES")]
    max_sandboxes: Option<u32>,
    /// Most vCPUs of all sandboxes together; eight times the host's processors unless set.
    #[arg(long, value_name = "N", env = "AGENT_MAX_VCPUS")]
    max_vcpus: Option<u32>,
    /// Most memory of all sandboxes together, in MiB; the host's less 512 unless set.
    #[arg(long, value_name = "MIB", env = "AGENT_MAX_MEMORY_MIB")]
    max_memory_mib: Option<u64>,
    /// Room that must stay free on the disk when a sandbox is created, in MiB; 1024 unless
    /// set. Below half of it, sandboxes that run are paused.
    #[arg(long, value_name = "MIB", env = "AGENT_DISK_RESERVE_MIB")]
    disk_reserve_mib: Option<u64>,
    /// What each sandbox may read from the disk in a second, and the same for what it writes,
    /// in MiB; 0 for all that it can.
    #[arg(
        long,
        value_name = "MIB",
        env = "AGENT_DISK_MIB_PER_SECOND",
        default_value_t = 256
    )]
    disk_mib_per_second: u32,
    /// How much a guest may read from its drive and write to it in a second, together and in
    /// MiB, whether or not that reaches the disk; 0 for no limit.
    #[arg(
        long,
        value_name = "MIB",
        env = "AGENT_DRIVE_MIB_PER_SECOND",
        default_value_t = 0
    )]
    drive_mib_per_second: u32,
    /// Requests that a guest may make to its drive in a second; 0 for no limit.
    #[arg(
        long,
        value_name = "N",
        env = "AGENT_DRIVE_REQUESTS_PER_SECOND",
        default_value_t = 0
    )]
    drive_requests_per_second: u32,
    /// How much a guest may receive in a second, and the same for what it sends, in MiB; 0 for
    /// no limit.
    #[arg(
        long,
        value_name = "MIB",
        env = "AGENT_NETWORK_MIB_PER_SECOND",
        default_value_t = 0
    )]
    network_mib_per_second: u32,
    /// Packets that a guest may receive in a second, and the same for those it sends; 0 for no
    /// limit. One packet may hold 64 KiB.
    #[arg(
        long,
        value_name = "N",
        env = "AGENT_NETWORK_PACKETS_PER_SECOND",
        default_value_t = 0
    )]
    network_packets_per_second: u32,
    /// Program that runs VMs; firecracker on PATH unless set, else the wrenn-vmm beside
    /// this program.
    #[arg(long, value_name = "PATH", env = "WRENN_VMM")]
    vmm: Option<PathBuf>,
    /// Program that feeds restored VMs their memory; the wrenn-pager beside this program
    /// unless set, else on PATH.
    #[arg(long, value_name = "PATH", env = "WRENN_PAGER")]
    pager: Option<PathBuf>,
    /// Network of the addresses where this host reaches its guests.
    #[arg(
        long,
        value_name = "NETWORK",
        env = "AGENT_SLOT_NETWORK",
        default_value = "10.11.0.0/16"
    )]
    slot_network: Ipv4Net,
    /// Network of the links between this host and its slots.
    #[arg(
        long,
        value_name = "NETWORK",
        env = "AGENT_LINK_NETWORK",
        default_value = "10.12.0.0/16"
    )]
    link_network: Ipv4Net,
    /// Connections to the outside that a sandbox may have open; 0 for no limit. All sandboxes
    /// share the host's table of connections (`nf_conntrack_max`).
    #[arg(
        long,
        value_name = "N",
        env = "AGENT_SANDBOX_CONNECTIONS",
        default_value_t = ConnectionLimits::default().open.map_or(0, NonZeroU32::get)
    )]
    sandbox_connections: u32,
    /// Connections that a sandbox may begin in a second, after a burst of twice as many; 0 for no
    /// limit.
    #[arg(
        long,
        value_name = "N",
        env = "AGENT_SANDBOX_CONNECTIONS_PER_SECOND",
        default_value_t = ConnectionLimits::default().new_per_second.map_or(0, NonZeroU32::get)
    )]
    sandbox_connections_per_second: u32,
    /// Network slots that are made ahead of need.
    #[arg(
        long,
        value_name = "N",
        env = "AGENT_SLOT_POOL_SIZE",
        default_value_t = 8
    )]
    slot_pool_size: u16,
    /// How long a guest may take to be set up after it has booted or was resumed: 30s, 2m.
    #[arg(
        long,
        value_name = "TIME",
        env = "AGENT_BOOT_DEADLINE",
        default_value = "60s",
        value_parser = humantime::parse_duration
    )]
    boot_deadline: Duration,
    /// What is logged, as tracing-subscriber understands it.
    #[arg(long, value_name = "FILTER", env = "AGENT_LOG", default_value = "info")]
    log: String,
    /// How a line of the log looks.
    #[arg(
        long,
        value_name = "FORMAT",
        env = "AGENT_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
    /// Print the configuration that is in effect, and leave.
    #[arg(long)]
    show_config: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One object a line, for programs.
    Json,
}

/// A configuration that was checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where everything lies.
    pub root: RootDirectory,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it listens for its metrics alone.
    pub metrics_listen: Option<SocketAddr>,
    /// The file of the token that callers present.
    pub token_file: PathBuf,
    /// Names that `Host` may have beside addresses of this host and localhost.
    pub allowed_hosts: Vec<AllowedHost>,
    /// What it gives to sandboxes.
    pub limits: Limits,
    /// What each sandbox may read from the disk and write to it.
    pub disk_limits: Option<DiskLimits>,
    /// How fast the devices of each sandbox are.
    pub device_limits: DeviceLimits,
    /// The program that runs VMs.
    pub vmm: Option<PathBuf>,
    /// The program that feeds restored VMs their memory; looked for where it is not set.
    pub pager: Option<PathBuf>,
    /// Addresses of slots.
    pub network: NetworkConfig,
    /// The two networks that `network` was made of.
    pub networks: (Ipv4Net, Ipv4Net),
    /// Slots that are made ahead of need.
    pub slot_pool_size: u16,
    /// How long a guest may take to come up.
    pub boot_deadline: Duration,
    /// What is logged.
    pub log: String,
    /// How a line of the log looks.
    pub log_format: LogFormat,
}

/// What the program is to do.
#[derive(Clone, Debug)]
pub enum Action {
    /// Run.
    Run(Box<Config>),
    /// Print the configuration and leave.
    Show(Box<Config>),
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or a variable makes no sense, or help was asked for.
    #[error(transparent)]
    Options(#[from] clap::Error),
    /// The file of variables cannot be used.
    #[error("cannot use {DOT_ENV} of the working directory: {0}")]
    DotEnv(#[source] dotenvy::Error),
    /// The two would be one.
    #[error("--metrics-listen {0} is the address of --listen, which serves /metrics as well")]
    SameAddress(SocketAddr),
    /// The networks cannot be used.
    #[error("--slot-network or --link-network cannot be used: {0}")]
    Network(NetworkError),
    /// The pool would take all that there is.
    #[error(
        "--slot-pool-size {asked} is more than half of the {capacity} slots that the networks hold"
    )]
    Pool {
        /// What was asked for.
        asked: u16,
        /// What there is.
        capacity: u16,
    },
    /// A limit of nothing.
    #[error("--{0} 0 leaves no room for any sandbox")]
    NoRoom(&'static str),
    /// The filter of the log makes no sense.
    #[error("--log {filter}: {reason}")]
    Log {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl ConfigError {
    /// Says it on standard error, or on standard output where help was asked for.
    pub(crate) fn print(&self) {
        match self {
            // Printing help to a closed pipe is nobody's failure.
            Self::Options(error) => drop(error.print()),
            other => eprintln!("wrenn-agent: {other}"),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Options(error) if !error.use_stderr() => 0,
            _ => 2,
        }
    }
}

impl Config {
    /// Reads `.env` of the working directory, the environment and the arguments, the
    /// program's name first. Sets environment variables, so no thread may run yet.
    ///
    /// # Errors
    /// When something makes no sense; the message names it.
    pub fn load(arguments: impl Iterator<Item = OsString>) -> Result<Action, ConfigError> {
        if Path::new(DOT_ENV).exists() {
            dotenvy::from_path(DOT_ENV).map_err(ConfigError::DotEnv)?;
        }
        Self::parse(arguments)
    }

    /// Reads the environment and the arguments, the program's name first.
    ///
    /// # Errors
    /// When something makes no sense; the message names it.
    pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Action, ConfigError> {
        let options = Options::try_parse_from(arguments)?;
        let show = options.show_config;
        let config = Box::new(options.check()?);
        Ok(if show {
            Action::Show(config)
        } else {
            Action::Run(config)
        })
    }
}

impl Options {
    fn check(self) -> Result<Config, ConfigError> {
        if self.metrics_listen == Some(self.listen) && self.listen.port() != 0 {
            return Err(ConfigError::SameAddress(self.listen));
        }
        let network = NetworkConfig::new(self.slot_network, self.link_network)
            .map_err(ConfigError::Network)?
            .with_connection_limits(ConnectionLimits {
                open: NonZeroU32::new(self.sandbox_connections),
                new_per_second: NonZeroU32::new(self.sandbox_connections_per_second),
            });
        let capacity = network.plan().capacity();
        if self.slot_pool_size > capacity.div_ceil(2) {
            return Err(ConfigError::Pool {
                asked: self.slot_pool_size,
                capacity,
            });
        }
        let of_host = Limits::of_this_host();
        let limits = Limits {
            sandboxes: self
                .max_sandboxes
                .unwrap_or_else(|| of_host.sandboxes.min(capacity.into())),
            vcpus: self.max_vcpus.unwrap_or(of_host.vcpus),
            memory_mib: self.max_memory_mib.unwrap_or(of_host.memory_mib),
            disk_reserve_mib: self.disk_reserve_mib.unwrap_or(of_host.disk_reserve_mib),
        };
        for (name, limit) in [
            ("max-sandboxes", u64::from(limits.sandboxes)),
            ("max-vcpus", limits.vcpus.into()),
            ("max-memory-mib", limits.memory_mib),
        ] {
            if limit == 0 {
                return Err(ConfigError::NoRoom(name));
            }
        }
        if let Err(error) = tracing_subscriber::EnvFilter::try_new(&self.log) {
            return Err(ConfigError::Log {
                filter: self.log,
                reason: error.to_string(),
            });
        }
        let token_file = self
            .token_file
            .unwrap_or_else(|| self.root.join("agent-token"));
        Ok(Config {
            root: RootDirectory::new(self.root),
            token_file,
            allowed_hosts: self.allowed_host,
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            limits,
            disk_limits: (self.disk_mib_per_second > 0).then(|| DiskLimits {
                bytes_per_second: u64::from(self.disk_mib_per_second) << 20,
                ..DiskLimits::default()
            }),
            device_limits: DeviceLimits {
                drive: RateLimit {
                    mib_per_second: NonZeroU32::new(self.drive_mib_per_second),
                    operations_per_second: NonZeroU32::new(self.drive_requests_per_second),
                },
                network: RateLimit {
                    mib_per_second: NonZeroU32::new(self.network_mib_per_second),
                    operations_per_second: NonZeroU32::new(self.network_packets_per_second),
                },
            },
            vmm: self.vmm,
            pager: self.pager,
            network,
            networks: (self.slot_network, self.link_network),
            slot_pool_size: self.slot_pool_size,
            boot_deadline: self.boot_deadline,
            log: self.log,
            log_format: self.log_format,
        })
    }
}

/// One `VARIABLE=value` a line, as `.env` has it.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        writeln!(f, "AGENT_FILES_ROOTDIR={}", self.root.path().display())?;
        writeln!(f, "AGENT_LISTEN_ADDR={}", self.listen)?;
        if let Some(address) = self.metrics_listen {
            writeln!(f, "AGENT_METRICS_ADDR={address}")?;
        }
        writeln!(f, "AGENT_TOKEN_FILE={}", self.token_file.display())?;
        if !self.allowed_hosts.is_empty() {
            let names: Vec<_> = self.allowed_hosts.iter().map(ToString::to_string).collect();
            writeln!(f, "AGENT_ALLOWED_HOSTS={}", names.join(","))?;
        }
        writeln!(f, "AGENT_MAX_SANDBOXES={}", self.limits.sandboxes)?;
        writeln!(f, "AGENT_MAX_VCPUS={}", self.limits.vcpus)?;
        writeln!(f, "AGENT_MAX_MEMORY_MIB={}", self.limits.memory_mib)?;
        writeln!(f, "AGENT_DISK_RESERVE_MIB={}", self.limits.disk_reserve_mib)?;
        let disk_mib = self
            .disk_limits
            .map_or(0, |disk| disk.bytes_per_second >> 20);
        writeln!(f, "AGENT_DISK_MIB_PER_SECOND={disk_mib}")?;
        let number = |limit: Option<NonZeroU32>| limit.map_or(0, NonZeroU32::get);
        let DeviceLimits { drive, network } = self.device_limits;
        for (variable, limit) in [
            ("DRIVE_MIB", drive.mib_per_second),
            ("DRIVE_REQUESTS", drive.operations_per_second),
            ("NETWORK_MIB", network.mib_per_second),
            ("NETWORK_PACKETS", network.operations_per_second),
        ] {
            writeln!(f, "AGENT_{variable}_PER_SECOND={}", number(limit))?;
        }
        if let Some(vmm) = &self.vmm {
            writeln!(f, "WRENN_VMM={}", vmm.display())?;
        }
        if let Some(pager) = &self.pager {
            writeln!(f, "WRENN_PAGER={}", pager.display())?;
        }
        writeln!(f, "AGENT_SLOT_NETWORK={}", self.networks.0)?;
        writeln!(f, "AGENT_LINK_NETWORK={}", self.networks.1)?;
        let connections = self.network.connection_limits();
        writeln!(f, "AGENT_SANDBOX_CONNECTIONS={}", number(connections.open))?;
        writeln!(
            f,
            "AGENT_SANDBOX_CONNECTIONS_PER_SECOND={}",
            number(connections.new_per_second)
        )?;
        writeln!(f, "AGENT_SLOT_POOL_SIZE={}", self.slot_pool_size)?;
        let deadline = humantime::format_duration(self.boot_deadline).to_string();
        writeln!(f, "AGENT_BOOT_DEADLINE={}", deadline.replace(' ', ""))?;
        writeln!(f, "AGENT_LOG={}", self.log)?;
        write!(f, "AGENT_LOG_FORMAT={format}")
    }
}

/// The options as a table for the documentation.
#[must_use]
pub fn reference_table() -> String {
    let mut table = "| flag | variable | default | what |\n|---|---|---|---|\n".to_owned();
    for argument in Options::command().get_arguments() {
        let Some(variable) = argument.get_env() else {
            continue;
        };
        let value = argument.get_value_names().unwrap_or_default();
        let defaults: Vec<_> = argument
            .get_default_values()
            .iter()
            .map(|value| format!("`{}`", value.to_string_lossy()))
            .collect();
        table.push_str(&format!(
            "| `--{} {}` | `{}` | {} | {} |\n",
            argument.get_long().unwrap_or_default(),
            value
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" "),
            variable.to_string_lossy(),
            defaults.join(" "),
            argument
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Action, ConfigError> {
        let arguments = std::iter::once("wrenn-agent").chain(arguments.iter().copied());
        Config::parse(arguments.map(OsString::from))
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let cases: [(&[&str], &str); 9] = [
            (&["--allowed-host", "http://agent"], "is no name or address"),
            (
                &["--listen", "127.0.0.1:1", "--metrics-listen", "127.0.0.1:1"],
                "serves /metrics as well",
            ),
            (&["--listen", "nowhere"], "--listen"),
            (&["--slot-network", "8.8.0.0/16"], "is not private"),
            (
                &["--slot-network", "10.12.0.0/16"],
                "10.12.0.0/16 and 10.12.0.0/16 overlap",
            ),
            (
                &["--slot-network", "10.11.0.0/29", "--slot-pool-size", "7"],
                "is more than half of the",
            ),
            (&["--max-vcpus", "0"], "--max-vcpus 0 leaves no room"),
            (&["--log", "a=b=c"], "--log a=b=c"),
            (&["--log-format", "xml"], "--log-format"),
        ];
        for (arguments, wanted) in cases {
            let error = parse(arguments).unwrap_err();
            assert!(error.to_string().contains(wanted), "{arguments:?}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    #[test]
    fn the_pool_never_takes_all_slots() {
        let Action::Run(config) = parse(&["--slot-pool-size", "100"]).unwrap() else {
            panic!("it shall run");
        };
        assert_eq!(config.slot_pool_size, 100);
        assert_eq!(config.limits.sandboxes, 32_767);
    }

    #[test]
    fn help_is_no_failure() {
        assert_eq!(parse(&["--help"]).unwrap_err().exit_code(), 0);
    }
}
