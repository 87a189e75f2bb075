//! System calls by number in a process of their own, for tests of filters.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Tries a call, whose result does not matter.
pub(crate) fn attempt(number: i64, [first, second, third]: [i64; 3]) {
    // SAFETY: the callers' calls fail or only give a new descriptor: the first argument is no
    // descriptor and no pointer, and none of them reads memory before it looks at that.
    unsafe { libc::syscall(number, first, second, third) };
}

/// Does work in a child process, and gives the signal that ended it; none if it came to its end.
pub(crate) fn signal_after(work: impl FnOnce()) -> Option<i32> {
    // SAFETY: the child has a copy of this thread alone. It does the callers' work, which locks
    // nothing that another thread may hold but the allocator, which glibc's `fork` leaves usable,
    // and ends without returning.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let outcome = catch_unwind(AssertUnwindSafe(work));
        // SAFETY: `_exit` has no preconditions.
        unsafe { libc::_exit(i32::from(outcome.is_err())) }
    }
    assert!(child > 0, "cannot fork");
    let mut status = 0;
    // SAFETY: the pointer is valid, and the child is ours to wait for.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!(waited, child);
    if libc::WIFSIGNALED(status) {
        return Some(libc::WTERMSIG(status));
    }
    assert_eq!(status, 0, "the work failed");
    None
}
