//! The envd protocol: what a client and the daemon in the guest say to each other.
//!
//! ```text
//!  client ── POST /process.Process/…        Connect RPC ──▶ [`process`]
//!         ── POST /filesystem.Filesystem/…  Connect RPC ──▶ [`filesystem`]
//!         ── GET|POST /files, /init, …      plain HTTP  ──▶ [`http`]
//! ```
//!
//! The RPC modules are generated at build time from `envd/*.proto`; each holds the
//! messages, a trait for the server and, with the feature `client`, a client. The
//! JSON bodies of the plain routes are written by hand in [`http`].

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

pub use buffa;
pub use buffa_types;
pub use connectrpc;
pub use generated::{filesystem, process};
