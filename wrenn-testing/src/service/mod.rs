//! The RPCs of a fake host, one file for each group, and what faults do to them.

mod call;
mod exec;
mod feed;
mod files;
mod input;
mod sandboxes;
mod snapshots;
mod watch;

use std::sync::Arc;

use futures::StreamExt as _;
use wrenn_proto::connectrpc::{
    ConnectError, Encodable, InboundStream, RequestContext, Response, ServiceRequest,
    ServiceResult, ServiceStream,
};
use wrenn_proto::hostagent::__buffa::oneof::{connect_process_request, exec_stream_request};
use wrenn_proto::hostagent::*;

use crate::errors::invalid;
use crate::faults::Rpc;
use crate::host::Host;
use call::Arrived;

/// The RPC face of a fake host.
#[derive(Debug)]
pub(crate) struct Service {
    host: Arc<Host>,
}

impl Service {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self { host }
    }

    fn arrived(&self, rpc: Rpc, subject: Option<&str>, ctx: &RequestContext) -> Arrived {
        Arrived::new(&self.host, rpc, subject, ctx)
    }
}

/// RPCs with one request and one answer. A step of a sandbox's life goes on when its caller
/// leaves; everything else ends with its caller.
macro_rules! unary {
    ($($kind:ident $method:ident: $rpc:ident, $request:ty => $response:ty, $subject:ident, $handler:path;)*) => {
        $(
            async fn $method<'a>(
                &'a self,
                ctx: RequestContext,
                request: ServiceRequest<'_, $request>,
            ) -> ServiceResult<impl Encodable<$response> + Send + use<'a>> {
                let request = request.to_owned_message();
                let arrived = self.arrived(Rpc::$rpc, subject!($subject, request), &ctx);
                let host = Arc::clone(&self.host);
                let run = async move {
                    let entered = arrived.enter().await?;
                    let answered = $handler(&host, request).await;
                    entered.leave(answered).await
                };
                Response::ok(run_as!($kind, run)?)
            }
        )*
    };
}

macro_rules! subject {
    (none, $request:ident) => {
        None
    };
    ($field:ident, $request:ident) => {
        Some($request.$field.as_str())
    };
}

macro_rules! run_as {
    (step, $run:ident) => {
        match tokio::spawn($run).await {
            Ok(answered) => answered,
            Err(error) => Err(crate::errors::internal(&error)),
        }
    };
    (call, $run:ident) => {
        $run.await
    };
}

#[allow(
    refining_impl_trait,
    reason = "answers own what they hold, so they need not borrow the service"
)]
impl HostAgent for Service {
    unary! {
        call get_host: GetHost, GetHostRequest => GetHostResponse, none, sandboxes::host;
        call list_templates: ListTemplates, ListTemplatesRequest => ListTemplatesResponse, none,
            sandboxes::templates;

        step create_sandbox: CreateSandbox, CreateSandboxRequest => CreateSandboxResponse, id,
            sandboxes::create;
        call get_sandbox: GetSandbox, GetSandboxRequest => GetSandboxResponse, id, sandboxes::get;
        call ping_sandbox: PingSandbox, PingSandboxRequest => PingSandboxResponse, id,
            sandboxes::ping;
        step pause_sandbox: PauseSandbox, PauseSandboxRequest => PauseSandboxResponse, id,
            sandboxes::pause;
        step resume_sandbox: ResumeSandbox, ResumeSandboxRequest => ResumeSandboxResponse, id,
            sandboxes::resume;
        step pause_all: PauseAll, PauseAllRequest => PauseAllResponse, none, sandboxes::pause_all;
        step acknowledge_auto_paused: AcknowledgeAutoPaused, AcknowledgeAutoPausedRequest =>
            AcknowledgeAutoPausedResponse, none, sandboxes::acknowledge;
        step destroy_sandbox: DestroySandbox, DestroySandboxRequest => DestroySandboxResponse, id,
            sandboxes::destroy;
        call set_egress: SetEgress, SetEgressRequest => SetEgressResponse, id,
            sandboxes::set_egress;
        call get_metrics: GetMetrics, GetMetricsRequest => GetMetricsResponse, id,
            sandboxes::metrics;
        call get_console: GetConsole, GetConsoleRequest => GetConsoleResponse, id,
            sandboxes::console;

        step fork_sandbox: ForkSandbox, ForkSandboxRequest => ForkSandboxResponse, id,
            snapshots::fork;
        step create_snapshot: CreateSnapshot, CreateSnapshotRequest => CreateSnapshotResponse, id,
            snapshots::create;
        call list_snapshots: ListSnapshots, ListSnapshotsRequest => ListSnapshotsResponse, none,
            snapshots::list;
        step delete_snapshot: DeleteSnapshot, DeleteSnapshotRequest => DeleteSnapshotResponse,
            name, snapshots::delete;

        call exec: Exec, ExecRequest => ExecResponse, id, exec::exec;
        call list_processes: ListProcesses, ListProcessesRequest => ListProcessesResponse, id,
            exec::list;
        call signal_process: SignalProcess, SignalProcessRequest => SignalProcessResponse, id,
            exec::signal;

        call write_file: WriteFile, WriteFileRequest => WriteFileResponse, id, files::write;
        call read_file: ReadFile, ReadFileRequest => ReadFileResponse, id, files::read;
        call stat: Stat, StatRequest => StatResponse, id, files::stat;
        call list_dir: ListDir, ListDirRequest => ListDirResponse, id, files::list;
        call make_dir: MakeDir, MakeDirRequest => MakeDirResponse, id, files::make_dir;
        call move_path: MovePath, MovePathRequest => MovePathResponse, id, files::rename;
        call remove_path: RemovePath, RemovePathRequest => RemovePathResponse, id, files::remove;
    }

