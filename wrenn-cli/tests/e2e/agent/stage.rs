//! An agent for each test, and nothing of its sandboxes left afterwards.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use futures::FutureExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_core::SandboxId;
use wrenn_proto::connectrpc::client::{BidiSendHalf, ClientConfig, HttpClient};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::__buffa::oneof::process_event::Event;
use wrenn_proto::hostagent::{
    Command as GuestCommand, CreateSandboxRequest, DeleteSnapshotRequest, DestroySandboxRequest,
    ExecRequest, ExecResponse, ExecStart, ExecStreamRequest, HostAgentClient, ListSandboxesRequest,
    ListSnapshotsRequest, Resources, Sandbox,
};

use crate::stage::{self, MINIMAL, until};

/// The option that bounds boots and resumes.
pub(crate) const BOOT_DEADLINE: &str = "--boot-deadline";

/// Runs one test with an agent of its own. Whatever becomes of it, its sandboxes are gone
/// afterwards, and the agent has logged no error.
pub(crate) fn enter<F: Future<Output = ()>>(test: impl FnOnce(Arc<TestAgent>) -> F) {
    enter_with(&[], test);
}

/// The same, with options.
pub(crate) fn enter_with<F: Future<Output = ()>>(
    options: &[&str],
    test: impl FnOnce(Arc<TestAgent>) -> F,
) {
    run(stage::root().path(), options, None, test);
}

/// The same, where errors with these words may be logged.
pub(crate) fn enter_tolerating<F: Future<Output = ()>>(
    words: &str,
    test: impl FnOnce(Arc<TestAgent>) -> F,
) {
    run(stage::root().path(), &[], Some(words), test);
}

/// The same, with options and another root directory.
pub(crate) fn enter_at<F: Future<Output = ()>>(
    root: &Path,
    options: &[&str],
    test: impl FnOnce(Arc<TestAgent>) -> F,
) {
    run(root, options, None, test);
}

fn run<F: Future<Output = ()>>(
    root: &Path,
    options: &[&str],
    tolerated: Option<&str>,
    test: impl FnOnce(Arc<TestAgent>) -> F,
) {
    let options: Vec<String> = options.iter().map(ToString::to_string).collect();
    stage::enter(|host| async move {
        let agent = Arc::new(TestAgent::new(root.to_owned(), options));
        let outcome = AssertUnwindSafe(async {
            agent.start().await;
            test(Arc::clone(&agent)).await;
        })
        .catch_unwind()
        .await;
        agent.destroy_all().await;
        agent.end(Signal::SIGTERM).await;
        stage::destroy_orphans(&host).await;
        let log = agent.log();
        if let Err(panic) = outcome {
            eprintln!("the agent's log:\n{log}");
            resume_unwind(panic);
        }
        let errors: Vec<_> = log
            .lines()
            .filter(|line| line.contains(" ERROR "))
            .filter(|line| tolerated.is_none_or(|words| !line.contains(words)))
            .collect();
        assert!(errors.is_empty(), "{errors:#?}");
    });
}

/// The program under test.
pub(crate) struct TestAgent {
    root: PathBuf,
    options: Vec<String>,
    directory: tempfile::TempDir,
    running: std::sync::Mutex<Option<(Child, SocketAddr)>>,
}

impl TestAgent {
    fn new(root: PathBuf, options: Vec<String>) -> Self {
        Self {
            root,
            options,
            directory: tempfile::tempdir().unwrap(),
            running: std::sync::Mutex::new(None),
        }
    }

    /// Starts the agent, on a port of its own, and waits until it serves.
    pub(crate) async fn start(&self) {
        self.start_to_crash(None).await;
    }

