//! `wrenn agent create`.

use std::time::Duration;

use wrenn_core::SandboxId;
use wrenn_proto::hostagent::{CreateSandboxRequest, Resources};

use super::client::AgentClient;
use super::show;
use crate::commands::UsageError;
use crate::commands::run::parse_variable;
use crate::output;
use crate::size::parse_mib;

/// Options of `wrenn agent create`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its id; a new one unless set. The same request again gives the same sandbox.
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Template or snapshot that the sandbox is made from.
    #[arg(long, value_name = "NAME", default_value = "base")]
    template: String,
    /// Virtual CPUs; 1 unless set, or those of the snapshot.
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory: 512M, 2G, or a number of MiB; 512M unless set, or that of the snapshot.
    #[arg(long, value_name = "SIZE", value_parser = parse_mib)]
    memory: Option<u64>,
    /// Variable of every command's environment; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    env: Vec<(String, String)>,
    /// Something to remember of it; may be given often.
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse_variable)]
    metadata: Vec<(String, String)>,
    /// How long it may be idle before it is paused: 30s, 5m; any length unless set.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
}

pub(super) async fn run(agent: &AgentClient, args: Args, json: bool) -> anyhow::Result<()> {
    let memory_mib = u32::try_from(args.memory.unwrap_or_default())
        .map_err(|_| UsageError("no host has as much memory".into()))?;
    if args.vcpus == Some(0) || args.memory == Some(0) {
        return Err(UsageError("a sandbox has at least 1 vCPU and 1 MiB".into()).into());
    }
    let request = CreateSandboxRequest {
        id: args.id.unwrap_or_else(|| SandboxId::random().to_string()),
        template: args.template,
        resources: Some(Resources {
            vcpus: args.vcpus.unwrap_or_default(),
            memory_mib,
        })
        .into(),
        env: args.env.into_iter().collect(),
        metadata: args.metadata.into_iter().collect(),
        timeout_sec: args.timeout.unwrap_or_default().as_secs(),
        ..CreateSandboxRequest::default()
    };
    let answer = agent.rpc.create_sandbox(request).await;
    let answer = agent.check(answer)?.into_owned();
    if json {
        return show::json(&answer);
    }
    output::line(&answer.sandbox.as_option().cloned().unwrap_or_default().id)
}
