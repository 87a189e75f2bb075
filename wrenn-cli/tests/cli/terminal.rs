//! A real terminal.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use nix::sys::termios::tcgetattr;
use nix::unistd::Pid;
use rustix::io::{FdFlags, fcntl_setfd};

use crate::wrenn::Wrenn;

/// A program at a terminal of its own.
pub(crate) struct AtTerminal {
    child: Child,
    terminal: File,
    shown: Vec<u8>,
}

impl AtTerminal {
    pub(crate) fn start(mut command: Command) -> Self {
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        // A program that had the other end itself would never see it closed.
        for end in [&pty.master, &pty.slave] {
            fcntl_setfd(end, FdFlags::CLOEXEC).unwrap();
        }
        let ours = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
        command
            .stdin(ours(&pty.slave))
            .stdout(ours(&pty.slave))
            .stderr(ours(&pty.slave));
        Self {
            child: command.spawn().unwrap(),
            terminal: File::from(pty.master),
            shown: Vec::new(),
        }
    }

    /// Reads until this is the last thing that is shown, or to the end. Keys before a prompt
    /// would be for the shell that started the program.
    pub(crate) fn read_until(&mut self, text: &str) {
        self.read_while(|shown| !shown.ends_with(text.as_bytes()) || text.is_empty());
    }

    /// Reads until this has been shown, or to the end.
    pub(crate) fn read_past(&mut self, text: &str) {
        self.read_while(|shown| !String::from_utf8_lossy(shown).contains(text));
    }

    fn read_while(&mut self, more: impl Fn(&[u8]) -> bool) {
        let mut buffer = [0; 4096];
        // The end of a terminal is an error.
        while more(&self.shown) {
            match self.terminal.read(&mut buffer) {
                Ok(count @ 1..) => self.shown.extend_from_slice(&buffer[..count]),
                _ => break,
            }
        }
    }

    pub(crate) fn type_keys(&mut self, keys: &str) {
        self.terminal.write_all(keys.as_bytes()).unwrap();
    }

    /// Closes the terminal, and gives how the program ends.
    pub(crate) fn close(mut self) -> ExitStatus {
        drop(self.terminal);
        self.child.wait().unwrap()
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// All that was shown, and the exit code as a shell has it.
    pub(crate) fn finish(mut self) -> (String, i32) {
        self.read_until("");
        let status = self.child.wait().unwrap();
        let code = status.code().or_else(|| Some(128 + status.signal()?));
        (
            String::from_utf8_lossy(&self.shown).into_owned(),
            code.unwrap(),
        )
    }
}

/// The same command in a session of its own, whose terminal makes a signal of Ctrl-C.
pub(crate) fn in_session(command: &Command) -> Command {
    let mut session = Command::new("setsid");
    session
        .arg("--ctty")
        .arg(command.get_program())
        .args(command.get_args())
        .current_dir(command.get_current_dir().unwrap())
        .env_clear();
    for (name, value) in command.get_envs() {
        session.env(name, value.unwrap());
    }
    session
}

/// Types lines at the first prompt, and gives all that is shown and the exit code.
async fn type_into(command: Command, lines: &'static str) -> (String, i32) {
    let typed = tokio::task::spawn_blocking(move || {
        let mut program = AtTerminal::start(command);
        if !lines.is_empty() {
            program.read_until("$ ");
            program.type_keys(lines);
        }
        program.finish()
    });
    typed.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupts_leave_when_server_is_gone() {
    let mut wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let command = wrenn.command(&["sandbox", "exec", "-it", "web", "--", "sh"]);
    let mut program = tokio::task::spawn_blocking(move || {
        let mut program = AtTerminal::start(command);
        program.read_until("$ ");
        program
    })
    .await
    .unwrap();
    wrenn.server.kill().await;
    let (shown, code) = tokio::task::spawn_blocking(move || {
        for _ in 0..6 {
            program.type_keys("\u{3}");
            std::thread::sleep(Duration::from_millis(100));
        }
        program.finish()
    })
    .await
    .unwrap();
    assert_eq!(code, 130, "{shown}");
    assert!(shown.contains("left the command"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_a_real_terminal() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let mut command = wrenn.command(&["sandbox", "exec", "-it", "web", "--", "sh"]);
    command.env("TERM", "vt100");
    let lines = "stty size; echo term=$TERM; test -t 0 && echo tty; exit 5\n";
    let (shown, code) = type_into(command, lines).await;
    assert!(shown.contains("\r\n30 100\r\n"), "{shown:?}");
    assert!(shown.contains("\r\nterm=vt100\r\ntty\r\n"), "{shown:?}");
    assert_eq!(code, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn shell_of_thrown_away_sandbox_takes_it_along() {
    let wrenn = Wrenn::start().await;
    let command = wrenn.command(&["sandbox", "create", "--rm", "-it"]);
    let (shown, code) = type_into(command, "echo in $((40 + 2)); exit 6\n").await;
    assert!(shown.contains("in 42\r\n"), "{shown:?}");
    assert_eq!(code, 6);
    assert_eq!(wrenn.ok(&["sandbox", "list", "-q"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn console_is_escaped_at_a_terminal() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let (shown, code) = type_into(wrenn.command(&["sandbox", "logs", "web"]), "").await;
    assert_eq!(code, 0, "{shown:?}");
    assert!(!shown.contains('\u{1b}'), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_list_shows_changes_until_interrupted() {
    let wrenn = Wrenn::start().await;
    wrenn.create("first").await;
    let command = in_session(&wrenn.command(&["sandbox", "list", "--watch"]));
    let mut program = AtTerminal::start(command);
    let before = tcgetattr(&program.terminal).unwrap();
    let mut program = tokio::task::spawn_blocking(move || {
        program.read_past("first");
        program
    })
    .await
    .unwrap();
    wrenn.create("second").await;
    let (shown, code) = tokio::task::spawn_blocking(move || {
        program.read_past("second");
        assert_eq!(tcgetattr(&program.terminal).unwrap(), before);
        program.type_keys("\u{3}");
        program.finish()
    })
    .await
    .unwrap();
    assert_eq!(code, 130, "{shown:?}");
    // Each table clears the screen; nothing else has to be put back.
    let clear = "\u{1b}[H\u{1b}[2J";
    assert!(shown.starts_with(clear), "{shown:?}");
    assert!(!shown.replace(clear, "").contains('\u{1b}'), "{shown:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn watched_list_ends_with_its_reader() {
    let wrenn = Wrenn::start().await;
    let mut command = wrenn.command(&["sandbox", "list", "--watch"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let stdout = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert!(line.starts_with("ID"), "{line}");
        stdout
    });
    drop(stdout.await.unwrap());
    wrenn.create("web").await;
    let ended = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap());
    let ended = ended.await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.is_empty(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_have_colours_unless_refused() {
    let wrenn = Wrenn::start().await;
    for (no_color, coloured) in [("", true), ("1", false)] {
        let mut command = wrenn.command(&["-vv", "sandbox", "list"]);
        command.env("NO_COLOR", no_color);
        let (shown, code) = type_into(command, "").await;
        assert_eq!(code, 0, "{shown:?}");
        assert!(shown.contains("DEBUG"), "{shown:?}");
        assert_eq!(shown.contains('\u{1b}'), coloured, "{shown:?}");
    }
}
