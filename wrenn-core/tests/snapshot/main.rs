//! The snapshot engine, with a guest that is nothing but memory.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what went wrong"
)]

mod crash;
mod damage;
mod generations;
mod guest;
mod room;
