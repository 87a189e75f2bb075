//! The one place where an engine's error becomes an answer: a code, and a sentence that its
//! reader can act on. What only helps whoever runs the host stays in the log.

use wrenn_core::devicemapper::CreateDiskError;
use wrenn_core::fleet::{
    CreateError, DestroyRefused, FreezeRefused, NotRunning, PauseRefused, ResumeRefused,
};
use wrenn_core::guest::{GuestError, RpcCode};
use wrenn_core::sandbox::{
    CaptureError, ChangeEgressError, CopyDiskError, CreateSandboxError, DeleteSnapshotError,
    MakeDiskError, NameSnapshotError, PauseError, RecordError, RestoreRootDiskError, ResumeError,
};
use wrenn_core::snapshot::{FileError, WriteBuildError};
use wrenn_core::template::OpenTemplateError;
use wrenn_core::vm::StartVmError;
use wrenn_core::{Chain, InvalidSandboxId, SandboxId};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};

/// The longest sentence of a guest that is passed on, in bytes.
const MAX_GUEST_WORDS: usize = 1024;
/// What is said of an error that is this host's own.
const OURS: &str = "the host failed; its log says why";

/// An error of an engine, as a caller sees it.
pub(crate) trait Answer: std::error::Error + 'static {
    /// The kind, and what to say.
    fn answer(&self) -> (ErrorCode, String);
}

/// Turns an error into an answer, and writes down what the answer leaves out.
pub(crate) fn answer(error: &impl Answer) -> ConnectError {
    let (code, message) = error.answer();
    if code == ErrorCode::Internal {
        tracing::error!(error = %Chain(error), "a request failed");
    } else {
        tracing::debug!(error = %Chain(error), code = code.as_str(), "a request is refused");
    }
    ConnectError::new(code, message)
}

/// There is no sandbox of this id.
pub(crate) fn unknown(id: &SandboxId) -> ConnectError {
    ConnectError::not_found(format!("there is no sandbox {id} on this host"))
}

/// The agent stops, and the stream with it.
pub(crate) fn stopping() -> ConnectError {
    ConnectError::unavailable("the agent stops; sandboxes and commands go on, try again later")
}

/// A file that could not be read or a thread that was lost, on this host.
pub(crate) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> ConnectError {
    tracing::error!(error = %Chain(error), "cannot {what}");
    ConnectError::internal(OURS)
}

impl Answer for InvalidSandboxId {
    fn answer(&self) -> (ErrorCode, String) {
        let shown = Self(cut(&self.0, 64).to_owned());
        (ErrorCode::InvalidArgument, shown.to_string())
    }
}

impl Answer for CreateError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Exists(_) => (ErrorCode::AlreadyExists, self.to_string()),
            Self::Refused(refusal) => (ErrorCode::ResourceExhausted, refusal.to_string()),
            Self::Destroyed(_) => (ErrorCode::Aborted, self.to_string()),
            Self::Failed(error) => error.answer(),
        }
    }
}

impl Answer for CreateSandboxError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Template(error) => error.answer(),
            Self::Memory { .. } => (ErrorCode::ResourceExhausted, self.to_string()),
            Self::Disk(error) if is_out_of_space(error) => full_disk(),
            Self::Slot(error) if is_full(error) => (
                ErrorCode::ResourceExhausted,
                "all network slots of this host are in use; destroy a sandbox".to_owned(),
            ),
            // The console's words are the guest's own, and help whoever made the template.
            Self::Unhealthy { .. } | Self::EndedAtBoot { .. } => (
                ErrorCode::Internal,
                cut(&self.to_string(), MAX_GUEST_WORDS).to_owned(),
            ),
            Self::Resources { .. } => (ErrorCode::InvalidArgument, self.to_string()),
            Self::Snapshot(_) => (ErrorCode::Internal, self.to_string()),
            Self::Restore(error) => match error.answer() {
                (ErrorCode::DataLoss, _) => (
                    ErrorCode::DataLoss,
                    "the snapshot is damaged or gone, and the host's log says what of it; put it back, or delete it and make it again".to_owned(),
                ),
                other => other,
            },
            Self::NoHost => (ErrorCode::FailedPrecondition, self.to_string()),
            Self::Directory(_)
            | Self::Record(_)
            | Self::Disk(_)
            | Self::Slot(_)
            | Self::Tap(_)
            | Self::Egress(_)
            | Self::Cgroup(_)
            | Self::Vm(_)
            | Self::Init(_)
            | Self::Abandoned
            | Self::Thread => (ErrorCode::Internal, OURS.to_owned()),
        }
    }
}

