//! The unsafe operations of this module: waiting for a pidfd, and the birth of a process.

use std::ffi::{CStr, CString, c_char};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null;
use std::sync::Arc;

use rustix::process::{WaitId, WaitIdOptions, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Flags of `clone3` that do not fit the C library's type (`linux/sched.h`).
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;
const CLONE_INTO_CGROUP: u64 = 1 << 33;

/// Bytes of a signal set and of a `struct sigaction`, as the kernel has them on x86-64.
const SIGNAL_SET_BYTES: usize = 8;
const SIGNAL_ACTION_WORDS: usize = 4;

/// Makes a pidfd something to wait for.
pub(crate) fn await_pidfd(pidfd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: an `OwnedFd` behind an `Arc` names the same open descriptor for as long as
    // the `AsyncFd` holds its share of it: nothing here can close or replace it.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(|error| error.into_parts().1)
}

/// Takes every capability out of the calling thread's bounding set, so that nothing that
/// it starts can ever have one. What the thread itself has, it keeps.
pub(super) fn empty_bounding_set() -> io::Result<()> {
    for capability in 0_u64..64 {
        // SAFETY: PR_CAPBSET_DROP takes a number and touches no memory.
        let outcome = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if outcome == 0 {
            continue;
        }
        let error = io::Error::last_os_error();
        // The first number that the kernel does not know ends the list.
        return if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
            Ok(())
        } else {
            Err(error)
        };
    }
    Ok(())
}

/// A process to be.
#[derive(Debug)]
pub(super) struct Child<'a> {
    /// The program, as the calling thread's root directory has it.
    pub(super) program: &'a CStr,
    /// Its arguments, its own name first. Its environment is empty.
    pub(super) arguments: &'a [CString],
    /// Its standard input, output and error; it has no other descriptor. None of the
    /// three may be 0, 1 or 2 itself.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Its user and its only group.
    pub(super) user: u32,
    /// Most descriptors that it may have.
    pub(super) descriptors: u64,
    /// The directory of the cgroup that it is born in; the caller's where there is none.
    pub(super) cgroup: Option<BorrowedFd<'a>>,
    /// Whether the kernel kills it when the calling thread ends.
    pub(super) dies_with_thread: bool,
}

/// A process that was not born.
#[derive(Debug)]
pub(super) struct BirthError {
    /// What was tried.
    pub(super) step: BirthStep,
    /// Why it failed.
    pub(super) source: io::Error,
}

/// What happens between a process's beginning and its program's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BirthStep {
    /// Something of the set-up.
    SetUp(&'static str),
    /// The program itself.
    Execute,
}

/// One system call as a child makes it. The loop in `start` knows this layout.
#[repr(C)]
struct Call {
    number: i64,
    arguments: [usize; 5],
}

/// Where a child writes what went wrong.
#[repr(C)]
struct Failure {
    /// The negative error number; 0 where nothing went wrong.
    error: i64,
    /// The call that failed.
    call: *const Call,
}

