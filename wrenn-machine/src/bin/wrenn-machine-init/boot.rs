//! The way from the kernel's first program to a running daemon.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, setrlimit};

use crate::supervise::Daemon;
use crate::{disks, filesystems, keep_awake, kernel_log, modules, network};

/// The last module in the list that the token, the network and the disks need.
const LAST_NEEDED_FIRST: &str = "ext4";
/// Where the root directory of the program lies in the machine.
const ROOT_DIRECTORY: &str = "/var/lib/wrenn";
/// Passed in by QEMU; user code in a microVM never sees it.
const TOKEN_IN_FIRMWARE: &str = "/sys/firmware/qemu_fw_cfg/by_name/opt/wrenn/token/raw";
const TOKEN_FILE: &str = "/run/wrenn/token";
const OPEN_FILES: u64 = 1 << 20;

/// Why the machine cannot boot.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error("cannot {action} {}", path.display())]
    Step {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the machine has no disk with the serial number {serial}")]
    NoDisk { serial: &'static str },
    #[error("cannot install the images")]
    Install(#[source] wrenn_images::BuildError),
    #[error("cannot bring up network interface {interface}")]
    Network {
        interface: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("cannot start the daemon")]
    Daemon(#[source] io::Error),
    #[error("process 1 was told to stop")]
    Stopped,
}

/// Adds to an error what was tried and where.
pub(crate) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BootError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, BootError> {
        self.map_err(|source| BootError::Step {
            action,
            path: path.as_ref().to_path_buf(),
            source: source.into(),
        })
    }
}

/// Prepares the machine and starts the daemon.
///
/// # Errors
/// Something without which the machine is of no use is missing.
pub(crate) fn boot() -> Result<Daemon, BootError> {
    filesystems::mount_early()?;
    // The machine may sleep then, and is of use nevertheless.
    if let Err(error) = keep_awake::start() {
        kernel_log::failure(&error);
    }
    set_limits()?;
    nix::unistd::sethostname("wrenn-machine").at("set the host name", "wrenn-machine")?;
    let modules = modules::Loading::start()?;
    filesystems::switch_to_tmpfs_root()?;
    filesystems::mount_late()?;
    modules.wait_for(LAST_NEEDED_FIRST);
    network::up()?;
    copy_token()?;
    disks::mount_and_install(Path::new(ROOT_DIRECTORY))?;
    modules.finish();
    let daemon = Daemon::start().map_err(BootError::Daemon)?;
    kernel_log::say("ready");
    Ok(daemon)
}

fn copy_token() -> Result<(), BootError> {
    let token = fs::read(TOKEN_IN_FIRMWARE).at("read", TOKEN_IN_FIRMWARE)?;
    fs::create_dir_all("/run/wrenn").at("create", "/run/wrenn")?;
    fs::write(TOKEN_FILE, token).at("write", TOKEN_FILE)?;
    let owner_only = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(TOKEN_FILE, owner_only).at("protect", TOKEN_FILE)
}

fn set_limits() -> Result<(), BootError> {
    for (path, value) in [
        ("/proc/sys/fs/nr_open", "1048576"),
        ("/proc/sys/kernel/pid_max", "4194304"),
        // Many sandboxes map more memory than the machine has, and touch little of it.
        ("/proc/sys/vm/overcommit_memory", "1"),
        ("/proc/sys/kernel/panic", "1"),
    ] {
        fs::write(path, value).at("write", path)?;
    }
    setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).at("raise", "RLIMIT_NOFILE")
}
