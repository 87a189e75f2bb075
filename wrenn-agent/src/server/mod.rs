//! The RPCs, one file for each group, and how they travel.

mod archive;
mod console;
mod egress;
mod exec;
mod feed;
mod files;
mod guest;
mod host;
mod http;
mod input;
mod sandboxes;
mod snapshots;
mod watch;

use std::sync::Arc;

use futures::{Stream, TryStreamExt as _};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wrenn_core::fleet::Fleet;
use wrenn_proto::connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use wrenn_proto::hostagent::*;

use crate::access::Guard;
use crate::errors::with_default_reason;
use crate::metrics::Metrics;
pub(crate) use http::{Face, Server};

/// How long a stream is silent before it shows that it lives.
const KEEP_ALIVE: std::time::Duration = std::time::Duration::from_secs(30);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) fleet: Fleet,
    /// The identity of the root directory.
    pub(crate) root_id: String,
    pub(crate) guard: Guard,
    pub(crate) metrics: Metrics,
    /// Cancelled when the agent stops.
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

/// The RPC face of the agent.
#[derive(Debug)]
struct Service(Arc<State>);

/// A stream whose errors have reasons, and its beginning too.
fn stream<T: Send + 'static>(
    begun: Result<impl Stream<Item = Result<T, ConnectError>> + Send + 'static, ConnectError>,
) -> ServiceResult<ServiceStream<T>> {
    let events = begun.map_err(with_default_reason)?;
    Ok(Response::stream(events.map_err(with_default_reason)))
}

/// An RPC with one request and one answer, which the named function makes.
macro_rules! unary {
    ($($method:ident: $request:ty => $response:ty, $handler:path;)*) => {
        $(
            async fn $method<'a>(
                &'a self,
                _ctx: RequestContext,
                request: ServiceRequest<'_, $request>,
            ) -> ServiceResult<impl Encodable<$response> + Send + use<'a>> {
                let answered = $handler(&self.0, request.to_owned_message()).await;
                Response::ok(answered.map_err(with_default_reason)?)
            }
        )*
    };
}

#[allow(
    refining_impl_trait,
    reason = "answers own what they hold, so they need not borrow the service"
)]
impl HostAgent for Service {
    unary! {
        get_host: GetHostRequest => GetHostResponse, host::get;
        list_templates: ListTemplatesRequest => ListTemplatesResponse, host::templates;

        create_sandbox: CreateSandboxRequest => CreateSandboxResponse, sandboxes::create;
        get_sandbox: GetSandboxRequest => GetSandboxResponse, sandboxes::get;
        list_sandboxes: ListSandboxesRequest => ListSandboxesResponse, sandboxes::list;
        ping_sandbox: PingSandboxRequest => PingSandboxResponse, sandboxes::ping;
        pause_sandbox: PauseSandboxRequest => PauseSandboxResponse, sandboxes::pause;
        resume_sandbox: ResumeSandboxRequest => ResumeSandboxResponse, sandboxes::resume;
        pause_all: PauseAllRequest => PauseAllResponse, sandboxes::pause_all;
        acknowledge_auto_paused: AcknowledgeAutoPausedRequest => AcknowledgeAutoPausedResponse,
            sandboxes::acknowledge;
        fork_sandbox: ForkSandboxRequest => ForkSandboxResponse, snapshots::fork;
        create_snapshot: CreateSnapshotRequest => CreateSnapshotResponse, snapshots::create;
        list_snapshots: ListSnapshotsRequest => ListSnapshotsResponse, snapshots::list;
        delete_snapshot: DeleteSnapshotRequest => DeleteSnapshotResponse, snapshots::delete;
        destroy_sandbox: DestroySandboxRequest => DestroySandboxResponse, sandboxes::destroy;
        set_egress: SetEgressRequest => SetEgressResponse, sandboxes::set_egress;
        get_metrics: GetMetricsRequest => GetMetricsResponse, sandboxes::metrics;
        get_console: GetConsoleRequest => GetConsoleResponse, console::get;

        exec: ExecRequest => ExecResponse, exec::exec;
        list_processes: ListProcessesRequest => ListProcessesResponse, exec::list;
        signal_process: SignalProcessRequest => SignalProcessResponse, exec::signal;

        write_file: WriteFileRequest => WriteFileResponse, files::write;
        read_file: ReadFileRequest => ReadFileResponse, files::read;
        stat: StatRequest => StatResponse, files::stat;
        list_dir: ListDirRequest => ListDirResponse, files::list;
        make_dir: MakeDirRequest => MakeDirResponse, files::make_dir;
        move_path: MovePathRequest => MovePathResponse, files::rename;
        remove_path: RemovePathRequest => RemovePathResponse, files::remove;
    }

    async fn exec_stream(
        &self,
        _ctx: RequestContext,
        requests: InboundStream<ExecStreamRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ProcessEvent> + Send + use<>>> {
        stream(exec::exec_stream(&self.0, requests).await)
    }

    async fn connect_process(
        &self,
        _ctx: RequestContext,
        requests: InboundStream<ConnectProcessRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ProcessEvent> + Send + use<>>> {
        stream(exec::connect(&self.0, requests).await)
    }

    async fn stream_write_file<'a>(
        &'a self,
        _ctx: RequestContext,
        requests: InboundStream<StreamWriteFileRequest>,
    ) -> ServiceResult<impl Encodable<StreamWriteFileResponse> + Send + use<'a>> {
        let written = files::stream_write(&self.0, requests).await;
        Response::ok(written.map_err(with_default_reason)?)
    }

    async fn stream_read_file(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, StreamReadFileRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<StreamReadFileResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        stream(files::stream_read(&self.0, request).await)
    }

    async fn watch_dir(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<WatchDirResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        stream(watch::watch(&self.0, request).await)
    }

    async fn follow_console(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, FollowConsoleRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<FollowConsoleResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        stream(console::follow(&self.0, request).await)
    }

    async fn read_archive(
        &self,
        _ctx: RequestContext,
        request: ServiceRequest<'_, ReadArchiveRequest>,
    ) -> ServiceResult<ServiceStream<impl Encodable<ReadArchiveResponse> + Send + use<>>> {
        let request = request.to_owned_message();
        stream(archive::read(&self.0, request).await)
    }

    async fn write_archive<'a>(
        &'a self,
        _ctx: RequestContext,
        requests: InboundStream<WriteArchiveRequest>,
    ) -> ServiceResult<impl Encodable<WriteArchiveResponse> + Send + use<'a>> {
        let unpacked = archive::write(&self.0, requests).await;
        Response::ok(unpacked.map_err(with_default_reason)?)
    }
}
