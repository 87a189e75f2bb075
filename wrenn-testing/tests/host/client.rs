//! A client of the host, and short ways to call it.

use std::time::Duration;

use bytes::Bytes;
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::__buffa::oneof::{exec_stream_request, process_event};
use wrenn_proto::hostagent::*;
use wrenn_proto::reason;
use wrenn_testing::FakeHost;

pub(crate) type Client = HostAgentClient<HttpClient>;

/// Longer than anything here takes on the slowest machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn client(host: &FakeHost) -> Client {
    with_token(host, host.token())
}

pub(crate) fn with_token(host: &FakeHost, token: Option<&str>) -> Client {
    let mut config =
        ClientConfig::new(host.url().parse().unwrap()).with_default_max_message_size(32 << 20);
    if let Some(token) = token {
        config = config.with_default_header("authorization", format!("Bearer {token}"));
    }
    HostAgentClient::new(HttpClient::plaintext_http2_only(), config)
}

/// The id of the sandbox with this number.
pub(crate) fn id(number: u32) -> String {
    format!("sb{number:020}")
}

pub(crate) fn create_request(number: u32) -> CreateSandboxRequest {
    CreateSandboxRequest {
        id: id(number),
        template: "base".to_owned(),
        ..Default::default()
    }
}

pub(crate) async fn create(client: &Client, number: u32) -> Sandbox {
    let created = client.create_sandbox(create_request(number)).await.unwrap();
    created.into_owned().sandbox.into_option().unwrap()
}

pub(crate) async fn get(client: &Client, number: u32) -> Result<Sandbox, ConnectError> {
    let request = GetSandboxRequest { id: id(number) };
    let got = client.get_sandbox(request).await?;
    Ok(got.into_owned().sandbox.into_option().unwrap())
}

pub(crate) async fn pause(client: &Client, number: u32) -> Result<(), ConnectError> {
    let request = PauseSandboxRequest { id: id(number) };
    client.pause_sandbox(request).await.map(drop)
}

pub(crate) async fn resume(client: &Client, number: u32) -> Result<Sandbox, ConnectError> {
    let request = ResumeSandboxRequest {
        id: id(number),
        ..Default::default()
    };
    let resumed = client.resume_sandbox(request).await?;
    Ok(resumed.into_owned().sandbox.into_option().unwrap())
}

pub(crate) async fn destroy(client: &Client, number: u32) -> Result<(), ConnectError> {
    let request = DestroySandboxRequest { id: id(number) };
    client.destroy_sandbox(request).await.map(drop)
}

pub(crate) async fn list(client: &Client) -> ListSandboxesResponse {
    let listed = client.list_sandboxes(ListSandboxesRequest::default());
    listed.await.unwrap().into_owned()
}

/// `sh -c SCRIPT`.
pub(crate) fn shell(script: &str) -> Command {
    Command {
        program: "/bin/sh".to_owned(),
        args: vec!["-c".to_owned(), script.to_owned()],
        ..Default::default()
    }
}

pub(crate) async fn exec(
    client: &Client,
    number: u32,
    script: &str,
) -> Result<ExecResponse, ConnectError> {
    let request = ExecRequest {
        id: id(number),
        command: shell(script).into(),
        ..Default::default()
    };
    Ok(client.exec(request).await?.into_owned())
}

/// What a script prints, without the line break at its end.
pub(crate) async fn output(client: &Client, number: u32, script: &str) -> String {
    let answer = exec(client, number, script).await.unwrap();
    let stdout = String::from_utf8(answer.stdout.to_vec()).unwrap();
    let code = answer.exit.code;
    assert_eq!(
        code,
        0,
        "{script}: {}",
        String::from_utf8_lossy(&answer.stderr)
    );
    stdout.trim_end().to_owned()
}

pub(crate) async fn write(client: &Client, number: u32, path: &str, data: &'static [u8]) {
    let request = WriteFileRequest {
        id: id(number),
        path: path.to_owned(),
        data: Bytes::from_static(data),
        ..Default::default()
    };
    client.write_file(request).await.unwrap();
}

pub(crate) async fn read(client: &Client, number: u32, path: &str) -> Result<Bytes, ConnectError> {
    let request = ReadFileRequest {
        id: id(number),
        path: path.to_owned(),
        ..Default::default()
    };
    Ok(client.read_file(request).await?.into_owned().data)
}

pub(crate) fn start(number: u32, command: Command) -> ExecStreamRequest {
    ExecStreamRequest {
        message: Some(exec_stream_request::Message::Start(Box::new(ExecStart {
            id: id(number),
            command: command.into(),
        }))),
    }
}

pub(crate) fn input(text: &str) -> ExecStreamRequest {
    ExecStreamRequest {
        message: Some(exec_stream_request::Message::Input(
            text.as_bytes().to_vec().into(),
        )),
    }
}

/// What a stream of events told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) started: Option<process_event::Event>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) terminal: Vec<u8>,
    pub(crate) exit: Option<ExitStatus>,
    pub(crate) keep_alives: usize,
}

impl Told {
    pub(crate) fn take(&mut self, event: ProcessEvent) {
        use process_event::Event;
        let offset = usize::try_from(event.offset).unwrap();
        match event.event.unwrap() {
            started @ Event::Started(_) => self.started = Some(started),
            Event::Stdout(bytes) => {
                assert_eq!(offset, self.stdout.len());
                self.stdout.extend_from_slice(&bytes);
            }
            Event::Stderr(bytes) => {
                assert_eq!(offset, self.stderr.len());
                self.stderr.extend_from_slice(&bytes);
            }
            Event::Terminal(bytes) => self.terminal.extend_from_slice(&bytes),
            Event::Exit(exit) => self.exit = Some(*exit),
            Event::KeepAlive(_) => self.keep_alives += 1,
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        match &self.started {
            Some(process_event::Event::Started(started)) => started.pid,
            _ => panic!("not started"),
        }
    }
}

pub(crate) fn assert_error(error: &ConnectError, code: ErrorCode, reason: Reason) {
    assert_eq!(error.code, code, "{error:?}");
    let info = reason::of(error).unwrap_or_else(|| panic!("{error:?} has no reason"));
    assert_eq!(info.reason.as_known(), Some(reason), "{error:?}");
}

/// Polls a condition.
pub(crate) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let happened = tokio::time::timeout(PATIENCE, wait).await;
    assert!(happened.is_ok(), "never happened: {what}");
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(')')
                .map(|(_, rest)| !rest.trim_start().starts_with('Z'))
        })
        .unwrap_or(false)
}
