//! The C library's switch of name services.

use std::ffi::CStr;
use std::io;

#[cfg(target_env = "gnu")]
mod c {
    use std::ffi::{c_char, c_int};

    unsafe extern "C" {
        /// glibc's `<nss.h>`: replaces the modules of one database. Not in the `libc` crate.
        pub(super) fn __nss_configure_lookup(
            database: *const c_char,
            service_line: *const c_char,
        ) -> c_int;
    }
}

/// Replaces what `/etc/nsswitch.conf` says of a database.
#[cfg(target_env = "gnu")]
pub(crate) fn configure_lookup(database: &CStr, services: &CStr) -> io::Result<()> {
    // SAFETY: both point to strings that end with a zero and live until the call returns; glibc
    // keeps what it reads out of them, and no pointer. It takes its own locks.
    let result = unsafe { c::__nss_configure_lookup(database.as_ptr(), services.as_ptr()) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Other C libraries have no modules.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn configure_lookup(_database: &CStr, _services: &CStr) -> io::Result<()> {
    Ok(())
}
