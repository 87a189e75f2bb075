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
    /// Devices that have a thread of their own: drives and the balloon.
    pub device: Filter,
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
    // PATCH /drives and PUT /snapshot/create: open, look, measure.
    libc::SYS_openat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_fcntl,
    // PUT /snapshot/create: which pages were touched, the two files.
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_ftruncate,
    libc::SYS_fallocate,
];

const DEVICE: &[i64] = &[
    // Drives.
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_fdatasync,
    // What a balloon gives back: which pages are there, where a file has data.
    libc::SYS_mincore,
    libc::SYS_lseek,
];

const API: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_recvfrom,
    libc::SYS_sendto,
    libc::SYS_fcntl,
    libc::SYS_ioctl,
];

/// A driver sets the offloads of a TAP interface from the vCPU that activates the device;
/// a snapshot reads registers.
const VCPU_CONTROLS: &[u64] = &[
    KVM_RUN,
    KVM_KVMCLOCK_CTRL,
    TUNSETOFFLOAD,
    kvm_get::<kvm_bindings::kvm_mp_state>(0x98),
    kvm_get::<kvm_bindings::kvm_regs>(0x81),
    kvm_get::<kvm_bindings::kvm_sregs>(0x83),
    kvm_get::<kvm_bindings::kvm_xsave>(0xa4),
    kvm_get::<kvm_bindings::kvm_xcrs>(0xa6),
    kvm_get::<kvm_bindings::kvm_debugregs>(0xa1),
    kvm_get::<kvm_bindings::kvm_lapic_state>(0x8e),
    kvm_get::<kvm_bindings::kvm_vcpu_events>(0x9f),
    kvm_exchange::<kvm_bindings::kvm_cpuid2>(0x91),
    kvm_exchange::<kvm_bindings::kvm_msrs>(0x88),
    KVM_GET_TSC_KHZ,
];
/// The terminal's mode at the end; what a snapshot asks KVM.
const MAIN_CONTROLS: &[u64] = &[
    libc::TCGETS,
    libc::TCSETS,
    kvm_get::<kvm_bindings::kvm_pit_state2>(0x9f),
    kvm_get::<kvm_bindings::kvm_clock_data>(0x7c),
    kvm_exchange::<kvm_bindings::kvm_irqchip>(0x62),
    kvm_set::<kvm_bindings::kvm_dirty_log>(0x42),
];

const F_GETFD: u64 = libc::F_GETFD as u64;
const KVM_RUN: u64 = kvm_call(0, 0, 0x80);
const KVM_KVMCLOCK_CTRL: u64 = kvm_call(0, 0, 0xad);
const KVM_GET_TSC_KHZ: u64 = kvm_call(0, 0, 0xa3);
const TUNSETOFFLOAD: u64 = 0x4004_54d0;

/// A call of KVM (Linux `include/uapi/linux/kvm.h`, `asm-generic/ioctl.h`): direction,
/// size of the argument, KVM's letter, number.
const fn kvm_call(direction: u64, size: usize, number: u64) -> u64 {
    (direction << 30) | ((size as u64) << 16) | (0xae << 8) | number
}

const fn kvm_set<T>(number: u64) -> u64 {
    kvm_call(1, size_of::<T>(), number)
}

const fn kvm_get<T>(number: u64) -> u64 {
    kvm_call(2, size_of::<T>(), number)
}

const fn kvm_exchange<T>(number: u64) -> u64 {
    kvm_call(3, size_of::<T>(), number)
}

/// Makes all filters.
///
/// # Errors
/// If one does not compile.
pub fn filters() -> Result<Filters, FilterError> {
    Ok(Filters {
        main: compile(&[EVERY_THREAD, EVENTS, MAIN], MAIN_CONTROLS)?,
        vcpu: compile(&[EVERY_THREAD], VCPU_CONTROLS)?,
        device: compile(&[EVERY_THREAD, EVENTS, DEVICE], &[])?,
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
    fn calls_of_kvm_have_their_numbers() {
        assert_eq!((KVM_RUN, KVM_KVMCLOCK_CTRL), (0xae80, 0xaead));
        assert_eq!(kvm_get::<kvm_bindings::kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(kvm_exchange::<kvm_bindings::kvm_msrs>(0x88), 0xc008_ae88);
        assert_eq!(kvm_set::<kvm_bindings::kvm_dirty_log>(0x42), 0x4010_ae42);
    }

    #[test]
    fn filters_compile() {
        let filters = filters().unwrap();
        for filter in [&filters.main, &filters.vcpu, &filters.device, &filters.api] {
            assert!(
                filter
                    .0
                    .as_ref()
                    .is_some_and(|program| program.len() > EVERY_THREAD.len())
            );
        }
    }
}
