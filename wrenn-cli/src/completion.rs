//! Completion in a shell, for words that only a server knows: sandboxes, templates, snapshots.
//!
//! The script of `wrenn completions` has the shell run this program at each Tab, with
//! [`VARIABLE`] set and the words so far. It answers with candidates in place of running them.
//!
//! A server that does not answer is no reason to disturb somebody who types: there are no
//! candidates then, and there is no message.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory as _;
use clap_complete::engine::{
    ArgValueCandidates, ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter as _,
};
use clap_complete::env::{CompleteEnv, Shells};
use wrenn_sdk::api::template::TemplateKind;
use wrenn_sdk::{Client, ListOptions, Pager};

use crate::Cli;

/// The environment variable that asks for candidates. Its value is the shell's name.
const VARIABLE: &str = "WRENN_COMPLETE";
/// How long a server may take. Who presses Tab waits for it.
const DEADLINE: Duration = Duration::from_secs(1);
/// How many pages of a list are asked for, of a hundred each.
const MOST_PAGES: usize = 10;

/// Answers a shell that asks for candidates. `None` where the program is to run as usual.
pub(crate) fn answer(args: &[OsString]) -> Option<ExitCode> {
    // Before anything is built: this is asked at each start.
    std::env::var_os(VARIABLE)?;
    let directory = std::env::current_dir().ok();
    let completed = CompleteEnv::with_factory(Cli::command)
        .var(VARIABLE)
        .try_complete(args, directory.as_deref());
    match completed {
        Ok(true) => Some(ExitCode::SUCCESS),
        // It is set to nothing.
        Ok(false) => None,
        Err(error) => {
            // A closed pipe is nobody's failure.
            let _printed = error.print();
            Some(ExitCode::from(2))
        }
    }
}

/// The script that has a shell ask `program` for candidates.
pub(crate) fn script(shell: &str, program: &str) -> std::io::Result<Vec<u8>> {
    let mut script = Vec::new();
    if let Some(shell) = Shells::builtins().completer(shell) {
        shell.write_registration(VARIABLE, "wrenn", "wrenn", program, &mut script)?;
    }
    Ok(script)
}

/// The sandboxes of the server, by names and ids.
pub(crate) fn sandboxes() -> ArgValueCandidates {
    ArgValueCandidates::new(|| {
        let names = list_sandboxes();
        let candidates = names.iter().flat_map(SandboxWords::candidates);
        candidates.collect()
    })
}

/// Templates and snapshots of the server.
pub(crate) fn templates() -> ArgValueCandidates {
    ArgValueCandidates::new(|| list_templates(None))
}

/// The snapshots of the server.
pub(crate) fn snapshots() -> ArgValueCandidates {
    ArgValueCandidates::new(|| list_templates(Some(TemplateKind::Snapshot)))
}

/// A snapshot of the server, or a local path.
#[cfg(feature = "host")]
pub(crate) fn snapshots_or_paths() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let mut candidates = list_templates(Some(TemplateKind::Snapshot));
        retain_prefix(&mut candidates, current);
        candidates.extend(PathCompleter::any().complete(current));
        candidates
    })
}

/// One end of a copy: a local path, or a sandbox and a colon.
pub(crate) fn copy_ends() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        // A path has a slash or a dot before a sandbox could.
        let may_be_sandbox = !current
            .as_encoded_bytes()
            .iter()
            .any(|b| b"/.:".contains(b));
        let mut candidates = Vec::new();
        if may_be_sandbox {
            for sandbox in list_sandboxes() {
                candidates.extend(sandbox.ends());
            }
            retain_prefix(&mut candidates, current);
        }
        candidates.extend(PathCompleter::any().complete(current));
        candidates
    })
}

fn retain_prefix(candidates: &mut Vec<CompletionCandidate>, current: &OsStr) {
    let prefix = current.as_encoded_bytes();
    candidates.retain(|candidate| candidate.get_value().as_encoded_bytes().starts_with(prefix));
}

/// The words that stand for a sandbox.
struct SandboxWords {
    id: String,
    name: Option<String>,
    about: String,
}

impl SandboxWords {
    /// The name first: it is what a person looks for.
    fn candidates(&self) -> Vec<CompletionCandidate> {
        let words = self.name.iter().chain([&self.id]);
        words
            .filter_map(|word| candidate(word, &self.about))
            .collect()
    }

    fn ends(&self) -> Vec<CompletionCandidate> {
        let ends = self.candidates().into_iter().map(|candidate| {
            let mut end = candidate.get_value().to_owned();
            end.push(":");
            CompletionCandidate::new(end).help(candidate.get_help().cloned())
        });
        ends.collect()
    }
}

fn list_sandboxes() -> Vec<SandboxWords> {
    let listed = ask(|client| client.sandboxes().list(ListOptions::new()));
    let words = listed.iter().map(|sandbox| {
        let info = sandbox.info();
        SandboxWords {
            id: info.id.to_string(),
            name: info.name.clone(),
            about: match &info.name {
                Some(name) => format!("{name}, {}, {}", info.status, info.template),
                None => format!("{}, {}", info.status, info.template),
            },
        }
    });
    words.collect()
}

fn list_templates(kind: Option<TemplateKind>) -> Vec<CompletionCandidate> {
    let listed = ask(|client| match kind {
        Some(kind) => client.templates().list_kind(kind),
        None => client.templates().list(),
    });
    let candidates = listed
        .iter()
        .filter_map(|template| candidate(template.reference(), template.kind.as_str()));
    candidates.collect()
}

/// A word that a shell may take as it is. It takes them unquoted, and a server may be anybody's.
fn candidate(word: &str, about: &str) -> Option<CompletionCandidate> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let usable = !word.is_empty() && !word.starts_with('-') && word.bytes().all(is_plain);
    let about = crate::escape::line(about);
    usable.then(|| CompletionCandidate::new(word).help(Some(about.into())))
}

/// The entries that the server lists before the deadline.
fn ask<T: Send + 'static>(question: impl FnOnce(Client) -> Pager<T>) -> Vec<T> {
    let mut listed = Vec::new();
    let client = Client::from_env().ok().filter(Client::has_key);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let (Some(client), Ok(runtime), Ok(())) = (client, runtime, wrenn_nss::use_files_and_dns())
    else {
        return listed;
    };
    let mut pages = question(client);
    let reading = async {
        for _ in 0..MOST_PAGES {
            match pages.next_page().await {
                Ok(page) if !page.is_empty() => listed.extend(page),
                _ => return,
            }
        }
    };
    // Pages that came before the deadline are used.
    let _in_time = runtime.block_on(async { tokio::time::timeout(DEADLINE, reading).await });
    // A name that is being resolved must not hold up the exit.
    runtime.shutdown_background();
    listed
}

/// This program, as the script is to call it: by its name where it was called so, else by a path
/// that stays right in other directories.
pub(crate) fn program() -> String {
    let called = std::env::args_os().next().unwrap_or_default();
    let called = Path::new(&called);
    if called.components().count() > 1
        && let Ok(path) = std::path::absolute(called)
    {
        return path.to_string_lossy().into_owned();
    }
    "wrenn".to_owned()
}
