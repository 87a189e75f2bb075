//! Slot numbers, shared by all processes of a root directory.
//!
//! ```text
//! <root>/network/slots/7      exists and is flock()ed: slot 7 is in use
//!                             exists, lock is free:    its owner died, sweep it
//!                             does not exist:          slot 7 is free
//! ```
//!
//! The kernel gives the lock back when its owner dies, however it dies. The file holds a
//! [`Record`] of what was made, written before it is made.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::plan::SlotNumber;

const RECORD_VERSION: u32 = 1;

/// Why a slot number could not be leased or given back.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum LeaseError {
    #[error("cannot prepare the directory of slots {path}", path = path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot lock slot file {path}", path = path.display())]
    Lock {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write slot file {path}", path = path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("all {capacity} slots of this host are in use")]
    Full { capacity: u16 },
}

/// What the owner of a slot wrote down about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// Whose slot it is, in the caller's words.
    pub(super) owner: String,
    /// Inode of the slot's network namespace.
    pub(super) namespace: u64,
}

impl Record {
    pub(super) fn new(owner: &str, namespace: u64) -> Self {
        Self {
            version: RECORD_VERSION,
            owner: owner.to_owned(),
            namespace,
        }
    }
}

/// The directory in which the slots of one root directory are leased.
#[derive(Clone, Debug)]
pub(super) struct SlotDirectory {
    path: PathBuf,
    identity: [u8; 3],
}

/// A slot number that is ours alone until this is released or dropped. Dropping it leaves
/// the file behind, with which a sweep finds what else was left behind.
#[derive(Debug)]
pub(super) struct SlotLease {
    slot: SlotNumber,
    path: PathBuf,
    file: Flock<File>,
}

impl SlotDirectory {
    /// Opens `<root>/network/slots`, and makes it if it isn't there.
    pub(super) fn open(root: &Path) -> Result<Self, LeaseError> {
        let path = root.join("network").join("slots");
        let failed = |source| LeaseError::Directory {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&path)
            .map_err(failed)?;
        let status = fs::metadata(&path).map_err(failed)?;
        Ok(Self {
            identity: identity(status.dev(), status.ino()),
            path,
        })
    }

    /// Three bytes by which links of this root directory are told from those of another
    /// one on the same host.
    pub(super) const fn identity(&self) -> [u8; 3] {
        self.identity
    }

    /// Leases the first free slot from a random one on, skipping those that `inspect` does
    /// not hand back. A random start keeps processes from queueing for the same numbers, and
    /// keeps a number, so an address, from being used again right away.
    pub(super) fn lease_any<E: From<LeaseError>>(
        &self,
        capacity: u16,
        mut inspect: impl FnMut(SlotLease) -> Result<Option<SlotLease>, E>,
    ) -> Result<SlotLease, E> {
        let random = RandomState::new().hash_one(std::process::id());
        let start = u16::try_from(random % u64::from(capacity)).unwrap_or_default();
        for step in 0..capacity {
            let index = (u32::from(start) + u32::from(step)) % u32::from(capacity);
            let number = u16::try_from(index + 1).unwrap_or_default();
            let Some(slot) = SlotNumber::new(number) else {
                continue;
            };
            let Some(lease) = self.lease(slot)? else {
                continue;
            };
            if let Some(lease) = inspect(lease)? {
                return Ok(lease);
            }
        }
        Err(LeaseError::Full { capacity }.into())
    }