    async fn list_sandboxes<'a>(
        &'a self,
        ctx: RequestContext,
        _request: ServiceRequest<'_, ListSandboxesRequest>,
    ) -> ServiceResult<impl Encodable<ListSandboxesResponse> + Send + use<'a>> {
        let entered = self.arrived(Rpc::ListSandboxes, None, &ctx).enter().await?;
        let mut listed = sandboxes::list(&self.host);
        let omitted = entered.omitted();
        listed
            .sandboxes
            .retain(|sandbox| !omitted.contains(&sandbox.id));
        Response::ok(entered.leave(Ok(listed)).await?)
    }

    async fn exec_stream(
        &self,
        ctx: RequestContext,
        requests: InboundStream<ExecStreamRequest>,
    ) -> ServiceResult<ServiceStream<ProcessEvent>> {
        let (first, rest) = split(requests).await?;
        let Some(exec_stream_request::Message::Start(start)) = first.message else {
            return Err(invalid("the first message must be 'start'"));
        };
        let arrived = self.arrived(Rpc::ExecStream, Some(&start.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = exec::exec_stream(&self.host, *start, rest).await;
        entered.stream(begun).await
    }

    async fn connect_process(
        &self,
        ctx: RequestContext,
        requests: InboundStream<ConnectProcessRequest>,
    ) -> ServiceResult<ServiceStream<ProcessEvent>> {
        let (first, rest) = split(requests).await?;
        let Some(connect_process_request::Message::Connect(connect)) = first.message else {
            return Err(invalid("the first message must be 'connect'"));
        };
        let arrived = self.arrived(Rpc::ConnectProcess, Some(&connect.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = exec::connect(&self.host, *connect, rest).await;
        entered.stream(begun).await
    }

    async fn stream_write_file<'a>(
        &'a self,
        ctx: RequestContext,
        requests: InboundStream<StreamWriteFileRequest>,
    ) -> ServiceResult<impl Encodable<StreamWriteFileResponse> + Send + use<'a>> {
        let (first, rest) = split(requests).await?;
        let arrived = self.arrived(Rpc::StreamWriteFile, Some(&first.id), &ctx);
        let entered = arrived.enter().await?;
        let written = files::stream_write(&self.host, first, rest).await;
        Response::ok(entered.leave(written).await?)
    }

    async fn stream_read_file(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, StreamReadFileRequest>,
    ) -> ServiceResult<ServiceStream<StreamReadFileResponse>> {
        let request = request.to_owned_message();
        let arrived = self.arrived(Rpc::StreamReadFile, Some(&request.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = files::stream_read(&self.host, request).await;
        entered.stream(begun).await
    }

    async fn watch_dir(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, WatchDirRequest>,
    ) -> ServiceResult<ServiceStream<WatchDirResponse>> {
        let request = request.to_owned_message();
        let arrived = self.arrived(Rpc::WatchDir, Some(&request.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = watch::watch(&self.host, request).await;
        entered.stream(begun).await
    }

    async fn follow_console(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, FollowConsoleRequest>,
    ) -> ServiceResult<ServiceStream<FollowConsoleResponse>> {
        let request = request.to_owned_message();
        let arrived = self.arrived(Rpc::FollowConsole, Some(&request.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = sandboxes::follow_console(&self.host, &request);
        entered.stream(begun).await
    }

    async fn read_archive(
        &self,
        ctx: RequestContext,
        request: ServiceRequest<'_, ReadArchiveRequest>,
    ) -> ServiceResult<ServiceStream<ReadArchiveResponse>> {
        let request = request.to_owned_message();
        let arrived = self.arrived(Rpc::ReadArchive, Some(&request.id), &ctx);
        let entered = arrived.enter().await?;
        let begun = files::read_archive(&self.host, request).await;
        entered.stream(begun).await
    }

    async fn write_archive<'a>(
        &'a self,
        ctx: RequestContext,
        requests: InboundStream<WriteArchiveRequest>,
    ) -> ServiceResult<impl Encodable<WriteArchiveResponse> + Send + use<'a>> {
        let (first, rest) = split(requests).await?;
        let arrived = self.arrived(Rpc::WriteArchive, Some(&first.id), &ctx);
        let entered = arrived.enter().await?;
        let written = files::write_archive(&self.host, first, rest).await;
        Response::ok(entered.leave(written).await?)
    }
}

/// Takes the first message of a stream, which says what it is about.
async fn split<M>(mut requests: InboundStream<M>) -> Result<(M, InboundStream<M>), ConnectError>
where
    M: wrenn_proto::buffa::HasMessageView,
    wrenn_proto::connectrpc::StreamMessage<M>: Send,
{
    match requests.next().await {
        Some(message) => Ok((message?.to_owned_message(), requests)),
        None => Err(invalid("the stream ended before its first message")),
    }
}
