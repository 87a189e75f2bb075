//! The RPC face of the file tree.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::Instant;
use wrenn_proto::connectrpc::{
    ConnectError, Encodable, RequestContext, Response, ServiceRequest, ServiceResult, ServiceStream,
};
use wrenn_proto::filesystem::watch_dir_response::{Event, KeepAlive, StartEvent};
use wrenn_proto::filesystem::{
    self as wire, CreateWatcherRequest, CreateWatcherResponse, EntryInfo, GetWatcherEventsRequest,
    GetWatcherEventsResponse, ListDirRequest, ListDirResponse, MakeDirRequest, MakeDirResponse,
    MoveRequest, MoveResponse, RemoveRequest, RemoveResponse, RemoveWatcherRequest,
    RemoveWatcherResponse, StatRequest, StatResponse, WatchDirRequest, WatchDirResponse,
};
use wrenn_proto::hostagent::Reason;
use wrenn_proto::http::KEEPALIVE_PING_HEADER;
use wrenn_proto::reason::with_reason;

use super::entry::describe;
use super::ownership::make_dirs;
use super::tree::{self, ListError};
use super::watch::{Target, Watch, WatchError};
use super::watch_tree::WatchTree;
use super::watchers::WatcherError;
use crate::auth;
use crate::guest::Guest;
use crate::paths;
use crate::users::{Names, User};

const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(90);

pub struct FilesystemService {
    guest: Arc<Guest>,
}

impl FilesystemService {
    pub fn new(guest: Arc<Guest>) -> Self {
        Self { guest }
    }

    fn user(&self, ctx: &RequestContext) -> Result<User, ConnectError> {
        Ok(auth::identify(ctx.headers(), &self.guest.settings())?)
    }
}

/// The path of a request that changes something. Elsewhere an empty path means the home
/// directory; here it is more likely a field that was left out, and must not cost it.
fn named(path: &str, user: &User) -> Result<PathBuf, ConnectError> {
    if path.is_empty() {
        return Err(ConnectError::invalid_argument("no path was given"));
    }
    Ok(paths::resolve(path, user))
}

/// What may be removed: something that was named, and neither everything nor the home.
fn removable(path: &str, user: &User) -> Result<PathBuf, ConnectError> {
    let path = named(path, user)?;
    if path == Path::new("/") || path == user.home {
        return Err(ConnectError::invalid_argument(
            "the root directory and the user's home can't be removed",
        ));
    }
    Ok(path)
}

/// Runs what blocks where blocking is fine.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ConnectError> + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| ConnectError::internal("the request was given up"))?
}

