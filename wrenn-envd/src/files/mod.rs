//! Contents of files over plain HTTP: `GET` and `POST /files`, `POST /files/compose`.
//!
//! ```text
//!  download   file ──256 KiB──▶ (gzip) ──▶ body, as fast as the client takes it
//!  upload     body ──▶ (multipart) ──▶ (gunzip) ──▶ .wrenn-upload-… ──rename──▶ file
//! ```
//!
//! Whatever the size, a transfer holds a few chunks in memory: the next one is read when
//! the last one was taken. An upload grows beside its destination and takes its place
//! when it is complete ([`staging`]), so a broken one, or a full disk, leaves the old
//! file as it was.

mod compose;
mod download;
pub mod multipart;
pub mod range;
pub mod staging;
mod upload;

pub use compose::compose;
pub use download::download;
pub use upload::upload;

use http::request::Parts;

use crate::auth::{self, IdentifyError};
use crate::guest::Settings;
use crate::query::Query;
use crate::users::User;

/// Bytes that one step of a transfer moves.
const CHUNK: usize = 256 * 1024;

/// Who a transfer acts for: the query's `username`, else whom the header names.
pub fn user(parts: &Parts, query: &Query, settings: &Settings) -> Result<User, IdentifyError> {
    match query.get("username").filter(|name| !name.is_empty()) {
        Some(name) => Ok(User::lookup(name)?),
        None => auth::identify(&parts.headers, settings),
    }
}
