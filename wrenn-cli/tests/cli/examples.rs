//! The examples of README.md, of docs/ and, by docs/cli.md, of the help texts.
//!
//! Each call of `wrenn` must be one that the program takes, with all of its options. What needs
//! no VM is run: sandboxes, snapshots and templates of a server, and an agent.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use wrenn_testing::FakeHost;

use crate::shell::{Call, calls};
use crate::wrenn::{Wrenn, run};

/// Beside these, examples that are run call the program alone.
const PROGRAMS: [&str; 8] = [
    "cat", "echo", "head", "jq", "pg_dump", "source", "tar", "xargs",
];
/// Examples that could be run and are not, and why not.
const NOT_RUN: [(&str, &str); 6] = [
    (
        "--watch",
        "it runs until Ctrl-C, as a test of terminals has it",
    ),
    ("--follow", "it runs until the sandbox ends"),
    (
        "web:/var/log",
        "those of a fake host's guest are this host's",
    ),
    ("sandbox kill web 42", "no command has this process id"),
    ("sandbox kill web server", "no command has this tag"),
    ("snapshot inspect", "a fake host has no builds"),
];

/// A command of a page.
struct Example {
    page: String,
    line: usize,
    command: String,
    /// The lines that the page shows as its output.
    shown: Vec<String>,
}

impl fmt::Display for Example {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}: {}", self.page, self.line, self.command)
    }
}

/// The pages, with their names.
fn pages() -> Vec<(String, String)> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut paths: Vec<PathBuf> = ["README.md", "CONTRIBUTING.md"].map(PathBuf::from).to_vec();
    for entry in fs::read_dir(top.join("docs")).unwrap() {
        let name = PathBuf::from(entry.unwrap().file_name());
        if name.extension().is_some_and(|extension| extension == "md") {
            paths.push(Path::new("docs").join(name));
        }
    }
    paths.sort();
    let pages = paths.into_iter().map(|path| {
        let text = fs::read_to_string(top.join(&path)).unwrap();
        (path.display().to_string(), text)
    });
    pages.collect()
}

/// The examples of a page, by the blocks in which they stand.
fn blocks(page: &str, text: &str) -> Vec<Vec<Example>> {
    let mut blocks = Vec::new();
    let mut lines = (1..).zip(text.lines());
    while let Some((_, line)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            continue;
        };
        let block: Vec<_> = lines
            .by_ref()
            .take_while(|(_, line)| *line != "```")
            .collect();
        let mut block = match language {
            "console" => of_console(&block),
            "sh" | "bash" => of_script(&block),
            "text" if page == "docs/cli.md" => of_help(&block),
            _ => Vec::new(),
        };
        for example in &mut block {
            page.clone_into(&mut example.page);
        }
        blocks.push(block);
    }
    blocks.retain(|block| !block.is_empty());
    blocks
}

fn example(line: usize, command: &str) -> Example {
    Example {
        page: String::new(),
        line,
        command: command.to_owned(),
        shown: Vec::new(),
    }
}

/// A session: commands behind prompts, and their output.
fn of_console(block: &[(usize, &str)]) -> Vec<Example> {
    let mut examples: Vec<Example> = Vec::new();
    let mut goes_on = false;
    for &(number, line) in block {
        let command = line.strip_prefix("$ ").or_else(|| line.strip_prefix("# "));
        match (command, examples.last_mut()) {
            (Some(command), _) => examples.push(example(number, command)),
            (None, Some(last)) if goes_on => {
                last.command.push('\n');
                last.command.push_str(line);
            }
            (None, Some(last)) => {
                last.shown.push(line.to_owned());
                continue;
            }
            (None, None) => continue,
        }
        goes_on = line.ends_with('\\');
    }
    examples
}

fn of_script(block: &[(usize, &str)]) -> Vec<Example> {
    let commands = block.iter().filter(|(_, line)| !line.is_empty());
    commands
        .map(|(number, line)| example(*number, line))
        .collect()
}

/// Indented lines below a heading that is none of clap's.
fn of_help(block: &[(usize, &str)]) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut in_examples = false;
    for &(number, line) in block {
        match line.strip_prefix("  ") {
            Some(command) if in_examples && command.contains("wrenn ") => {
                examples.push(example(number, command));
            }
            Some(_) => {}
            None => {
                let of_clap = ["Arguments:", "Options:", "Commands:"].contains(&line);
                in_examples = line.ends_with(':') && !of_clap;
            }
        }
    }
    examples
}

