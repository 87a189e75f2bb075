//! What a machine is going to be made of: each request is checked and its files are
//! opened at once, so that a mistake is reported where it was made.

use std::fs::File;
use std::path::PathBuf;

use crate::config::{
    BalloonConfig, BootSourceConfig, DriveConfig, DriveUpdate, EntropyConfig, IoEngine, MacAddress,
    MachineConfig, MachineConfigError, MachineConfigUpdate, NetworkInterfaceConfig,
    NetworkInterfaceUpdate, RateLimiterConfig, VmConfig,
};
use crate::layout;
use crate::sys::tap::Tap;
use crate::virtio::block::{Backing, OpenDriveError};

/// What a kernel is told if the client says nothing, as Firecracker has it: no console,
/// no modules, no search for hardware that is not there.
const DEFAULT_COMMAND_LINE: &str = "reboot=k panic=1 nomodule 8250.nr_uarts=0 i8042.noaux \
                                    i8042.nomux i8042.dumbkbd swiotlb=noforce";

/// A boot source that does not do.
#[derive(Debug, thiserror::Error)]
pub enum BootSourceError {
    /// No kernel.
    #[error("The kernel file cannot be opened: {path}")]
    Kernel {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// No initrd.
    #[error("The initrd file cannot be opened: {path}")]
    Initrd {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Too long, or not text.
    #[error(
        "The kernel command line is invalid: it must be printable ASCII of less than {} bytes",
        layout::COMMAND_LINE_CAPACITY
    )]
    CommandLine,
}

