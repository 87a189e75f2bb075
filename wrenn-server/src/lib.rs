//! The control plane: REST and WebSocket in front of the agents of one or many hosts.
//!
//! ```text
//!  SDK, wrenn, curl ── REST, WebSocket ──▶ http ──▶ service ──▶ store ──▶ SQLite, PostgreSQL
//!                                           │          │
//!                                           └──────────┴──────▶ hosts ── Connect RPC ──▶ agents
//!                                                        reconciler ─┘
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`server`] | build, serve, shut down |
//! | [`program`] | the program `wrenn-server` |
//! | [`config`] | settings |
//! | [`clock`] | the time, as an argument |
//! | `http` | routes, thin: extract, call, answer |
//! | `service` | rules |
//! | [`store`] | rows |
//! | [`hosts`] | clients of agents, and the reconciler |
//!
//! A program starts one with [`Server::builder`]. It reaches hosts only through the RPCs of
//! their agents, and links no engine.

#![warn(missing_docs)]

pub mod clock;
pub mod config;
pub mod hosts;
mod http;
pub mod program;
pub mod server;
mod service;
pub mod store;

pub use config::Settings;
pub use hosts::HostEndpoint;
pub use http::openapi;
pub use server::{Server, ServerHandle};
pub use store::{NewKey, Store};
