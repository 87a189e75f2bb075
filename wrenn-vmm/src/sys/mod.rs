//! The only place with `unsafe` code: thin safe wrappers, each with its proof.

pub mod block_io;
pub mod boot_params;
#[cfg(test)]
pub(crate) mod calls;
pub mod kick;
pub mod memory;
pub mod random;
pub mod signals;
pub mod sparse;
pub mod tap;
pub mod terminal;
pub mod userfault;
pub mod xsave;
