//! The client against a real server and a fake host, whose guest daemons are real.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

mod commands;
mod files;
mod lifecycle;
mod linked;