/// Whether a disk could not be made since the host's is full.
fn is_out_of_space(error: &MakeDiskError) -> bool {
    match error {
        MakeDiskError::Copy(CopyDiskError::NoSpace { .. }) => true,
        MakeDiskError::Snapshot(CreateDiskError::Store { source, .. }) => {
            source.kind() == std::io::ErrorKind::StorageFull
        }
        _ => false,
    }
}

/// Whether a slot could not be made since there is none left.
fn is_full(error: &wrenn_core::network::CreateSlotError) -> bool {
    use wrenn_core::network::{CreateSlotError, LeaseError};
    matches!(error, CreateSlotError::Lease(LeaseError::Full { .. }))
}

impl Answer for OpenTemplateError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Name(name) => {
                let shown = Self::Name(cut(name, 64).to_owned());
                (ErrorCode::InvalidArgument, shown.to_string())
            }
            Self::Unknown { name, present, .. } => {
                let known = if present.is_empty() {
                    "it has none at all".to_owned()
                } else {
                    format!("it has: {}", present.join(", "))
                };
                let name = cut(name, 64);
                let message = format!("there is no template '{name}' on this host; {known}");
                (ErrorCode::NotFound, message)
            }
            Self::UnknownKernel { id, .. } => {
                let message = format!("there is no kernel '{}' on this host", cut(id, 64));
                (ErrorCode::NotFound, message)
            }
            _ => (
                ErrorCode::Internal,
                "the template is damaged; have it built again on this host".to_owned(),
            ),
        }
    }
}

impl Answer for NotRunning {
    fn answer(&self) -> (ErrorCode, String) {
        wrong_state(self)
    }
}

/// Why a sandbox broke is in part its guest's own words.
fn wrong_state(error: &impl std::fmt::Display) -> (ErrorCode, String) {
    let message = cut(&error.to_string(), MAX_GUEST_WORDS).to_owned();
    (ErrorCode::FailedPrecondition, message)
}

impl Answer for PauseRefused {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::State { .. } => wrong_state(self),
            Self::Failed { source, .. } => source.answer(),
        }
    }
}

impl Answer for FreezeRefused {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::State { .. } => wrong_state(self),
            Self::Failed { source, .. } => source.answer(),
            Self::Paused { source, .. } => source.answer(),
        }
    }
}

impl Answer for PauseError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Capture(CaptureError::Build(WriteBuildError::File(FileError::NoSpace {
                ..
            }))) => full_disk(),
            _ => (ErrorCode::Internal, OURS.to_owned()),
        }
    }
}

impl Answer for NameSnapshotError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Name(name) => {
                let shown = Self::Name(cut(name, 64).to_owned());
                (ErrorCode::InvalidArgument, shown.to_string())
            }
            Self::Taken(_) => (ErrorCode::AlreadyExists, self.to_string()),
            Self::Write { .. } => (ErrorCode::Internal, OURS.to_owned()),
        }
    }
}

impl Answer for DeleteSnapshotError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Unknown { name, .. } => {
                let name = cut(name, 64);
                let message = format!("there is no snapshot '{name}' on this host");
                (ErrorCode::NotFound, message)
            }
            Self::Remove { .. } | Self::Users(_) | Self::Store(_) => {
                (ErrorCode::Internal, OURS.to_owned())
            }
        }
    }
}

impl Answer for ResumeRefused {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::State { .. } => wrong_state(self),
            Self::Full(refusal) => (ErrorCode::ResourceExhausted, refusal.to_string()),
            Self::Timeout { .. } => (ErrorCode::Internal, OURS.to_owned()),
            Self::Failed { source, .. } => source.answer(),
        }
    }
}

impl Answer for ResumeError {
    fn answer(&self) -> (ErrorCode, String) {
        match self {
            Self::Open(_) | Self::Compact(_) | Self::NoBuild | Self::NoDisk => (
                ErrorCode::DataLoss,
                "its snapshot is damaged or gone, and the host's log says what of it; put it back, or destroy the sandbox".to_owned(),
            ),
            Self::Prepare(error) => error.answer(),
            Self::Disk(RestoreRootDiskError::Copy(CopyDiskError::NoSpace { .. })) => full_disk(),
            Self::Disk(RestoreRootDiskError::NoDeviceMapper) => {
                (ErrorCode::FailedPrecondition, self.to_string())
            }
            Self::Vm(error @ StartVmError::OtherVmm { .. }) => {
                (ErrorCode::FailedPrecondition, error.to_string())
            }
            Self::Store(_)
            | Self::Pager(_)
            | Self::Image(_)
            | Self::Disk(_)
            | Self::Directory { .. }
            | Self::Vm(_)
            | Self::Unhealthy(_)
            | Self::Ended(_)
            | Self::Init(_)
            | Self::Record(_)
            | Self::Thread => (ErrorCode::Internal, OURS.to_owned()),
        }
    }
}

