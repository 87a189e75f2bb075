//! The one place where an engine's error becomes an answer: a code, a reason for programs, and
//! a sentence that its reader can act on. Details for
//! operators stay in the log.
//!
//! Every error that leaves the agent has a reason: what is refused before an engine is asked
//! gets it from [`invalid`] and its like, what the RPC library makes of a broken message from
//! [`with_default_reason`].

use std::time::Duration;

use wrenn_core::devicemapper::CreateDiskError;
use wrenn_core::fleet::{
    CreateError, DestroyRefused, FreezeRefused, NotRunning, PauseRefused, ResumeRefused,
};
use wrenn_core::guest::{GuestError, RpcCode};
use wrenn_core::sandbox::{
    CaptureError, ChangeEgressError, CopyDiskError, CreateSandboxError, DeleteSnapshotError,
    GreetError, MakeDiskError, NameSnapshotError, PauseError, RecordError, RestoreRootDiskError,
    ResumeError, State,
};
use wrenn_core::snapshot::{FileError, WriteBuildError};
use wrenn_core::template::OpenTemplateError;
use wrenn_core::vm::StartVmError;
use wrenn_core::{Chain, InvalidSandboxId, SandboxId};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::{self as wire, Reason};
use wrenn_proto::reason;

use crate::access::Denied;

/// The longest sentence of a guest that is passed on, in bytes.
const MAX_GUEST_WORDS: usize = 1024;
const REFUSED: &str = "the guest refused its set-up";
const REMOVED: &str = "the sandbox was removed: try again, or make its template or snapshot again";
/// What is said of an error that is this host's own.
const OURS: &str = "the host failed; its log says why";

/// An error as its caller gets it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    code: ErrorCode,
    reason: Reason,
    /// The sandbox's state, where that is why.
    state: Option<wire::State>,
    message: String,
}

impl Answer {
    fn new(code: ErrorCode, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            state: None,
            message: message.into(),
        }
    }

    /// This host's own fault, which its log explains.
    fn ours() -> Self {
        Self::internal(OURS)
    }

    fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Internal, Reason::REASON_INTERNAL, message)
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidArgument, Reason::REASON_INVALID, message)
    }

    fn exists(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::AlreadyExists, Reason::REASON_EXISTS, message)
    }

    fn host_full(message: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::ResourceExhausted,
            Reason::REASON_HOST_FULL,
            message,
        )
    }

    fn host_disk_full() -> Self {
        Self::host_full("no space is left on this host's disk; destroy a sandbox")
    }

    fn data_lost(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::DataLoss, Reason::REASON_DATA_LOST, message)
    }

    /// This host lacks something that the request needs, and says what.
    fn cannot(message: impl Into<String>) -> Self {
        Self::new(
            ErrorCode::FailedPrecondition,
            Reason::REASON_INTERNAL,
            message,
        )
    }

    /// Why a sandbox broke is in part its guest's own words.
    fn wrong_state(state: State, error: &impl std::fmt::Display) -> Self {
        let reason = match state {
            State::Stopped => Reason::REASON_DESTROYED,
            _ => Reason::REASON_WRONG_STATE,
        };
        let message = cut(&error.to_string(), MAX_GUEST_WORDS).to_owned();
        Self {
            state: Some(wire_state(state)),
            ..Self::new(ErrorCode::FailedPrecondition, reason, message)
        }
    }

    fn into_error(self) -> ConnectError {
        let error = ConnectError::new(self.code, self.message);
        reason::with_reason(error, self.reason, self.state)
    }
}

/// An error of an engine, as a caller sees it.
pub(crate) trait Answers: std::error::Error + 'static {
    /// The answer to its caller.
    fn answer(&self) -> Answer;
}

