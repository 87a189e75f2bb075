//! What a running sandbox does to its host, which its owner looks at every now and then.
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | console and log of the VMM | 20 MiB on the disk | the beginning is cut off |
//! | what the VMM puts into its directory | memory of the guest and 64 MiB, in 64 files | the VM is ended |
//! | the store of its disk | what it holds | the sandbox is paused, or ended if that is too late |
//!
//! A sound VMM of ours stays within all of it by itself. Firecracker does not limit its
//! guest's console, and one that was taken over limits nothing.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::warn;

use super::disk::RootDisk;
use super::{Sandbox, console_log};
use crate::Chain;
use crate::devicemapper::{Alarm, DEFAULT_FILL_LIMIT_PERCENT};
use crate::vm::{ApiError, LaunchSpec};

/// Room on the disk that a log may take, and what is left of one that took more.
const LOG_BYTES: u64 = 20 << 20;
const LOG_KEPT_BYTES: u64 = 1 << 20;
/// What a VMM may have in its directory: a socket, and what a pause that failed left of the
/// guest's memory and state.
const SHARED_EXTRA_BYTES: u64 = 64 << 20;
const SHARED_FILES: usize = 64;

/// Where to look, and the bounds.
#[derive(Clone, Debug)]
pub(crate) struct Upkeep {
    logs: [PathBuf; 2],
    shared: PathBuf,
    shared_bytes: u64,
}

/// A VMM wrote more than one in its senses does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Excess {
    #[error("its VMM wrote {mib} MiB to its directory, where {limit_mib} MiB are the limit")]
    Bytes { mib: u64, limit_mib: u64 },
    #[error("its VMM made more than {SHARED_FILES} files")]
    Files,
    #[error("its VMM made a directory")]
    Directory,
}

impl Upkeep {
    /// Cuts logs that are too long. Blocks the thread, for moments.
    ///
    /// # Errors
    /// What the VMM wrote is beyond its bounds, and it must end.
    pub(crate) fn look(&self) -> Result<(), Excess> {
        for log in &self.logs {
            if let Err(error) = cut(log, LOG_BYTES, LOG_KEPT_BYTES) {
                warn!(path = %log.display(), %error, "cannot cut a log that is too long");
            }
        }
        self.measure()
    }

    /// Nothing in that directory is opened or followed: it is the VMM's.
    fn measure(&self) -> Result<(), Excess> {
        // Without one there is no VMM.
        let Ok(entries) = fs::read_dir(&self.shared) else {
            return Ok(());
        };
        let (mut bytes, mut files) = (0_u64, 0);
        for entry in entries.flatten() {
            files += 1;
            if files > SHARED_FILES {
                return Err(Excess::Files);
            }
            // One that is gone by now takes no room.
            let Ok(metadata) = entry.metadata() else {
                continue;
            };
            if metadata.is_dir() {
                return Err(Excess::Directory);
            }
            bytes = bytes.saturating_add(metadata.blocks().saturating_mul(512));
        }
        if bytes > self.shared_bytes {
            return Err(Excess::Bytes {
                mib: bytes >> 20,
                limit_mib: self.shared_bytes >> 20,
            });
        }
        Ok(())
    }
}

/// Leaves the last `kept` bytes of a file that takes more than `limit` of the disk. Whoever
/// appends to it meanwhile loses a few lines at most.
fn cut(path: &Path, limit: u64, kept: u64) -> io::Result<()> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if metadata.blocks().saturating_mul(512) <= limit {
        return Ok(());
    }
    let mut file = File::options().read(true).append(true).open(path)?;
    file.seek(SeekFrom::Start(metadata.len().saturating_sub(kept)))?;
    let mut end = Vec::new();
    io::Read::by_ref(&mut file)
        .take(kept)
        .read_to_end(&mut end)?;
    file.set_len(0)?;
    file.write_all(&end)
}

impl Sandbox {
    /// What its owner should look at.
    pub(crate) fn upkeep(&self) -> Upkeep {
        let directory = self.directory.path();
        let memory_bytes = u64::from(self.record.resources.memory_mib()) << 20;
        Upkeep {
            logs: [
                console_log(&self.host.root, self.id()),
                LaunchSpec::log_in(directory),
            ],
            shared: LaunchSpec::shared_in(directory),
            shared_bytes: memory_bytes + SHARED_EXTRA_BYTES,
        }
    }

    /// Ends when its disk cannot take what the guest writes, looking every `interval`.
    pub(crate) async fn disk_alarm(&self, interval: Duration) -> Alarm {
        let RootDisk::Snapshot(disk) = &self.disk else {
            return std::future::pending().await;
        };
        match disk.watch(DEFAULT_FILL_LIMIT_PERCENT, interval).await {
            Ok(alarm) => alarm,
            Err(error) => {
                warn!(sandbox_id = %self.id(), error = %Chain(&error), "cannot watch a disk");
                std::future::pending().await
            }
        }
    }

    /// Stops its guest where it is, until it is [released](Self::release): for when it must
    /// not write, and cannot be paused yet. Its memory stays where it is.
    pub(crate) async fn halt(&mut self, reason: String) -> Result<(), ApiError> {
        self.vm.api().pause().await?;
        self.halted = Some(reason);
        Ok(())
    }

    /// Lets a guest go on that was halted.
    pub(crate) async fn release(&mut self) -> Result<(), ApiError> {
        self.vm.api().resume().await?;
        self.halted = None;
        Ok(())
    }

    /// Why it is halted, if it is.
    pub(crate) fn halted(&self) -> Option<&str> {
        self.halted.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_keeps_its_end_and_a_writer_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut writer = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .unwrap();
        for line in 0..40_000 {
            writeln!(writer, "line {line:09}").unwrap();
        }
        cut(&path, 1 << 20, 1500).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 600_000, "cut too early");
        cut(&path, 1 << 16, 1500).unwrap();
        writeln!(writer, "after").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.len(), 1506);
        assert!(text.ends_with("line 000039999\nafter\n"), "{text}");
        cut(&directory.path().join("none"), 0, 0).unwrap();
    }

    #[test]
    fn what_a_vmm_writes_is_bounded() {
        let directory = tempfile::tempdir().unwrap();
        let upkeep = Upkeep {
            logs: [PathBuf::from("/none"), PathBuf::from("/none")],
            shared: directory.path().to_owned(),
            shared_bytes: 1 << 20,
        };
        let file = |name: &str| directory.path().join(name);
        upkeep.look().unwrap();
        // Links lead nowhere, and holes take nothing.
        std::os::unix::fs::symlink("/", file("link")).unwrap();
        File::create(file("hole"))
            .unwrap()
            .set_len(1 << 30)
            .unwrap();
        fs::write(file("memory"), vec![7; 1 << 19]).unwrap();
        upkeep.look().unwrap();
        fs::write(file("more"), vec![7; 1 << 20]).unwrap();
        assert!(matches!(upkeep.look(), Err(Excess::Bytes { .. })));
        fs::remove_file(file("more")).unwrap();
        for number in 0..SHARED_FILES {
            fs::write(file(&number.to_string()), "").unwrap();
        }
        assert!(matches!(upkeep.look(), Err(Excess::Files)));
        for number in 0..SHARED_FILES {
            fs::remove_file(file(&number.to_string())).unwrap();
        }
        fs::create_dir(file("directory")).unwrap();
        assert!(matches!(upkeep.look(), Err(Excess::Directory)));
    }
}
