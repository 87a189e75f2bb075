//! What a machine is made of.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::accelerator::Accelerator;

const MAX_NAME: usize = 32;
const DEFAULT_MEMORY_MIB: u32 = 4096;

/// Name of a machine: lower-case letters, digits and dashes, up to 32 of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MachineName(String);

/// The text is no name of a machine.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no machine name: use 1 to {MAX_NAME} lower-case letters, digits and dashes")]
pub struct BadNameError(String);

impl MachineName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for MachineName {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl fmt::Display for MachineName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl FromStr for MachineName {
    type Err = BadNameError;

    fn from_str(text: &str) -> Result<Self, BadNameError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let good = (1..=MAX_NAME).contains(&text.len())
            && text.chars().all(allowed)
            && !text.starts_with('-');
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadNameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for MachineName {
    type Error = BadNameError;

    fn try_from(text: String) -> Result<Self, BadNameError> {
        text.parse()
    }
}

impl From<MachineName> for String {
    fn from(name: MachineName) -> Self {
        name.0
    }
}

/// What is reached from inside of a machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineNetwork {
    /// Nothing.
    #[default]
    Closed,
    /// Whatever the host reaches, by QEMU's user-mode network, and the host's own loopback at
    /// 10.0.2.2. Sandboxes inside reach public addresses alone, as on any host.
    Open,
}

/// The text names no network of a machine.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no network of a machine: use open or closed")]
pub struct BadNetworkError(String);

impl fmt::Display for MachineNetwork {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Closed => "closed",
            Self::Open => "open",
        })
    }
}

impl FromStr for MachineNetwork {
    type Err = BadNetworkError;

    fn from_str(text: &str) -> Result<Self, BadNetworkError> {
        match text {
            "closed" => Ok(Self::Closed),
            "open" => Ok(Self::Open),
            _ => Err(BadNetworkError(text.to_owned())),
        }
    }
}

/// The size and contents of a machine. What is unset stays as it is in a machine that runs.
#[derive(Debug, Clone)]
pub struct MachineConfig {
    /// Memory; by default 4096 MiB.
    pub memory_mib: Option<u32>,
    /// Processors; by default the host's, or [one where they are
    /// emulated](Accelerator::default_cpus).
    pub cpus: Option<usize>,
    /// Largest size of the data disk; it takes room only as it fills.
    pub data_gib: u64,
    /// Templates to have ready inside.
    pub templates: Vec<String>,
    /// By default closed. Changing it restarts the machine, as changing its size does.
    pub network: Option<MachineNetwork>,
    /// Forces a way to run it; otherwise the host is probed.
    pub accelerator: Option<Accelerator>,
}

impl Default for MachineConfig {
    fn default() -> Self {
        Self {
            memory_mib: None,
            cpus: None,
            data_gib: 64,
            templates: vec!["base".to_owned(), "minimal".to_owned()],
            network: None,
            accelerator: None,
        }
    }
}

impl MachineConfig {
    /// The hardware to have, where a machine with the given one runs already.
    pub(crate) fn hardware(&self, running: Option<Hardware>, accelerator: Accelerator) -> Hardware {
        let running = running.unwrap_or_else(|| Hardware {
            memory_mib: DEFAULT_MEMORY_MIB,
            cpus: accelerator.default_cpus(),
            network: MachineNetwork::default(),
        });
        Hardware {
            memory_mib: self.memory_mib.unwrap_or(running.memory_mib),
            cpus: self.cpus.unwrap_or(running.cpus),
            network: self.network.unwrap_or(running.network),
        }
    }
}

/// Settings that a restart alone can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hardware {
    pub(crate) memory_mib: u32,
    pub(crate) cpus: usize,
    pub(crate) network: MachineNetwork,
}

/// The programs of ours that go into the machine. They are static binaries of one build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// `wrenn-envd`: the daemon in the guests, and in the machine itself.
    pub envd: PathBuf,
    /// `wrenn-machine-init`: the first process of the machine.
    pub init: PathBuf,
}

impl Programs {
    /// The programs that lie beside this one, as one build leaves them.
    ///
    /// # Errors
    /// The name of the first that is not there, with the place where it should be.
    pub fn beside_this_program() -> Result<Self, PathBuf> {
        let this = std::env::current_exe().unwrap_or_default();
        // Test programs and examples lie one folder deeper.
        let folders: Vec<_> = this.ancestors().skip(1).take(2).collect();
        let find = |name: &str| {
            let mut places = folders.iter().map(|folder| folder.join(name));
            places
                .clone()
                .find(|place| place.is_file())
                .ok_or_else(|| places.next().unwrap_or_else(|| name.into()))
        };
        Ok(Self {
            envd: find("wrenn-envd")?,
            init: find("wrenn-machine-init")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["default", "a", "ci-2", &"x".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<MachineName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "A", "a/b", "..", "a b", &"x".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<MachineName>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<MachineName>("\"../x\"").is_err());
    }

    #[test]
    fn network_is_parsed_as_printed() {
        for network in [MachineNetwork::Closed, MachineNetwork::Open] {
            assert_eq!(
                network.to_string().parse::<MachineNetwork>().unwrap(),
                network
            );
        }
        assert!("Open".parse::<MachineNetwork>().is_err());
    }

    #[test]
    fn unset_settings_keep_running_hardware() {
        let emulated = Accelerator::Emulation;
        let default = MachineConfig::default().hardware(None, emulated);
        assert_eq!(default.network, MachineNetwork::Closed);
        assert_eq!(default.memory_mib, DEFAULT_MEMORY_MIB);
        assert_eq!(default.cpus, 1);
        let running = Hardware {
            memory_mib: 8192,
            cpus: 3,
            network: MachineNetwork::Open,
        };
        let kept = MachineConfig::default().hardware(Some(running), emulated);
        assert_eq!(kept, running);
        let closed = MachineConfig {
            network: Some(MachineNetwork::Closed),
            ..MachineConfig::default()
        };
        let changed = closed.hardware(Some(running), emulated);
        assert_eq!(changed.network, MachineNetwork::Closed);
        assert_eq!(changed.memory_mib, 8192);
    }
}
