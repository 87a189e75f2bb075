//! The agent beside a server: a child on this host, or a program in the machine.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep};
use wrenn_core::vm::VmmBinary;
use wrenn_images::progress::{Event, Progress as _};
use wrenn_machine::{DetachedProgram, Machine, MachineClient, MachineConfig, MachineName};
use wrenn_proto::connectrpc::client::{ClientConfig, HttpClient};
use wrenn_proto::hostagent::{GetHostRequest, HostAgentClient};
use wrenn_server::{HostEndpoint, ServerHandle};

use super::Args;
use super::state::DataDirectory;
use crate::GlobalArgs;
use crate::commands::machine;
use crate::progress::Steps;

/// How long an agent may take until it serves: it adopts what runs first.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// The same in the machine, where everything may be emulated.
const MACHINE_START_TIMEOUT: Duration = Duration::from_secs(600);
/// How long it may take to end. Pauses that are under way are finished.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);
const POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How often an agent in the machine is looked for.
const SUPERVISE_INTERVAL: Duration = Duration::from_secs(10);
/// How often in a row the machine may not answer before it counts as ended.
const MAX_FAILURES: u32 = 3;
const RESTART_DELAY: Duration = Duration::from_secs(1);
const NAME_IN_MACHINE: &str = "wrenn-agent";
const PORT_IN_MACHINE: u16 = 7410;
const LOG_IN_MACHINE: &str = "/var/lib/wrenn/agent.log";
const TOKEN_IN_MACHINE: &str = "/var/lib/wrenn/agent-token";

/// Where sandboxes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Here,
    Machine,
}

/// An agent that serves.
pub(super) struct Agent {
    endpoint: HostEndpoint,
    site: Site,
}

enum Site {
    Here(Box<HereAgent>),
    Machine(Box<MachineAgent>),
}

impl Agent {
    /// Starts an agent, or finds the one that a killed `wrenn up` left, and waits until it
    /// serves.
    pub(super) async fn start(
        global: &GlobalArgs,
        args: &Args,
        directory: &DataDirectory,
    ) -> anyhow::Result<Self> {
        if args.here || machine::host_can_run_sandboxes(global).await? {
            let agent = HereAgent::new(global, args, directory)?;
            return agent.start().await;
        }
        MachineAgent::start(args).await
    }

    pub(super) fn endpoint(&self) -> &HostEndpoint {
        &self.endpoint
    }

    pub(super) fn place(&self) -> Place {
        match self.site {
            Site::Here(_) => Place::Here,
            Site::Machine(_) => Place::Machine,
        }
    }

    /// Starts the agent again whenever it has ended, and the machine where it has. Never
    /// returns.
    pub(super) async fn supervise(&mut self, args: &Args, server: &ServerHandle) {
        loop {
            let ended = match &mut self.site {
                Site::Here(agent) => agent.ended(&self.endpoint).await,
                Site::Machine(agent) => agent.ended().await,
            };
            tracing::warn!(reason = %ended, "the agent has ended; starting it again");
            sleep(RESTART_DELAY).await;
            let restarted = match &mut self.site {
                Site::Here(agent) => agent.spawn(),
                Site::Machine(_) => self.start_in_machine_again(args, server).await,
            };
            if let Err(error) = restarted {
                tracing::error!(error = format!("{error:#}"), "failed to start the agent");
            }
        }
    }

    /// The machine may have another port than before.
    async fn start_in_machine_again(
        &mut self,
        args: &Args,
        server: &ServerHandle,
    ) -> anyhow::Result<()> {
        *self = MachineAgent::start(args).await?;
        Ok(server.replace_host(&self.endpoint).await?)
    }

    /// Ends the agent. Its sandboxes go on.
    pub(super) async fn stop(self) -> anyhow::Result<()> {
        match self.site {
            Site::Here(agent) => agent.stop().await,
            Site::Machine(_) => stop_in_machine().await.map(drop),
        }
    }
}

