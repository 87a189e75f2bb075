//! Slot numbers, shared by all processes of a root directory.
//!
//! ```text
//! <root>/network/slots/7      exists and is flock()ed: slot 7 is in use
//!                             exists, lock is free:    its owner died: adopt or sweep it
//!                             does not exist:          slot 7 is free
//! ```
//!
//! The kernel gives the lock back when its owner dies, however it dies. The file holds a
//! [`Record`] of what was made, written before it is made. A new slot only takes a number
//! that has no file, since what a dead owner left may be about to be adopted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::plan::SlotNumber;

const RECORD_VERSION: u32 = 1;

/// How many numbers are tried one after another before the directory is read for one that
/// is free.
const PROBES: usize = 32;

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
#[derive(Debug)]
pub(super) struct SlotDirectory {
    path: PathBuf,
    identity: [u8; 3],
    /// Where to look for a free number next: behind the one that was leased last.
    cursor: AtomicUsize,
}

/// A slot of somebody who may be dead.
#[derive(Debug)]
pub(super) enum Taken {
    /// Its owner was dead, or gave it back in this moment; it is the caller's now.
    Over(SlotLease),
    /// Its owner lives.
    InUse,
    /// Nobody has it.
    Nobodys,
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
        let random = RandomState::new().hash_one(std::process::id());
        Ok(Self {
            identity: identity(status.dev(), status.ino()),
            path,
            cursor: AtomicUsize::new(usize::try_from(random & 0xffff).unwrap_or_default()),
        })
    }

    /// Three bytes by which links of this root directory are told from those of another
    /// one on the same host.
    pub(super) const fn identity(&self) -> [u8; 3] {
        self.identity
    }

    /// Leases a free slot, skipping those that `inspect` does not hand back.
    ///
    /// The search begins behind the number that was leased last, so that it mostly ends at
    /// once, and a number, so an address, is not used again right away. It begins at a
    /// random one in each process, which keeps them from queueing for the same numbers.
    /// Where it meets a long run of used ones, it reads which are free.
    pub(super) fn lease_any<E: From<LeaseError>>(
        &self,
        capacity: u16,
        mut inspect: impl FnMut(SlotLease) -> Result<Option<SlotLease>, E>,
    ) -> Result<SlotLease, E> {
        let all = usize::from(capacity);
        for _ in 0..all.min(PROBES) {
            let at = self.cursor.fetch_add(1, Ordering::Relaxed);
            if let Some(lease) = self.lease_new(nth(at, capacity))?
                && let Some(lease) = inspect(lease)?
            {
                return Ok(lease);
            }
        }
        let used = self.list()?;
        let begin = self.cursor.load(Ordering::Relaxed);
        for at in (0..all).map(|step| begin.wrapping_add(step)) {
            let slot = nth(at, capacity);
            if slot.is_some_and(|slot| used.binary_search(&slot).is_ok()) {
                continue;
            }
            if let Some(lease) = self.lease_new(slot)?
                && let Some(lease) = inspect(lease)?
            {
                self.cursor.store(at.wrapping_add(1), Ordering::Relaxed);
                return Ok(lease);
            }
        }
        Err(LeaseError::Full { capacity }.into())
    }

    /// Leases a slot that nobody has or had.
    fn lease_new(&self, slot: Option<SlotNumber>) -> Result<Option<SlotLease>, LeaseError> {
        let Some(slot) = slot else {
            return Ok(None);
        };
        let mut new = OpenOptions::new();
        new.read(true).write(true).create_new(true).mode(0o644);
        match self.lock(slot, &new)? {
            Taken::Over(lease) => Ok(Some(lease)),
            Taken::InUse | Taken::Nobodys => Ok(None),
        }
    }

    /// Leases this slot, whether somebody had it or not, or returns `None` if its owner
    /// lives.
    pub(super) fn lease(&self, slot: SlotNumber) -> Result<Option<SlotLease>, LeaseError> {
        let mut any = OpenOptions::new();
        any.read(true).write(true).create(true).truncate(false);
        any.mode(0o644);
        match self.lock(slot, &any)? {
            Taken::Over(lease) => Ok(Some(lease)),
            Taken::InUse | Taken::Nobodys => Ok(None),
        }
    }

    /// Takes this slot over from an owner that died.
    pub(super) fn take_over(&self, slot: SlotNumber) -> Result<Taken, LeaseError> {
        let mut present = OpenOptions::new();
        present.read(true).write(true);
        self.lock(slot, &present)
    }

    fn lock(&self, slot: SlotNumber, options: &OpenOptions) -> Result<Taken, LeaseError> {
        let path = self.path_of(slot);
        let failed = |source| LeaseError::Lock {
            path: path.clone(),
            source,
        };
        loop {
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Taken::Nobodys),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Ok(Taken::InUse);
                }
                Err(error) => return Err(failed(error)),
            };
            let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => file,
                Err((_, Errno::EWOULDBLOCK)) => return Ok(Taken::InUse),
                Err((_, errno)) => return Err(failed(errno.into())),
            };
            // Its last owner, or a sweep, may have removed the file between the two calls;
            // then the lock is on a file that nobody else will find.
            let locked = file.metadata().map_err(failed)?;
            match fs::metadata(&path) {
                Ok(named) if named.ino() == locked.ino() => {
                    return Ok(Taken::Over(SlotLease { slot, path, file }));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// What is written down about a slot, whoever has it. `None` if there is nothing, or
    /// nothing legible.
    pub(super) fn peek(&self, slot: SlotNumber) -> Option<Record> {
        serde_json::from_slice(&fs::read(self.path_of(slot)).ok()?).ok()
    }

    fn path_of(&self, slot: SlotNumber) -> PathBuf {
        self.path.join(slot.to_string())
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

    /// Writes down what is going to be made, or whose it is from now on. Whoever is killed
    /// in this moment leaves the old record or the new one.
    pub(super) fn write(&mut self, record: &Record) -> Result<(), LeaseError> {
        let written = serde_json::to_vec(record)
            .map_err(io::Error::from)
            .and_then(|mut bytes| {
                // One write over the old text; spaces behind a record mean nothing.
                let old = usize::try_from(self.file.metadata()?.len()).unwrap_or_default();
                bytes.resize(bytes.len().max(old), b' ');
                self.file.write_all_at(&bytes, 0)
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

/// The slot at this place of an endless round through all of them.
fn nth(at: usize, capacity: u16) -> Option<SlotNumber> {
    SlotNumber::new(u16::try_from(at % usize::from(capacity) + 1).ok()?)
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
    use crate::network::plan::MAX_SLOTS;

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
    fn what_a_dead_owner_left_is_taken_over_but_never_leased_anew() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let dead = any(&directory, 2).unwrap();
        let slot = dead.slot();
        assert!(matches!(directory.take_over(slot).unwrap(), Taken::InUse));
        drop(dead);
        let other = any(&directory, 2).unwrap();
        assert_ne!(other.slot(), slot);
        assert!(any(&directory, 2).is_err());
        assert!(matches!(directory.take_over(slot).unwrap(), Taken::Over(_)));
        let free = SlotNumber::new(99).unwrap();
        assert!(matches!(directory.take_over(free).unwrap(), Taken::Nobodys));
        assert_eq!(
            directory.list().unwrap().len(),
            2,
            "taking over makes no file"
        );
    }

    #[test]
    fn the_whole_of_the_largest_host_is_leased() {
        let root = tempfile::tempdir().unwrap();
        let directory = SlotDirectory::open(root.path()).unwrap();
        let mut last = None;
        // In batches, to see whether they take longer and longer. Only the file counts
        // here, so the locks are let go: who may hold that many descriptors is another
        // matter.
        let mut begun = std::time::Instant::now();
        for index in 1..=MAX_SLOTS {
            last = Some(any(&directory, MAX_SLOTS).unwrap().slot());
            if index % 8_192 == 0 || index == MAX_SLOTS {
                println!("up to {index}: {:?}", begun.elapsed());
                begun = std::time::Instant::now();
            }
        }
        assert_eq!(directory.list().unwrap().len(), usize::from(MAX_SLOTS));
        let begun = std::time::Instant::now();
        assert!(matches!(
            any(&directory, MAX_SLOTS),
            Err(LeaseError::Full { .. })
        ));
        println!("found full in {:?}", begun.elapsed());

        // Another process begins anywhere, and the one free number is as far away as can be.
        let Taken::Over(lease) = directory.take_over(last.unwrap()).unwrap() else {
            panic!("nobody has its lock");
        };
        lease.release().unwrap();
        let other = SlotDirectory::open(root.path()).unwrap();
        let begun = std::time::Instant::now();
        assert_eq!(any(&other, MAX_SLOTS).unwrap().slot(), last.unwrap());
        println!("found the only free one in {:?}", begun.elapsed());
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
