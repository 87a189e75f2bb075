//! The Rust client of Wrenn: microVM sandboxes, commands in them, their files and snapshots.
//!
//! ```no_run
//! # async fn example() -> wrenn_sdk::Result<()> {
//! use wrenn_sdk::Client;
//!
//! let client = Client::from_env()?;
//! let sandbox = client.sandboxes().create("base").await?;
//! sandbox.files().write("/tmp/hello.py", "print('hello')").await?;
//! let result = sandbox.exec("python3", ["/tmp/hello.py"]).await?;
//! assert_eq!(result.stdout_text(), "hello\n");
//! sandbox.destroy().await?;
//! # Ok(())
//! # }
//! ```
//!
//! | value | what it does |
//! |---|---|
//! | [`Client`] | one server: [`sandboxes`](Client::sandboxes), [`snapshots`](Client::snapshots), [`templates`](Client::templates), [`events`](Client::events) |
//! | [`Sandbox`] | one sandbox: run, pause, resume, fork, snapshot, destroy |
//! | [`Process`] | one command whose output is streamed |
//! | [`Files`] | the files of a sandbox |
//!
//! # Requests
//!
//! A builder such as [`Sandbox::exec`] sends its request when it is awaited. A request is
//! repeated up to three times where that is safe: it only reads, or has an idempotency key,
//! or the server answers `Should-Retry: true`. One key belongs to one call, not to one
//! attempt, so a repeated create makes one sandbox. Slowness is no error: there is no
//! time-out unless [`ClientBuilder::request_timeout`] sets one.
//!
//! # Cancel safety
//!
//! Dropping a future that changes something (create, pause, fork, destroy, …) leaves open
//! whether the change happens: the server goes on once it has the request. Methods that are
//! safe to drop and to call again say so.
//!
//! # Runtime and TLS
//!
//! The crate needs tokio. It brings rustls with ring and the certificates of the system, and
//! installs no process-wide provider. Proxies of the environment (`HTTP_PROXY`, …) are used
//! for requests to other machines, but not for WebSockets.

#![warn(missing_docs)]

pub mod credentials;

mod archive;
mod client;
mod error;
mod events;
mod exec;
mod files;
mod logs;
mod process;
mod progress;
mod retry;
mod sandbox;
mod sandboxes;
mod signal;
mod snapshots;
mod templates;
mod tls;
mod transport;
mod watch;
mod websocket;

pub use archive::{ArchiveError, Skipped};
pub use client::{Client, ClientBuilder, DEFAULT_URL};
pub use error::{Error, Result};
pub use events::Events;
pub use exec::{Background, Exec, ExecResult};
pub use files::{
    Download, DownloadDir, Downloaded, DownloadedDir, Files, List, Upload, UploadDir, Uploaded,
    UploadedDir, Write,
};
pub use logs::{LogStream, Logs};
pub use process::{
    Attach, ExitStatus, Process, ProcessEvent, ProcessHandle, ProcessId, Spawn, Stdin, TerminalSize,
};
pub use progress::Progress;
pub use sandbox::{ForkOptions, NO_ARGS, Sandbox};
pub use sandboxes::{CreateOptions, ListOptions, Pager, Sandboxes};
pub use signal::Signal;
pub use snapshots::{SnapshotOptions, Snapshots};
pub use templates::Templates;
pub use watch::{Change, Watcher};
/// The types that the server speaks in.
pub use wrenn_api as api;

/// The guide, whose programs compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/sdk.md")]
struct Guide;