/// Calls in the running text: `wrenn sandbox list`. They may lack arguments.
fn inline(page: &str, text: &str) -> Vec<Example> {
    let mut examples = Vec::new();
    let mut in_block = false;
    let mut prose = String::new();
    for line in text.lines() {
        in_block ^= line.starts_with("```");
        if !in_block && !line.starts_with("```") {
            prose.push_str(line);
        }
        prose.push('\n');
    }
    let mut line = 1;
    for (index, span) in prose.split('`').enumerate() {
        if index % 2 == 1 && span.starts_with("wrenn ") {
            let mut found = example(line, &span.replace('\n', " "));
            page.clone_into(&mut found.page);
            examples.push(found);
        }
        line += span.matches('\n').count();
    }
    examples
}

/// The arguments of the program, if that is called, perhaps by another one.
fn arguments(call: &Call) -> Option<Vec<String>> {
    let by_others = ["sudo", "xargs"];
    let by = call.words.iter().position(|word| word == "wrenn")?;
    let called_by = call.words.first()?;
    if by > 0 && !by_others.contains(&called_by.as_str()) {
        return None;
    }
    let mut words = call.words[by..].to_vec();
    if called_by == "xargs" {
        words.push("value".to_owned());
    }
    Some(words)
}

/// Why the program does not take these words.
fn refusal(words: &[String], may_be_incomplete: bool) -> Option<String> {
    use clap::error::ErrorKind;
    let error = wrenn_cli::parse(words.iter().map(Into::into)).err()?;
    let fine = match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => true,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::InvalidValue => may_be_incomplete,
        // A variable that the example takes from its environment.
        ErrorKind::ValueValidation => error.to_string().contains("is not set here"),
        _ => false,
    };
    (!fine).then(|| error.to_string())
}

