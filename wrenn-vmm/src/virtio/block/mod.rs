//! Block device (specification 1.2, section 5.2) on a file. A request that its rate limiter does
//! not admit stays in the queue, and those behind it wait with it.

pub mod request;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::fd::RawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::memory::GuestMemory;
use crate::metrics::METRICS;
use crate::rate_limiter::RateLimiter;
use crate::sys::block_io::Scatter;
use crate::virtio::{Active, Cause, DeviceType, Progress, QueueBroken, StopFlag, VirtioDevice};
use request::{Kind, ParseError, Request, Status};

/// Bytes of a sector, whatever the file's blocks are.
pub const SECTOR_SIZE: u64 = 512;
/// Length of the serial number.
pub const SERIAL_LENGTH: usize = 20;

const QUEUE_SIZES: &[u16] = &[256];
/// The most data buffers of one request, so that two fit the queue with their headers
/// and status bytes.
const SEGMENTS_MAX: u32 = 126;
/// Requests before the lock is let go, so that a pause gets in between.
const BATCH: usize = 64;

const FEATURE_SEGMENTS_MAX: u64 = 1 << 2;
const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;

/// What a guest's flush means, by Firecracker's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Nothing: the host writes when it wants to.
    #[default]
    Unsafe,
    /// Data is on the host's disk when the flush is done.
    Writeback,
}

/// A drive could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenDriveError {
    /// The file cannot be opened.
    #[error("cannot open {path}")]
    Open {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its size is unknown.
    #[error("cannot find out the size of {path}")]
    Size {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is a directory, a pipe, or so.
    #[error("{path} is neither a regular file nor a block device")]
    NotADisk {
        /// Which file.
        path: PathBuf,
    },
}

/// An open backing file.
#[derive(Debug)]
pub struct Backing {
    file: File,
    sectors: u64,
}

impl Backing {
    /// Opens a regular file or block device.
    ///
    /// # Errors
    /// If it is neither or cannot be opened.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, OpenDriveError> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            // A pipe must not block the open; the kind is looked at right after.
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| OpenDriveError::Open {
                path: path.into(),
                source,
            })?;
        let unknown = |source| OpenDriveError::Size {
            path: path.into(),
            source,
        };
        let kind = file.metadata().map_err(unknown)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenDriveError::NotADisk { path: path.into() });
        }
        let size = file.seek(SeekFrom::End(0)).map_err(unknown)?;
        if !size.is_multiple_of(SECTOR_SIZE) {
            log::warn!(
                "{} has {size} bytes; the guest does not see the last, partial sector",
                path.display()
            );
        }
        Ok(Self {
            file,
            sectors: size / SECTOR_SIZE,
        })
    }

    /// Another handle on the same file.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            sectors: self.sectors,
        })
    }
}

/// The device.
#[derive(Debug)]
pub struct Block {
    backing: Backing,
    read_only: bool,
    cache: CacheType,
    serial: [u8; SERIAL_LENGTH],
    configuration: [u8; 16],
    limiter: RateLimiter,
}

impl Block {
    /// A device on `backing` whose serial number is as much of `id` as fits.
    pub fn new(
        backing: Backing,
        id: &str,
        read_only: bool,
        cache: CacheType,
        limiter: RateLimiter,
    ) -> Self {
        let mut serial = [0; SERIAL_LENGTH];
        for (byte, value) in serial.iter_mut().zip(id.bytes()) {
            *byte = value;
        }
        let mut device = Self {
            backing,
            read_only,
            cache,
            serial,
            configuration: [0; 16],
            limiter,
        };
        device.fill_configuration();
        device
    }

    /// Puts another file behind the device. The guest sees the new size after the
    /// configuration interrupt.
    pub fn replace(&mut self, backing: Backing) {
        self.backing = backing;
        self.fill_configuration();
    }

    /// The limits of its queue.
    pub fn limiter(&mut self) -> &mut RateLimiter {
        &mut self.limiter
    }

    /// `capacity`, `size_max` (unused), `seg_max`.
    fn fill_configuration(&mut self) {
        self.configuration[..8].copy_from_slice(&self.backing.sectors.to_le_bytes());
        self.configuration[12..].copy_from_slice(&SEGMENTS_MAX.to_le_bytes());
    }

