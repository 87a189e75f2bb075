//! Bringing to the disk what programs have written.

use http::{Response, StatusCode};

use crate::reply::{self, Body, HttpError};

/// `POST /sync`: what was written before is on the disk when this is answered.
pub async fn sync() -> Result<Response<Body>, HttpError> {
    let synced = tokio::task::spawn_blocking(rustix::fs::sync).await;
    synced.map_err(|_| {
        HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the thread that syncs the disks died",
        )
    })?;
    Ok(reply::empty(StatusCode::NO_CONTENT))
}
