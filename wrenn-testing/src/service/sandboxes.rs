//! The host and its sandboxes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use tokio::time::timeout;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::list_templates_response::Template;
use wrenn_proto::hostagent::*;

use super::input;
use crate::errors::stopping;
use crate::host::{Host, Properties, Token, check_id};

const CONSOLE_BYTES: u32 = 64 << 10;
const MAX_CONSOLE_BYTES: u32 = 1 << 20;
/// How much of a console comes in one message.
const CONSOLE_CHUNK: usize = 64 << 10;

type Answer<T> = Result<T, ConnectError>;

pub(super) async fn host(host: &Arc<Host>, _request: GetHostRequest) -> Answer<GetHostResponse> {
    let state = host.state();
    let used = state.used();
    Ok(GetHostResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        root_id: state.root_id.clone(),
        sandboxes: used.sandboxes,
        max_sandboxes: host.config.max_sandboxes,
        vcpus: used.vcpus,
        max_vcpus: host.config.max_vcpus,
        memory_mib: used.memory_mib,
        max_memory_mib: host.config.max_memory_mib,
        free_disk_mib: 1 << 20,
        templates: host.config.templates.clone(),
    })
}

pub(super) async fn templates(
    host: &Arc<Host>,
    _request: ListTemplatesRequest,
) -> Answer<ListTemplatesResponse> {
    let templates = host.config.templates.iter().map(|name| Template {
        name: name.clone(),
        size_mib: 1024,
        kernel: "fake".to_owned(),
        rootfs_sha256: "0".repeat(64),
    });
    Ok(ListTemplatesResponse {
        templates: templates.collect(),
    })
}

pub(super) async fn create(
    host: &Arc<Host>,
    request: CreateSandboxRequest,
) -> Answer<CreateSandboxResponse> {
    check_id(&request.id)?;
    let egress = request.egress.into_option();
    input::egress(egress.as_ref())?;
    let size = request.resources.into_option().unwrap_or_default();
    let properties = Properties {
        template: request.template,
        vcpus: size.vcpus,
        memory_mib: size.memory_mib,
        env: input::environment(request.env)?,
        metadata: input::map("metadata", request.metadata)?,
        timeout: Duration::from_secs(request.timeout_sec),
        egress,
    };
    let sandbox = host.create(request.id, properties).await?;
    Ok(CreateSandboxResponse {
        sandbox: MessageField::some(sandbox.describe(Token::Shown)),
    })
}

pub(super) async fn get(
    host: &Arc<Host>,
    request: GetSandboxRequest,
) -> Answer<GetSandboxResponse> {
    let sandbox = host.sandbox(&request.id)?;
    Ok(GetSandboxResponse {
        sandbox: MessageField::some(sandbox.describe(Token::Shown)),
    })
}

pub(super) fn list(host: &Arc<Host>) -> ListSandboxesResponse {
    let all = host.sandboxes();
    let auto_paused = all.iter().filter(|sandbox| sandbox.status().auto_paused);
    ListSandboxesResponse {
        root_id: host.state().root_id.clone(),
        auto_paused_sandbox_ids: auto_paused.map(|sandbox| sandbox.id.clone()).collect(),
        sandboxes: all
            .iter()
            .map(|sandbox| sandbox.describe(Token::Hidden))
            .collect(),
    }
}

pub(super) async fn ping(
    host: &Arc<Host>,
    request: PingSandboxRequest,
) -> Answer<PingSandboxResponse> {
    let sandbox = host.sandbox(&request.id)?;
    sandbox.activity.touch();
    if let Some(seconds) = request.timeout_sec {
        sandbox.change(|status| status.timeout = Duration::from_secs(seconds));
    }
    Ok(PingSandboxResponse {
        sandbox: MessageField::some(sandbox.describe(Token::Hidden)),
    })
}

pub(super) async fn pause(
    host: &Arc<Host>,
    request: PauseSandboxRequest,
) -> Answer<PauseSandboxResponse> {
    let sandbox = host.sandbox(&request.id)?;
    host.pause(&sandbox).await?;
    Ok(PauseSandboxResponse {
        sandbox: MessageField::some(sandbox.describe(Token::Hidden)),
    })
}

pub(super) async fn resume(
    host: &Arc<Host>,
    request: ResumeSandboxRequest,
) -> Answer<ResumeSandboxResponse> {
    let sandbox = host.sandbox(&request.id)?;
    let timeout = request.timeout_sec.map(Duration::from_secs);
    host.resume(&sandbox, timeout).await?;
    Ok(ResumeSandboxResponse {
        sandbox: MessageField::some(sandbox.describe(Token::Shown)),
    })
}

pub(super) async fn pause_all(
    host: &Arc<Host>,
    _request: PauseAllRequest,
) -> Answer<PauseAllResponse> {
    let (paused, failed) = host.pause_all().await;
    Ok(PauseAllResponse {
        paused,
        failed: failed.into_iter().collect(),
    })
}