    /// Starts an agent that ends itself at a named point, if one is given.
    pub(crate) async fn start_to_crash(&self, point: Option<&str>) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let before = self.log().matches("the agent serves").count();
        let program = std::env::var_os("WRENN_E2E_AGENT").expect("WRENN_E2E_AGENT is the agent");
        let mut command = Command::new(program);
        command.arg("--root").arg(&self.root);
        command.args(["--listen", "127.0.0.1:0"]);
        if !self.options.iter().any(|option| option == BOOT_DEADLINE) {
            command.args([BOOT_DEADLINE, "3m"]);
        }
        if let Some(pager) = stage::pager() {
            command.arg("--pager").arg(pager);
        }
        if let Some(vmm) = stage::vmm() {
            command.arg("--vmm").arg(vmm);
        }
        command.env_remove("WRENN_CRASH_AT");
        command.envs(point.map(|point| ("WRENN_CRASH_AT", point)));
        let mut child = command
            .args(&self.options)
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        until("the agent serves", || async {
            self.log().matches("the agent serves").count() > before || ended(child.id())
        })
        .await;
        let log = self.log();
        let line = log
            .lines()
            .rfind(|line| line.contains("the agent serves"))
            .unwrap_or_else(|| panic!("the agent did not start:\n{log}"));
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the agent ended with {status}:\n{log}");
        }
        let word = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("address="));
        let address = word.unwrap().parse().unwrap();
        *self.running.lock().unwrap() = Some((child, address));
    }

    /// Ends the agent by a signal, if it runs, and waits for its end.
    pub(crate) async fn end(&self, signal: Signal) {
        let Some((mut child, _)) = self.running.lock().unwrap().take() else {
            return;
        };
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let pid = child.id();
        until("the agent has ended", || async { ended(pid) }).await;
        child.wait().unwrap();
    }

    /// Destroys what the test left, if the agent runs. What it cannot destroy is left to
    /// whoever takes it over.
    async fn destroy_all(&self) {
        if self.running.lock().unwrap().is_none() {
            return;
        }
        let client = self.client();
        let listed = client.list_sandboxes(ListSandboxesRequest::default()).await;
        for sandbox in listed.map_or(Vec::new(), |listed| listed.into_owned().sandboxes) {
            let request = DestroySandboxRequest { id: sandbox.id };
            if let Err(error) = client.destroy_sandbox(request).await {
                eprintln!("not destroyed: {error}");
            }
        }
        let listed = client.list_snapshots(ListSnapshotsRequest::default()).await;
        for snapshot in listed.map_or(Vec::new(), |listed| listed.into_owned().snapshots) {
            let request = DeleteSnapshotRequest {
                name: snapshot.name,
            };
            if let Err(error) = client.delete_snapshot(request).await {
                eprintln!("not deleted: {error}");
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.running.lock().unwrap().as_ref().unwrap().0.id()
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.lock().unwrap().as_ref().unwrap().1
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Where the agent keeps what its callers present.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.root.join("agent-token")
    }

    fn client_of(&self, address: SocketAddr) -> HostAgentClient<HttpClient> {
        let url = format!("http://{address}").parse().unwrap();
        let token = std::fs::read_to_string(self.token_file()).unwrap();
        let config = ClientConfig::new(url)
            .with_default_max_message_size(32 << 20)
            .with_default_header("authorization", format!("Bearer {}", token.trim()));
        HostAgentClient::new(HttpClient::plaintext_http2_only(), config)
    }

    pub(crate) fn client(&self) -> HostAgentClient<HttpClient> {
        self.client_of(self.address())
    }

    /// A client of an agent that may be dead at this moment.
    pub(crate) fn client_if_running(&self) -> Option<HostAgentClient<HttpClient>> {
        let running = self.running.lock().unwrap();
        running
            .as_ref()
            .map(|(_, address)| self.client_of(*address))
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn log_path(&self) -> PathBuf {
        self.directory.path().join("agent.log")
    }

    /// A small sandbox.
    pub(crate) async fn create(&self) -> Sandbox {
        let answer = self.client().create_sandbox(small()).await.unwrap();
        answer.into_owned().sandbox.into_option().unwrap()
    }

    /// Runs a line of shell as root to its end.
    pub(crate) async fn shell(&self, id: &str, line: &str) -> String {
        let answer = self.exec(id, line).await.unwrap();
        let exit = answer.exit.as_option().unwrap();
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(exit.code, 0, "{line}: {stderr}");
        String::from_utf8(answer.stdout.to_vec())
            .unwrap()
            .trim()
            .to_owned()
    }

    pub(crate) async fn exec(&self, id: &str, line: &str) -> Result<ExecResponse, ConnectError> {
        let request = ExecRequest {
            id: id.to_owned(),
            command: Some(sh(line)).into(),
            ..ExecRequest::default()
        };
        Ok(self.client().exec(request).await?.into_owned())
    }
}

/// Whether a process has ended, reaped or not.
pub(crate) fn ended(pid: u32) -> bool {
    match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat
            .rsplit(')')
            .next()
            .unwrap()
            .trim_start()
            .starts_with('Z'),
        Err(_) => true,
    }
}

/// The request for a small sandbox with a new id.
pub(crate) fn small() -> CreateSandboxRequest {
    CreateSandboxRequest {
        id: SandboxId::random().to_string(),
        template: MINIMAL.to_owned(),
        resources: Some(Resources {
            vcpus: 1,
            memory_mib: 128,
        })
        .into(),
        ..CreateSandboxRequest::default()
    }
}

/// A line for the guest's shell, as root.
pub(crate) fn sh(line: &str) -> GuestCommand {
    GuestCommand {
        program: "sh".to_owned(),
        args: vec!["-c".to_owned(), line.to_owned()],
        user: "root".to_owned(),
        ..GuestCommand::default()
    }
}

/// Asserts that a call was refused, with this code and these words.
pub(crate) fn refused<T>(result: Result<T, ConnectError>, code: ErrorCode, words: &str) {
    let error = match result {
        Ok(_) => panic!("it is answered, and not refused with '{words}'"),
        Err(error) => error,
    };
    let message = error.message.clone().unwrap_or_default();
    assert_eq!(error.code, code, "{message}");
    assert!(message.contains(words), "{message}");
}

/// A command that is followed.
pub(crate) struct Followed {
    pub(crate) up: BidiSendHalf<ExecStreamRequest>,
    pub(crate) down: futures::stream::BoxStream<'static, Result<Event, ConnectError>>,
    pub(crate) pid: u32,
}

impl Followed {
    pub(crate) async fn start(agent: &TestAgent, id: &str, command: GuestCommand) -> Self {
        let (mut up, receive) = agent.client().exec_stream().await.unwrap().into_split();
        let start = ExecStart {
            id: id.to_owned(),
            command: Some(command).into(),
        };
        let message = Some(start.into());
        up.send(ExecStreamRequest { message }).await.unwrap();
        let mut down = events(receive);
        let pid = started(&mut down).await;
        Self { up, down, pid }
    }

    pub(crate) async fn input(&mut self, bytes: impl Into<bytes::Bytes>) {
        use wrenn_proto::hostagent::__buffa::oneof::exec_stream_request::Message;
        let message = Some(Message::Input(bytes.into()));
        self.up.send(ExecStreamRequest { message }).await.unwrap();
    }

    /// Reads output until it contains `wanted`.
    pub(crate) async fn read_until(&mut self, wanted: &str) -> String {
        read_until(&mut self.down, wanted).await
    }
}

/// Turns the receiving half of a stream of events into a plain stream.
macro_rules! plain_events {
    ($receive:expr) => {
        futures::StreamExt::boxed(futures::stream::try_unfold(
            $receive,
            |mut receive| async move {
                let message = receive.message().await?;
                Ok(message.and_then(|message| Some((message.to_owned_message().event?, receive))))
            },
        ))
    };
}
pub(crate) use plain_events;

type Events = futures::stream::BoxStream<'static, Result<Event, ConnectError>>;

fn events(
    receive: wrenn_proto::connectrpc::client::BidiRecvHalf<
        <HttpClient as wrenn_proto::connectrpc::client::ClientTransport>::ResponseBody,
        wrenn_proto::hostagent::__buffa::view::ProcessEventView<'static>,
    >,
) -> Events {
    plain_events!(receive)
}

pub(crate) async fn started(down: &mut Events) -> u32 {
    match next(down).await.unwrap() {
        Event::Started(started) => started.pid,
        other => panic!("{other:?} came first"),
    }
}

/// The next event that is no keep-alive.
pub(crate) async fn next(down: &mut Events) -> Result<Event, ConnectError> {
    use futures::StreamExt as _;
    loop {
        match down.next().await.expect("the stream goes on") {
            Ok(Event::KeepAlive(_)) => {}
            event => return event,
        }
    }
}

pub(crate) async fn read_until(down: &mut Events, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match next(down).await.unwrap() {
            Event::Stdout(bytes) | Event::Terminal(bytes) => {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            // What a shell says of a child that a signal ended: it may come first.
            Event::Stderr(_) => {}
            other => panic!("{other:?} instead of '{wanted}' after '{seen}'"),
        }
    }
    seen
}

/// Reads to the end: standard output, standard error, and the one exit event.
pub(crate) async fn read_all(
    down: &mut Events,
) -> (Vec<u8>, Vec<u8>, wrenn_proto::hostagent::ExitStatus) {
    use futures::StreamExt as _;
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match next(down).await.unwrap() {
            Event::Stdout(bytes) | Event::Terminal(bytes) => stdout.extend_from_slice(&bytes),
            Event::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            Event::Exit(exit) => {
                assert!(down.next().await.is_none(), "something follows the exit");
                return (stdout, stderr, *exit);
            }
            other => panic!("{other:?} in the middle"),
        }
    }
}
