//! The file tree of the guest: metadata, directories, moving and watching.
//!
//! Contents travel elsewhere, see [`crate::files`]. Everything here blocks, so it runs
//! on the runtime's blocking threads.
//!
//! The daemon acts with its own rights and gives what it makes to the user of the
//! request: whoever holds the token may act as root anyway, so a user is a matter of
//! ownership here and not of protection.

pub mod entry;
pub mod metadata;
pub mod ownership;
pub mod service;
pub mod tree;
pub mod watch;
pub mod watch_tree;
pub mod watchers;
