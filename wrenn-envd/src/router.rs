//! Which request goes where. Every request passes [`authorize`] first, so a route that
//! is added here is protected without anybody thinking of it.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use tower_service::Service as _;
use wrenn_proto::connectrpc::{ConnectRpcService, Limits, Router as RpcRouter};
use wrenn_proto::filesystem::FILESYSTEM_SERVICE_NAME;
use wrenn_proto::process::PROCESS_SERVICE_NAME;

use crate::archive;
use crate::auth::{Refusal, authorize};
use crate::disks;
use crate::files;
use crate::filesystem::service::FilesystemService;
use crate::guest::Guest;
use crate::metrics;
use crate::process::service::ProcessService;
use crate::programs;
pub use crate::reply::Body;
use crate::reply::{self, HttpError};
use crate::setup;

/// One RPC message may be this large; it is in memory as a whole. Files don't travel in
/// messages, input may.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

pub struct Router {
    guest: Arc<Guest>,
    rpc: ConnectRpcService,
}

impl Router {
    pub fn new(guest: Arc<Guest>) -> Self {
        let services = RpcRouter::new()
            .add_service(Arc::new(ProcessService::new(Arc::clone(&guest))))
            .add_service(Arc::new(FilesystemService::new(Arc::clone(&guest))));
        let limits = Limits::default()
            .with_max_request_body_size(MAX_MESSAGE)
            .with_max_message_size(MAX_MESSAGE);
        Self {
            guest,
            rpc: ConnectRpcService::new(services).with_limits(limits),
        }
    }

    /// Answers one request.
    pub async fn route(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let rpc = is_rpc(parts.uri.path());
        if let Err(refusal) = authorize(&parts, &self.guest.settings()) {
            return refuse(refusal, rpc);
        }
        if rpc {
            return match self
                .rpc
                .clone()
                .call(Request::from_parts(parts, body))
                .await
            {
                Ok(response) => response.map(reply::boxed),
                Err(never) => match never {},
            };
        }
        let guest = &self.guest;
        let answer = match (&parts.method, parts.uri.path()) {
            (&Method::GET | &Method::HEAD, "/health") => Ok(reply::empty(StatusCode::NO_CONTENT)),
            (&Method::POST, "/init") => setup::init(guest, &parts, body).await,
            (&Method::POST, "/sync") => disks::sync().await,
            (&Method::POST, "/freeze") => programs::freeze().await,
            (&Method::POST, "/thaw") => Ok(programs::thaw_request()),
            (&Method::GET, "/metrics") => metrics::report(guest).await,
            (&Method::GET, "/envs") => reply::json(&guest.settings().env),
            (&Method::GET | &Method::HEAD, "/files") => files::download(guest, &parts).await,
            (&Method::POST, "/files") => files::upload(guest, &parts, body).await,
            (&Method::POST, "/files/compose") => files::compose(guest, body).await,
            (&Method::GET, "/archive") => archive::read(guest, &parts).await,
            (&Method::POST, "/archive") => archive::write(guest, &parts, body).await,
            (
                _,
                "/health" | "/init" | "/sync" | "/freeze" | "/thaw" | "/metrics" | "/envs"
                | "/files" | "/files/compose" | "/archive",
            ) => Err(HttpError::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method not allowed",
            )),
            _ => Err(HttpError::new(StatusCode::NOT_FOUND, "no such route")),
        };
        answer.unwrap_or_else(HttpError::into_response)
    }
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Router").finish_non_exhaustive()
    }
}

fn is_rpc(path: &str) -> bool {
    let service = path
        .strip_prefix('/')
        .and_then(|path| path.split('/').next());
    matches!(
        service,
        Some(PROCESS_SERVICE_NAME | FILESYSTEM_SERVICE_NAME)
    )
}

/// A refused RPC is told in its own words; for streams, too, the status 401 says it.
fn refuse(refusal: Refusal, rpc: bool) -> Response<Body> {
    if rpc {
        let error =
            serde_json::json!({ "code": "unauthenticated", "message": refusal.to_string() });
        return reply::json_with_status(StatusCode::UNAUTHORIZED, &error);
    }
    HttpError::new(StatusCode::UNAUTHORIZED, refusal.to_string()).into_response()
}