    /// Leases this slot, or returns `None` if somebody has it.
    pub(super) fn lease(&self, slot: SlotNumber) -> Result<Option<SlotLease>, LeaseError> {
        let path = self.path.join(slot.to_string());
        let failed = |source| LeaseError::Lock {
            path: path.clone(),
            source,
        };
        loop {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)
                .map_err(failed)?;
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Its last owner may have removed the file between the two calls; then the
            // lock is on a file that nobody else will find.
            let locked = file.metadata().map_err(failed)?;
            match fs::metadata(&path) {
                Ok(named) if named.ino() == locked.ino() => {
                    return Ok(Some(SlotLease { slot, path, file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// The slots that have a file, in use or left behind.
    pub(super) fn list(&self) -> Result<Vec<SlotNumber>, LeaseError> {
        let failed = |source| LeaseError::Directory {
            path: self.path.clone(),
            source,
        };
        let mut slots = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            slots.extend(name.to_str().and_then(SlotNumber::from_decimal));
        }
        slots.sort_unstable();
        Ok(slots)
    }
}

impl SlotLease {
    pub(super) const fn slot(&self) -> SlotNumber {
        self.slot
    }

    /// What a former owner wrote down. `None` too if it died while it wrote: then it had
    /// made nothing yet.
    pub(super) fn record(&mut self) -> Option<Record> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).ok()?;
        self.file.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes down what is going to be made.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), LeaseError> {
        let written = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|bytes| {
                self.file.set_len(0)?;
                self.file.seek(SeekFrom::Start(0))?;
                self.file.write_all(&bytes)
            });
        written.map_err(|source| LeaseError::Write {
            path: self.path.clone(),
            source,
        })
    }

    /// Gives the number back. Nothing of the slot may be left.
    pub(super) fn release(self) -> Result<(), LeaseError> {
        // The file goes while it is locked, so that nobody's else goes with it.
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(LeaseError::Write {
                path: self.path,
                source: error,
            }),
            _ => Ok(()),
        }
    }
}

/// FNV-1a over the directory's device and inode, folded to three bytes.
fn identity(device: u64, inode: u64) -> [u8; 3] {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in device.to_le_bytes().into_iter().chain(inode.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let bytes = hash.to_le_bytes();
    std::array::from_fn(|at| bytes[at] ^ bytes[at + 3])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn any(directory: &SlotDirectory, capacity: u16) -> Result<SlotLease, LeaseError> {
        directory.lease_any(capacity, |lease| Ok::<_, LeaseError>(Some(lease)))
    }

    #[test]
    fn a_slot_has_one_owner_at_a_time() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let slot = SlotNumber::new(7).unwrap();
        let lease = directory.lease(slot).unwrap().unwrap();
        assert!(directory.lease(slot).unwrap().is_none());
        lease.release().unwrap();
        assert!(directory.list().unwrap().is_empty());
        assert!(directory.lease(slot).unwrap().is_some());
    }

    #[test]
    fn a_full_host_says_so_and_recovers() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let mut leases: Vec<_> = (0..20).map(|_| any(&directory, 20).unwrap()).collect();
        let numbers: HashSet<_> = leases.iter().map(SlotLease::slot).collect();
        assert_eq!(numbers.len(), 20);
        let error = any(&directory, 20).unwrap_err();
        assert_eq!(error.to_string(), "all 20 slots of this host are in use");
        let freed = leases.pop().unwrap();
        let slot = freed.slot();
        freed.release().unwrap();
        assert_eq!(any(&directory, 20).unwrap().slot(), slot);
    }

    #[test]
    fn a_dead_owners_record_is_found() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let slot = SlotNumber::new(3).unwrap();
        let mut lease = directory.lease(slot).unwrap().unwrap();
        assert_eq!(lease.record(), None);
        let record = Record::new("sb0123456789abcdefghij", 4_026_531_840);
        lease
            .write(&Record::new(
                "somebody with a much longer name than that",
                1,
            ))
            .unwrap();
        lease.write(&record).unwrap();
        drop(lease);
        assert_eq!(directory.list().unwrap(), [slot]);
        assert_eq!(
            directory.lease(slot).unwrap().unwrap().record(),
            Some(record)
        );
    }

    #[test]
    fn threads_that_lease_and_release_never_share() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let held = std::sync::Mutex::new(HashSet::new());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let lease = any(&directory, 10).unwrap();
                        assert!(held.lock().unwrap().insert(lease.slot()));
                        assert!(held.lock().unwrap().remove(&lease.slot()));
                        lease.release().unwrap();
                    }
                });
            }
        });
        assert!(directory.list().unwrap().is_empty());
    }
}
