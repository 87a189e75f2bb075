//! The cgroup of what users start, and standing still.
//!
//! A guest that is resumed believes for a moment that it is still the time of its snapshot.
//! So programs are frozen before the host stops the machine, and go on when the host says so,
//! once `/init` has set clock, random numbers and name. The daemon itself is in no cgroup
//! that can be frozen.
//!
//! The first process of the guest makes the cgroup. Where the daemon runs on its own, there
//! is none, and nothing is frozen.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use http::{Response, StatusCode};
use rustix::fs::{Mode, OFlags};

use crate::reply::{self, Body, HttpError};

const CGROUP: &str = "/sys/fs/cgroup/wrenn-programs";
/// How long programs may take to stand still: one that waits for a disk does so only later.
const DEADLINE: Duration = Duration::from_millis(500);

/// Makes the cgroup. For the guest's first process.
pub fn make() -> io::Result<()> {
    fs::create_dir_all(CGROUP)
}

/// Puts the calling process into it, if it is there. Between fork and exec: allocates
/// nothing, and failing is fine.
pub(crate) fn join() {
    let path = c"/sys/fs/cgroup/wrenn-programs/cgroup.procs";
    if let Ok(file) = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        rustix::io::write(file, b"0").ok();
    }
}

/// `POST /freeze`: all programs stand still when this is answered.
pub async fn freeze() -> Result<Response<Body>, HttpError> {
    set(true).map_err(|error| {
        let message = format!("programs cannot be frozen: {error}");
        HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    })?;
    let since = tokio::time::Instant::now();
    let events = Path::new(CGROUP).join("cgroup.events");
    while since.elapsed() < DEADLINE {
        match fs::read_to_string(&events) {
            Ok(events) if !events.contains("frozen 1") => {}
            _ => break,
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(reply::empty(StatusCode::NO_CONTENT))
}

/// `POST /thaw`: they go on.
pub fn thaw_request() -> Response<Body> {
    thaw();
    reply::empty(StatusCode::NO_CONTENT)
}

/// Lets programs go on that were frozen.
pub fn thaw() {
    if let Err(error) = set(false) {
        tracing::error!(%error, "programs stay frozen");
    }
}

fn set(frozen: bool) -> io::Result<()> {
    match fs::write(
        Path::new(CGROUP).join("cgroup.freeze"),
        if frozen { "1" } else { "0" },
    ) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
