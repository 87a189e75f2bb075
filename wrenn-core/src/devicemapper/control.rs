//! The device mapper's control device: one message and one answer for each command.
//!
//! ```text
//! header, 312 bytes   version, length, where the data begins, flags, device, name, uuid
//! data                create, remove, resume, status: none
//!                     load, table status: target_spec of 40 bytes, then a line of text
//!                     list: device, offset of the next entry, name
//! ```

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::time::Duration;

use tracing::info;

use super::sys::{self, DM_HEADER_LEN, DmCommand};
use super::table::DeviceNumber;
use crate::Chain;

/// The device itself. The kernel makes its node when the module `dm_mod` is there.
pub(super) const CONTROL: &str = "/dev/mapper/control";
/// The target of which our disks are made.
const TARGET: &str = "snapshot";

/// Any kernel of version 4 of the interface takes messages of the first of them.
const VERSION: [u32; 3] = [4, 0, 0];
const DATA_START_AT: usize = 16;
const TARGET_COUNT_AT: usize = 20;
const OPEN_COUNT_AT: usize = 24;
const FLAGS_AT: usize = 28;
const DEVICE_AT: usize = 40;
const NAME_AT: usize = 48;
const NAME_LEN: usize = 128;
const UUID_AT: usize = 176;
const UUID_LEN: usize = 129;
const SPEC_LEN: usize = 40;
const SPEC_TYPE_AT: usize = 24;
const SPEC_TYPE_LEN: usize = 16;

const STATUS_TABLE: u32 = 1 << 4;
const ACTIVE_PRESENT: u32 = 1 << 5;
const BUFFER_FULL: u32 = 1 << 8;
const SUSPENDED: u32 = 1 << 1;
const DEFERRED_REMOVE: u32 = 1 << 17;

/// How often a table is loaded that the kernel says it has no memory for, and how long it is
/// left alone in between.
const LOAD_TRIES: u32 = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(20);

/// Room for one line of status. Ours have less than a hundred characters.
const LINE_ROOM: usize = 4096;
/// Room for the first try at a list of devices; it doubles while it is too small.
const LIST_ROOM: usize = 16 << 10;

/// Why the device mapper did not do what it was told.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum ControlError {
    #[error("the device mapper does not {action} {device}")]
    Refused {
        action: &'static str,
        device: String,
        #[source]
        source: io::Error,
    },
    #[error("the device mapper's answer, to {action} {device}, makes no sense")]
    Answer {
        action: &'static str,
        device: String,
    },
}

impl ControlError {
    pub(super) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            Self::Answer { .. } => None,
        }
    }

    /// Whether there is no such device.
    pub(super) fn is_gone(&self) -> bool {
        self.errno() == Some(libc::ENXIO)
    }

    /// Whether somebody has it open, or its name is taken.
    pub(super) fn is_out_of_memory(&self) -> bool {
        self.errno() == Some(libc::ENOMEM)
    }

    pub(super) fn is_busy(&self) -> bool {
        self.errno() == Some(libc::EBUSY)
    }
}

/// How a device is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key<'a> {
    Name(&'a str),
    Uuid(&'a str),
}

/// What the kernel says of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DeviceState {
    pub(super) number: DeviceNumber,
    pub(super) name: String,
    pub(super) uuid: String,
    /// How often it is open.
    pub(super) open_count: u32,
    /// Whether it has a table that works.
    pub(super) active: bool,
    pub(super) suspended: bool,
}

/// One target of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TargetLine {
    pub(super) kind: String,
    pub(super) sectors: u64,
    pub(super) text: String,
}

/// The open control device.
#[derive(Debug)]
pub(super) struct Control {
    file: File,
}

