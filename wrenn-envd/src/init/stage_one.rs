//! Stage one: from the initramfs to the root file system.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount, mount_move};

use super::cmdline::CommandLine;
use super::console::warn;
use super::mounts;

const MODULES: &str = "/modules";
const NEW_ROOT: &str = "/newroot";
const DEFAULT_INIT: &str = "/sbin/init";
/// Disks show up within milliseconds, under emulation of emulation within seconds.
const ROOT_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(super) enum StageOneError {
    #[error("cannot read the kernel command line")]
    CommandLine(#[source] io::Error),
    #[error("the kernel command line names no root=")]
    NoRoot,
    #[error("the root device {0} did not show up")]
    NoDevice(PathBuf),
    #[error("cannot mount {device} as {kind}")]
    MountRoot {
        device: PathBuf,
        kind: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot switch to the root file system")]
    SwitchRoot(#[source] io::Error),
    #[error("cannot run {init}")]
    Exec {
        init: String,
        #[source]
        source: io::Error,
    },
}

pub(super) fn run() -> Result<Infallible, StageOneError> {
    mounts::first();
    let line = CommandLine::read().map_err(StageOneError::CommandLine)?;
    load_modules();
    mount_root(&line)?;
    empty_initramfs();
    switch_root().map_err(StageOneError::SwitchRoot)?;
    let init = line.value("init").unwrap_or(DEFAULT_INIT);
    let source = Command::new(init).exec();
    Err(StageOneError::Exec {
        init: init.to_owned(),
        source,
    })
}

/// Loads what `/modules/load` lists. A module that can't be loaded may not be needed, so
/// the boot goes on and says so.
fn load_modules() {
    let Ok(list) = fs::read_to_string(Path::new(MODULES).join("load")) else {
        return;
    };
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        if let Err(error) = load_module(&Path::new(MODULES).join(name)) {
            warn(&format!("cannot load the module {name}: {error}"));
        }
    }
}

fn load_module(path: &Path) -> io::Result<()> {
    /// `MODULE_INIT_COMPRESSED_FILE`, finit_module(2)
    const COMPRESSED: i32 = 4;

    let plain = path.extension().is_some_and(|extension| extension == "ko");
    let flags = if plain { 0 } else { COMPRESSED };
    match rustix::system::finit_module(File::open(path)?, c"", flags) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn mount_root(line: &CommandLine) -> Result<(), StageOneError> {
    let device = PathBuf::from(line.value("root").ok_or(StageOneError::NoRoot)?);
    wait_for(&device)?;
    let kind = line.value("rootfstype").unwrap_or("ext4");
    let options = CString::new(line.value("rootflags").unwrap_or_default()).unwrap_or_default();
    let flags = match line.last_of(&["ro", "rw"]) {
        Some("ro") => MountFlags::RDONLY,
        _ => MountFlags::empty(),
    };
    fs::create_dir_all(NEW_ROOT)
        .and_then(|()| Ok(mount(&device, NEW_ROOT, kind, flags, options.as_c_str())?))
        .map_err(|source| StageOneError::MountRoot {
            device,
            kind: kind.to_owned(),
            source,
        })
}

/// devtmpfs shows a disk as soon as its driver has found it.
fn wait_for(device: &Path) -> Result<(), StageOneError> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    while !device.exists() {
        if start.elapsed() > ROOT_DEADLINE {
            return Err(StageOneError::NoDevice(device.to_owned()));
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
    Ok(())
}

/// The initramfs lives in memory that the guest can use better.
fn empty_initramfs() {
    let kept = ["/proc", "/sys", "/dev", "/run", NEW_ROOT].map(Path::new);
    for entry in fs::read_dir("/").into_iter().flatten().flatten() {
        let path = entry.path();
        if kept.contains(&path.as_path()) {
            continue;
        }
        let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_dir {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            warn(&format!("cannot remove {}: {error}", path.display()));
        }
    }
}

/// As switch_root(8): the initramfs can't be unmounted, so the new root is moved over it.
fn switch_root() -> io::Result<()> {
    for moved in ["/dev", "/proc", "/sys", "/run"] {
        let target = format!("{NEW_ROOT}{moved}");
        if !Path::new(&target).is_dir() {
            // Stage two mounts it again if this can't be made.
            fs::create_dir(&target).ok();
        }
        if let Err(error) = mount_move(moved, target.as_str()) {
            warn(&format!("cannot move {moved}: {error}"));
        }
    }
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}
