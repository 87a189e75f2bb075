//! The `wrenn` program against a server in this process, whose host is a fake one with real
//! guest daemons.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

#[cfg(feature = "host")]
mod agent;
mod completions;
mod copy;
mod errors;
#[cfg(feature = "host")]
mod examples;
mod exec;
mod faulty_copy;
mod hangup;
mod sandboxes;
#[cfg(feature = "host")]
mod shell;
mod startup;
mod terminal;
mod transcripts;
#[cfg(feature = "host")]
mod up;
mod wrenn;
