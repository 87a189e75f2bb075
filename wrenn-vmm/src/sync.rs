//! Locking without poison.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Takes a lock. A thread that panicked while it held the lock has taken the process
/// down with it ([`abort_on_panic`](crate::exit::abort_on_panic)), so that poison carries no news.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
