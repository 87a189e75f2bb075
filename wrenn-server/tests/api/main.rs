//! The API over plain HTTP, against a fake host: as a client sees it that is not our own.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod access;
mod bad_input;
mod client;
mod events;
mod files;
mod pages;
mod sandboxes;
mod stream;
