//! How the process ends. The numbers are Firecracker's (`FcExitCode`), so that whoever
//! watches the process needs one table for both.

/// Exit codes of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// The guest reset or powered off.
    Ok = 0,
    /// Anything without a code of its own.
    Failure = 1,
    /// A state that should not exist.
    Unexpected = 2,
    /// The seccomp filter caught a system call.
    BadSystemCall = 148,
    /// Memory could not be paged in, for instance because a snapshot file shrank.
    BusError = 149,
    /// A bug in the VMM.
    SegmentationFault = 150,
    /// A file grew past the limit of the process.
    FileSizeLimit = 151,
    /// The configuration file or a value in it is wrong.
    BadConfiguration = 152,
    /// The command line is wrong.
    BadArguments = 153,
    /// The process used up its CPU time.
    CpuTimeLimit = 154,
    /// The terminal hung up.
    HangUp = 156,
    /// A bug in the VMM, or a CPU too old for it.
    IllegalInstruction = 157,
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

/// Ends the process at a panic of any thread, once it is told: a machine that lacks a thread
/// would hang, and what the thread had locked may be half changed.
pub fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
