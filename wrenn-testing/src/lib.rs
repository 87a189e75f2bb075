//! A fake host and an in-process server, for tests.
//!
//! A [`FakeHost`] is a host agent in memory. Its sandboxes are no virtual machines, but each
//! has a real guest daemon, so that commands, terminals, signals, files and watches are real,
//! natively and in milliseconds. It fails, waits, hangs up, loses answers and lies where a test
//! [says so](Fault).
//!
//! ```no_run
//! use wrenn_testing::{FakeHost, Rpc};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let host = FakeHost::start().await?;
//! host.fault(Rpc::CreateSandbox).lose_answer();
//! // … a control plane creates a sandbox on `host.url()`, and asks again …
//! host.wait_for_calls(Rpc::CreateSandbox, 2).await;
//! assert_eq!(host.sandboxes().len(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! # How far it is real
//!
//! | | a real host | a fake one |
//! |---|---|---|
//! | a guest's files | its own disk | as root: `/home`, `/root` and `/tmp` are its own, all else is the host's and read-only; else: a home of its own |
//! | who runs commands | `user` | as root: `user`; else the user who runs the test |
//! | pause | processes go on after a resume | the same: they are stopped by signals |
//! | fork, snapshot | files and processes | files; no process runs in the child |
//! | network, metrics | the guest's | the host's, and made-up numbers |
//!
//! # The guest daemon
//!
//! `wrenn-envd` is the file that the variable `WRENN_ENVD` names, or lies beside the test
//! program, or is built by the cargo that runs the test. That also builds it again where its
//! sources have changed.

#![warn(missing_docs)]

mod calls;
mod clock;
mod errors;
mod faults;
mod guest;
mod host;
mod link;
mod listener;
mod server;
mod service;

/// The protocol of hosts, as far as faults and assertions name it.
pub mod proto {
    pub use wrenn_proto::connectrpc::ErrorCode;
    pub use wrenn_proto::hostagent::{Egress, Reason, Sandbox, State};
}

pub use calls::Call;
pub use faults::{Fault, Gate, Rpc};
pub use guest::FindEnvdError;
pub use host::{FakeHost, FakeHostBuilder, StartFakeHostError};
pub use link::Link;
pub use server::{StartTestServerError, TestServer, TestServerBuilder};
pub use wrenn_server::Settings;
pub use wrenn_server::clock::Clock;