/// Waits until the agent at an address answers with our token.
async fn until_serving(
    endpoint: &HostEndpoint,
    limit: Duration,
    mut ended: impl AsyncFnMut() -> Option<String>,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        let Err(error) = ask(endpoint).await else {
            return Ok(());
        };
        if let Some(reason) = ended().await {
            bail!("the agent ended before it served: {reason}");
        }
        if begun.elapsed() > limit {
            return Err(error)
                .with_context(|| format!("the agent at {} does not answer", endpoint.url));
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// Asks the agent what it is, which shows that it serves and takes our token.
async fn ask(endpoint: &HostEndpoint) -> anyhow::Result<()> {
    let url = endpoint
        .url
        .parse()
        .context("the agent's address is no URL")?;
    let config = ClientConfig::new(url)
        .proto()
        .with_default_timeout(Duration::from_secs(5))
        .with_default_header(
            "authorization",
            format!("Bearer {}", endpoint.token)
                .parse::<http::HeaderValue>()
                .context("the agent's token cannot be sent")?,
        );
    let client = HostAgentClient::new(HttpClient::plaintext_http2_only(), config);
    client.get_host(GetHostRequest::default()).await?;
    Ok(())
}

/// An agent on this host.
struct HereAgent {
    program: PathBuf,
    root: PathBuf,
    listen: String,
    vmm: Option<PathBuf>,
    log: PathBuf,
    process: Process,
}

enum Process {
    None,
    Child(Child),
    /// One that was not started by this process.
    Adopted(Pid),
}

impl HereAgent {
    fn new(global: &GlobalArgs, args: &Args, directory: &DataDirectory) -> anyhow::Result<Self> {
        let this = std::env::current_exe().context("cannot find this program")?;
        let program = this.with_file_name("wrenn-agent");
        if !program.is_file() {
            bail!(
                "there is no {}; build the whole workspace, or install all its programs",
                program.display()
            );
        }
        Ok(Self {
            program,
            root: global.root.clone(),
            listen: args.agent_listen.to_string(),
            vmm: args.vmm.clone(),
            log: directory.agent_log(),
            process: Process::None,
        })
    }

    async fn start(mut self) -> anyhow::Result<Agent> {
        let steps = Steps::new();
        let begun = std::time::Instant::now();
        let step = "starting the agent";
        steps.report(Event::Started { step });
        let started = self.spawn_or_adopt().await;
        steps.report(match &started {
            Ok(_) => Event::Finished {
                step,
                elapsed: begun.elapsed(),
            },
            Err(_) => Event::Failed { step },
        });
        let endpoint = started?;
        Ok(Agent {
            endpoint,
            site: Site::Here(Box::new(self)),
        })
    }

    async fn spawn_or_adopt(&mut self) -> anyhow::Result<HostEndpoint> {
        let running = self.endpoint().ok();
        let adopted = match &running {
            Some(endpoint) => ask(endpoint).await.is_ok(),
            None => false,
        };
        if let (Some(endpoint), true) = (running, adopted) {
            if let Some(pid) = self.running_pid() {
                self.process = Process::Adopted(pid);
            }
            return Ok(endpoint);
        }
        self.spawn()?;
        // It makes its token before it serves.
        let begun = Instant::now();
        let endpoint = loop {
            if let Ok(endpoint) = self.endpoint() {
                break endpoint;
            }
            if let Some(reason) = self.child_status() {
                bail!("the agent ended before it served: {reason}");
            }
            if begun.elapsed() > START_TIMEOUT {
                bail!("the agent made no token; see {}", self.log.display());
            }
            sleep(POLL_INTERVAL).await;
        };
        until_serving(&endpoint, START_TIMEOUT, async || self.child_status()).await?;
        Ok(endpoint)
    }

    fn endpoint(&self) -> anyhow::Result<HostEndpoint> {
        let path = self.root.join("agent-token");
        let token = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok(HostEndpoint {
            name: "local".to_owned(),
            url: format!("http://{}", self.listen),
            token: token.trim().to_owned(),
        })
    }

    /// The agent that has the root directory, as its lock file says.
    fn running_pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.root.join("agent.lock")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    fn spawn(&mut self) -> anyhow::Result<()> {
        let opened = File::options().create(true).append(true).open(&self.log);
        let log = opened.with_context(|| format!("cannot write {}", self.log.display()))?;
        let mut command = std::process::Command::new(&self.program);
        command
            .arg("--root")
            .arg(&self.root)
            .args(["--listen", &self.listen])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // Ctrl-C is for us; the agent is asked to end once the server has.
            .process_group(0);
        if let Some(vmm) = &self.vmm {
            command.arg("--vmm").arg(vmm);
        }
        let child = Command::from(command)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        self.process = Process::Child(child);
        Ok(())
    }

    /// How a child ended, with the last lines of its log; none while it runs.
    fn child_status(&mut self) -> Option<String> {
        let Process::Child(child) = &mut self.process else {
            return None;
        };
        let status = child.try_wait().ok()??;
        Some(format!("{status}{}", last_lines(&self.log)))
    }

    /// Returns when the agent has ended.
    async fn ended(&mut self, endpoint: &HostEndpoint) -> String {
        match &mut self.process {
            Process::Child(child) => match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            },
            Process::Adopted(pid) => {
                while test_kill_process(*pid).is_ok() {
                    sleep(RESTART_DELAY).await;
                }
                "it ended".to_owned()
            }
            Process::None => {
                while ask(endpoint).await.is_ok() {
                    sleep(SUPERVISE_INTERVAL).await;
                }
                "it does not answer".to_owned()
            }
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let pid = match &self.process {
            Process::Child(child) => child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())),
            Process::Adopted(pid) => Some(*pid),
            Process::None => None,
        };
        let Some(pid) = pid else {
            return Ok(());
        };
        terminate(pid)?;
        let ending = async {
            match &mut self.process {
                Process::Child(child) => {
                    child.wait().await.ok();
                }
                _ => {
                    while test_kill_process(pid).is_ok() {
                        sleep(POLL_INTERVAL).await;
                    }
                }
            }
        };
        tokio::time::timeout(STOP_TIMEOUT, ending)
            .await
            .map_err(|_| anyhow!("the agent (process {}) does not end", pid.as_raw_nonzero()))
    }
}

