//! Names and prose in the field's standard terms: identifiers, tests and log lines of the crates
//! of the control plane have none of the words that a newcomer would not look for.

use std::path::Path;

use anyhow::{Context, Result};

use super::no_complaints;
use crate::process;
use crate::workspace::Workspace;

/// Folders whose sources are held to the list.
const CRATES: &[&str] = &[
    "wrenn-api/",
    "wrenn-nss/",
    "wrenn-sdk/",
    "wrenn-server/",
    "wrenn-testing/",
];

/// A word, and the standard term for it.
const WORDS: &[(&str, &str)] = &[
    ("given_back", "released"),
    ("give_back", "release"),
    ("giving_back", "releasing"),
    ("taken_over", "adopted"),
    ("take_over", "adopt"),
    ("left_behind", "leaked, or orphan"),
    ("written_aside", "staged"),
    ("written_down", "snapshotted"),
    ("write_down", "snapshot"),
    ("ahead_of_need", "prewarmed"),
    ("crash_point", "failpoint"),
    ("idle_for_too_long", "idle timeout"),
    ("stands_still", "pause time"),
    ("whoever", "a noun"),
    ("trouble", "disk pressure"),
    ("shelter", "release"),
    ("remains", "failed sandbox"),
    ("doorway", "listener"),
];

/// How no name of a test begins: it begins with its subject.
const TEST_BEGINNINGS: &[&str] = &[
    "what_",
    "who_",
    "whoever_",
    "nobody_",
    "nothing_",
    "whatever_",
];
/// The most words in the name of a test.
const MAX_TEST_WORDS: usize = 10;

pub(super) fn check() -> Result<()> {
    let root = Workspace::load()?.workspace_root;
    let mut git = process::command("git");
    git.current_dir(&root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
        "--",
    ]);
    git.args(CRATES);
    let mut complaints = Vec::new();
    for name in process::output(&mut git)?.split_terminator('\0') {
        let path = root.join(name);
        if !name.ends_with(".rs") || !Path::new(&path).is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {name}"))?;
        complaints.extend(complaints_about(name, &text));
    }
    no_complaints(&complaints)
}

fn complaints_about(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let mut is_test = false;
    for (number, line) in (1..).zip(text.lines()) {
        let trimmed = line.trim_start();
        for (word, instead) in WORDS {
            // In an identifier as it is, in prose with spaces.
            let spaced = word.replace('_', " ");
            let lower = line.to_lowercase();
            if lower.contains(word) || (word.contains('_') && lower.contains(&spaced)) {
                complaints.push(format!("{name}:{number}: '{spaced}': say '{instead}'"));
            }
        }
        if trimmed.starts_with("#[test]") || trimmed.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(function) = function_name(trimmed) {
            if is_test {
                complaints.extend(complaint_about_test(name, number, function));
            }
            is_test = false;
        }
    }
    complaints
}

fn function_name(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("async ").unwrap_or(line);
    let rest = rest.strip_prefix("fn ")?;
    rest.split(['(', '<']).next()
}

fn complaint_about_test(name: &str, number: usize, function: &str) -> Option<String> {
    if let Some(beginning) = TEST_BEGINNINGS
        .iter()
        .find(|word| function.starts_with(**word))
    {
        return Some(format!(
            "{name}:{number}: test {function} begins with '{beginning}': begin with its subject"
        ));
    }
    let words = function.split('_').count();
    (words > MAX_TEST_WORDS).then(|| {
        format!("{name}:{number}: test {function} has {words} words: at most {MAX_TEST_WORDS}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_in_identifiers_and_prose() {
        for line in [
            "fn given_back() {}",
            "// It is Given back.",
            "let trouble = 1;",
        ] {
            assert_eq!(complaints_about("x.rs", line).len(), 1, "{line}");
        }
        assert!(complaints_about("x.rs", "fn release() {} // Releases it.").is_empty());
    }

    #[test]
    fn tests_begin_with_their_subject() {
        let of = |function: &str| {
            complaints_about("x.rs", &format!("#[test]\nfn {function}() {{}}")).len()
        };
        assert_eq!(of("row_is_read"), 0);
        assert_eq!(of("what_is_read"), 1);
        assert_eq!(of("a_b_c_d_e_f_g_h_i_j_k"), 1);
        assert!(complaints_about("x.rs", "fn what_is_read() {}").is_empty());
    }
}