impl Control {
    pub(super) fn open() -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(CONTROL)?;
        Ok(Self { file })
    }

    /// Whether the kernel has snapshots. Asking for them loads the module, where there is
    /// a modprobe.
    pub(super) fn has_snapshots(&self) -> Result<bool, ControlError> {
        let mut message = Message::new(Some(Key::Name(TARGET)), LINE_ROOM);
        match self.send(
            DmCommand::TargetVersion,
            "tell the version of",
            &mut message,
        ) {
            Ok(()) => Ok(true),
            Err(ControlError::Refused { source, .. })
                if source.raw_os_error() == Some(libc::EINVAL) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes a device without a table. Its name must be free, its UUID too.
    pub(super) fn create(&self, name: &str, uuid: &str) -> Result<DeviceNumber, ControlError> {
        let mut message = Message::new(Some(Key::Name(name)), 0);
        message.text(UUID_AT, UUID_LEN, uuid);
        self.send(DmCommand::Create, "make", &mut message)?;
        Ok(message.state().number)
    }

    /// Gives a device its table: one target over its whole length.
    ///
    /// Where devices come and go at the same time, a kernel may name two caches of its own
    /// alike and say that memory is missing (seen with Linux 6.1). So that is tried again.
    pub(super) fn load(&self, uuid: &str, sectors: u64, line: &str) -> Result<(), ControlError> {
        let mut tries = 1..LOAD_TRIES;
        loop {
            let loaded = self.load_once(uuid, sectors, line);
            match loaded {
                Err(error) if error.is_out_of_memory() && tries.next().is_some() => {
                    info!(uuid, error = %Chain(&error), "tried again");
                    std::thread::sleep(LOAD_PAUSE);
                }
                loaded => return loaded,
            }
        }
    }

    fn load_once(&self, uuid: &str, sectors: u64, line: &str) -> Result<(), ControlError> {
        let length = (line.len() + 1).next_multiple_of(8);
        let mut message = Message::new(Some(Key::Uuid(uuid)), SPEC_LEN + length);
        message.number(TARGET_COUNT_AT, 1);
        let spec = &mut message.bytes[DM_HEADER_LEN..];
        spec[8..16].copy_from_slice(&sectors.to_ne_bytes());
        spec[SPEC_TYPE_AT..SPEC_TYPE_AT + TARGET.len()].copy_from_slice(TARGET.as_bytes());
        spec[SPEC_LEN..SPEC_LEN + line.len()].copy_from_slice(line.as_bytes());
        self.send(DmCommand::LoadTable, "take the table of", &mut message)
    }

    /// Lets the loaded table work.
    pub(super) fn resume(&self, uuid: &str) -> Result<(), ControlError> {
        let mut message = Message::new(Some(Key::Uuid(uuid)), 0);
        self.send(DmCommand::Suspend, "resume", &mut message)
    }

    /// Removes a device that nobody has open.
    pub(super) fn remove(&self, uuid: &str) -> Result<(), ControlError> {
        let mut message = Message::new(Some(Key::Uuid(uuid)), 0);
        self.send(DmCommand::Remove, "remove", &mut message)
    }

    /// Removes a device as soon as nobody has it open.
    pub(super) fn remove_later(&self, uuid: &str) -> Result<(), ControlError> {
        let mut message = Message::new(Some(Key::Uuid(uuid)), 0);
        message.number(FLAGS_AT, DEFERRED_REMOVE);
        self.send(DmCommand::Remove, "remove", &mut message)
    }

    /// What the kernel says of a device; `None` where there is none.
    pub(super) fn find(&self, key: Key<'_>) -> Result<Option<DeviceState>, ControlError> {
        let mut message = Message::new(Some(key), 0);
        match self.send(DmCommand::Status, "tell the state of", &mut message) {
            Ok(()) => Ok(Some(message.state())),
            Err(error) if error.is_gone() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The table of a device that has one target.
    pub(super) fn table(&self, uuid: &str) -> Result<TargetLine, ControlError> {
        self.target(uuid, STATUS_TABLE, "tell the table of")
    }

    /// The status of a device that has one target.
    pub(super) fn status(&self, uuid: &str) -> Result<TargetLine, ControlError> {
        self.target(uuid, 0, "tell the status of")
    }

    fn target(
        &self,
        uuid: &str,
        flags: u32,
        action: &'static str,
    ) -> Result<TargetLine, ControlError> {
        let mut message = Message::new(Some(Key::Uuid(uuid)), LINE_ROOM);
        message.number(FLAGS_AT, flags);
        self.send(DmCommand::TableStatus, action, &mut message)?;
        message.target().ok_or_else(|| ControlError::Answer {
            action,
            device: uuid.to_owned(),
        })
    }

    /// The names of all devices of this host, of whomever.
    pub(super) fn names(&self) -> Result<Vec<String>, ControlError> {
        let mut room = LIST_ROOM;
        loop {
            let mut message = Message::new(None, room);
            self.send(DmCommand::ListDevices, "list", &mut message)?;
            if message.read_number(FLAGS_AT) & BUFFER_FULL == 0 {
                return message.names().ok_or_else(|| ControlError::Answer {
                    action: "list",
                    device: message.subject(),
                });
            }
            room *= 2;
        }
    }

    fn send(
        &self,
        command: DmCommand,
        action: &'static str,
        message: &mut Message,
    ) -> Result<(), ControlError> {
        let device = message.subject();
        sys::dm(&self.file, command, &mut message.bytes).map_err(|source| ControlError::Refused {
            action,
            device,
            source,
        })
    }
}

/// A message to the kernel, and its answer.
struct Message {
    bytes: Vec<u8>,
}

impl Message {
    fn new(key: Option<Key<'_>>, data: usize) -> Self {
        let mut message = Self {
            bytes: vec![0; DM_HEADER_LEN + data],
        };
        for (index, number) in VERSION.into_iter().enumerate() {
            message.number(index * 4, number);
        }
        message.bytes[DATA_START_AT..DATA_START_AT + 4].copy_from_slice(
            &u32::try_from(DM_HEADER_LEN)
                .unwrap_or_default()
                .to_ne_bytes(),
        );
        match key {
            Some(Key::Name(name)) => message.text(NAME_AT, NAME_LEN, name),
            Some(Key::Uuid(uuid)) => message.text(UUID_AT, UUID_LEN, uuid),
            None => {}
        }
        message
    }

    fn number(&mut self, at: usize, number: u32) {
        self.bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
    }

    /// Puts in a text and the zero behind it. Ours are short: names have 28 characters.
    fn text(&mut self, at: usize, room: usize, text: &str) {
        let length = text.len().min(room - 1);
        self.bytes[at..at + length].copy_from_slice(&text.as_bytes()[..length]);
    }

    fn read_number(&self, at: usize) -> u32 {
        self.number_at(at).unwrap_or_default()
    }

    fn number_at(&self, at: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(4)?)?;
        Some(u32::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn long_at(&self, at: usize) -> Option<u64> {
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        Some(u64::from_ne_bytes(bytes.try_into().ok()?))
    }

    fn text_at(&self, at: usize) -> Option<String> {
        let text = CStr::from_bytes_until_nul(self.bytes.get(at..)?).ok()?;
        Some(text.to_string_lossy().into_owned())
    }

    /// What the message is about, for errors.
    fn subject(&self) -> String {
        [NAME_AT, UUID_AT]
            .into_iter()
            .filter_map(|at| self.text_at(at))
            .find(|text| !text.is_empty())
            .unwrap_or_else(|| "its devices".to_owned())
    }

    fn state(&self) -> DeviceState {
        let flags = self.read_number(FLAGS_AT);
        DeviceState {
            number: DeviceNumber::from_raw(self.long_at(DEVICE_AT).unwrap_or_default()),
            name: self.text_at(NAME_AT).unwrap_or_default(),
            uuid: self.text_at(UUID_AT).unwrap_or_default(),
            open_count: self.read_number(OPEN_COUNT_AT),
            active: flags & ACTIVE_PRESENT != 0,
            suspended: flags & SUSPENDED != 0,
        }
    }

    fn data_start(&self) -> Option<usize> {
        let start = usize::try_from(self.number_at(DATA_START_AT)?).ok()?;
        (start >= DM_HEADER_LEN).then_some(start)
    }

    /// The first and only target of a status.
    fn target(&self) -> Option<TargetLine> {
        if self.number_at(TARGET_COUNT_AT)? != 1 {
            return None;
        }
        let spec = self.data_start()?;
        let kind = self
            .bytes
            .get(spec + SPEC_TYPE_AT..spec + SPEC_TYPE_AT + SPEC_TYPE_LEN)?;
        let kind = CStr::from_bytes_until_nul(kind).ok()?;
        Some(TargetLine {
            kind: kind.to_string_lossy().into_owned(),
            sectors: self.long_at(spec + 8)?,
            text: self.text_at(spec + SPEC_LEN)?,
        })
    }

    /// The names in a list of devices.
    fn names(&self) -> Option<Vec<String>> {
        let mut names = Vec::new();
        let mut at = self.data_start()?;
        loop {
            // No device at all is one entry without a device.
            if self.long_at(at)? != 0 {
                names.push(self.text_at(at + 12)?);
            }
            match usize::try_from(self.number_at(at + 8)?).ok()? {
                0 => return Some(names),
                next => at = at.checked_add(next)?,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn list(entries: &[(u64, &str)]) -> Message {
        let mut message = Message::new(None, 0);
        for (index, (device, name)) in entries.iter().enumerate() {
            let length = (12 + name.len() + 1).next_multiple_of(8);
            let last = index + 1 == entries.len();
            let next = if last {
                0
            } else {
                u32::try_from(length).unwrap()
            };
            let mut entry = device.to_ne_bytes().to_vec();
            entry.extend(next.to_ne_bytes());
            entry.extend(name.as_bytes());
            entry.resize(length, 0);
            message.bytes.extend(entry);
        }
        message
    }

    #[test]
    fn a_list_is_read_to_its_end() {
        let message = list(&[(64768, "wrenn-a"), (64769, "vg-root"), (64770, "wrenn-b")]);
        assert_eq!(message.names().unwrap(), ["wrenn-a", "vg-root", "wrenn-b"]);
        assert_eq!(list(&[(0, "")]).names().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_status_is_read() {
        let mut message = Message::new(Some(Key::Uuid("WRENN-x")), 0);
        message.number(TARGET_COUNT_AT, 1);
        let mut spec = vec![0; SPEC_LEN];
        spec[8..16].copy_from_slice(&2048_u64.to_ne_bytes());
        spec[SPEC_TYPE_AT..SPEC_TYPE_AT + 8].copy_from_slice(b"snapshot");
        message.bytes.extend(spec);
        message.bytes.extend(b"16/64 16\0");
        let target = message.target().unwrap();
        assert_eq!((target.kind.as_str(), target.sectors), ("snapshot", 2048));
        assert_eq!(target.text, "16/64 16");
        assert_eq!(message.subject(), "WRENN-x");
    }

    proptest! {
        #[test]
        fn an_answer_of_nonsense_never_panics(bytes in prop::collection::vec(any::<u8>(), DM_HEADER_LEN..1000)) {
            let message = Message { bytes };
            let _seen = (message.state(), message.target(), message.subject());
        }

        #[test]
        fn a_list_that_is_cut_off_never_panics(cut in 0_usize..80) {
            let mut message = list(&[(64768, "wrenn-a"), (64769, "vg-root"), (64770, "wrenn-b")]);
            message.bytes.truncate(message.bytes.len().saturating_sub(cut));
            let _names = message.names();
        }
    }
}
