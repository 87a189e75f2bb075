//! Loop devices: files as block devices.
//!
//! Each is attached with autoclear: the kernel detaches it when its last user closes it.
//! Users are this process, which holds it open while it owns it, and the dm device above
//! it. So a process that is killed leaves no loop behind but those of devices that live on.
//!
//! Stores are attached with direct I/O, since the disk above them has its pages cached
//! already. Base images are not: their pages are the same for all sandboxes, so that each
//! is read from the disk once and not once for each sandbox.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use super::node::Nodes;
use super::sys::{self, LOOP_AUTOCLEAR, LOOP_DIRECT_IO, LOOP_READ_ONLY};
use super::table::DeviceNumber;

/// Where free loop devices are found.
pub(super) const LOOP_CONTROL: &str = "/dev/loop-control";
pub(super) const LOOP_MAJOR: u32 = 7;
/// How often another free device is asked for when somebody else was faster.
const ATTEMPTS: usize = 256;

/// Why a file cannot be attached to a loop device, or a loop device is not what it should
/// be.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum LoopError {
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot find a free loop device with {LOOP_CONTROL}")]
    Free(#[source] io::Error),
    #[error("cannot open loop device {number}")]
    Device {
        number: DeviceNumber,
        #[source]
        source: io::Error,
    },
    #[error("cannot attach {path} to loop device {number}")]
    Attach {
        path: PathBuf,
        number: DeviceNumber,
        #[source]
        source: io::Error,
    },
    #[error("{ATTEMPTS} free loop devices were taken by others, one after another")]
    Contended,
    #[error("device {number} is not {path} by a loop device")]
    Foreign { path: PathBuf, number: DeviceNumber },
    #[error(
        "{path} has {now} bytes, but had {then} when it was attached: base images must not change"
    )]
    Changed { path: PathBuf, then: u64, now: u64 },
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FileIdentity {
    device: u64,
    inode: u64,
}

/// What may be done to a file by its loop device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    ReadWrite,
}

/// A loop device with a file behind it. Dropping it closes it: the kernel detaches it as
/// soon as no dm device has it open either.
#[derive(Debug)]
pub(super) struct LoopDevice {
    number: DeviceNumber,
    path: PathBuf,
    backing: FileIdentity,
    bytes: u64,
    /// Keeps the number ours for as long as it is open.
    _device: File,
}

/// What is needed to attach files.
#[derive(Debug)]
pub(super) struct Loops {
    control: File,
    nodes: Nodes,
    bases: Mutex<HashMap<FileIdentity, Arc<Mutex<Weak<LoopDevice>>>>>,
}

impl LoopDevice {
    pub(super) fn number(&self) -> DeviceNumber {
        self.number
    }

    /// The file behind it, as it was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The length of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Loops {
    pub(super) fn new(control: File, nodes: Nodes) -> Self {
        Self {
            control,
            nodes,
            bases: Mutex::default(),
        }
    }

    /// Attaches a file of one sandbox, for reading and writing.
    pub(super) fn attach_store(&self, path: &Path) -> Result<LoopDevice, LoopError> {
        self.attach(open(path, Access::ReadWrite)?, Access::ReadWrite)
    }

    /// Attaches a base image for reading, or finds it attached by this process already.
    pub(super) fn attach_base(&self, path: &Path) -> Result<Arc<LoopDevice>, LoopError> {
        let file = open(path, Access::Read)?;
        let entry = self.entry(file.identity);
        // Held while the file is attached, so that others wait for it and no second loop is
        // made; those of other base images have a lock of their own.
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(base) = entry.upgrade() {
            if base.bytes != file.bytes {
                return Err(LoopError::Changed {
                    path: file.path,
                    then: base.bytes,
                    now: file.bytes,
                });
            }
            return Ok(base);
        }
        let base = Arc::new(self.attach(file, Access::Read)?);
        *entry = Arc::downgrade(&base);
        Ok(base)
    }

    /// Opens the loop device of a base image that a dm device uses, and remembers it for
    /// those that come later.
    pub(super) fn adopt_base(
        &self,
        number: DeviceNumber,
        path: &Path,
    ) -> Result<Arc<LoopDevice>, LoopError> {
        let found = self.adopt(number, path, Access::Read)?;
        let entry = self.entry(found.backing);
        let mut entry = entry.lock().unwrap_or_else(PoisonError::into_inner);
        match entry.upgrade() {
            Some(known) if known.number == number => Ok(known),
            // An earlier process made a second loop of it: that one is this disk's alone.
            Some(_) => Ok(Arc::new(found)),
            None => {
                let found = Arc::new(found);
                *entry = Arc::downgrade(&found);
                Ok(found)
            }
        }
    }

    /// Opens the loop device of a store that a dm device uses.
    pub(super) fn adopt_store(
        &self,
        number: DeviceNumber,
        path: &Path,
    ) -> Result<LoopDevice, LoopError> {
        self.adopt(number, path, Access::ReadWrite)
    }

