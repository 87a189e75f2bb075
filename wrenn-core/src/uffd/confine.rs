//! What the process of a pager may do: what it needs, and no more.
//!
//! It reads a message from a VMM that may have been taken over. Once its files are open it
//! needs to fill pages, to watch one process, and to kill it.

use std::collections::BTreeMap;
use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::sys::PAGER_IOCTLS;

/// Why a pager cannot be confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// Rights are kept that are not needed.
    #[error("cannot {step}; a pager is started as root")]
    Privileges {
        /// What was tried.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The filter is wrong.
    #[error("cannot compile the seccomp filter")]
    Compile(#[source] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error("cannot apply the seccomp filter")]
    Apply(#[source] seccompiler::Error),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> ConfineError {
    move |source| ConfineError::Privileges {
        step,
        source: source.into(),
    }
}

/// Becomes this user, if one is given, and gives up all rights but the one to kill a VMM
/// that runs as another. Memory of the guest goes into no core dump.
///
/// To be called while the process has one thread.
pub(super) fn drop_privileges(user: Option<(u32, u32)>) -> Result<(), ConfineError> {
    for capability in CapabilitySet::all().iter() {
        // Those that this kernel does not know are refused.
        let known = rustix::thread::capability_is_in_bounding_set(capability);
        if known.is_ok_and(|known| known) {
            rustix::thread::remove_capability_from_bounding_set(capability)
                .map_err(step("empty the bounding set"))?;
        }
    }
    if let Some((user, group)) = user {
        let (user, group) = (user.into(), group.into());
        rustix::thread::set_keep_capabilities(true).map_err(step("keep a capability"))?;
        nix::unistd::setgroups(&[]).map_err(step("leave all groups"))?;
        nix::unistd::setresgid(group, group, group).map_err(step("change the group"))?;
        nix::unistd::setresuid(user, user, user).map_err(step("change the user"))?;
    }
    let kept = CapabilitySets {
        effective: CapabilitySet::KILL,
        permitted: CapabilitySet::KILL,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, kept).map_err(step("drop capabilities"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(step("forbid core dumps"))?;
    rustix::thread::set_no_new_privs(true).map_err(step("forbid new privileges"))
}

const CALLS: &[i64] = &[
    // Memory, locks, time, signals, threads, their end.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_prctl,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_tgkill,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Descriptors: events, memory files, the log.
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    // The VMM: its connection, its end.
    libc::SYS_accept4,
    libc::SYS_recvmsg,
    libc::SYS_getsockopt,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_send_signal,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    // The socket goes, the working set gets its name.
    libc::SYS_unlink,
    libc::SYS_unlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
];

/// Binds the process for the rest of its life: no new file, socket or program. Anything
/// else ends it, and with it the VM, since whoever owns the VM watches both.
pub(super) fn filter_calls() -> Result<(), ConfineError> {
    let rule = |argument, operator, value| {
        let width = SeccompCmpArgLen::Dword;
        SeccompCondition::new(argument, width, operator, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
            .map_err(ConfineError::Compile)
    };
    let masked = |bits: i32, value: u64| (SeccompCmpOp::MaskedEq(u64::from(bits as u32)), value);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    let controls = PAGER_IOCTLS.map(|control| rule(1, SeccompCmpOp::Eq, control));
    rules.insert(
        libc::SYS_ioctl,
        controls.into_iter().collect::<Result<_, _>>()?,
    );
    let (no_code, zero) = masked(libc::PROT_EXEC, 0);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(2, no_code.clone(), zero)?]);
    }
    let (thread, set) = masked(libc::CLONE_THREAD, libc::CLONE_THREAD as u64);
    rules.insert(libc::SYS_clone, vec![rule(0, thread, set)?]);
    rules.insert(libc::SYS_clone3, Vec::new());
    // A filter cannot see what clone3 is asked for. Without it, threads come from clone.
    // Of two filters the stricter one counts; after the other, no more can be added.
    let absent = SeccompAction::Errno(libc::ENOSYS as u32);
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(clone3, SeccompAction::Allow, absent)?;
    apply(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

fn apply(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<(), ConfineError> {
    let filter = SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64);
    let program = filter
        .and_then(BpfProgram::try_from)
        .map_err(ConfineError::Compile)?;
    seccompiler::apply_filter(&program).map_err(ConfineError::Apply)
}