fn full_disk() -> (ErrorCode, String) {
    let message = "no space is left on this host's disk; destroy a sandbox";
    (ErrorCode::ResourceExhausted, message.to_owned())
}

impl Answer for DestroyRefused {
    fn answer(&self) -> (ErrorCode, String) {
        (ErrorCode::Internal, self.to_string())
    }
}

impl Answer for RecordError {
    fn answer(&self) -> (ErrorCode, String) {
        (ErrorCode::Internal, OURS.to_owned())
    }
}

impl Answer for ChangeEgressError {
    fn answer(&self) -> (ErrorCode, String) {
        (ErrorCode::Internal, OURS.to_owned())
    }
}

impl Answer for GuestError {
    fn answer(&self) -> (ErrorCode, String) {
        let said = |message: &str| cut(message, MAX_GUEST_WORDS).to_owned();
        match (self, self.code()) {
            (Self::Rpc { message, .. } | Self::Status { message, .. }, Some(code)) => {
                (code_of(code), said(message))
            }
            (Self::Request { what, reason }, _) => (
                ErrorCode::InvalidArgument,
                format!("this {what} cannot be used: {}", said(reason)),
            ),
            (Self::Local { .. }, _) => (ErrorCode::Internal, OURS.to_owned()),
            // The guest's fault, and not the host's: it is hostile, or busy, or has ended.
            (Self::Transport { what, .. } | Self::Protocol { what, .. }, _)
            | (Self::Rpc { what, .. } | Self::Status { what, .. }, None) => (
                ErrorCode::Unavailable,
                format!("the guest does not answer as it should, {what}; try again"),
            ),
        }
    }
}

fn code_of(code: RpcCode) -> ErrorCode {
    match code {
        // The daemon says so of a user that it does not know.
        RpcCode::InvalidArgument | RpcCode::Unauthenticated => ErrorCode::InvalidArgument,
        RpcCode::NotFound => ErrorCode::NotFound,
        RpcCode::AlreadyExists => ErrorCode::AlreadyExists,
        RpcCode::FailedPrecondition => ErrorCode::FailedPrecondition,
        RpcCode::PermissionDenied => ErrorCode::PermissionDenied,
        RpcCode::DeadlineExceeded => ErrorCode::DeadlineExceeded,
        RpcCode::ResourceExhausted => ErrorCode::ResourceExhausted,
        RpcCode::Unavailable => ErrorCode::Unavailable,
        // What breaks inside a guest is no fault of its host.
        RpcCode::Internal => ErrorCode::Unknown,
    }
}