impl wire::Filesystem for FilesystemService {
    async fn stat<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StatRequest>,
    ) -> ServiceResult<impl Encodable<StatResponse> + Send + use<'a>> {
        let path = paths::resolve(request.path, &self.user(&ctx)?);
        let entry = blocking(move || stat(&path)).await?;
        Response::ok(StatResponse {
            entry: entry.into(),
        })
    }

    async fn make_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MakeDirRequest>,
    ) -> ServiceResult<impl Encodable<MakeDirResponse> + Send + use<'a>> {
        let user = self.user(&ctx)?;
        let path = named(request.path, &user)?;
        let entry = blocking(move || {
            match std::fs::metadata(&path) {
                Ok(found) if found.is_dir() => {
                    let text = format!("directory '{}' already exists", path.display());
                    return Err(ConnectError::already_exists(text));
                }
                Ok(_) => {
                    let text = format!("'{}' exists and is not a directory", path.display());
                    return Err(ConnectError::invalid_argument(text));
                }
                Err(_) => {}
            }
            make_dirs(&path, &user).map_err(|error| failure("make directory", &path, &error))?;
            stat(&path)
        })
        .await?;
        Response::ok(MakeDirResponse {
            entry: entry.into(),
        })
    }

    async fn r#move<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, MoveRequest>,
    ) -> ServiceResult<impl Encodable<MoveResponse> + Send + use<'a>> {
        let user = self.user(&ctx)?;
        let source = named(request.source, &user)?;
        let destination = named(request.destination, &user)?;
        let entry = blocking(move || {
            std::fs::symlink_metadata(&source).map_err(|error| failure("move", &source, &error))?;
            if let Some(parent) = destination.parent() {
                make_dirs(parent, &user)
                    .map_err(|error| failure("make directory", parent, &error))?;
            }
            tree::rename(&source, &destination)
                .map_err(|error| failure("move", &source, &error))?;
            stat(&destination)
        })
        .await?;
        Response::ok(MoveResponse {
            entry: entry.into(),
        })
    }

    async fn list_dir<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ListDirRequest>,
    ) -> ServiceResult<impl Encodable<ListDirResponse> + Send + use<'a>> {
        let path = paths::resolve(request.path, &self.user(&ctx)?);
        let depth = request.depth;
        let entries = blocking(move || Ok(tree::list(&path, depth)?)).await?;
        Response::ok(ListDirResponse { entries })
    }

    async fn remove<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, RemoveRequest>,
    ) -> ServiceResult<impl Encodable<RemoveResponse> + Send + use<'a>> {
        let user = self.user(&ctx)?;
        let path = removable(request.path, &user)?;
        blocking(move || tree::remove(&path).map_err(|error| failure("remove", &path, &error)))
            .await?;
        Response::ok(RemoveResponse::default())
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        let target = Target {
            path: paths::resolve(&request.path, &self.user(&ctx)?),
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watch = open_watch(target).await?;
        let keepalive = keepalive(&ctx);
        let deadline = ctx.deadline().map(Instant::from_std);
        let start = futures::stream::once(async { Ok(event(StartEvent::default())) });
        let changes = futures::stream::unfold(Some(watch), move |watch| async move {
            let mut watch = watch?;
            let passed = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = passed => Some((Err(ConnectError::deadline_exceeded(
                    "the deadline of the request has passed",
                )), None)),
                change = watch.next() => match change {
                    Ok(change) => Some((Ok(event(change)), Some(watch))),
                    Err(error) => Some((Err(error.into()), None)),
                },
                () = tokio::time::sleep(keepalive) => {
                    Some((Ok(event(KeepAlive::default())), Some(watch)))
                }
            }
        });
        Ok(Response::stream(start.chain(changes)))
    }

    async fn create_watcher<'a>(
        &'a self,
        ctx: RequestContext,
        request: ServiceRequest<'_, CreateWatcherRequest>,
    ) -> ServiceResult<impl Encodable<CreateWatcherResponse> + Send + use<'a>> {
        let request = request.to_owned_message();
        let target = Target {
            path: paths::resolve(&request.path, &self.user(&ctx)?),
            recursive: request.recursive,
            include_entry: request.include_entry,
            allow_network_mounts: request.allow_network_mounts,
        };
        let watch = open_watch(target).await?;
        let watcher_id = self.guest.watchers.add(watch, &self.guest.tasks)?;
        Response::ok(CreateWatcherResponse { watcher_id })
    }

    async fn get_watcher_events<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, GetWatcherEventsRequest>,
    ) -> ServiceResult<impl Encodable<GetWatcherEventsResponse> + Send + use<'a>> {
        let events = self.guest.watchers.take(request.watcher_id).await?;
        Response::ok(GetWatcherEventsResponse { events })
    }

    async fn remove_watcher<'a>(
        &'a self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, RemoveWatcherRequest>,
    ) -> ServiceResult<impl Encodable<RemoveWatcherResponse> + Send + use<'a>> {
        self.guest.watchers.remove(request.watcher_id)?;
        Response::ok(RemoveWatcherResponse::default())
    }
}

async fn open_watch(target: Target) -> Result<Watch, ConnectError> {
    let tree = blocking(move || Ok(WatchTree::open(target)?)).await?;
    Ok(Watch::new(tree)?)
}

