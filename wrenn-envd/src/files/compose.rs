//! `POST /files/compose`: joins files that were uploaded in pieces, and removes them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::body::Incoming;
use wrenn_proto::http::{ComposeRequest, FileEntry};

use super::staging::StagedFile;
use super::upload::{cannot_write, entry};
use crate::guest::Guest;
use crate::paths;
use crate::reply::{self, Body, HttpError};
use crate::users::User;

pub async fn compose(guest: &Arc<Guest>, body: Incoming) -> Result<Response<Body>, HttpError> {
    let request: ComposeRequest = reply::read_json(body)
        .await?
        .ok_or_else(|| HttpError::bad_request("the body is empty"))?;
    if request.source_paths.is_empty() || request.destination.is_empty() {
        return Err(HttpError::bad_request(
            "source_paths and destination must not be empty",
        ));
    }
    let name = request.username.filter(|name| !name.is_empty());
    let name = name.unwrap_or_else(|| guest.settings().default_user.clone());
    let user = User::lookup(&name)
        .map_err(|error| HttpError::new(StatusCode::UNAUTHORIZED, error.to_string()))?;
    let sources: Vec<PathBuf> = request
        .source_paths
        .iter()
        .map(|path| paths::resolve(path, &user))
        .collect();
    let destination = paths::resolve(&request.destination, &user);
    let joined = tokio::task::spawn_blocking(move || join(&sources, &destination, &user));
    let written = joined.await.map_err(|_| {
        HttpError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the request was given up",
        )
    })??;
    reply::json(&written)
}

/// The sources are removed only when the whole is in place.
fn join(sources: &[PathBuf], destination: &Path, user: &User) -> Result<FileEntry, HttpError> {
    let mut staged = StagedFile::open(destination, user, None)
        .map_err(|error| cannot_write(destination, &error))?;
    for path in sources {
        let cannot_read = |error: &io::Error| {
            HttpError::from_io(&format!("cannot read '{}'", path.display()), error)
        };
        let mut source = File::open(path).map_err(|error| cannot_read(&error))?;
        if source
            .metadata()
            .map_err(|error| cannot_read(&error))?
            .is_dir()
        {
            return Err(HttpError::bad_request(format!(
                "path '{}' is a directory",
                path.display()
            )));
        }
        // In the kernel, without passing through our memory.
        io::copy(&mut source, staged.file()).map_err(|error| cannot_write(destination, &error))?;
    }
    let written = staged.destination().to_owned();
    staged
        .commit()
        .map_err(|error| cannot_write(&written, &error))?;
    for path in sources.iter().filter(|path| **path != written) {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a composed piece");
        }
    }
    Ok(entry(&written, BTreeMap::new()))
}