/// The beginning of a text, whole characters only.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    let mut end = text.len().min(bytes);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Arc;

    use wrenn_core::fleet::Refusal;
    use wrenn_core::network::LeaseError;
    use wrenn_core::sandbox::State;
    use wrenn_core::vm::{Resources, WrittenBy};

    use super::*;

    const ID: &str = "sbaaaaaaaaaaaaaaaaaaaa";

    fn lost() -> io::Error {
        io::Error::other("a secret path")
    }

    fn rpc(code: RpcCode, message: &str) -> GuestError {
        GuestError::Rpc {
            what: "reading a file",
            code,
            message: message.to_owned(),
        }
    }

    fn status(status: u16) -> GuestError {
        GuestError::Status {
            what: "writing a file",
            status,
            message: "cannot write '/x'".to_owned(),
        }
    }

    /// Every answer that a caller can meet, but for those that differ in a number only.
    #[test]
    fn every_error_has_its_code_and_its_sentence() {
        let id = || ID.parse::<SandboxId>().unwrap();
        let failed = |error: CreateSandboxError| CreateError::Failed(Arc::new(error)).answer();
        let resume = |error: ResumeError| {
            let (id, source) = (id(), Arc::new(error));
            ResumeRefused::Failed { id, source }.answer()
        };
        let secret = || PathBuf::from("/secret");
        let answers = [
            InvalidSandboxId("x".repeat(1000)).answer(),
            CreateError::Exists(id()).answer(),
            CreateError::Refused(Refusal::Sandboxes(2)).answer(),
            CreateError::Destroyed(id()).answer(),
            failed(OpenTemplateError::Name("a/b".to_owned()).into()),
            failed(
                OpenTemplateError::Unknown {
                    name: "nope".to_owned(),
                    directory: secret(),
                    present: vec!["base".to_owned(), "minimal".to_owned()],
                }
                .into(),
            ),
            failed(
                OpenTemplateError::Read {
                    path: secret(),
                    source: lost(),
                }
                .into(),
            ),
            failed(CreateSandboxError::Memory {
                asked_mib: 9,
                available_mib: 8,
            }),
            failed(CreateSandboxError::Disk(
                CopyDiskError::NoSpace { path: secret() }.into(),
            )),
            failed(CreateSandboxError::Disk(
                CopyDiskError::Copy {
                    path: secret(),
                    source: lost(),
                }
                .into(),
            )),
            failed(CreateSandboxError::Slot(
                LeaseError::Full { capacity: 2 }.into(),
            )),
            failed(CreateSandboxError::Thread),
            failed(
                OpenTemplateError::UnknownKernel {
                    id: "k9".to_owned(),
                    directory: secret(),
                    present: Vec::new(),
                }
                .into(),
            ),
            failed(CreateSandboxError::Resources {
                has: Resources::new(1, 128).unwrap(),
                asked: Resources::new(2, 256).unwrap(),
            }),
            failed(CreateSandboxError::Snapshot(RecordError::Read {
                path: secret(),
                source: lost(),
            })),
            failed(CreateSandboxError::Restore(Box::new(ResumeError::NoBuild))),
            failed(CreateSandboxError::Restore(Box::new(ResumeError::Thread))),
            FreezeRefused::State {
                id: id(),
                state: State::Error,
                reason: Some("its VM ended (signal 9)".to_owned()),
            }
            .answer(),
            FreezeRefused::Failed {
                id: id(),
                source: Arc::new(CaptureError::Thread.into()),
            }
            .answer(),
            FreezeRefused::Paused {
                id: id(),
                source: Arc::new(ResumeError::NoBuild),
            }
            .answer(),
            NameSnapshotError::Name("x".repeat(1000)).answer(),
            NameSnapshotError::Taken("base".to_owned()).answer(),
            NameSnapshotError::Write {
                path: secret(),
                source: lost(),
            }
            .answer(),
            DeleteSnapshotError::Unknown {
                name: "x".repeat(1000),
                directory: secret(),
            }
            .answer(),
            DeleteSnapshotError::Remove {
                path: secret(),
                source: lost(),
            }
            .answer(),
            NotRunning {
                id: id(),
                state: State::Error,
                reason: Some("its VM ended (signal 9)".to_owned()),
            }
            .answer(),
            PauseRefused::State {
                id: id(),
                state: State::Error,
                reason: Some("its VM ended (signal 9)".to_owned()),
            }
            .answer(),
            PauseRefused::Failed {
                id: id(),
                source: Arc::new(CaptureError::Thread.into()),
            }
            .answer(),
            ResumeRefused::State {
                id: id(),
                state: State::Stopped,
                reason: None,
            }
            .answer(),
            resume(ResumeError::NoBuild),
            resume(ResumeError::Prepare(CreateSandboxError::Memory {
                asked_mib: 9,
                available_mib: 8,
            })),
            resume(ResumeError::Vm(StartVmError::OtherVmm {
                wrote: WrittenBy {
                    vmm: "one".to_owned(),
                    version: "1".to_owned(),
                },
                has: "another".to_owned(),
                version: "2".to_owned(),
            })),
            resume(ResumeError::Thread),
            rpc(RpcCode::NotFound, "cannot stat '/x'").answer(),
            rpc(RpcCode::Unauthenticated, "no user 'x'").answer(),
            rpc(RpcCode::FailedPrecondition, "it is closed").answer(),
            rpc(RpcCode::Internal, "broken").answer(),
            status(507).answer(),
            status(403).answer(),
            GuestError::Transport {
                what: "writing a file",
                source: lost(),
            }
            .answer(),
            GuestError::Local {
                what: "read",
                source: lost(),
            }
            .answer(),
        ];
        let text: String = answers
            .iter()
            .map(|(code, message)| format!("{}: {message}\n", code.as_str()))
            .collect();
        assert_eq!(text, include_str!("errors.txt"));
        assert!(!text.contains("secret"), "{text}");
    }

    #[test]
    fn a_guests_words_are_bounded() {
        let (_, message) = rpc(RpcCode::NotFound, &"ü".repeat(5000)).answer();
        assert!(message.len() <= MAX_GUEST_WORDS);
        assert_eq!(cut("aü", 2), "a");
    }
}
