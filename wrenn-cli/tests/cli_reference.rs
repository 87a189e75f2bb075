//! docs/cli.md has the help of every sub-command, and it is the one that the program prints.
//!
//! `WRENN_BLESS=1 cargo nextest run -p wrenn-cli --test cli_reference` writes it anew.

#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};

const BEGIN: &str = "<!-- commands: written by `WRENN_BLESS=1 cargo nextest run -p wrenn-cli --test cli_reference` -->\n";
const END: &str = "<!-- end of commands -->\n";

/// Appends the help of a command, and of those below it.
fn describe(page: &mut String, command: &Command, name: &str, level: usize) {
    let help = help(command);
    write!(
        page,
        "\n{} {name}\n\n```text\n{}\n```\n",
        "#".repeat(level),
        help.trim_end()
    )
    .unwrap();
    for below in subcommands(command) {
        describe(
            page,
            below,
            &format!("{name} {}", below.get_name()),
            level + 1,
        );
    }
}

/// The sub-commands that people call.
fn subcommands(command: &Command) -> impl Iterator<Item = &Command> {
    let shown = |below: &&Command| !below.is_hide_set() && below.get_name() != "help";
    command.get_subcommands().filter(shown)
}

/// Help as `--help` prints it, without what is the same for every command, and without values of
/// this environment.
fn help(command: &Command) -> String {
    let mut command = command.clone().mut_args(|argument| {
        let everywhere =
            argument.is_global_set() || matches!(argument.get_id().as_str(), "help" | "version");
        let hidden = everywhere || argument.is_hide_set();
        argument.hide_env_values(true).hide(hidden)
    });
    if command.has_subcommands() {
        command = command.mut_subcommand("help", |help| help.hide(true));
    }
    let is_long = command.get_after_long_help().is_some()
        || command.get_long_about().is_some()
        || command
            .get_arguments()
            .any(|argument| argument.get_long_help().is_some());
    let help = if is_long {
        command.render_long_help()
    } else {
        command.render_help()
    };
    let lines = help.to_string();
    lines
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect()
}

#[test]
fn reference_has_help_of_every_command() {
    let mut cli = wrenn_cli::Cli::command();
    cli.build();
    let mut reference = String::new();
    for command in subcommands(&cli) {
        describe(
            &mut reference,
            command,
            &format!("wrenn {}", command.get_name()),
            2,
        );
    }
    reference.push('\n');

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("the page has its marks");
    let (kept, after) = rest.split_once(END).expect("the page has its marks");
    if std::env::var_os("WRENN_BLESS").is_some() {
        let written = [before, BEGIN, &reference, END, after].concat();
        std::fs::write(&path, written).unwrap();
    } else {
        assert!(
            kept == reference,
            "the commands have changed; WRENN_BLESS=1 writes docs/cli.md anew"
        );
    }
}
