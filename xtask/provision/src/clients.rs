//! Runs a test suite of an existing client against the daemon of a real microVM.
//!
//! Such clients, in their debug mode, know one address only: port 49983 on their own
//! loopback. So the suite gets a network namespace of its own, in which that port is ours:
//!
//! ```text
//! suite ──▶ 127.0.0.1:49983 ─┊─▶ relay ──▶ [forwarded port ─▶ machine] ──▶ expose_port ──▶ microVM
//!      its own namespace     ┊  this host
//! ```

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, ExitCode};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncBufReadExt, BufReader, copy_bidirectional};
use tokio::net::TcpStream;
use tokio::process::{ChildStdin, ChildStdout};
use wrenn_core::guest::{Command, GuestProcess, ProcessEvent, ProcessInput};
use wrenn_machine::{Machine, MachineName, Status};

use crate::place::{self, Place};
use crate::report::Report;
use crate::{ClientsArgs, run};

/// The port on which the client looks for the daemon, and on which the daemon listens.
const DAEMON_PORT: u16 = 49983;
/// Where the microVM's daemon is exposed inside the machine, whose own has that port.
const EXPOSED_PORT: u16 = 49984;

pub(crate) async fn run(root: &Path, args: ClientsArgs) -> Result<ExitCode> {
    let exposed = match place::ready(root, &Arc::new(Report::default())).await? {
        Place::Host => Exposed::here(&args).await?,
        Place::Machine(machine) => Exposed::in_machine(&machine, &args).await?,
    };
    let (listener, mut suite) = start_alone(args.command).await?;
    let relay = tokio::spawn(relay(listener, exposed.address));
    let status = tokio::task::spawn_blocking(move || suite.wait())
        .await
        .context("the wait for the suite broke off")?
        .context("cannot wait for the suite")?;
    relay.abort();
    exposed.end().await?;
    let code = status
        .code()
        .and_then(|code| u8::try_from(code).ok())
        .unwrap_or(1);
    Ok(ExitCode::from(code))
}

/// A microVM whose daemon can be reached. It goes when its input closes.
struct Exposed {
    address: SocketAddr,
    program: Program,
}

/// The program that holds the microVM.
enum Program {
    Here {
        child: Box<tokio::process::Child>,
        stdin: ChildStdin,
    },
    InMachine {
        process: Box<GuestProcess>,
        input: Box<ProcessInput>,
    },
}

impl Exposed {
    #[allow(
        clippy::disallowed_methods,
        reason = "the program is an example of ours"
    )]
    async fn here(args: &ClientsArgs) -> Result<Self> {
        let mut child = tokio::process::Command::new(&args.expose)
            .args([
                args.template.as_str(),
                &DAEMON_PORT.to_string(),
                "127.0.0.1:0",
            ])
            .env("WRENN_VMM", &args.vmm)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", args.expose.display()))?;
        let (stdin, stdout) = child
            .stdin
            .take()
            .zip(child.stdout.take())
            .context("no pipes")?;
        let address = first_line(stdout).await?;
        Ok(Self {
            address,
            program: Program::Here {
                child: Box::new(child),
                stdin,
            },
        })
    }

    async fn in_machine(
        machine: &wrenn_machine::MachineClient,
        args: &ClientsArgs,
    ) -> Result<Self> {
        let program = run::push(machine, &args.expose).await?;
        let vmm = run::push(machine, &args.vmm).await?;
        let port = DAEMON_PORT.to_string();
        let command = Command::new(program)
            .args([
                args.template.clone(),
                port,
                format!("0.0.0.0:{EXPOSED_PORT}"),
            ])
            .env("WRENN_VMM", vmm)
            .with_stdin();
        let mut process = machine
            .start(command)
            .await
            .context("cannot start a microVM")?;
        let input = process.input();
        let mut said = Vec::new();
        while !said.contains(&b'\n') {
            match process.next().await.context("lost the microVM's program")? {
                ProcessEvent::Stdout(bytes) => said.extend_from_slice(&bytes),
                ProcessEvent::Stderr(bytes) => eprint!("{}", String::from_utf8_lossy(&bytes)),
                ProcessEvent::Pty(_) => {}
                ProcessEvent::Exit(status) => bail!("no microVM came up ({})", status.status),
            }
        }
        let Status::Running(running) = Machine::of_user(&MachineName::default())?.status()? else {
            bail!("the machine has ended");
        };
        let address = running
            .forward(EXPOSED_PORT)
            .await
            .context("cannot forward a port of the machine")?;
        Ok(Self {
            address,
            program: Program::InMachine {
                process: Box::new(process),
                input: Box::new(input),
            },
        })
    }

    /// Lets the microVM go, and waits until it is gone.
    async fn end(self) -> Result<()> {
        match self.program {
            Program::Here { mut child, stdin } => {
                drop(stdin);
                let status = child.wait().await.context("cannot wait for the microVM")?;
                if !status.success() {
                    bail!("the microVM's program failed ({status})");
                }
            }
            Program::InMachine { mut process, input } => {
                input.close().await.context("cannot end the microVM")?;
                loop {
                    match process.next().await.context("lost the microVM's program")? {
                        ProcessEvent::Stderr(bytes) => {
                            eprint!("{}", String::from_utf8_lossy(&bytes));
                        }
                        ProcessEvent::Exit(status) if status.shell_code() != 0 => {
                            bail!("the microVM's program failed ({})", status.status);
                        }
                        ProcessEvent::Exit(_) => break,
                        ProcessEvent::Stdout(_) | ProcessEvent::Pty(_) => {}
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reads the address that the program prints once it takes connections.
async fn first_line(stdout: ChildStdout) -> Result<SocketAddr> {
    let mut line = String::new();
    BufReader::new(stdout)
        .read_line(&mut line)
        .await
        .context("cannot read the address")?;
    line.trim()
        .parse()
        .with_context(|| format!("no microVM came up; its program said {line:?}"))
}

/// Starts the suite in a network namespace of its own, with a listener of ours in it.
///
/// A namespace belongs to a thread, so one is made for this. Sockets and children stay in
/// the namespace that they were made in.
async fn start_alone(command: Vec<std::ffi::OsString>) -> Result<(TcpListener, Child)> {
    let made = tokio::task::spawn_blocking(move || {
        let thread = std::thread::spawn(move || start_in_namespace(&command));
        thread.join()
    });
    match made.await.context("the start of the suite broke off")? {
        Ok(outcome) => outcome,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "starting the suite is what this is for"
)]
fn start_in_namespace(command: &[std::ffi::OsString]) -> Result<(TcpListener, Child)> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let up = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .status()
        .context("cannot start ip, of the package iproute2")?;
    if !up.success() {
        bail!("`ip link set lo up` failed ({up})");
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, DAEMON_PORT))
        .context("cannot listen in the suite's namespace")?;
    let (program, arguments) = command.split_first().context("which suite?")?;
    let suite = std::process::Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok((listener, suite))
}

/// Passes connections on for as long as it is let.
async fn relay(listener: TcpListener, to: SocketAddr) -> Result<()> {
    listener
        .set_nonblocking(true)
        .context("cannot listen without blocking")?;
    let listener =
        tokio::net::TcpListener::from_std(listener).context("cannot take the listener")?;
    loop {
        let (mut inside, _) = listener.accept().await.context("cannot accept")?;
        tokio::spawn(async move {
            let mut outside = TcpStream::connect(to).await?;
            copy_bidirectional(&mut inside, &mut outside).await
        });
    }
}