fn terminate(pid: Pid) -> anyhow::Result<()> {
    match kill_process(pid, Signal::TERM) {
        // It has ended already.
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("cannot end the agent"),
    }
}

/// The end of a log, for an error message.
fn last_lines(log: &Path) -> String {
    const LINES: usize = 5;
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(LINES).collect();
    lines
        .iter()
        .rev()
        .fold(String::new(), |all, line| format!("{all}\n  {line}"))
}

/// Ends the agent of a root directory on this host, if one runs. Used where the `wrenn up`
/// that started it was killed.
pub(crate) async fn stop_left_behind(root: &Path) -> anyhow::Result<bool> {
    let text = std::fs::read_to_string(root.join("agent.lock")).unwrap_or_default();
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|pid| is_agent(*pid)) else {
        return Ok(false);
    };
    terminate(pid)?;
    let begun = Instant::now();
    while test_kill_process(pid).is_ok() {
        if begun.elapsed() > STOP_TIMEOUT {
            bail!("the agent (process {}) does not end", pid.as_raw_nonzero());
        }
        sleep(POLL_INTERVAL).await;
    }
    Ok(true)
}

/// A process id is reused at some time: the name of its program tells a stranger.
fn is_agent(pid: Pid) -> bool {
    let comm = format!("/proc/{}/comm", pid.as_raw_nonzero());
    std::fs::read_to_string(comm).is_ok_and(|name| name.trim() == "wrenn-agent")
}

/// An agent in the machine.
struct MachineAgent {
    client: MachineClient,
}

impl MachineAgent {
    async fn start(args: &Args) -> anyhow::Result<Agent> {
        let machine = Machine::of_user(&MachineName::default())?;
        let config = MachineConfig {
            network: Some(args.machine_network),
            ..MachineConfig::default()
        };
        let running = machine::start(&machine, &config).await?;
        let client = running.client()?;
        let steps = Steps::new();
        let begun = std::time::Instant::now();
        let step = "starting the agent in the machine";
        steps.report(Event::Started { step });
        let started = async {
            let token = token_in_machine(&client).await?;
            let (program, changed) = bring(&client, args).await?;
            if changed {
                client.stop_detached(NAME_IN_MACHINE, STOP_TIMEOUT).await?;
            }
            client.start_detached(&program).await?;
            let address = running.forward(PORT_IN_MACHINE).await?;
            let endpoint = HostEndpoint {
                name: "machine".to_owned(),
                url: format!("http://{address}"),
                token,
            };
            let asked = client.clone();
            until_serving(&endpoint, MACHINE_START_TIMEOUT, async || {
                match asked.detached_pid(NAME_IN_MACHINE).await {
                    Ok(None) => Some(log_in_machine(&asked).await),
                    _ => None,
                }
            })
            .await?;
            anyhow::Ok(Agent {
                endpoint,
                site: Site::Machine(Box::new(Self {
                    client: client.clone(),
                })),
            })
        }
        .await;
        steps.report(match &started {
            Ok(_) => Event::Finished {
                step,
                elapsed: begun.elapsed(),
            },
            Err(_) => Event::Failed { step },
        });
        started
    }

