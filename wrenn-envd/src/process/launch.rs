//! Starts a process: who, where, with what, connected to what.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio as Redirect};

use super::hub::Channel;
use super::pump::Pump;
use super::stdio::{Stdio, Terminal, TerminalSize};
use crate::guest::Settings;
use crate::paths;
use crate::sys::child::{ChildSetup, Credentials, spawn};
use crate::users::User;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Order {
    pub command: String,
    pub arguments: Vec<String>,
    pub env: HashMap<String, String>,
    pub directory: Option<String>,
    pub tag: Option<String>,
    /// Whether the process gets an input that can be written to.
    pub stdin: bool,
    pub terminal: Option<TerminalSize>,
    /// Whether it is terminated when its last follower has left for good.
    pub terminate_on_disconnect: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("no command was given")]
    NoCommand,
    #[error("cwd '{path}' does not exist or is not a directory")]
    Directory { path: PathBuf },
    #[error("the daemon is not root and can't start a process as user '{user}'")]
    NotRoot { user: String },
    #[error("cannot make a terminal")]
    Terminal(#[source] io::Error),
    #[error("cannot make a pipe")]
    Pipe(#[source] io::Error),
    #[error("cannot start '{command}': {source}")]
    Spawn { command: String, source: io::Error },
}

/// A process that was started, and our ends of what it is connected to.
pub(super) struct Launched {
    pub(super) child: Child,
    pub(super) input: Input,
    pub(super) outputs: Vec<Pump>,
}

/// Where input goes.
pub(super) enum Input {
    None,
    Pipe(Stdio),
    /// The terminal's master, a second descriptor of it.
    Terminal(Stdio),
}

pub(super) fn launch(
    order: &Order,
    user: &User,
    settings: &Settings,
) -> Result<Launched, LaunchError> {
    if order.command.is_empty() {
        return Err(LaunchError::NoCommand);
    }
    let directory = working_directory(order, user, settings)?;
    let mut command = Command::new(&order.command);
    command
        .args(&order.arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", DEFAULT_PATH)
        .env("HOME", &user.home)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name)
        .env("SHELL", &user.shell)
        .envs(&settings.env)
        .envs(&order.env);
    let setup = ChildSetup {
        credentials: credentials(user)?,
        controlling_terminal: order.terminal.is_some(),
    };

    let (input, outputs) = match order.terminal {
        Some(size) => connect_terminal(&mut command, size).map_err(LaunchError::Terminal)?,
        None => connect_pipes(&mut command, order.stdin).map_err(LaunchError::Pipe)?,
    };
    // The command holds the process's ends; they must close here for us to see the end.
    let child = spawn(command, setup).map_err(|source| LaunchError::Spawn {
        command: order.command.clone(),
        source,
    })?;
    Ok(Launched {
        child,
        input,
        outputs,
    })
}

fn working_directory(
    order: &Order,
    user: &User,
    settings: &Settings,
) -> Result<PathBuf, LaunchError> {
    let asked = order.directory.as_deref().filter(|path| !path.is_empty());
    if let Some(path) = asked.or(settings.default_workdir.as_deref()) {
        let path = paths::resolve(path, user);
        return if path.is_dir() {
            Ok(path)
        } else {
            Err(LaunchError::Directory { path })
        };
    }
    // A user without a home still gets a process.
    Ok(if user.home.is_dir() {
        user.home.clone()
    } else {
        Path::new("/").to_owned()
    })
}

fn credentials(user: &User) -> Result<Option<Credentials>, LaunchError> {
    let ours = rustix::process::geteuid();
    if ours.is_root() {
        return Ok(Some(Credentials {
            uid: user.uid,
            gid: user.gid,
            groups: user.groups.clone(),
        }));
    }
    if ours.as_raw() == user.uid {
        return Ok(None);
    }
    Err(LaunchError::NotRoot {
        user: user.name.clone(),
    })
}

fn connect_terminal(command: &mut Command, size: TerminalSize) -> io::Result<(Input, Vec<Pump>)> {
    let Terminal { master, slave } = Terminal::open(size)?;
    command
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave);
    let input = Input::Terminal(Stdio::new(master.try_clone()?)?);
    Ok((
        input,
        vec![Pump {
            source: Stdio::new(master)?,
            channel: Channel::Pty,
        }],
    ))
}

fn connect_pipes(command: &mut Command, stdin: bool) -> io::Result<(Input, Vec<Pump>)> {
    let input = if stdin {
        let (reader, writer) = io::pipe()?;
        command.stdin(reader);
        Input::Pipe(Stdio::new(writer)?)
    } else {
        command.stdin(Redirect::null());
        Input::None
    };
    let (stdout, stdout_writer) = io::pipe()?;
    let (stderr, stderr_writer) = io::pipe()?;
    command.stdout(stdout_writer).stderr(stderr_writer);
    let outputs = vec![
        Pump {
            source: Stdio::new(stdout)?,
            channel: Channel::Stdout,
        },
        Pump {
            source: Stdio::new(stderr)?,
            channel: Channel::Stderr,
        },
    ];
    Ok((input, outputs))
}
