//! Calls that reach the host: create, and a short command hop by hop.

use anyhow::{Context as _, ensure};
use wrenn_bench::Record;
use wrenn_proto::hostagent::{
    Command, CreateSandboxRequest, DestroySandboxRequest, ExecRequest, Resources,
};
use wrenn_sdk::NO_ARGS;

use crate::client::Connection;
use crate::environment::Environment;
use crate::{median, rounds, timed};

const FLOOR: &str = "the agent itself";

pub(crate) async fn measure(environment: &Environment) -> anyhow::Result<Vec<Record>> {
    let mut records = exec(environment).await?;
    records.push(create(environment).await?);
    Ok(records)
}

async fn create(environment: &Environment) -> anyhow::Result<Record> {
    let mut ours = Connection::open(environment.address, &environment.key).await?;
    let (mut samples, mut floor) = (Vec::new(), Vec::new());
    for round in 0..rounds(30) {
        let (elapsed, answer) = timed(ours.send("POST", "/v1/sandboxes", "{}")).await?;
        samples.push(elapsed);
        let created: serde_json::Value = serde_json::from_slice(answer)?;
        let id = created["id"].as_str().context("no id")?;
        ours.send("DELETE", &format!("/v1/sandboxes/{id}"), "")
            .await?;
        let id = format!("sb{round:0>20}");
        let request = CreateSandboxRequest {
            id: id.clone(),
            template: "base".to_owned(),
            resources: Some(Resources {
                vcpus: 1,
                memory_mib: 512,
            })
            .into(),
            ..CreateSandboxRequest::default()
        };
        floor.push(timed(environment.agent.create_sandbox(request)).await?.0);
        let request = DestroySandboxRequest { id };
        environment.agent.destroy_sandbox(request).await?;
    }
    let record = Record::of("server.create", "ms", samples).context("no samples")?;
    Ok(record.against(FLOOR, median(floor)))
}

/// SDK → server → agent → guest daemon, HTTP → server → …, and straight to the agent.
async fn exec(environment: &Environment) -> anyhow::Result<Vec<Record>> {
    let id = environment.sandbox.id().to_string();
    let path = format!("/v1/sandboxes/{id}/exec");
    let mut http = Connection::open(environment.address, &environment.key).await?;
    let (mut from_sdk, mut from_http, mut from_agent) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds(300) {
        let exec = environment.sandbox.exec("true", NO_ARGS).into_future();
        let (elapsed, result) = timed(exec).await?;
        ensure!(result.exit_code == 0, "the command failed");
        from_sdk.push(elapsed);
        let request = http.send("POST", &path, r#"{"cmd":"true"}"#);
        from_http.push(timed(request).await?.0);
        let request = ExecRequest {
            id: id.clone(),
            command: Some(Command {
                program: "true".to_owned(),
                timeout_sec: 30,
                ..Command::default()
            })
            .into(),
            ..ExecRequest::default()
        };
        from_agent.push(timed(environment.agent.exec(request)).await?.0);
    }
    let floor = median(from_agent.clone());
    let records = [
        Record::of("server.exec.sdk", "ms", from_sdk).map(|r| r.against(FLOOR, floor)),
        Record::of("server.exec", "ms", from_http).map(|r| r.against(FLOOR, floor)),
        Record::of("server.exec.agent", "ms", from_agent),
    ];
    records
        .into_iter()
        .collect::<Option<_>>()
        .context("no samples")
}