    /// Returns when the agent has ended, or the machine has.
    async fn ended(&self) -> String {
        let mut failures = 0;
        loop {
            sleep(SUPERVISE_INTERVAL).await;
            match self.client.detached_pid(NAME_IN_MACHINE).await {
                Ok(Some(_)) => failures = 0,
                Ok(None) => return "it ended".to_owned(),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(%error, failures, "failed to look for the agent in the machine");
                    if failures == MAX_FAILURES {
                        return "the machine does not answer".to_owned();
                    }
                }
            }
        }
    }
}

/// The token of the agent in the machine, which is made once and kept there: an agent that
/// runs already has it.
async fn token_in_machine(client: &MachineClient) -> anyhow::Result<String> {
    if let Ok(token) = client.guest().read_file(TOKEN_IN_MACHINE).await {
        let token = String::from_utf8_lossy(&token).trim().to_owned();
        if !token.is_empty() {
            return Ok(token);
        }
    }
    let token = super::state::random_token()?;
    client
        .write_file(TOKEN_IN_MACHINE, token.clone(), 0o600)
        .await
        .context("cannot write the agent's token in the machine")?;
    Ok(token)
}

async fn log_in_machine(client: &MachineClient) -> String {
    const SHOWN: usize = 1000;
    match client.guest().read_file(LOG_IN_MACHINE).await {
        Ok(log) => {
            let text = String::from_utf8_lossy(&log);
            let end: Vec<char> = text.chars().rev().take(SHOWN).collect();
            end.into_iter().rev().collect()
        }
        Err(error) => format!("its log cannot be read: {error}"),
    }
}

/// Brings the programs into the machine. Says whether any of them changed.
async fn bring(client: &MachineClient, args: &Args) -> anyhow::Result<(DetachedProgram, bool)> {
    let this = std::env::current_exe().context("cannot find this program")?;
    let mut changed = false;
    let mut bring = async |local: &Path, folder: &str| {
        let name = local.file_name().and_then(|name| name.to_str());
        let name = name.with_context(|| format!("{} is no program", local.display()))?;
        let remote = format!("{folder}/{name}");
        changed |= client
            .push_program(local, &remote, 0o755)
            .await
            .with_context(|| format!("cannot bring {} into the machine", local.display()))?;
        anyhow::Ok(remote)
    };
    let agent = this.with_file_name("wrenn-agent");
    let program = bring(&agent, machine::PROGRAMS_INSIDE).await?;
    bring(
        &this.with_file_name("wrenn-pager"),
        machine::PROGRAMS_INSIDE,
    )
    .await?;
    let vmm = match &args.vmm {
        Some(named) => {
            let named = VmmBinary::find(Some(named), None)?;
            bring(named.path(), machine::VMMS_INSIDE).await?
        }
        None => bring(&this.with_file_name("wrenn-vmm"), machine::PROGRAMS_INSIDE).await?,
    };
    let program = DetachedProgram::new(NAME_IN_MACHINE, program, LOG_IN_MACHINE).args([
        "--listen",
        &format!("0.0.0.0:{PORT_IN_MACHINE}"),
        "--token-file",
        TOKEN_IN_MACHINE,
        // Guests are emulated where the machine is.
        "--boot-deadline",
        "5m",
        "--vmm",
        &vmm,
    ]);
    Ok((program, changed))
}

/// Ends the agent in the machine, if one runs there.
pub(crate) async fn stop_in_machine() -> anyhow::Result<bool> {
    let machine = Machine::of_user(&MachineName::default())?;
    let wrenn_machine::Status::Running(running) = machine.status()? else {
        return Ok(false);
    };
    let stopped = running
        .client()?
        .stop_detached(NAME_IN_MACHINE, STOP_TIMEOUT)
        .await
        .context("cannot end the agent in the machine")?;
    Ok(stopped)
}