    fn entry(&self, identity: FileIdentity) -> Arc<Mutex<Weak<LoopDevice>>> {
        let mut bases = self.bases.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody who waits for an entry has a share of it, so that it stays.
        bases.retain(|_, entry| {
            Arc::strong_count(entry) > 1
                || entry
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .strong_count()
                    > 0
        });
        Arc::clone(bases.entry(identity).or_default())
    }

    fn attach(&self, backing: Opened, access: Access) -> Result<LoopDevice, LoopError> {
        let mut flags = LOOP_AUTOCLEAR
            | match access {
                Access::Read => LOOP_READ_ONLY,
                Access::ReadWrite => LOOP_DIRECT_IO,
            };
        for _ in 0..ATTEMPTS {
            let minor = sys::free_loop(&self.control).map_err(LoopError::Free)?;
            let number = DeviceNumber {
                major: LOOP_MAJOR,
                minor,
            };
            let device = match self.nodes.open_loop(number, access == Access::ReadWrite) {
                Ok(device) => device,
                Err(error) if was_taken(&error) => continue,
                Err(source) => return Err(LoopError::Device { number, source }),
            };
            match sys::configure_loop(&device, &backing.file, flags) {
                Ok(()) => {
                    return Ok(LoopDevice {
                        number,
                        path: backing.path,
                        backing: backing.identity,
                        bytes: backing.bytes,
                        _device: device,
                    });
                }
                Err(error) if was_taken(&error) => {}
                // Some kernels take away a flag that the file system can't serve, others
                // refuse it.
                Err(error)
                    if error.raw_os_error() == Some(libc::EINVAL)
                        && flags & LOOP_DIRECT_IO != 0 =>
                {
                    flags &= !LOOP_DIRECT_IO;
                }
                Err(source) => {
                    return Err(LoopError::Attach {
                        path: backing.path,
                        number,
                        source,
                    });
                }
            }
        }
        Err(LoopError::Contended)
    }

    fn adopt(
        &self,
        number: DeviceNumber,
        path: &Path,
        access: Access,
    ) -> Result<LoopDevice, LoopError> {
        let backing = open(path, Access::Read)?;
        let foreign = || LoopError::Foreign {
            path: path.to_owned(),
            number,
        };
        if number.major != LOOP_MAJOR {
            return Err(foreign());
        }
        let device = self
            .nodes
            .open_loop(number, access == Access::ReadWrite)
            .map_err(|source| LoopError::Device { number, source })?;
        // Open, it cannot become another file's any more.
        let info =
            sys::loop_info(&device).map_err(|source| LoopError::Device { number, source })?;
        let is_read_only = info.flags & LOOP_READ_ONLY != 0;
        let ours = (info.device, info.inode) == (backing.identity.device, backing.identity.inode)
            && info.offset == 0
            && is_read_only == (access == Access::Read);
        if !ours {
            return Err(foreign());
        }
        Ok(LoopDevice {
            number,
            path: backing.path,
            backing: backing.identity,
            bytes: backing.bytes,
            _device: device,
        })
    }
}

struct Opened {
    file: File,
    /// The kernel's name of it, without links.
    path: PathBuf,
    identity: FileIdentity,
    bytes: u64,
}

fn open(path: &Path, access: Access) -> Result<Opened, LoopError> {
    let failed = |source| LoopError::Open {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .write(access == Access::ReadWrite)
        .open(path)
        .map_err(failed)?;
    let path = path.canonicalize().map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    Ok(Opened {
        file,
        path,
        identity: FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
        },
        bytes: metadata.len(),
    })
}

/// Whether a device that was free has been taken by somebody else: it is on its way to or
/// from a file, or read-only.
fn was_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EBUSY | libc::ENXIO | libc::EACCES | libc::EROFS)
    )
}

/// The file behind a loop device, by the name that it had; `None` if it has none.
pub(super) fn backing_path(number: DeviceNumber) -> Option<PathBuf> {
    let path = format!("/sys/dev/block/{number}/loop/backing_file");
    let text = std::fs::read_to_string(path).ok()?;
    let text = text.trim_end_matches('\n');
    Some(text.strip_suffix(" (deleted)").unwrap_or(text).into())
}

/// All loop devices that have a file behind them below a directory.
pub(super) fn list_below(directory: &Path) -> io::Result<Vec<(DeviceNumber, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let minor = name
            .to_str()
            .and_then(|name| name.strip_prefix("loop"))
            .and_then(|minor| minor.parse().ok());
        let Some(minor) = minor else { continue };
        let number = DeviceNumber {
            major: LOOP_MAJOR,
            minor,
        };
        if let Some(path) = backing_path(number).filter(|path| path.starts_with(directory)) {
            found.push((number, path));
        }
    }
    found.sort();
    Ok(found)
}
