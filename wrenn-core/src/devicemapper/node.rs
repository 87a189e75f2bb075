//! Device nodes. There may be no udev, and the root directory may lie on a file system
//! without devices, so disks get their nodes in a directory of ours below `/dev`:
//!
//! ```text
//! /dev/wrenn/<root identity>/<sandbox id>
//! ```

use std::fs::File;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::table::DeviceNumber;

const PARENT: &str = "/dev/wrenn";
/// How often a node is tried again when its directory was removed meanwhile, as empty.
const ATTEMPTS: usize = 8;

/// The directory of nodes of one root directory.
#[derive(Clone, Debug)]
pub(super) struct Nodes {
    directory: PathBuf,
}

impl Nodes {
    pub(super) fn new(identity: &str) -> Self {
        Self {
            directory: Path::new(PARENT).join(identity),
        }
    }

    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Makes the node of a device. One that is there already is replaced if it is of
    /// another device.
    pub(super) fn make(&self, name: &str, number: DeviceNumber) -> io::Result<PathBuf> {
        let path = self.path_of(name);
        let mut attempts = 0..ATTEMPTS;
        loop {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.directory)?;
            let mode = Mode::RUSR | Mode::WUSR;
            match mknodat(CWD, &path, FileType::BlockDevice, mode, number.to_raw()) {
                Ok(()) => return Ok(path),
                Err(rustix::io::Errno::EXIST) if is_node_of(&path, number) => return Ok(path),
                Err(rustix::io::Errno::EXIST) if attempts.next().is_some() => {
                    remove_file(&path)?;
                }
                Err(rustix::io::Errno::NOENT) if attempts.next().is_some() => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Removes the node of a device, if it is still that device's, and the directory with
    /// the last one.
    pub(super) fn remove(&self, name: &str, number: DeviceNumber) -> io::Result<()> {
        let path = self.path_of(name);
        if is_node_of(&path, number) {
            remove_file(&path)?;
        }
        self.remove_empty();
        Ok(())
    }

    /// Removes a node of which no device is known.
    pub(super) fn remove_stale(&self, name: &str) -> io::Result<()> {
        remove_file(&self.path_of(name))?;
        self.remove_empty();
        Ok(())
    }

    fn remove_empty(&self) {
        // Both fail where there is something else in them, which is as it should be.
        if std::fs::remove_dir(&self.directory).is_ok() {
            drop(std::fs::remove_dir(PARENT));
        }
    }

    /// The names of all nodes.
    pub(super) fn list(&self) -> io::Result<Vec<String>> {
        match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Opens a loop device by its number, also where `/dev` has no node of it.
    pub(super) fn open_loop(&self, number: DeviceNumber, writable: bool) -> io::Result<File> {
        let usual = PathBuf::from(format!("/dev/loop{}", number.minor));
        if is_node_of(&usual, number) {
            return open(&usual, writable);
        }
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (pid, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let name = format!("loop{}-{pid}-{count}", number.minor);
        let path = self.make(&name, number)?;
        let opened = open(&path, writable);
        self.remove(&name, number)?;
        opened
    }
}

fn open(path: &Path, writable: bool) -> io::Result<File> {
    File::options().read(true).write(writable).open(path)
}

fn is_node_of(path: &Path, number: DeviceNumber) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|found| {
        found.file_type().is_block_device() && DeviceNumber::from_raw(found.rdev()) == number
    })
}

fn remove_file(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