/// A drive that does not do.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// Two roots.
    #[error("A root block device already exists!")]
    SecondRoot,
    /// No file.
    #[error("Unable to create the block device")]
    Open(#[from] OpenDriveError),
    /// Nothing behind it.
    #[error("path_on_host is required")]
    NoPath,
    /// There is none to be changed.
    #[error("there is no drive {0:?}")]
    NoSuchDrive(String),
    /// A setting of Firecracker that this VMM lacks.
    #[error("{0} is not implemented")]
    NotImplemented(&'static str),
}

/// A network interface that does not do.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// Two interfaces with one address.
    #[error("The MAC address is already in use: {0}")]
    AddressInUse(MacAddress),
    /// No TAP.
    #[error("Open tap device failed: {name}")]
    Tap {
        /// Which interface.
        name: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// There is no such network interface to be changed.
#[derive(Debug, thiserror::Error)]
#[error("there is no network interface {0:?}")]
pub struct NoSuchInterface(pub(super) String);

/// A balloon that does not do.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not implemented")]
pub struct BalloonError(&'static str);

/// An opened boot source.
#[derive(Debug)]
pub struct BootSource {
    /// As requested.
    pub config: BootSourceConfig,
    /// The kernel.
    pub kernel: File,
    /// The initrd.
    pub initrd: Option<File>,
}

impl BootSource {
    /// The command line for a machine whose root drive, if any, is `root`. Whatever
    /// comes behind ` -- ` belongs to init and stays last.
    pub fn command_line(&self, root: Option<&DriveConfig>) -> String {
        let given = self
            .config
            .boot_args
            .as_deref()
            .unwrap_or(DEFAULT_COMMAND_LINE);
        let (kernel, init) = match given.split_once(" -- ") {
            Some((kernel, init)) => (kernel, Some(init)),
            None => (given, None),
        };
        let mut line = kernel.trim().to_owned();
        let mut add = |argument: &str| {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(argument);
        };
        // There is no PCI bus, and looking for one costs boot time.
        if !kernel
            .split_whitespace()
            .any(|word| word.starts_with("pci="))
        {
            add("pci=off");
        }
        if let Some(root) = root {
            match &root.partuuid {
                Some(partition) => add(&format!("root=PARTUUID={partition}")),
                None => add("root=/dev/vda"),
            }
            add(if root.is_read_only.unwrap_or(false) {
                "ro"
            } else {
                "rw"
            });
        }
        if let Some(init) = init {
            add("--");
            add(init);
        }
        line
    }
}

/// An opened drive.
#[derive(Debug)]
pub struct Drive {
    /// As requested.
    pub config: DriveConfig,
    /// The file.
    pub backing: Backing,
}

/// An opened network interface.
#[derive(Debug)]
pub struct NetworkInterface {
    /// As requested.
    pub config: NetworkInterfaceConfig,
    /// The TAP interface.
    pub tap: Tap,
}

/// Everything that has been requested.
#[derive(Debug, Default)]
pub struct Resources {
    /// vCPUs and memory.
    pub machine: MachineConfig,
    /// What to boot.
    pub boot: Option<BootSource>,
    /// The root drive, if any, is the first.
    pub drives: Vec<Drive>,
    /// In the order of their requests.
    pub networks: Vec<NetworkInterface>,
    /// Whether there is an entropy source.
    pub entropy: Option<EntropyConfig>,
    /// Whether there is a balloon.
    pub balloon: Option<BalloonConfig>,
}

impl Resources {
    /// Changes vCPUs or memory.
    ///
    /// # Errors
    /// If the result would be impossible.
    pub fn update_machine(
        &mut self,
        update: &MachineConfigUpdate,
    ) -> Result<(), MachineConfigError> {
        self.machine = self.machine.updated(update)?;
        Ok(())
    }

    /// Sets what to boot.
    ///
    /// # Errors
    /// If a file cannot be opened or the command line is impossible.
    pub fn set_boot_source(&mut self, config: BootSourceConfig) -> Result<(), BootSourceError> {
        let kernel =
            File::open(&config.kernel_image_path).map_err(|source| BootSourceError::Kernel {
                path: config.kernel_image_path.clone(),
                source,
            })?;
        let initrd = match &config.initrd_path {
            Some(path) => Some(File::open(path).map_err(|source| BootSourceError::Initrd {
                path: path.clone(),
                source,
            })?),
            None => None,
        };
        if let Some(line) = &config.boot_args {
            let printable = line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            if !printable || line.len() >= layout::COMMAND_LINE_CAPACITY {
                return Err(BootSourceError::CommandLine);
            }
        }
        self.boot = Some(BootSource {
            config,
            kernel,
            initrd,
        });
        Ok(())
    }

    /// Adds a drive, or replaces the one with the same id.
    ///
    /// # Errors
    /// If it cannot be opened or would be a second root.
    pub fn set_drive(&mut self, mut config: DriveConfig) -> Result<(), DriveError> {
        let lacking = [
            (config.socket.is_some(), "socket"),
            (config.io_engine == Some(IoEngine::Async), "io_engine Async"),
        ];
        if let Some((_, what)) = lacking.into_iter().find(|(asked, _)| *asked) {
            return Err(DriveError::NotImplemented(what));
        }
        config.rate_limiter = config.rate_limiter.and_then(RateLimiterConfig::limiting);
        let path = config.path_on_host.as_ref().ok_or(DriveError::NoPath)?;
        let same = |drive: &Drive| drive.config.drive_id == config.drive_id;
        let other_root = self
            .drives
            .iter()
            .any(|drive| drive.config.is_root_device && !same(drive));
        if config.is_root_device && other_root {
            return Err(DriveError::SecondRoot);
        }
        let backing = Backing::open(path, config.is_read_only.unwrap_or(false))?;
        let position = self.drives.iter().position(same);
        let is_root = config.is_root_device;
        let drive = Drive { config, backing };
        match position {
            Some(position) => {
                self.drives[position] = drive;
                if is_root {
                    self.drives.swap(0, position);
                }
            }
            None if is_root => self.drives.insert(0, drive),
            None => self.drives.push(drive),
        }
        Ok(())
    }

    /// Changes the file or limits of a drive, which Firecracker does after the start only.
    ///
    /// # Errors
    /// If there is no such drive or no such file; nothing has changed then.
    pub fn update_drive(&mut self, update: DriveUpdate) -> Result<(), DriveError> {
        let id = update.drive_id;
        let mut old = self.drives.iter().map(|drive| &drive.config);
        let Some(mut config) = old.find(|config| config.drive_id == id).cloned() else {
            return Err(DriveError::NoSuchDrive(id));
        };
        config.rate_limiter = RateLimiterConfig::updated(config.rate_limiter, update.rate_limiter);
        if update.path_on_host.is_some() {
            config.path_on_host = update.path_on_host;
        }
        self.set_drive(config)
    }

    /// Adds a network interface, or replaces the one with the same id.
    ///
    /// # Errors
    /// If its TAP interface cannot be opened or its address is taken.
    pub fn set_network(&mut self, mut config: NetworkInterfaceConfig) -> Result<(), NetworkError> {
        let limiting = RateLimiterConfig::limiting;
        config.rx_rate_limiter = config.rx_rate_limiter.and_then(limiting);
        config.tx_rate_limiter = config.tx_rate_limiter.and_then(limiting);
        let same = |other: &NetworkInterface| other.config.iface_id == config.iface_id;
        if let Some(mac) = config.guest_mac
            && self
                .networks
                .iter()
                .any(|other| !same(other) && other.config.guest_mac == Some(mac))
        {
            return Err(NetworkError::AddressInUse(mac));
        }
        let position = self.networks.iter().position(same);
        let old = position.and_then(|position| self.networks.get(position));
        let tap = match old {
            // A TAP interface can only be attached to once, so that it is kept.
            Some(old) if old.config.host_dev_name == config.host_dev_name => old.tap.try_clone(),
            _ => Tap::open(&config.host_dev_name),
        };
        let name = &config.host_dev_name;
        let tap = tap.map_err(|source| NetworkError::Tap {
            name: name.clone(),
            source,
        })?;
        let interface = NetworkInterface { config, tap };
        match position {
            Some(position) => self.networks[position] = interface,
            None => self.networks.push(interface),
        }
        Ok(())
    }

    /// Changes the limits of a network interface, which Firecracker does after the start only.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn update_network(
        &mut self,
        update: &NetworkInterfaceUpdate,
    ) -> Result<(), NoSuchInterface> {
        let mut configs = self.networks.iter_mut().map(|network| &mut network.config);
        let config = configs
            .find(|config| config.iface_id == update.iface_id)
            .ok_or_else(|| NoSuchInterface(update.iface_id.clone()))?;
        config.update(update);
        Ok(())
    }

    /// Adds the entropy source.
    ///
    /// # Errors
    /// If it is to be limited, which is not implemented.
    pub fn set_entropy(&mut self, config: EntropyConfig) -> Result<(), DriveError> {
        if config
            .rate_limiter
            .and_then(RateLimiterConfig::limiting)
            .is_some()
        {
            return Err(DriveError::NotImplemented("rate_limiter"));
        }
        self.entropy = Some(config);
        Ok(())
    }

    /// Adds the balloon.
    ///
    /// # Errors
    /// If it is to do more than to take reports of free pages.
    pub fn set_balloon(&mut self, config: BalloonConfig) -> Result<(), BalloonError> {
        let lacking = [
            (config.amount_mib > 0, "amount_mib"),
            (
                config.stats_polling_interval_s > 0,
                "stats_polling_interval_s",
            ),
            (config.free_page_hinting, "free_page_hinting"),
        ];
        if let Some((_, what)) = lacking.into_iter().find(|(asked, _)| *asked) {
            return Err(BalloonError(what));
        }
        self.balloon = Some(config);
        Ok(())
    }

    /// Everything as the API shows it.
    pub fn config(&self) -> VmConfig {
        VmConfig {
            drives: self
                .drives
                .iter()
                .map(|drive| drive.config.clone())
                .collect(),
            boot_source: self
                .boot
                .as_ref()
                .map(|boot| boot.config.clone())
                .unwrap_or_default(),
            machine_config: Some(self.machine.clone()),
            network_interfaces: self.networks.iter().map(|net| net.config.clone()).collect(),
            entropy: self.entropy.clone(),
            balloon: self.balloon,
            ..Default::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(arguments: &str) -> BootSource {
        BootSource {
            config: BootSourceConfig {
                boot_args: Some(arguments.to_owned()),
                ..Default::default()
            },
            kernel: tempfile::tempfile().unwrap(),
            initrd: None,
        }
    }

    fn drive(id: &str, is_root: bool, path: &std::path::Path) -> DriveConfig {
        DriveConfig {
            drive_id: id.to_owned(),
            partuuid: None,
            is_root_device: is_root,
            cache_type: Default::default(),
            is_read_only: None,
            path_on_host: Some(path.to_owned()),
            rate_limiter: None,
            io_engine: None,
            socket: None,
        }
    }

    #[test]
    fn command_line_gets_root_and_keeps_init_arguments_last() {
        let mut root = drive("r", true, "/x".as_ref());
        assert_eq!(boot("quiet").command_line(None), "quiet pci=off");
        assert_eq!(
            boot("quiet -- one two").command_line(Some(&root)),
            "quiet pci=off root=/dev/vda rw -- one two"
        );
        root.partuuid = Some("0eaa91a0-01".into());
        root.is_read_only = Some(true);
        assert_eq!(
            boot("pci=nocrs").command_line(Some(&root)),
            "pci=nocrs root=PARTUUID=0eaa91a0-01 ro"
        );
        assert_eq!(boot("").command_line(None), "pci=off");
    }

    #[test]
    fn command_line_must_be_one_line_of_text() {
        let kernel = tempfile::NamedTempFile::new().unwrap();
        let mut resources = Resources::default();
        let mut set = |line: &str| {
            resources.set_boot_source(BootSourceConfig {
                kernel_image_path: kernel.path().to_owned(),
                boot_args: Some(line.to_owned()),
                ..Default::default()
            })
        };
        set("console=ttyS0 a=\"b c\"").unwrap();
        for wrong in ["a\nb", "a\0b", "ä", &"x".repeat(2048)] {
            assert!(
                matches!(set(wrong), Err(BootSourceError::CommandLine)),
                "{wrong:?}"
            );
        }
    }

    #[test]
    fn root_drive_is_first_and_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut resources = Resources::default();
        resources
            .set_drive(drive("data", false, file.path()))
            .unwrap();
        resources
            .set_drive(drive("root", true, file.path()))
            .unwrap();
        let ids = |resources: &Resources| -> Vec<String> {
            resources
                .drives
                .iter()
                .map(|drive| drive.config.drive_id.clone())
                .collect()
        };
        assert_eq!(ids(&resources), ["root", "data"]);
        assert!(matches!(
            resources.set_drive(drive("data", true, file.path())),
            Err(DriveError::SecondRoot)
        ));
        // The root may stop being one, and another take its place.
        resources
            .set_drive(drive("root", false, file.path()))
            .unwrap();
        resources
            .set_drive(drive("data", true, file.path()))
            .unwrap();
        assert_eq!(ids(&resources), ["data", "root"]);
    }

    #[test]
    fn network_limits_change_before_the_start() {
        let (socket, _peer) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut resources = Resources::default();
        resources.networks.push(NetworkInterface {
            config: serde_json::from_str(r#"{"iface_id": "e", "host_dev_name": "t"}"#).unwrap(),
            tap: Tap::from_socket(socket),
        });
        let update: NetworkInterfaceUpdate = serde_json::from_str(
            r#"{"iface_id": "e", "tx_rate_limiter": {"ops": {"size": 1, "refill_time": 2}}}"#,
        )
        .unwrap();
        resources.update_network(&update).unwrap();
        let config = &resources.networks[0].config;
        assert_eq!(config.tx_rate_limiter, update.tx_rate_limiter);
        assert_eq!(config.rx_rate_limiter, None);
    }

    #[test]
    fn drive_that_cannot_be_opened_changes_nothing() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut resources = Resources::default();
        resources
            .set_drive(drive("data", false, file.path()))
            .unwrap();
        for path in ["/nonexistent/file", "/proc", "/dev/null"] {
            let error = resources
                .set_drive(drive("data", false, path.as_ref()))
                .unwrap_err();
            assert!(matches!(error, DriveError::Open(_)), "{path}");
        }
        assert_eq!(
            resources.drives[0].config.path_on_host.as_deref(),
            Some(file.path())
        );
    }
}