fn event(event: impl Into<Event>) -> WatchDirResponse {
    WatchDirResponse {
        event: Some(event.into()),
    }
}

fn keepalive(ctx: &RequestContext) -> Duration {
    ctx.header(KEEPALIVE_PING_HEADER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .filter(|seconds| (1..=3600).contains(seconds))
        .map_or(DEFAULT_KEEPALIVE, Duration::from_secs)
}

fn stat(path: &Path) -> Result<EntryInfo, ConnectError> {
    describe(path, &Names::load()).map_err(|error| failure("stat", path, &error))
}

/// One failed call, in words that a client can act on.
fn failure(tried: &str, path: &Path, error: &io::Error) -> ConnectError {
    let text = format!("cannot {tried} '{}': {error}", path.display());
    match error.kind() {
        io::ErrorKind::NotFound => with_reason(
            ConnectError::not_found(text),
            Reason::REASON_PATH_NOT_FOUND,
            None,
        ),
        io::ErrorKind::AlreadyExists => ConnectError::already_exists(text),
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            ConnectError::permission_denied(text)
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => with_reason(
            ConnectError::resource_exhausted(text),
            Reason::REASON_GUEST_DISK_FULL,
            None,
        ),
        io::ErrorKind::NotADirectory
        | io::ErrorKind::IsADirectory
        | io::ErrorKind::DirectoryNotEmpty
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::InvalidFilename => ConnectError::invalid_argument(text),
        io::ErrorKind::ResourceBusy | io::ErrorKind::Unsupported => {
            ConnectError::failed_precondition(text)
        }
        _ => ConnectError::internal(text),
    }
}

impl From<ListError> for ConnectError {
    fn from(error: ListError) -> Self {
        match &error {
            ListError::NotADirectory { .. } => Self::invalid_argument(error.to_string()),
            ListError::TooMany { .. } => with_reason(
                Self::resource_exhausted(error.to_string()),
                Reason::REASON_TOO_LARGE,
                None,
            ),
            ListError::Read { path, source } => failure("list", path, source),
        }
    }
}

impl From<WatchError> for ConnectError {
    fn from(error: WatchError) -> Self {
        match &error {
            WatchError::NotADirectory { .. } | WatchError::NetworkMount { .. } => {
                Self::invalid_argument(error.to_string())
            }
            WatchError::Overflow | WatchError::TooMany { .. } => {
                Self::resource_exhausted(error.to_string())
            }
            WatchError::Open { path, source } => failure("watch", path, source),
            WatchError::Inotify(source) => Self::internal(format!("{error}: {source}")),
        }
    }
}

impl From<WatcherError> for ConnectError {
    fn from(error: WatcherError) -> Self {
        match error {
            WatcherError::NotFound { .. } => Self::not_found(error.to_string()),
            WatcherError::TooMany => Self::resource_exhausted(error.to_string()),
            WatcherError::Watch(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_proto::connectrpc::ErrorCode;

    use super::*;

    /// Asked of the function and never of a daemon: one that is wrong about this would
    /// remove the home of whoever runs the test.
    #[test]
    fn neither_home_nor_root_nor_nothing_can_be_removed() {
        let user = User {
            name: "user".to_owned(),
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: "/home/user".into(),
            shell: "/bin/sh".into(),
        };
        for path in [
            "",
            "/",
            "//",
            "~",
            "~/",
            ".",
            "/home/user/",
            "x/..",
            "/../..",
            "../user",
        ] {
            let error = removable(path, &user).unwrap_err();
            assert_eq!(error.code, ErrorCode::InvalidArgument, "{path}");
        }
        assert_eq!(removable("x", &user).unwrap(), Path::new("/home/user/x"));
        assert_eq!(removable("/tmp/x", &user).unwrap(), Path::new("/tmp/x"));
        assert!(named("", &user).is_err());
    }
}