/// Starts a process and returns its id and a handle on it.
///
/// Like `vfork`, it copies no page tables: the child borrows this process's memory while
/// the calling thread stands still, until the program begins. In between runs nothing
/// but the loop below, which makes system calls from a list. What has to be done by the
/// child itself is in that list; what can be done by the thread that starts it (root,
/// namespaces, bounding set, umask) was done there and is inherited.
///
/// The calling thread should have blocked all signals; the child unblocks them.
///
/// Since the child changes its user while it borrows the memory, the kernel no longer
/// takes this process for one whose core may be dumped (`PR_SET_DUMPABLE`). That is left
/// so: the secrets of all sandboxes are in that memory.
pub(super) fn spawn(child: &Child<'_>) -> Result<(u32, OwnedFd), BirthError> {
    let arguments: Vec<*const c_char> = child
        .arguments
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([null()])
        .collect();
    let environment: [*const c_char; 1] = [null()];
    let no_signals = 0_u64;
    let default_action = [0_u64; SIGNAL_ACTION_WORDS];
    let descriptors = libc::rlimit64 {
        rlim_cur: child.descriptors,
        rlim_max: child.descriptors,
    };
    // Not 0: that would still let a core be piped to a handler of the host, guest memory
    // included. The kernel takes 1 for neither a file nor a pipe (`coredump.c`).
    let core = libc::rlimit64 {
        rlim_cur: 1,
        rlim_max: 1,
    };
    let mut names = Vec::new();
    let mut calls = Vec::new();
    let mut add = |name: &'static str, number: libc::c_long, arguments: [usize; 5]| {
        names.push(name);
        calls.push(Call { number, arguments });
    };
    add(
        "leave the cgroup namespace",
        libc::SYS_unshare,
        [libc::CLONE_NEWCGROUP as usize, 0, 0, 0, 0],
    );
    add("begin a session", libc::SYS_setsid, [0; 5]);
    add(
        "hear SIGPIPE again",
        libc::SYS_rt_sigaction,
        [
            libc::SIGPIPE as usize,
            (&raw const default_action).expose_provenance(),
            0,
            SIGNAL_SET_BYTES,
            0,
        ],
    );
    for (resource, limit) in [
        (libc::RLIMIT_NOFILE, &raw const descriptors),
        (libc::RLIMIT_CORE, &raw const core),
    ] {
        add(
            "limit the process",
            libc::SYS_prlimit64,
            [0, resource as usize, limit.expose_provenance(), 0, 0],
        );
    }
    for (to, from) in child.stdio.iter().enumerate() {
        let from = from.as_raw_fd().cast_unsigned() as usize;
        add(
            "set standard input and output",
            libc::SYS_dup3,
            [from, to, 0, 0, 0],
        );
    }
    add(
        "close what is not the program's",
        libc::SYS_close_range,
        [3, u32::MAX as usize, 0, 0, 0],
    );
    let user = child.user as usize;
    add(
        "leave all supplementary groups",
        libc::SYS_setgroups,
        [0; 5],
    );
    add(
        "become the VM's group",
        libc::SYS_setresgid,
        [user, user, user, 0, 0],
    );
    add(
        "become the VM's user",
        libc::SYS_setresuid,
        [user, user, user, 0, 0],
    );
    if child.dies_with_thread {
        // Here, because a change of the user takes it back.
        add(
            "ask for a signal at the end of the parent",
            libc::SYS_prctl,
            [
                libc::PR_SET_PDEATHSIG as usize,
                libc::SIGKILL as usize,
                0,
                0,
                0,
            ],
        );
    }
    add(
        "give up new privileges",
        libc::SYS_prctl,
        [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0],
    );
    add(
        "hear signals again",
        libc::SYS_rt_sigprocmask,
        [
            libc::SIG_SETMASK as usize,
            (&raw const no_signals).expose_provenance(),
            0,
            SIGNAL_SET_BYTES,
            0,
        ],
    );
    add(
        "run the program",
        libc::SYS_execve,
        [
            child.program.as_ptr().expose_provenance(),
            arguments.as_ptr().expose_provenance(),
            environment.as_ptr().expose_provenance(),
            0,
            0,
        ],
    );

    let mut failure = Failure {
        error: 0,
        call: null(),
    };
    let mut pidfd = -1_i32;
    let mut flags = (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64;
    flags |= CLONE_CLEAR_SIGHAND;
    if child.cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let request = libc::clone_args {
        flags,
        pidfd: (&raw mut pidfd).expose_provenance() as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: child
            .cgroup
            .map_or(0, |cgroup| u64::from(cgroup.as_raw_fd().cast_unsigned())),
    };
    let outcome = start(&request, &calls, &raw mut failure);
    let pid = u32::try_from(outcome).map_err(|_| BirthError {
        step: BirthStep::SetUp("make a process"),
        source: io::Error::from_raw_os_error(i32::try_from(-outcome).unwrap_or(libc::EIO)),
    })?;
    // SAFETY: the kernel made this descriptor for the process that it just started, and
    // nobody else knows of it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    if failure.error == 0 {
        return Ok((pid, pidfd));
    }
    if let Err(error) = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        tracing::warn!(%error, pid, "cannot reap a process that did not start");
    }
    let failed = (failure.call.addr() - calls.as_ptr().addr()) / size_of::<Call>();
    Err(BirthError {
        step: match names.get(failed) {
            Some(name) if failed + 1 < names.len() => BirthStep::SetUp(name),
            _ => BirthStep::Execute,
        },
        source: io::Error::from_raw_os_error(i32::try_from(-failure.error).unwrap_or(libc::EIO)),
    })
}

/// `clone3`, and in the child one call after the other until one fails or the last, which
/// must be `execve`, succeeds. Returns the child's id or a negative error number.
#[cfg(target_arch = "x86_64")]
fn start(request: &libc::clone_args, calls: &[Call], failure: *mut Failure) -> i64 {
    let outcome: i64;
    // SAFETY: in this thread only the one system call is made; it reads `request` and
    // writes the descriptor to the place that `request` names, which the caller owns. The
    // child has registers of its own, never touches the stack that it shares with this
    // thread, reads `calls` and what they point to, and writes `failure`, all of which
    // live until this thread goes on, which it does when the child has memory of its own
    // or is gone. The calls are those of `spawn`: they change nothing of what is shared.
    // The last replaces the program, and a failed one ends the child, so that it never
    // leaves this block.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 4f",
            "2:",
            "mov rax, [r12]",
            "mov rdi, [r12 + 8]",
            "mov rsi, [r12 + 16]",
            "mov rdx, [r12 + 24]",
            "mov r10, [r12 + 32]",
            "mov r8, [r12 + 40]",
            "syscall",
            "test rax, rax",
            "js 3f",
            "add r12, 48",
            "jmp 2b",
            "3:",
            "mov [r13], rax",
            "mov [r13 + 8], r12",
            "mov edi, 127",
            "mov eax, {exit}",
            "syscall",
            "ud2",
            "4:",
            exit = const libc::SYS_exit_group,
            inlateout("rax") libc::SYS_clone3 => outcome,
            in("rdi") std::ptr::from_ref(request),
            in("rsi") size_of::<libc::clone_args>(),
            in("r12") calls.as_ptr(),
            in("r13") failure,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    outcome
}

#[cfg(not(target_arch = "x86_64"))]
compile_error!("the birth of a VMM is written for x86-64; it needs the same few lines for others");
