//! Bounds of what callers send, checked before anything is done with it.

use std::collections::BTreeMap;
use std::time::Duration;

use wrenn_core::SandboxId;
use wrenn_core::guest::{Command, ProcessId, PtySize};
use wrenn_core::vm::Resources;
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent as wire;

use crate::errors::{self, answer, cut, invalid};

/// What a whole-file call takes, and an Exec gives, in bytes.
pub(super) const MAX_WHOLE: usize = 16 << 20;
/// `PATH_MAX` of Linux, its last zero left out.
const MAX_PATH: usize = 4095;
/// `LOGIN_NAME_MAX` of Linux.
const MAX_USER: usize = 256;
pub(super) const MAX_TAG: usize = 256;
/// Arguments and environment of a command, together.
const MAX_COMMAND: usize = 1 << 20;
/// Names and values of metadata, or of a sandbox's environment, together.
const MAX_MAP: usize = 64 << 10;
const DEFAULT_COLS: u16 = 80;
const DEFAULT_ROWS: u16 = 24;

type Checked<T> = Result<T, ConnectError>;

pub(super) fn too_large(method: &str, instead: &str) -> ConnectError {
    errors::too_large(
        ErrorCode::InvalidArgument,
        format!(
            "{method} takes up to {} MiB; use {instead} for more",
            MAX_WHOLE >> 20
        ),
    )
}

pub(super) fn sandbox_id(text: &str) -> Checked<SandboxId> {
    text.parse().map_err(|error| answer(&error))
}

/// A path that may be empty, which means the user's home.
pub(super) fn path(text: &str) -> Checked<&str> {
    if text.len() > MAX_PATH {
        let beginning = cut(text, 64);
        return Err(invalid(format!(
            "the path '{beginning}…' is longer than {MAX_PATH} bytes"
        )));
    }
    no_zero("a path", text)?;
    Ok(text)
}

/// The path of something that is to be changed.
pub(super) fn named_path<'a>(field: &str, text: &'a str) -> Checked<&'a str> {
    if text.is_empty() {
        return Err(invalid(format!("'{field}' is empty; name a path")));
    }
    path(text)
}

/// Permission bits of a file.
pub(super) fn mode(asked: Option<u32>) -> Checked<Option<u32>> {
    match asked {
        Some(mode) if mode > 0o7777 => Err(invalid(format!(
            "{mode:o} is more than permission bits; a mode is like 644 or 4755, in octal"
        ))),
        mode => Ok(mode),
    }
}

/// A user's name; none where it is empty.
pub(super) fn user(text: &str) -> Checked<Option<&str>> {
    if text.len() > MAX_USER {
        return Err(invalid(format!(
            "a user's name has at most {MAX_USER} bytes"
        )));
    }
    if text.contains([':', '\n', '\0']) {
        return Err(invalid(
            "a user's name has no colon, line break or zero byte",
        ));
    }
    Ok((!text.is_empty()).then_some(text))
}

/// A size; what is zero gets its default.
pub(super) fn resources(asked: Option<&wire::Resources>, default: Resources) -> Checked<Resources> {
    let (vcpus, memory_mib) = asked.map_or((0, 0), |asked| (asked.vcpus, asked.memory_mib));
    let or = |asked: u32, default: u64| if asked == 0 { default } else { asked.into() };
    Resources::new(
        or(vcpus, default.vcpus().into()),
        or(memory_mib, default.memory_mib().into()),
    )
    .map_err(|error| invalid(error.to_string()))
}

/// Names and values, bounded.
pub(super) fn map(
    what: &str,
    map: impl IntoIterator<Item = (String, String)>,
) -> Checked<BTreeMap<String, String>> {
    let map: BTreeMap<String, String> = map.into_iter().collect();
    let size: usize = map
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    if size > MAX_MAP {
        return Err(invalid(format!(
            "{what} has {size} bytes, and at most {MAX_MAP} are taken"
        )));
    }
    Ok(map)
}

/// An environment: what the kernel takes as one.
pub(super) fn environment(
    env: impl IntoIterator<Item = (String, String)>,
) -> Checked<BTreeMap<String, String>> {
    let env = map("the environment", env)?;
    for (name, value) in &env {
        if name.is_empty() || name.contains('=') {
            return Err(invalid(format!(
                "'{}' is no name of a variable",
                cut(name, 64)
            )));
        }
        no_zero("a variable", name)?;
        no_zero("a variable", value)?;
    }
    Ok(env)
}

/// Which command is meant: by its tag where one is given, else by its pid.
pub(super) fn process_id(pid: u32, tag: String) -> Checked<ProcessId> {
    match (pid, tag.is_empty()) {
        (0, true) => Err(invalid("neither 'pid' nor 'tag' names a command")),
        (pid, true) => Ok(ProcessId::Pid(pid)),
        (0, false) => Ok(ProcessId::Tag(tag)),
        (_, false) => Err(invalid("'pid' and 'tag' both name a command; give one")),
    }
}