pub(super) async fn acknowledge(
    host: &Arc<Host>,
    request: AcknowledgeAutoPausedRequest,
) -> Answer<AcknowledgeAutoPausedResponse> {
    for id in request.ids {
        check_id(&id)?;
        if let Ok(sandbox) = host.sandbox(&id) {
            sandbox.change(|status| status.auto_paused = false);
        }
    }
    Ok(AcknowledgeAutoPausedResponse::default())
}

pub(super) async fn destroy(
    host: &Arc<Host>,
    request: DestroySandboxRequest,
) -> Answer<DestroySandboxResponse> {
    host.destroy(&request.id).await?;
    Ok(DestroySandboxResponse::default())
}

pub(super) async fn set_egress(
    host: &Arc<Host>,
    request: SetEgressRequest,
) -> Answer<SetEgressResponse> {
    let sandbox = host.sandbox(&request.id)?;
    let egress = request.egress.into_option();
    input::egress(egress.as_ref())?;
    sandbox.visit()?;
    sandbox.change(|status| status.egress = egress);
    Ok(SetEgressResponse::default())
}

/// Metrics are no use of a sandbox.
pub(super) async fn metrics(
    host: &Arc<Host>,
    request: GetMetricsRequest,
) -> Answer<GetMetricsResponse> {
    let sandbox = host.sandbox(&request.id)?;
    let mut metrics = GetMetricsResponse {
        cpu_seconds: 0.5,
        disk_bytes: 1 << 20,
        ..GetMetricsResponse::default()
    };
    if let Some(guest) = sandbox.guest()
        && sandbox.state() == State::STATE_RUNNING
    {
        let used = guest.client().metrics().await?;
        let memory_bytes = u64::from(sandbox.properties.memory_mib) << 20;
        metrics.memory_bytes = memory_bytes / 4;
        metrics.guest_cpu_percent = used.cpu_used_pct.into();
        // The machine's own memory is not the guest's.
        metrics.guest_memory_used_bytes = used.mem_used.min(memory_bytes);
        metrics.guest_memory_total_bytes = memory_bytes;
        metrics.guest_disk_used_bytes = used.disk_used;
        metrics.guest_disk_total_bytes = used.disk_total;
        metrics.network_received_bytes = 1024;
        metrics.network_sent_bytes = 1024;
    }
    Ok(metrics)
}

pub(super) async fn console(
    host: &Arc<Host>,
    request: GetConsoleRequest,
) -> Answer<GetConsoleResponse> {
    let sandbox = host.sandbox(&request.id)?;
    let length = match request.max_bytes {
        0 => CONSOLE_BYTES,
        asked => asked.min(MAX_CONSOLE_BYTES),
    };
    let log = sandbox.console.borrow();
    let length = usize::try_from(length).unwrap_or(usize::MAX).min(log.len());
    let part = if request.from_start {
        &log[..length]
    } else {
        &log[log.len() - length..]
    };
    Ok(GetConsoleResponse {
        data: Bytes::copy_from_slice(part),
    })
}

/// What is in the log, and then what is added, until the sandbox ends.
pub(super) fn follow_console(
    host: &Arc<Host>,
    request: &FollowConsoleRequest,
) -> Answer<impl Stream<Item = Answer<FollowConsoleResponse>> + Send + use<>> {
    let sandbox = host.sandbox(&request.id)?;
    let length = match request.max_bytes {
        0 => CONSOLE_BYTES,
        asked => asked.min(MAX_CONSOLE_BYTES),
    };
    let log = sandbox.console.subscribe();
    let written = log.borrow().len();
    let sent = if request.from_start {
        0
    } else {
        written.saturating_sub(usize::try_from(length).unwrap_or(usize::MAX))
    };
    let host = Arc::clone(host);
    let begin = (host, sandbox, log, sent);
    let stream = futures::stream::unfold(begin, |(host, sandbox, mut log, mut sent)| async move {
        loop {
            let data = {
                let log = log.borrow_and_update();
                let rest = &log[sent..];
                Bytes::copy_from_slice(&rest[..rest.len().min(CONSOLE_CHUNK)])
            };
            if !data.is_empty() {
                sent += data.len();
                let message = FollowConsoleResponse { data };
                return Some((Ok(message), (host, sandbox, log, sent)));
            }
            tokio::select! {
                changed = timeout(host.config.keep_alive, log.changed()) => if changed.is_err() {
                    let message = FollowConsoleResponse::default();
                    return Some((Ok(message), (host, sandbox, log, sent)));
                },
                () = sandbox.destroyed.cancelled() => return None,
                () = host.shutdown.cancelled() => {
                    return Some((Err(stopping()), (host, sandbox, log, sent)));
                }
            }
        }
    });
    // An error is the last message.
    Ok(stream.scan(false, |failed, message| {
        let next = (!*failed).then_some(message);
        *failed = matches!(next, Some(Err(_)));
        futures::future::ready(next)
    }))
}
