//! The client against a server that the test makes itself, which fails as told.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod files;
mod process;
mod requests;
mod server;