#[test]
fn examples_are_taken_by_the_program() {
    let mut failed = Vec::new();
    let mut count = 0;
    for (page, text) in pages() {
        let whole = blocks(&page, &text).into_iter().flatten();
        let inline = inline(&page, &text);
        let examples = whole
            .map(|example| (example, false))
            .chain(inline.into_iter().map(|example| (example, true)));
        for (example, is_inline) in examples {
            let is_pattern = is_inline && example.command.contains(['…', '[']);
            if is_pattern {
                continue;
            }
            for words in calls(&example.command).iter().filter_map(arguments) {
                count += 1;
                if let Some(refusal) = refusal(&words, is_inline) {
                    failed.push(format!("{example}\n{refusal}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count > 200, "only {count} examples were found");
}

#[test]
fn commands_of_pages_are_a_shell_s() {
    let mut failed = Vec::new();
    for (page, text) in pages() {
        for example in blocks(&page, &text).into_iter().flatten() {
            let checked = Command::new("bash")
                .args(["-n", "-c", &example.command])
                .output()
                .unwrap();
            if !checked.status.success() {
                let said = String::from_utf8_lossy(&checked.stderr);
                failed.push(format!("{example}\n{said}"));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Whether the example is run: all that it calls is there, and it changes nothing outside of its
/// directory.
fn is_run(example: &Example) -> bool {
    let excepted = NOT_RUN
        .iter()
        .any(|(part, _)| example.command.contains(part));
    if excepted || example.command.contains('…') {
        return false;
    }
    calls(&example.command).iter().all(|call| {
        let stays = call
            .outputs
            .iter()
            .all(|path| !path.starts_with(['/', '~']));
        let program = call.words.first().map(String::as_str).unwrap_or_default();
        let needs_no_vm = match arguments(call) {
            Some(words) => {
                let words: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
                match words.as_slice() {
                    ["sandbox" | "snapshot" | "agent" | "completions", ..] => true,
                    ["template", "list", options @ ..] => !options.contains(&"--root"),
                    _ => false,
                }
            }
            None => PROGRAMS.contains(&program),
        };
        stays && needs_no_vm
    })
}

/// The commands of a block as one script. Each one's output goes to a file of its number.
fn script(block: &[Example]) -> String {
    let all: String = block
        .iter()
        .map(|example| format!("{}\n", example.command))
        .collect();
    let mut script = "set -o pipefail\n".to_owned();
    // A block that creates the sandbox or the snapshot itself must not find it.
    if !all.contains("--name web") {
        script.push_str("wrenn sandbox create --name web > id || exit\nid=$(cat id)\n");
    }
    if all.contains("warmed-up") && !all.contains("snapshot create") {
        script.push_str("wrenn snapshot create $id warmed-up > snapshot || exit\n");
    }
    for (number, example) in block.iter().enumerate() {
        // There is no terminal here.
        let command = example.command.replace(" -it", " -i");
        script.push_str(&format!(
            "{{ {command}\n}} < input > output.{number} || {{ echo {number} $? > failed; exit; }}\n"
        ));
    }
    script
}

/// The files that examples use, and programs that may be missing here.
fn prepare(wrenn: &Wrenn) {
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    fs::create_dir_all(wrenn.path("src")).unwrap();
    for name in ["src/main.py", "data.csv", "data.tar", "file", "hello.py"] {
        fs::write(wrenn.path(name), "print(1)\n").unwrap();
    }
    // A shell is left at once.
    fs::write(wrenn.path("input"), "exit\n").unwrap();
    let programs = wrenn.path("bin");
    fs::create_dir(&programs).unwrap();
    symlink(env!("CARGO_BIN_EXE_wrenn"), programs.join("wrenn")).unwrap();
    let has_jq = Command::new("jq").arg("--version").output().is_ok();
    let stand_ins = [("pg_dump", "echo dump"), ("jq", "cat")];
    for (name, line) in stand_ins
        .iter()
        .filter(|(name, _)| *name != "jq" || !has_jq)
    {
        let program = programs.join(name);
        fs::write(&program, format!("#!/bin/sh\n{line}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Runs the examples of a block, and says how the first one failed that did.
async fn run_block(block: &[Example]) -> Result<(), String> {
    let templates = ["base", "minimal", "python"];
    let wrenn = Wrenn::with_host(FakeHost::builder().templates(templates)).await;
    prepare(&wrenn);
    // The server's own host would have its sandboxes that no server knows paused.
    let agent = FakeHost::builder()
        .templates(templates)
        .start()
        .await
        .unwrap();
    let mut path = wrenn.path("bin").into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap());
    let mut bash = wrenn.shell_command("bash");
    bash.args(["-c", &script(block)])
        .env("PATH", path)
        .env("TOKEN", "secret")
        .env("WRENN_AGENT", agent.url())
        .env("WRENN_AGENT_TOKEN", agent.token().unwrap());
    let ran = run(bash).await;
    if let Ok(failed) = fs::read_to_string(wrenn.path("failed")) {
        let (number, code) = failed.trim_end().split_once(' ').unwrap();
        let example = &block[number.parse::<usize>().unwrap()];
        return Err(format!("{example}\nends with {code}:\n{}", ran.stderr));
    }
    if ran.code != Some(0) {
        return Err(format!("{}\ncannot be prepared: {ran:?}", block[0]));
    }
    for (number, example) in block.iter().enumerate() {
        let output = fs::read_to_string(wrenn.path(&format!("output.{number}"))).unwrap();
        let shown = example.shown.iter().filter(|line| !line.contains('…'));
        for line in shown {
            if !output.lines().any(|printed| printed == line) {
                return Err(format!("{example}\nshows '{line}', and prints:\n{output}"));
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_do_as_they_show() {
    let mut failed = Vec::new();
    let mut count = 0;
    for (page, text) in pages() {
        // Another test runs all of it.
        if page == "docs/rest.md" {
            continue;
        }
        for mut block in blocks(&page, &text) {
            block.retain(is_run);
            if block
                .iter()
                .any(|example| example.command.contains("wrenn "))
            {
                count += block.len();
                failed.extend(run_block(&block).await.err());
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    assert!(count > 80, "only {count} examples were run");
}

#[test]
fn exceptions_are_those_of_examples() {
    let mut commands = String::new();
    for (page, text) in pages() {
        for example in blocks(&page, &text).into_iter().flatten() {
            commands.push_str(&example.command);
            commands.push('\n');
        }
    }
    for (part, why) in NOT_RUN {
        assert!(commands.contains(part), "no example has '{part}' ({why})");
    }
}
