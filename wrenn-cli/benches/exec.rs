//! `exec.roundtrip`: one short command through the guest's daemon, against the least that
//! it can cost: a bare TCP connection on which the guest forks and execs the same program.
//! `exec.agent`: the same command through an agent, against straight to the daemon.

mod support;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use wrenn_agent::agent::Agent;
use wrenn_agent::config::{Action, Config};
use wrenn_bench::Record;
use wrenn_core::SandboxId;
use wrenn_core::guest::{AccessToken, Command, ENVD_PORT, GuestClient};
use wrenn_core::sandbox::{Host, Sandbox};
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::hostagent::{
    self as wire, CreateSandboxRequest, DestroySandboxRequest, ExecRequest, HostAgentClient,
    Resources,
};

use support::{contenders, median, report, rounds, small};

const PORT: u16 = 7000;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let contenders = contenders().await?;
    let contender = contenders.first().context("no VMM was found")?;
    let sandbox = contender.host.create(small()?).await?;
    let outcome = measure(&sandbox).await;
    sandbox.destroy().await?;
    report(&[outcome?, through_agent(&contender.host).await?])
}

async fn through_agent(host: &Host) -> anyhow::Result<Record> {
    let mut words: Vec<OsString> = vec![
        "wrenn-agent".into(),
        "--listen".into(),
        "127.0.0.1:0".into(),
    ];
    words.extend(["--root".into(), host.root().path().into()]);
    words.extend(["--vmm".into(), host.vmm().into()]);
    let Action::Run(config) = Config::parse(words.into_iter())? else {
        bail!("the agent does not want to run");
    };
    let agent = Agent::start(*config).await?;
    let url = format!("http://{}", agent.address()).parse()?;
    let bearer = format!("Bearer {}", agent.token().reveal());
    let config = ClientConfig::new(url).with_default_header("authorization", bearer);
    let client = HostAgentClient::new(HttpClient::plaintext_http2_only(), config);
    let id = SandboxId::random().to_string();
    let outcome = compare(&client, &id).await;
    client.destroy_sandbox(DestroySandboxRequest { id }).await?;
    agent.stop().await;
    outcome
}

async fn compare(client: &HostAgentClient<HttpClient>, id: &str) -> anyhow::Result<Record> {
    let size = Resources {
        vcpus: 1,
        memory_mib: 128,
    };
    let created = client
        .create_sandbox(CreateSandboxRequest {
            id: id.to_owned(),
            template: "minimal".to_owned(),
            resources: Some(size).into(),
            ..CreateSandboxRequest::default()
        })
        .await?
        .into_owned();
    let sandbox = created
        .sandbox
        .into_option()
        .context("no sandbox came back")?;
    let address = SocketAddr::new(sandbox.address.parse()?, ENVD_PORT);
    let guest = GuestClient::new(address, Some(AccessToken::new(sandbox.access_token)))?;
    let straight = Command::new("/bin/true").user("root");
    let by_agent = || ExecRequest {
        id: id.to_owned(),
        command: Some(wire::Command {
            program: "/bin/true".to_owned(),
            user: "root".to_owned(),
            ..wire::Command::default()
        })
        .into(),
        ..ExecRequest::default()
    };
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(100) {
        let begun = Instant::now();
        let answer = client.exec(by_agent()).await?.into_owned();
        ours.push(begun.elapsed());
        ensure!(
            answer.exit.as_option().is_some_and(|exit| exit.code == 0),
            "/bin/true failed"
        );
        let begun = Instant::now();
        let output = guest.output(&straight).await?;
        floor.push(begun.elapsed().as_secs_f64() * 1e3);
        ensure!(output.status.shell_code() == 0, "/bin/true failed");
    }
    let record = Record::of_durations("exec.agent", ours).context("no rounds were run")?;
    Ok(record.against("straight to the guest's daemon", median(floor)))
}

async fn measure(sandbox: &Sandbox) -> anyhow::Result<Record> {
    let server = Command::new("nc").args(["-ll", "-p", &PORT.to_string(), "-e", "/bin/true"]);
    let _server = sandbox.guest().start(&server.user("root")).await?;
    let address = sandbox.address(PORT);
    wait_until_served(address).await?;

    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(100) {
        let begun = Instant::now();
        let output = sandbox
            .exec(&Command::new("/bin/true").user("root"))
            .await?;
        ours.push(begun.elapsed());
        ensure!(output.status.shell_code() == 0, "/bin/true failed");

        let begun = Instant::now();
        served_once(address).await?;
        floor.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let record = Record::of(
        "exec.roundtrip",
        "ms",
        ours.iter()
            .map(|elapsed| elapsed.as_secs_f64() * 1e3)
            .collect(),
    );
    let record = record.context("no rounds were run")?;
    Ok(record.against("tcp connection + fork + exec", median(floor)))
}

/// Connects; the guest forks, execs and closes.
async fn served_once(address: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map(drop)
}

async fn wait_until_served(address: SocketAddr) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = served_once(address).await {
        ensure!(
            Instant::now() < deadline,
            "the guest does not serve {address}: {error}"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