/// What is to be run.
pub(super) fn command(asked: Option<wire::Command>) -> Checked<Command> {
    let asked = asked.unwrap_or_default();
    if asked.program.is_empty() {
        return Err(invalid("'command.program' is empty; name a program"));
    }
    let size = asked.program.len() + asked.args.iter().map(|arg| arg.len() + 1).sum::<usize>();
    if size > MAX_COMMAND {
        return Err(invalid(format!(
            "the command has {size} bytes, and at most {MAX_COMMAND} are taken; put them in a file"
        )));
    }
    for word in std::iter::once(&asked.program).chain(&asked.args) {
        no_zero("an argument", word)?;
    }
    let mut command = Command::new(asked.program).args(asked.args);
    for (name, value) in environment(asked.env)? {
        command = command.env(name, value);
    }
    if !asked.cwd.is_empty() {
        command = command.cwd(path(&asked.cwd)?);
    }
    if let Some(user) = user(&asked.user)? {
        command = command.user(user);
    }
    if let Some(size) = asked.terminal.into_option() {
        command = command.pty(terminal_size(&size)?);
    }
    if asked.stdin {
        command = command.with_stdin();
    }
    if asked.tag.len() > MAX_TAG {
        return Err(invalid(format!("a tag has at most {MAX_TAG} bytes")));
    }
    if !asked.tag.is_empty() {
        command = command.tag(asked.tag);
    }
    if asked.timeout_sec > 0 {
        command = command.timeout(Duration::from_secs(asked.timeout_sec));
    }
    Ok(command)
}

/// A terminal's size; what is zero gets the size that terminals have always had.
pub(super) fn terminal_size(size: &wire::TerminalSize) -> Checked<PtySize> {
    let side = |asked: u32, default: u16| match u16::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(side) => Ok(side),
        Err(_) => Err(invalid(format!("no terminal has {asked} columns or rows"))),
    };
    Ok(PtySize {
        cols: side(size.cols, DEFAULT_COLS)?,
        rows: side(size.rows, DEFAULT_ROWS)?,
    })
}

fn no_zero(what: &str, text: &str) -> Checked<()> {
    if text.contains('\0') {
        return Err(invalid(format!("{what} has no zero byte")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_defaults() {
        assert_eq!(
            resources(None, Resources::default()).unwrap(),
            Resources::default()
        );
        let asked = wire::Resources {
            vcpus: 2,
            memory_mib: 0,
        };
        assert_eq!(
            resources(Some(&asked), Resources::default()).unwrap(),
            Resources::new(2, Resources::default().memory_mib().into()).unwrap()
        );
        let size = terminal_size(&wire::TerminalSize::default()).unwrap();
        assert_eq!((size.cols, size.rows), (80, 24));
    }

    #[test]
    fn what_is_out_of_bounds_is_named() {
        let long = "x".repeat(MAX_PATH + 1);
        let refused = [
            path(&long).unwrap_err(),
            path("a\0b").unwrap_err(),
            named_path("from", "").unwrap_err(),
            user("a:b").unwrap_err(),
            environment([("A=B".to_owned(), String::new())]).unwrap_err(),
            map("metadata", [("a".to_owned(), "x".repeat(MAX_MAP))]).unwrap_err(),
            command(None).unwrap_err(),
            mode(Some(0o100_644)).unwrap_err(),
            process_id(0, String::new()).unwrap_err(),
            process_id(1, "tag".to_owned()).unwrap_err(),
            sandbox_id("../../etc").unwrap_err(),
            terminal_size(&wire::TerminalSize {
                cols: 70_000,
                rows: 0,
            })
            .unwrap_err(),
            resources(
                Some(&wire::Resources {
                    vcpus: 4000,
                    memory_mib: 0,
                }),
                Resources::default(),
            )
            .unwrap_err(),
        ];
        let words = [
            "is longer than 4095 bytes",
            "no zero byte",
            "'from' is empty",
            "no colon",
            "'A=B' is no name of a variable",
            "metadata has 65537 bytes",
            "'command.program' is empty",
            "100644 is more than permission bits",
            "neither 'pid' nor 'tag'",
            "give one",
            "'../../etc' is no sandbox id",
            "70000 columns or rows",
            "ask for 1 to 32",
        ];
        for (error, wanted) in refused.iter().zip(words) {
            let message = error.message.clone().unwrap();
            assert!(message.contains(wanted), "{message}");
            assert!(message.len() < 200, "{message}");
        }
    }
}