/// Turns an error into an answer, and logs what the answer leaves out.
pub(crate) fn answer(error: &impl Answers) -> ConnectError {
    let answer = error.answer();
    if answer.code == ErrorCode::Internal {
        tracing::error!(error = %Chain(error), "a request failed");
    } else {
        tracing::debug!(error = %Chain(error), code = answer.code.as_str(), "a request is refused");
    }
    answer.into_error()
}

/// A request that can never be answered.
pub(crate) fn invalid(message: impl Into<String>) -> ConnectError {
    Answer::invalid(message).into_error()
}

/// A request, or its answer, is larger than its call takes.
pub(crate) fn too_large(code: ErrorCode, message: impl Into<String>) -> ConnectError {
    Answer::new(code, Reason::REASON_TOO_LARGE, message).into_error()
}

/// The request is not one that may be answered.
pub(crate) fn denied(denied: Denied) -> ConnectError {
    let code = match denied {
        Denied::Host | Denied::Origin => ErrorCode::PermissionDenied,
        Denied::NoToken | Denied::WrongToken => ErrorCode::Unauthenticated,
    };
    let reason = match denied {
        Denied::Host | Denied::Origin => Reason::REASON_INVALID,
        Denied::NoToken | Denied::WrongToken => Reason::REASON_UNAUTHENTICATED,
    };
    Answer::new(code, reason, denied.to_string()).into_error()
}

/// There is no sandbox of this id.
pub(crate) fn unknown(id: &SandboxId) -> ConnectError {
    let message = format!("there is no sandbox {id} on this host");
    Answer::new(
        ErrorCode::NotFound,
        Reason::REASON_SANDBOX_NOT_FOUND,
        message,
    )
    .into_error()
}

/// The guest does not answer in time.
pub(crate) fn silent(message: impl Into<String>) -> ConnectError {
    Answer::new(
        ErrorCode::Unavailable,
        Reason::REASON_GUEST_UNAVAILABLE,
        message,
    )
    .into_error()
}

/// The agent stops, and the stream with it.
pub(crate) fn stopping() -> ConnectError {
    Answer::new(
        ErrorCode::Unavailable,
        Reason::REASON_STOPPING,
        "the agent stops; sandboxes and commands go on, try again later",
    )
    .into_error()
}

