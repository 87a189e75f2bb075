//! Sandboxes: made, found, used and given back.

use std::sync::Arc;
use std::time::Duration;

use wrenn_core::fleet::SandboxHandle;
use wrenn_core::sandbox::{self as engine, SandboxConfig};
use wrenn_core::vm;
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::*;

use super::egress;
use super::host::blocking;
use super::{State as Agent, input};
use crate::errors::{answer, silent, wire_state};
use crate::metrics::phases;
use crate::usage;

/// How long a guest may take to say what it uses.
const METRICS_DEADLINE: Duration = Duration::from_secs(5);

/// Whether an answer holds the secret that opens the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    Shown,
    Left,
}

pub(super) async fn create(
    agent: &Arc<Agent>,
    request: CreateSandboxRequest,
) -> Result<CreateSandboxResponse, ConnectError> {
    let id = input::sandbox_id(&request.id)?;
    let (root, template) = (agent.fleet.root().clone(), request.template);
    let from_template = blocking(move || engine::default_config(&root, &template)).await?;
    let from_template = from_template.map_err(|error| answer(&error))?;
    let config = SandboxConfig {
        id,
        resources: input::resources(request.resources.as_option(), from_template.resources)?,
        env: input::environment(request.env)?,
        metadata: input::map("metadata", request.metadata)?,
        egress: egress::policy(request.egress.into_option())?,
        timeout: Duration::from_secs(request.timeout_sec),
        ..from_template
    };
    let created = agent.fleet.create(config).await;
    let sandbox = created.map_err(|error| answer(&error))?;
    Ok(CreateSandboxResponse {
        sandbox: MessageField::some(describe(&sandbox, Token::Shown)),
    })
}

pub(super) async fn get(
    agent: &Arc<Agent>,
    request: GetSandboxRequest,
) -> Result<GetSandboxResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    Ok(GetSandboxResponse {
        sandbox: MessageField::some(describe(&sandbox, Token::Shown)),
    })
}

pub(super) async fn list(
    agent: &Arc<Agent>,
    _request: ListSandboxesRequest,
) -> Result<ListSandboxesResponse, ConnectError> {
    let all = agent.fleet.list();
    Ok(ListSandboxesResponse {
        root_id: agent.root_id.clone(),
        sandboxes: all
            .iter()
            .map(|sandbox| describe(sandbox, Token::Left))
            .collect(),
        auto_paused_sandbox_ids: all
            .iter()
            .filter(|sandbox| sandbox.status().auto_paused)
            .map(|sandbox| sandbox.id().to_string())
            .collect(),
    })
}

pub(super) async fn acknowledge(
    agent: &Arc<Agent>,
    request: AcknowledgeAutoPausedRequest,
) -> Result<AcknowledgeAutoPausedResponse, ConnectError> {
    for id in request.ids {
        if let Some(sandbox) = agent.fleet.get(&input::sandbox_id(&id)?) {
            let known = sandbox.acknowledge().await;
            known.map_err(|error| answer(&error))?;
        }
    }
    Ok(AcknowledgeAutoPausedResponse::default())
}

pub(super) async fn ping(
    agent: &Arc<Agent>,
    request: PingSandboxRequest,
) -> Result<PingSandboxResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    sandbox.activity().touch();
    if let Some(seconds) = request.timeout_sec {
        let set = sandbox.set_timeout(Duration::from_secs(seconds)).await;
        set.map_err(|error| answer(&error))?;
    }
    Ok(PingSandboxResponse {
        sandbox: MessageField::some(describe(&sandbox, Token::Left)),
    })
}

pub(super) async fn pause(
    agent: &Arc<Agent>,
    request: PauseSandboxRequest,
) -> Result<PauseSandboxResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    sandbox.pause().await.map_err(|error| answer(&error))?;
    Ok(PauseSandboxResponse {
        sandbox: MessageField::some(describe(&sandbox, Token::Left)),
    })
}

pub(super) async fn resume(
    agent: &Arc<Agent>,
    request: ResumeSandboxRequest,
) -> Result<ResumeSandboxResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    let timeout = request.timeout_sec.map(Duration::from_secs);
    let resumed = sandbox.resume(timeout).await;
    resumed.map_err(|error| answer(&error))?;
    Ok(ResumeSandboxResponse {
        sandbox: MessageField::some(describe(&sandbox, Token::Shown)),
    })
}

