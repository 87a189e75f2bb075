//! What each kind of thread may ask of the kernel. Everything else raises `SIGSYS`, whose
//! handler prints the number of the call and ends the process with code 148
//! (`sys::signals`).
//!
//! A VMM that a guest has taken over can then read and write what it has open already,
//! and not much more: no new program, no socket, no other process. Only the main thread
//! can open files, which `PATCH /drives` needs; the jail decides which there are.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

/// A filter for one thread, or none.
#[derive(Clone, Debug, Default)]
pub struct Filter(Option<BpfProgram>);

/// The filters of all kinds of threads.
#[derive(Clone, Debug, Default)]
pub struct Filters {
    /// The main thread, once the guest runs.
    pub main: Filter,
    /// vCPUs.
    pub vcpu: Filter,
    /// Drives.
    pub drive: Filter,
    /// The API.
    pub api: Filter,
}

/// A filter could not be made or applied.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// It is wrong.
    #[error("cannot compile a seccomp filter")]
    Compile(#[source] seccompiler::BackendError),
    /// The kernel refuses it.
    #[error("cannot apply a seccomp filter")]
    Apply(#[source] seccompiler::Error),
}

impl Filter {
    /// Binds the calling thread for the rest of its life.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn apply(&self) -> Result<(), FilterError> {
        match &self.0 {
            Some(program) => seccompiler::apply_filter(program).map_err(FilterError::Apply),
            None => Ok(()),
        }
    }
}

/// What any thread needs: memory, locks, time, the log, signals, its end.
const EVERY_THREAD: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

const EVENTS: &[i64] = &[libc::SYS_epoll_wait, libc::SYS_epoll_pwait];

const MAIN: &[i64] = &[
    // Signals to vCPU threads.
    libc::SYS_tgkill,
    // Packets.
    libc::SYS_readv,
    // Entropy and the VM generation id.
    libc::SYS_getrandom,
    // Whether the console can take more.
    libc::SYS_poll,
    // PATCH /drives: open, look, measure.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
];

const DRIVE: &[i64] = &[libc::SYS_preadv, libc::SYS_pwritev, libc::SYS_fdatasync];

const API: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// A driver sets the offloads of a TAP interface from the vCPU that activates the device.
const VCPU_CONTROLS: &[u64] = &[KVM_RUN, KVM_KVMCLOCK_CTRL, TUNSETOFFLOAD];
/// The terminal's mode at the end.
const MAIN_CONTROLS: &[u64] = &[libc::TCGETS, libc::TCSETS];

const F_GETFD: u64 = libc::F_GETFD as u64;
const KVM_RUN: u64 = 0xae80;
const KVM_KVMCLOCK_CTRL: u64 = 0xaead;
const TUNSETOFFLOAD: u64 = 0x4004_54d0;

/// Makes all filters.
///
/// # Errors
/// If one does not compile.
pub fn filters() -> Result<Filters, FilterError> {
    Ok(Filters {
        main: compile(&[EVERY_THREAD, EVENTS, MAIN], MAIN_CONTROLS)?,
        vcpu: compile(&[EVERY_THREAD], VCPU_CONTROLS)?,
        drive: compile(&[EVERY_THREAD, EVENTS, DRIVE], &[])?,
        api: compile(&[EVERY_THREAD, EVENTS, API], &[])?,
    })
}

fn compile(calls: &[&[i64]], controls: &[u64]) -> Result<Filter, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls
        .iter()
        .flat_map(|group| group.iter())
        .map(|call| (*call, Vec::new()))
        .collect();
    if !controls.is_empty() {
        let allowed = controls
            .iter()
            .map(|control| {
                let is =
                    SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *control)?;
                SeccompRule::new(vec![is])
            })
            .collect::<Result<_, _>>()
            .map_err(FilterError::Compile)?;
        rules.insert(libc::SYS_ioctl, allowed);
    }
    // New memory is never code: a rule of its own replaces the blanket one.
    let no_code = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64),
        0,
    )
    .and_then(|condition| SeccompRule::new(vec![condition]))
    .map_err(FilterError::Compile)?;
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![no_code.clone()]);
    }
    // The standard library of a debug build looks whether a descriptor is open before it
    // closes it.
    let only_looks = SeccompCondition::new(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, F_GETFD)
        .and_then(|condition| SeccompRule::new(vec![condition]))
        .map_err(FilterError::Compile)?;
    rules
        .entry(libc::SYS_fcntl)
        .or_insert_with(|| vec![only_looks]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(FilterError::Compile)?;
    let program = BpfProgram::try_from(filter).map_err(FilterError::Compile)?;
    Ok(Filter(Some(program)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_compile() {
        let filters = filters().unwrap();
        for filter in [&filters.main, &filters.vcpu, &filters.drive, &filters.api] {
            assert!(
                filter
                    .0
                    .as_ref()
                    .is_some_and(|program| program.len() > EVERY_THREAD.len())
            );
        }
    }
}
