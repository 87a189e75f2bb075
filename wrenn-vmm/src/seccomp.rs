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
use vmm_sys_util::signal::SIGRTMIN;

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

/// Rate limiters are armed by the thread that serves a device and by PATCH, and disarmed by the
/// vCPU that resets the device.
const TIMERS: &[i64] = &[libc::SYS_timerfd_settime];

const MAIN: &[i64] = &[
    // Console input, which is watched once there is a machine.
    libc::SYS_epoll_ctl,
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
];

/// Non-blocking connections. Descriptors are shared by all threads, so an API thread that
/// could ask more would do so for the others.
const API_CONTROLS: &[u64] = &[libc::FIONBIO];

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

/// Whether a descriptor is open, which the standard library of a debug build asks before it
/// closes one, and how; a second descriptor for it.
const DESCRIPTOR_COMMANDS: [u64; 3] = [
    libc::F_GETFD as u64,
    libc::F_GETFL as u64,
    libc::F_DUPFD_CLOEXEC as u64,
];
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
    // A panic ends the process by this signal, as itself and not as a forbidden call.
    let abort = &[libc::SIGABRT][..];
    Ok(Filters {
        main: compile(
            &[EVERY_THREAD, EVENTS, TIMERS, MAIN],
            MAIN_CONTROLS,
            // The second one has vCPUs leave the guest.
            &[libc::SIGABRT, SIGRTMIN()],
        )?,
        vcpu: compile(&[EVERY_THREAD, TIMERS], VCPU_CONTROLS, abort)?,
        device: compile(&[EVERY_THREAD, EVENTS, TIMERS, DEVICE], &[], abort)?,
        api: compile(&[EVERY_THREAD, EVENTS, API], API_CONTROLS, abort)?,
    })
}

/// A rule that asks for values of arguments, of which 32 bits are looked at.
fn rule(arguments: &[(u8, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = arguments.iter().map(|(argument, value)| {
        SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, *value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn compile(calls: &[&[i64]], controls: &[u64], signals: &[i32]) -> Result<Filter, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = calls
        .iter()
        .flat_map(|group| group.iter())
        .map(|call| (*call, Vec::new()))
        .collect();
    let process = u64::from(std::process::id());
    let controls = controls.iter().map(|control| rule(&[(1, *control)]));
    let commands = DESCRIPTOR_COMMANDS
        .iter()
        .map(|command| rule(&[(1, *command)]));
    let signals = signals
        .iter()
        .map(|signal| rule(&[(0, process), (2, u64::from(signal.unsigned_abs()))]));
    let by_arguments: [(i64, Vec<_>); 3] = [
        (libc::SYS_ioctl, controls.collect()),
        (libc::SYS_fcntl, commands.collect()),
        (libc::SYS_tgkill, signals.collect()),
    ];
    for (call, allowed) in by_arguments {
        let allowed: Vec<_> = allowed
            .into_iter()
            .collect::<Result<_, _>>()
            .map_err(FilterError::Compile)?;
        // A call without rules would be allowed whatever its arguments.
        if !allowed.is_empty() {
            rules.insert(call, allowed);
        }
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
    use crate::sys::calls;

    #[test]
    fn calls_of_kvm_have_their_numbers() {
        assert_eq!((KVM_RUN, KVM_KVMCLOCK_CTRL), (0xae80, 0xaead));
        assert_eq!(kvm_get::<kvm_bindings::kvm_regs>(0x81), 0x8090_ae81);
        assert_eq!(kvm_exchange::<kvm_bindings::kvm_msrs>(0x88), 0xc008_ae88);
        assert_eq!(kvm_set::<kvm_bindings::kvm_dirty_log>(0x42), 0x4010_ae42);
    }

    /// A call whose first argument is -1, no descriptor, and its two others.
    type Call = (i64, u64, u64);

    const RUN: Call = (libc::SYS_ioctl, KVM_RUN, 0);
    const NON_BLOCKING: Call = (libc::SYS_ioctl, libc::FIONBIO, 0);
    const DUPLICATE: Call = (libc::SYS_fcntl, libc::F_DUPFD_CLOEXEC as u64, 0);
    const SYNC: Call = (libc::SYS_fdatasync, 0, 0);
    const TIMER: Call = (libc::SYS_timerfd_settime, 0, 0);
    const CALLS: [Call; 13] = [
        RUN,
        NON_BLOCKING,
        DUPLICATE,
        SYNC,
        TIMER,
        (libc::SYS_ioctl, libc::TIOCSTI, 0),
        (libc::SYS_fcntl, libc::F_SETOWN as u64, 1),
        (libc::SYS_tgkill, 1, libc::SIGKILL as u64),
        (libc::SYS_execve, 0, 0),
        (libc::SYS_socket, 0, 0),
        (libc::SYS_ptrace, 0, 0),
        (libc::SYS_clone3, 0, 0),
        (libc::SYS_timerfd_create, 0, 0),
    ];

    #[test]
    fn forbidden_calls_end_the_process() {
        let filters = filters().unwrap();
        for (thread, filter, allowed) in [
            ("main", &filters.main, &[TIMER, DUPLICATE][..]),
            ("vcpu", &filters.vcpu, &[RUN, TIMER, DUPLICATE]),
            ("device", &filters.device, &[SYNC, TIMER, DUPLICATE]),
            ("api", &filters.api, &[NON_BLOCKING, DUPLICATE]),
        ] {
            for call in CALLS {
                let (number, second, third) = call;
                let signal = calls::signal_after(|| {
                    filter.apply().unwrap();
                    let others = [second, third].map(u64::cast_signed);
                    calls::attempt(number, [-1, others[0], others[1]]);
                });
                let wanted = (!allowed.contains(&call)).then_some(libc::SIGSYS);
                assert_eq!(signal, wanted, "{thread}: {call:?}");
            }
        }
    }

    #[test]
    fn panic_ends_as_itself() {
        // The filter names the process, so that it is made in it.
        let signal = calls::signal_after(|| {
            filters().unwrap().api.apply().unwrap();
            std::process::abort();
        });
        assert_eq!(signal, Some(libc::SIGABRT));
    }
}