    /// Does one request and says how many bytes of guest memory were written; `None` if it was
    /// to stop: the request has no effect that doing it again would not have.
    fn serve(
        &self,
        request: Result<Request, ParseError>,
        memory: &GuestMemory,
        stop: &StopFlag,
    ) -> Option<u32> {
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                log::debug!("block request refused: {error}");
                METRICS.block.failures.add(1);
                let answer = |address| Status::Failed.write(memory, address);
                return Some(error.status_address.map_or(0, answer));
            }
        };
        let (status, written) = self.perform(&request, memory, stop)?;
        if status != Status::Ok {
            METRICS.block.failures.add(1);
        }
        Some(written.saturating_add(status.write(memory, request.status_address)))
    }

    fn perform(
        &self,
        request: &Request,
        memory: &GuestMemory,
        stop: &StopFlag,
    ) -> Option<(Status, u32)> {
        Some(match request.kind {
            Kind::Read { sector } => match self.data(request, memory, sector) {
                Some(data) => {
                    let done = data.read_from(&self.backing.file, sector * SECTOR_SIZE, stop);
                    if done.stopped {
                        return None;
                    }
                    METRICS.block.read_bytes.add(done.bytes as u64);
                    let written = u32::try_from(done.bytes).unwrap_or(u32::MAX);
                    (report(done.error, "read"), written)
                }
                None => (Status::Failed, 0),
            },
            Kind::Write { .. } if self.read_only => (Status::Failed, 0),
            Kind::Write { sector } => match self.data(request, memory, sector) {
                Some(data) => {
                    let done = data.write_to(&self.backing.file, sector * SECTOR_SIZE, stop);
                    if done.stopped {
                        return None;
                    }
                    METRICS.block.written_bytes.add(done.bytes as u64);
                    (report(done.error, "write"), 0)
                }
                None => (Status::Failed, 0),
            },
            Kind::Flush => {
                METRICS.block.flushes.add(1);
                let result = match self.cache {
                    CacheType::Unsafe => Ok(()),
                    CacheType::Writeback => self.backing.file.sync_data(),
                };
                (report(result.err(), "flush"), 0)
            }
            Kind::GetId => request.write_id(memory, &self.serial),
            Kind::Unsupported(kind) => {
                log::debug!("block request of unknown type {kind}");
                (Status::Unsupported, 0)
            }
        })
    }

    /// The data buffers, if they are whole sectors of the disk.
    fn data<'a>(
        &self,
        request: &Request,
        memory: &'a GuestMemory,
        sector: u64,
    ) -> Option<Scatter<'a>> {
        let sectors = request.data_length().checked_div(SECTOR_SIZE)?;
        let whole = request.data_length().is_multiple_of(SECTOR_SIZE);
        let end = sector.checked_add(sectors)?;
        if !whole || end > self.backing.sectors {
            return None;
        }
        request.scatter(memory)
    }
}

fn report(error: Option<std::io::Error>, what: &str) -> Status {
    match error {
        None => Status::Ok,
        Some(error) => {
            log::warn!("drive: cannot {what}: {error}");
            Status::Failed
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType::Block
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        let mut features = FEATURE_SEGMENTS_MAX;
        if self.read_only {
            features |= FEATURE_READ_ONLY;
        }
        if self.cache == CacheType::Writeback {
            features |= FEATURE_FLUSH;
        }
        features
    }

    fn configuration(&self) -> &[u8] {
        &self.configuration
    }

    fn timers(&self) -> Vec<(RawFd, usize)> {
        vec![(self.limiter.timer(), 0)]
    }

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {
        self.limiter.disarm();
    }

    fn process(&mut self, _cause: Cause, active: &mut Active<'_>) -> Result<Progress, QueueBroken> {
        let [queue] = active.queues else {
            return Ok(Progress::Done);
        };
        if self.limiter.is_throttled() {
            METRICS.block.throttled.add(1);
            return Ok(Progress::Done);
        }
        for _ in 0..BATCH {
            if active.stop.is_set() {
                return Ok(Progress::Done);
            }
            queue.disable_notification(active.memory)?;
            let Some(chain) = queue.pop(active.memory)? else {
                if queue.enable_notification(active.memory)? {
                    continue;
                }
                return Ok(Progress::Done);
            };
            let request = Request::parse(&chain, active.memory);
            let bytes = request.as_ref().map_or(0, Request::transferred);
            if !self.limiter.consume(bytes) {
                // The timer brings us back, so that the driver need not notify.
                queue.undo_pop();
                METRICS.block.throttled.add(1);
                return Ok(Progress::Done);
            }
            let Some(written) = self.serve(request, active.memory, active.stop) else {
                queue.undo_pop();
                return Ok(Progress::Done);
            };
            queue.add_used(active.memory, chain.head, written)?;
            // Each request at once: the guest can go on while the next one waits for
            // the disk.
            queue.notify(active.memory, active.interrupt)?;
        }
        Ok(Progress::More(0))
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod throttle_tests;
