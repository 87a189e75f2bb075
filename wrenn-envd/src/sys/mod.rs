//! Where the daemon talks to the kernel in ways that no safe wrapper offers.

pub mod child;
pub mod entropy;
pub mod polled;
pub mod signals;
