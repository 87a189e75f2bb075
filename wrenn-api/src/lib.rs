//! The types of the REST and WebSocket API under `/v1`, shared by server and SDK.
//!
//! | module | types |
//! |---|---|
//! | [`id`] | ids: a prefix of two letters and 20 letters and digits |
//! | [`status`] | the status of sandboxes and hosts |
//! | [`error`] | the error body and its codes |
//! | [`sandbox`] | sandboxes: create, list, change, fork |
//! | [`exec`] | commands that run to their end, and processes |
//! | [`stream`] | the WebSocket protocol `wrenn.exec.v1`: messages and frames |
//! | [`mod@file`] | entries of directories, changes, requests |
//! | [`template`] | templates and snapshots |
//! | [`event`] | lifecycle events |
//! | [`server`] | what a server says about itself |
//! | [`page`] | lists in pages |
//!
//! Requests refuse fields that they do not know; answers may gain fields and enum values,
//! which a client ignores. The crate depends on nothing of ours. With the feature `openapi`
//! each type has its schema.

#![warn(missing_docs)]

mod string_enum;

pub mod error;
pub mod event;
pub mod exec;
pub mod file;
pub mod id;
pub mod page;
pub mod sandbox;
pub mod server;
pub mod status;
pub mod stream;
pub mod template;

pub use time;
