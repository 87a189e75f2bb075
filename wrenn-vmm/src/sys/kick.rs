//! Getting a vCPU thread out of the guest.
//!
//! A request for a vCPU is posted in three steps: the request itself goes into the
//! vCPU's channel, then `immediate_exit` is set in the page that it shares with KVM,
//! then the thread gets a signal. Inside the guest the signal ends `KVM_RUN`; on the
//! way into it `immediate_exit` does. The vCPU clears the flag *before* it looks into
//! the channel, so no order of events loses a request.

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::JoinHandle;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The `immediate_exit` byte of one vCPU.
#[derive(Clone, Copy, Debug)]
pub struct ImmediateExit(NonNull<u8>);

// SAFETY: the byte is only accessed atomically (`flag`), so any thread may hold it.
unsafe impl Send for ImmediateExit {}
// SAFETY: as above.
unsafe impl Sync for ImmediateExit {}

impl ImmediateExit {
    /// Finds the byte of a vCPU. The value must not be used after the `VcpuFd` is gone:
    /// the handle of a vCPU thread owns both, and drops the `VcpuFd` by joining.
    pub fn of(vcpu: &mut VcpuFd) -> Self {
        Self(NonNull::from(&mut vcpu.get_kvm_run().immediate_exit))
    }

    fn flag(&self) -> &AtomicU8 {
        // SAFETY: the byte lies in the page that KVM shares with the process; it stays
        // mapped while the `VcpuFd` lives, a byte is always aligned, and the VMM
        // accesses it only through this atomic once the vCPU runs.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr()) }
    }

    /// Makes the next `KVM_RUN` return at once.
    pub fn set(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// Lets `KVM_RUN` enter the guest again.
    pub fn clear(&self) {
        self.flag().store(0, Ordering::SeqCst);
    }
}

extern "C" fn interrupted(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Installs the empty handler for the kick signal, so that it interrupts system calls
/// rather than end the process.
///
/// # Errors
/// If the kernel refuses the handler.
pub fn prepare() -> io::Result<()> {
    register_signal_handler(SIGRTMIN(), interrupted)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Interrupts a vCPU thread.
pub fn signal<T>(thread: &JoinHandle<T>) {
    // SAFETY: the handle has not been joined, so the thread id is still valid, and the
    // signal has a handler that does nothing.
    let code = unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
    // The only failure left is that the thread has ended, and then nothing needs a kick.
    if code != 0 {
        log::debug!(
            "vCPU thread is gone: {}",
            io::Error::from_raw_os_error(code)
        );
    }
}