/// A file that could not be read or a thread that was lost, on this host.
pub(crate) fn internal(what: &str, error: &(dyn std::error::Error + 'static)) -> ConnectError {
    tracing::error!(error = %Chain(error), "cannot {what}");
    Answer::ours().into_error()
}

/// Gives a reason to an error that has none: one that the RPC library made of a message that
/// it cannot read.
pub(crate) fn with_default_reason(error: ConnectError) -> ConnectError {
    if reason::of(&error).is_some() {
        return error;
    }
    let reason = match error.code {
        ErrorCode::InvalidArgument | ErrorCode::Unimplemented | ErrorCode::OutOfRange => {
            Reason::REASON_INVALID
        }
        ErrorCode::ResourceExhausted => Reason::REASON_TOO_LARGE,
        ErrorCode::Internal => Reason::REASON_INTERNAL,
        _ => Reason::REASON_UNSPECIFIED,
    };
    reason::with_reason(error, reason, None)
}

pub(crate) fn wire_state(state: State) -> wire::State {
    match state {
        State::Pending => wire::State::STATE_PENDING,
        State::Running => wire::State::STATE_RUNNING,
        State::Pausing => wire::State::STATE_PAUSING,
        State::Paused => wire::State::STATE_PAUSED,
        State::Resuming => wire::State::STATE_RESUMING,
        State::Error => wire::State::STATE_ERROR,
        State::Stopped => wire::State::STATE_STOPPED,
        // Only a control plane can miss a sandbox.
        State::Missing => wire::State::STATE_UNSPECIFIED,
    }
}

impl Answers for InvalidSandboxId {
    fn answer(&self) -> Answer {
        let shown = Self(cut(&self.0, 64).to_owned());
        Answer::invalid(shown.to_string())
    }
}

impl Answers for CreateError {
    fn answer(&self) -> Answer {
        match self {
            Self::Exists(_) => Answer::exists(self.to_string()),
            Self::Refused(refusal) => Answer::host_full(refusal.to_string()),
            Self::Destroyed(_) => Answer::new(
                ErrorCode::Aborted,
                Reason::REASON_DESTROYED,
                self.to_string(),
            ),
            Self::Failed(error) => error.answer(),
        }
    }
}

impl Answers for CreateSandboxError {
    fn answer(&self) -> Answer {
        match self {
            Self::Template(error) => error.answer(),
            Self::Memory { .. } => Answer::host_full(self.to_string()),
            Self::Disk(error) if is_out_of_space(error) => Answer::host_disk_full(),
            Self::Slot(error) if is_full(error) => {
                Answer::host_full("all network slots of this host are in use; destroy a sandbox")
            }
            // The console's words are the guest's own, and help the template's author.
            Self::Unhealthy { .. } | Self::EndedAtBoot { .. } => {
                Answer::internal(cut(&self.to_string(), MAX_GUEST_WORDS))
            }
            Self::Silent { deadline, .. } => guest_failed(&silence(*deadline), REMOVED),
            Self::Init(_) => guest_failed(REFUSED, REMOVED),
            Self::Resources { .. } => Answer::invalid(self.to_string()),
            Self::Snapshot(_) => Answer::internal(self.to_string()),
            Self::Restore(error) => match (fault_of_guest(error), error.answer()) {
                (Some(fault), _) => guest_failed(&fault, REMOVED),
                (None, lost) if lost.code == ErrorCode::DataLoss => Answer::data_lost(
                    "the snapshot is damaged or gone, and the host's log says what of it; put it back, or delete it and make it again",
                ),
                (None, other) => other,
            },
            Self::NoHost => Answer::cannot(self.to_string()),
            Self::Directory(_)
            | Self::Record(_)
            | Self::Disk(_)
            | Self::Slot(_)
            | Self::Tap(_)
            | Self::Egress(_)
            | Self::Cgroup(_)
            | Self::Vm(_)
            | Self::Abandoned
            | Self::Thread => Answer::ours(),
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

impl Answers for OpenTemplateError {
    fn answer(&self) -> Answer {
        match self {
            Self::Name(name) => {
                let shown = Self::Name(cut(name, 64).to_owned());
                Answer::invalid(shown.to_string())
            }
            Self::Unknown { name, present, .. } => {
                let known = if present.is_empty() {
                    "it has none at all".to_owned()
                } else {
                    format!("it has: {}", present.join(", "))
                };
                let name = cut(name, 64);
                let message = format!("there is no template '{name}' on this host; {known}");
                Answer::new(
                    ErrorCode::NotFound,
                    Reason::REASON_TEMPLATE_NOT_FOUND,
                    message,
                )
            }
            Self::UnknownKernel { id, .. } => {
                let message = format!("there is no kernel '{}' on this host", cut(id, 64));
                Answer::new(
                    ErrorCode::NotFound,
                    Reason::REASON_TEMPLATE_NOT_FOUND,
                    message,
                )
            }
            _ => Answer::internal("the template is damaged; have it built again on this host"),
        }
    }
}

impl Answers for NotRunning {
    fn answer(&self) -> Answer {
        Answer::wrong_state(self.state, self)
    }
}

impl Answers for PauseRefused {
    fn answer(&self) -> Answer {
        match self {
            Self::State { state, .. } => Answer::wrong_state(*state, self),
            Self::Failed { source, .. } => source.answer(),
        }
    }
}

impl Answers for FreezeRefused {
    fn answer(&self) -> Answer {
        match self {
            Self::State { state, .. } => Answer::wrong_state(*state, self),
            Self::Failed { source, .. } => source.answer(),
            Self::Paused { source, .. } => source.answer(),
        }
    }
}

impl Answers for PauseError {
    fn answer(&self) -> Answer {
        match self {
            Self::Capture(CaptureError::Build(WriteBuildError::File(FileError::NoSpace {
                ..
            }))) => Answer::host_disk_full(),
            _ => Answer::ours(),
        }
    }
}

impl Answers for NameSnapshotError {
    fn answer(&self) -> Answer {
        match self {
            Self::Name(name) => {
                let shown = Self::Name(cut(name, 64).to_owned());
                Answer::invalid(shown.to_string())
            }
            Self::Taken(_) => Answer::exists(self.to_string()),
            Self::Write { .. } => Answer::ours(),
        }
    }
}

impl Answers for DeleteSnapshotError {
    fn answer(&self) -> Answer {
        match self {
            Self::Unknown { name, .. } => {
                let name = cut(name, 64);
                let message = format!("there is no snapshot '{name}' on this host");
                Answer::new(
                    ErrorCode::NotFound,
                    Reason::REASON_SNAPSHOT_NOT_FOUND,
                    message,
                )
            }
            Self::Remove { .. } | Self::Users(_) | Self::Store(_) => Answer::ours(),
        }
    }
}

impl Answers for ResumeRefused {
    fn answer(&self) -> Answer {
        match self {
            Self::State { state, .. } => Answer::wrong_state(*state, self),
            Self::Full(refusal) => Answer::host_full(refusal.to_string()),
            Self::Timeout { .. } => Answer::ours(),
            Self::Broken { .. } => Answer::data_lost(
                "the guest did not go on, and its snapshot is gone; its disk is kept until the sandbox is destroyed",
            ),
            Self::Failed { source, .. } => source.answer(),
        }
    }
}

impl Answers for ResumeError {
    fn answer(&self) -> Answer {
        if let Some(fault) = fault_of_guest(self) {
            return guest_failed(
                &fault,
                "the sandbox is paused as before: resume it again, or destroy it",
            );
        }
        match self {
            Self::Open(_) | Self::Compact(_) | Self::NoBuild | Self::NoDisk => Answer::data_lost(
                "its snapshot is damaged or gone, and the host's log says what of it; put it back, or destroy the sandbox",
            ),
            Self::Prepare(error) => error.answer(),
            Self::Disk(RestoreRootDiskError::Copy(CopyDiskError::NoSpace { .. })) => {
                Answer::host_disk_full()
            }
            Self::Disk(RestoreRootDiskError::NoDeviceMapper) => Answer::cannot(self.to_string()),
            Self::Vm(error @ StartVmError::OtherVmm { .. }) => Answer::cannot(error.to_string()),
            Self::Greet(GreetError::Cancelled) => Answer::new(
                ErrorCode::Aborted,
                Reason::REASON_DESTROYED,
                "the sandbox was destroyed while it was resumed",
            ),
            Self::Store(_)
            | Self::Pager(_)
            | Self::Image(_)
            | Self::Disk(_)
            | Self::Directory { .. }
            | Self::Vm(_)
            | Self::Greet(_)
            | Self::Record(_)
            | Self::Thread => Answer::ours(),
        }
    }
}

/// The guest's failure, where its own and not the host's is the reason that it was not restored.
fn fault_of_guest(error: &ResumeError) -> Option<String> {
    let ResumeError::Greet(error) = error else {
        return None;
    };
    match error {
        GreetError::Deadline(deadline) => Some(silence(*deadline)),
        GreetError::Unhealthy(error) => Some(silence(error.waited)),
        GreetError::Refused(_) => Some(REFUSED.to_owned()),
        GreetError::Ended(_) | GreetError::Cancelled => None,
    }
}

fn silence(deadline: Duration) -> String {
    format!("the guest did not answer within {} s", deadline.as_secs())
}

fn guest_failed(fault: &str, advice: &str) -> Answer {
    Answer::new(
        ErrorCode::Unavailable,
        Reason::REASON_GUEST_UNAVAILABLE,
        format!("{fault}; {advice}"),
    )
}

impl Answers for DestroyRefused {
    fn answer(&self) -> Answer {
        match self {
            Self::InPart { .. } => Answer::internal(self.to_string()),
            Self::Left(_) => Answer::new(
                ErrorCode::Unavailable,
                Reason::REASON_STOPPING,
                self.to_string(),
            ),
        }
    }
}

impl Answers for RecordError {
    fn answer(&self) -> Answer {
        Answer::ours()
    }
}

impl Answers for ChangeEgressError {
    fn answer(&self) -> Answer {
        Answer::ours()
    }
}

impl Answers for GuestError {
    fn answer(&self) -> Answer {
        let said = |message: &str| cut(message, MAX_GUEST_WORDS).to_owned();
        match (self, self.code()) {
            (Self::Rpc { message, .. } | Self::Status { message, .. }, Some(code)) => {
                let reason = self.reason().filter(|reason| is_of_guests(*reason));
                let reason = reason.unwrap_or_else(|| default_reason(self, code));
                Answer::new(code_of(code), reason, said(message))
            }
            (Self::Request { what, reason }, _) => {
                Answer::invalid(format!("this {what} cannot be used: {}", said(reason)))
            }
            (Self::Local { .. }, _) => Answer::ours(),
            // The guest's fault, and not the host's: it is hostile, or busy, or has ended.
            (Self::Transport { what, .. } | Self::Protocol { what, .. }, _)
            | (Self::Rpc { what, .. } | Self::Status { what, .. }, None) => Answer::new(
                ErrorCode::Unavailable,
                Reason::REASON_GUEST_UNAVAILABLE,
                format!("the guest does not answer as it should, {what}; try again"),
            ),
        }
    }
}

/// Whether a guest is believed that this is why: the others are about its host.
fn is_of_guests(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::REASON_INVALID
            | Reason::REASON_PROCESS_NOT_FOUND
            | Reason::REASON_PATH_NOT_FOUND
            | Reason::REASON_EXISTS
            | Reason::REASON_GUEST_DISK_FULL
            | Reason::REASON_TOO_LARGE
            | Reason::REASON_GUEST_PERMISSION_DENIED
            | Reason::REASON_COMMAND_NOT_FOUND
            | Reason::REASON_COMMAND_NOT_EXECUTABLE
    )
}

/// The reason of a guest that gives none, as its plain routes do, which are about files.
fn default_reason(error: &GuestError, code: RpcCode) -> Reason {
    let plain = matches!(error, GuestError::Status { .. });
    match code {
        RpcCode::InvalidArgument | RpcCode::Unauthenticated | RpcCode::OutOfRange => {
            Reason::REASON_INVALID
        }
        RpcCode::NotFound if plain => Reason::REASON_PATH_NOT_FOUND,
        RpcCode::AlreadyExists => Reason::REASON_EXISTS,
        RpcCode::PermissionDenied => Reason::REASON_GUEST_PERMISSION_DENIED,
        RpcCode::ResourceExhausted if plain => Reason::REASON_GUEST_DISK_FULL,
        RpcCode::Unavailable => Reason::REASON_GUEST_UNAVAILABLE,
        RpcCode::NotFound
        | RpcCode::ResourceExhausted
        | RpcCode::FailedPrecondition
        | RpcCode::DeadlineExceeded
        | RpcCode::Internal => Reason::REASON_UNSPECIFIED,
    }
}

fn code_of(code: RpcCode) -> ErrorCode {
    match code {
        // The daemon says so of a user that it does not know.
        RpcCode::InvalidArgument | RpcCode::Unauthenticated => ErrorCode::InvalidArgument,
        RpcCode::OutOfRange => ErrorCode::OutOfRange,
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
#[path = "errors_tests.rs"]
mod tests;
