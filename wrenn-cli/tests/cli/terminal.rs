//! A real terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};

use crate::wrenn::Wrenn;

/// Types lines into a program at a terminal, and gives all that it shows and its exit code.
async fn type_into(mut command: std::process::Command, lines: &'static str) -> (String, i32) {
    let typed = tokio::task::spawn_blocking(move || {
        let size = Winsize {
            ws_row: 30,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let pty = openpty(Some(&size), None).unwrap();
        let ours = |slave: &OwnedFd| Stdio::from(slave.try_clone().unwrap());
        command
            .stdin(ours(&pty.slave))
            .stdout(ours(&pty.slave))
            .stderr(ours(&pty.slave));
        let mut child = command.spawn().unwrap();
        drop(command);
        drop(pty.slave);
        let mut terminal = File::from(pty.master);
        let mut keys = terminal.try_clone().unwrap();
        let mut shown = Vec::new();
        let mut buffer = [0; 4096];
        let mut typed = lines.is_empty();
        // The end of a terminal is an error.
        while let Ok(count @ 1..) = terminal.read(&mut buffer) {
            shown.extend_from_slice(&buffer[..count]);
            // Keys before the prompt would be for the shell that started the program.
            if !typed && shown.ends_with(b"$ ") {
                typed = true;
                keys.write_all(lines.as_bytes()).unwrap();
            }
        }
        let code = child.wait().unwrap().code().unwrap();
        (String::from_utf8_lossy(&shown).into_owned(), code)
    });
    typed.await.unwrap()
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
