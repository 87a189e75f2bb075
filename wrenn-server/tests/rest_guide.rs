//! docs/rest.md, run as it stands: the commands of its `console` blocks in one shell against a
//! server and a fake host, and its WebSocket sessions beside them, in the order of the page.
//!
//! In what is shown, `…` stands for any text of a line, and a line of `…` for any lines.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::process::Stdio;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use wrenn_api::error::ErrorCode;
use wrenn_testing::TestServer;

const PAGE: &str = include_str!("../../docs/rest.md");
/// How long one step of the page may take.
const DEADLINE: Duration = Duration::from_secs(60);
const END: &str = "<end of command>";

/// A fenced block, with the line of the page where it begins.
struct Block {
    line: usize,
    language: &'static str,
    text: String,
}

fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in PAGE.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => blocks.push(block),
            (Some(language), None) => {
                open = Some(Block {
                    line: number + 2,
                    language,
                    text: String::new(),
                });
            }
            (None, Some(mut block)) => {
                block.text.push_str(line);
                block.text.push('\n');
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "the last block has no end");
    blocks
}

/// The commands of a block, each with what the page shows of its output.
fn commands(block: &str) -> Vec<(String, String)> {
    let mut commands: Vec<(String, String)> = Vec::new();
    let mut continued = false;
    for line in block.lines() {
        if let Some(command) = line.strip_prefix("$ ") {
            commands.push((command.to_owned(), String::new()));
        } else if continued {
            let (command, _) = commands.last_mut().unwrap();
            command.push('\n');
            command.push_str(line);
        } else {
            let (_, output) = commands.last_mut().expect("a block begins with a command");
            output.push_str(line);
            output.push('\n');
            continue;
        }
        continued = line.ends_with('\\');
    }
    commands
}

/// Whether a line is what the page shows.
fn line_matches(shown: &str, got: &str) -> bool {
    let Some((first, rest)) = shown.split_once('…') else {
        return shown == got;
    };
    let (middle, last) = rest.rsplit_once('…').unwrap_or(("", rest));
    let inner = got
        .strip_prefix(first)
        .and_then(|got| got.strip_suffix(last));
    let Some(mut inner) = inner else {
        return false;
    };
    middle.split('…').all(|part| {
        let found = inner.find(part);
        inner = found.map_or("", |at| &inner[at + part.len()..]);
        found.is_some()
    })
}

fn lines_match(shown: &[&str], got: &[&str]) -> bool {
    match (shown, got) {
        ([], []) => true,
        (["…", shown @ ..], _) => {
            (0..=got.len()).any(|skipped| lines_match(shown, &got[skipped..]))
        }
        ([shown, more @ ..], [first, rest @ ..]) => {
            line_matches(shown, first) && lines_match(more, rest)
        }
        _ => false,
    }
}

fn compare(place: &str, got: &str, shown: &str) -> Result<(), String> {
    let (got, shown) = (got.trim_end(), shown.trim_end());
    let lines: [Vec<&str>; 2] = [shown, got].map(|text| text.lines().collect());
    if lines_match(&lines[0], &lines[1]) {
        return Ok(());
    }
    Err(format!("{place} shows:\n{shown}\nand not:\n{got}\n"))
}

#[test]
fn wildcards_match_parts_of_lines_and_lines() {
    for (shown, got, same) in [
        ("a…", "abc", true),
        ("{…}", "{{}}", true),
        ("a…b…c", "a1b2b3c", true),
        ("a…b…c", "a1c", false),
        ("a…a", "a", false),
        ("a\n…\nd", "a\nb\nc\nd", true),
        ("…\nd", "d", true),
        ("a\n…", "b", false),
    ] {
        assert_eq!(compare("", got, shown).is_ok(), same, "{shown} {got}");
    }
}

/// A shell that keeps its variables and its directory from command to command.
struct Shell {
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

impl Shell {
    fn start(server: &TestServer, directory: &std::path::Path) -> Self {
        let mut child = Command::new("bash")
            .args(["--noprofile", "--norc"])
            .env("WRENN_API_URL", server.url())
            .env("WRENN_API_KEY", server.api_key())
            .env("LC_ALL", "C")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()).lines(),
            _child: child,
        }
    }

    /// Runs a command, and gives standard output and standard error as a terminal shows them.
    async fn run(&mut self, command: &str) -> String {
        let script = format!("{{ {command}\n}} 2>&1 </dev/null; printf '\\n{END}\\n'\n");
        self.input.write_all(script.as_bytes()).await.unwrap();
        let mut output = String::new();
        loop {
            let line = self.output.next_line().await.unwrap();
            let line = line.expect("the shell has ended");
            if line == END {
                return output;
            }
            output.push_str(line.trim_end_matches('\r'));
            output.push('\n');
        }
    }
}

/// Plays a session of a WebSocket: `→` is sent, `←` must come.
async fn play(server: &TestServer, session: &str) -> String {
    let mut lines = session.lines();
    let path = lines.next().unwrap().strip_prefix("GET ").unwrap();
    let address = server.address();
    let mut request = format!("ws://{address}{path}")
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    headers.insert("x-api-key", server.api_key().parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async(request, stream)
        .await
        .unwrap();
    let mut played = format!("GET {path}\n");
    for line in lines {
        if let Some(message) = line.strip_prefix("→ ") {
            socket.send(Message::text(message)).await.unwrap();
            played.push_str(line);
            played.push('\n');
        } else {
            let message = loop {
                match socket.next().await.expect("a frame comes").unwrap() {
                    Message::Text(text) => break text,
                    Message::Ping(_) | Message::Pong(_) => {}
                    other => panic!("{other:?} comes in place of {line}"),
                }
            };
            played.push_str(&format!("← {message}\n"));
        }
    }
    played
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_of_guide_print_what_it_shows() {
    let server = TestServer::start().await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let mut shell = Shell::start(&server, directory.path());
    let mut failed = Vec::new();
    let mut steps = 0;
    for block in blocks() {
        let place = format!("docs/rest.md:{}", block.line);
        if block.language == "console" {
            for (command, shown) in commands(&block.text) {
                let running = tokio::time::timeout(DEADLINE, shell.run(&command));
                let output = running
                    .await
                    .unwrap_or_else(|_| panic!("{place}: {command} hangs"));
                steps += 1;
                if let Err(difference) = compare(&place, &output, &shown) {
                    failed.push(format!("$ {command}\n{difference}"));
                }
            }
        } else if block.language == "text" && block.text.starts_with("GET ") {
            let playing = tokio::time::timeout(DEADLINE, play(&server, &block.text));
            let played = playing.await.unwrap_or_else(|_| panic!("{place} hangs"));
            steps += 1;
            failed.extend(compare(&place, &played, &block.text).err());
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(steps > 40, "only {steps} steps were found");
}

#[test]
fn guide_lists_every_error_code_with_its_status() {
    for code in ErrorCode::ALL {
        let row = format!("| `{code}` | {} |", code.http_status());
        assert!(PAGE.contains(&row), "docs/rest.md lacks the row {row}");
    }
    let rows = PAGE.lines().filter(|line| {
        line.split(" | ")
            .nth(1)
            .is_some_and(|status| status.parse::<u16>().is_ok())
            && line.starts_with("| `")
    });
    assert_eq!(rows.count(), ErrorCode::ALL.len());
}
