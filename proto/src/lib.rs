//! Two protocols: what a client and the daemon in the guest say to each other, and what the
//! control plane and the agent on a host do.
//!
//! ```text
//!  client ── POST /process.Process/…        Connect RPC ──▶ [`process`]
//!         ── POST /filesystem.Filesystem/…  Connect RPC ──▶ [`filesystem`]
//!         ── GET|POST /files, /init, …      plain HTTP  ──▶ [`http`]
//!
//!  control plane ── POST /hostagent.v1.HostAgent/… ──▶ [`hostagent`]
//! ```
//!
//! The RPC modules are generated at build time from `*/*.proto`; each holds the
//! messages, a trait for the server and, with the feature `client`, a client. The
//! JSON bodies of the plain routes are written by hand in [`http`]. Errors of the agent carry
//! a [`reason`]; the messages of an [`upload`] say where it ends.

mod generated {
    #![allow(
        clippy::all,
        clippy::allow_attributes_without_reason,
        clippy::cast_possible_truncation,
        clippy::let_underscore_must_use,
        clippy::unwrap_used,
        rustdoc::all,
        unreachable_pub,
        reason = "written by the generator"
    )]
    connectrpc::include_generated!();
}

pub mod http;
pub mod reason;
pub mod upload;

pub use buffa;
pub use buffa_types;
pub use connectrpc;
pub use generated::hostagent::v1 as hostagent;
pub use generated::{filesystem, process};