pub(super) async fn pause_all(
    agent: &Arc<Agent>,
    _request: PauseAllRequest,
) -> Result<PauseAllResponse, ConnectError> {
    let mut response = PauseAllResponse::default();
    for (id, outcome) in agent.fleet.pause_all().await {
        match outcome {
            Ok(()) => response.paused.push(id.to_string()),
            Err(error) => {
                let said = answer(&error).message.unwrap_or_default();
                response.failed.insert(id.to_string(), said);
            }
        }
    }
    Ok(response)
}

pub(super) async fn destroy(
    agent: &Arc<Agent>,
    request: DestroySandboxRequest,
) -> Result<DestroySandboxResponse, ConnectError> {
    let id = input::sandbox_id(&request.id)?;
    // What is gone needs no destroying: the answer before may have been lost.
    if let Some(sandbox) = agent.fleet.get(&id) {
        sandbox.destroy().await.map_err(|error| answer(&error))?;
    }
    Ok(DestroySandboxResponse::default())
}

pub(super) async fn set_egress(
    agent: &Arc<Agent>,
    request: SetEgressRequest,
) -> Result<SetEgressResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    let policy = egress::policy(request.egress.into_option())?;
    sandbox.guest().map_err(|error| answer(&error))?;
    let set = sandbox.set_egress(policy).await;
    set.map_err(|error| answer(&error))?;
    Ok(SetEgressResponse::default())
}

/// Looking at a sandbox is no use of it: whoever watches keeps nothing awake.
pub(super) async fn metrics(
    agent: &Arc<Agent>,
    request: GetMetricsRequest,
) -> Result<GetMetricsResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    let status = sandbox.status();
    let directory = agent.fleet.root().sandbox(sandbox.id());
    let vmm = status.vmm_pid;
    let (cpu, memory, disk) = blocking(move || {
        (
            vmm.and_then(usage::cpu_seconds),
            vmm.and_then(usage::memory_bytes),
            usage::disk_bytes(&directory),
        )
    })
    .await?;
    let mut metrics = GetMetricsResponse {
        cpu_seconds: cpu.unwrap_or_default(),
        memory_bytes: memory.unwrap_or_default(),
        disk_bytes: disk,
        ..GetMetricsResponse::default()
    };
    if let Some(traffic) = sandbox.traffic().await {
        metrics.network_received_bytes = traffic.received.bytes;
        metrics.network_sent_bytes = traffic.sent.bytes;
    }
    if let Some(guest) = status.guest {
        let said = tokio::time::timeout(METRICS_DEADLINE, guest.metrics())
            .await
            .map_err(|_| silent("the guest does not say what it uses; try again"))?
            .map_err(|error| answer(&error))?;
        metrics.guest_cpu_percent = said.cpu_used_pct.into();
        metrics.guest_memory_used_bytes = said.mem_used;
        metrics.guest_memory_total_bytes = said.mem_total;
        metrics.guest_disk_used_bytes = said.disk_used;
        metrics.guest_disk_total_bytes = said.disk_total;
    }
    Ok(metrics)
}

pub(super) fn describe(sandbox: &SandboxHandle, token: Token) -> Sandbox {
    let (asked, status) = (sandbox.asked(), sandbox.status());
    let guest = status.guest.as_ref();
    let secret = match token {
        Token::Shown => guest.and_then(|guest| guest.token()),
        Token::Left => None,
    };
    // One that was taken over was created by another program, in an unknown time.
    let timings = status.timings.iter().filter(|t| !t.total.is_zero());
    Sandbox {
        id: sandbox.id().to_string(),
        template: asked.template.clone(),
        resources: MessageField::some(size(asked.resources)),
        state: wire_state(status.state).into(),
        reason: status.reason.clone().unwrap_or_default(),
        created_at: status.created_at.clone(),
        timeout_sec: status.timeout.as_secs(),
        idle_ms: u64::try_from(sandbox.activity().idle().as_millis()).unwrap_or(u64::MAX),
        metadata: asked.metadata.clone().into_iter().collect(),
        address: guest.map_or_else(String::new, |guest| guest.address().ip().to_string()),
        access_token: secret.map_or_else(String::new, |token| token.reveal().to_owned()),
        phases_ms: timings
            .flat_map(phases)
            .map(|(phase, took)| (phase.to_owned(), took.as_secs_f64() * 1e3))
            .collect(),
        pager_pid: status.pager_pid.unwrap_or_default(),
    }
}

pub(super) fn size(resources: vm::Resources) -> Resources {
    Resources {
        vcpus: resources.vcpus().into(),
        memory_mib: resources.memory_mib(),
    }
}
