//! Host names by files and DNS only.
//!
//! The C library asks modules for names, which `/etc/nsswitch.conf` lists (nsswitch.conf(5)). A
//! static program has `files` and `dns` in it; any other it loads as a shared library into an
//! address space that has no dynamic linker's state, and crashes at the first lookup, of
//! `localhost` too, where the file names `resolve`, `myhostname` or `mymachines`.
//!
//! Each program that resolves names calls [`use_files_and_dns`] first:
//!
//! ```no_run
//! fn main() -> std::io::Result<()> {
//!     wrenn_nss::use_files_and_dns()?;
//!     // …
//!     Ok(())
//! }
//! ```

mod sys;

use std::io;

/// Has this process look host names up in `/etc/hosts` and by DNS, whatever
/// `/etc/nsswitch.conf` says. To be called before the first lookup.
///
/// # Errors
/// When the C library does not know the modules, or has no memory.
pub fn use_files_and_dns() -> io::Result<()> {
    sys::configure_lookup(c"hosts", c"files dns")
}
