//! The HTTP API on a Unix socket, as Firecracker has it.
//!
//! ```text
//! client ─▶ server (API thread) ─▶ request: parse ─▶ Action ─▶ main thread: Controller
//!        ◀─ status, JSON ◀────────────────────────── Answer ◀─┘
//! ```

pub mod controller;
pub mod http;
pub mod request;
pub mod server;
