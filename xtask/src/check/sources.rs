//! Every file that is under version control: nothing unfinished, nothing personal.

use std::path::Path;

use anyhow::{Context, Result};

use super::no_complaints;
use crate::process;
use crate::workspace::Workspace;

/// Marks of unfinished work. Put together here, so that this file does not accuse itself.
const UNFINISHED: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X:"),
    concat!("to", "do!("),
    concat!("unimple", "mented!("),
    concat!("db", "g!("),
    concat!("Place", "holder."),
];

/// Roots under which people keep their own files. The home directory of a guest's user is
/// no person's.
const PERSONAL: &[&str] = &[
    concat!("/", "work/"),
    concat!("/", "workspace/"),
    concat!("/", "home/"),
    concat!("/", "Users/"),
];
const NOBODYS_HOME: &str = concat!("/", "home/user");

/// A file that is longer needs a reason, so it is listed.
const LONG: usize = 800;

pub(super) fn check() -> Result<()> {
    let root = Workspace::load()?.workspace_root;
    let mut git = process::command("git");
    git.current_dir(&root).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "-z",
    ]);
    let listed = process::output(&mut git)?;
    let mut complaints = Vec::new();
    for name in listed.split_terminator('\0') {
        let path = root.join(name);
        // A link, a file that is deleted but not yet committed, or no text at all.
        if !path.is_file() || path.is_symlink() {
            continue;
        }
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {name}"))?;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        complaints.extend(complaints_about(name, &text));
        let lines = text.lines().count();
        if lines > LONG && is_written_by_hand(name) {
            eprintln!("long: {name} has {lines} lines");
        }
    }
    no_complaints(&complaints)
}

fn is_written_by_hand(name: &str) -> bool {
    let extension = Path::new(name)
        .extension()
        .and_then(|extension| extension.to_str());
    matches!(extension, Some("rs" | "md" | "proto" | "py" | "sh"))
}

fn complaints_about(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if name.ends_with(".rs") {
            for mark in UNFINISHED.iter().filter(|mark| line.contains(**mark)) {
                complaints.push(format!("{name}:{number}: unfinished: {mark}"));
            }
        }
        if let Some(path) = personal_path(line) {
            complaints.push(format!(
                "{name}:{number}: a path of somebody's computer: {path}"
            ));
        }
    }
    complaints
}

/// The first path of the line that starts at a personal root.
fn personal_path(line: &str) -> Option<&str> {
    PERSONAL
        .iter()
        .flat_map(|root| line.match_indices(root))
        .filter(|(start, _)| {
            // Inside of a longer path, such as that of an overlay's layer, it is no root.
            let before = line[..*start].chars().next_back();
            !before.is_some_and(|before| before.is_alphanumeric() || "/.}-_*~)".contains(before))
        })
        .map(|(start, _)| &line[start..])
        .map(|rest| rest.split(|end: char| end.is_whitespace() || "\"'`),;".contains(end)))
        .filter_map(|mut pieces| pieces.next())
        .find(|path| !path.starts_with(NOBODYS_HOME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_work_is_found_in_code_only() {
        let line = format!("let x = {}); // soon", UNFINISHED[3]);
        assert_eq!(
            complaints_about("src/x.rs", &format!("fn f() {{\n{line}\n}}")),
            [format!("src/x.rs:2: unfinished: {}", UNFINISHED[3])]
        );
        assert!(complaints_about("notes.md", &line).is_empty());
    }

    #[test]
    fn a_personal_path_is_found_and_a_guest_path_is_not() {
        let personal = format!("see {}jane/src, there", PERSONAL[2]);
        assert_eq!(
            personal_path(&personal),
            Some(format!("{}jane/src", PERSONAL[2]).as_str())
        );
        assert_eq!(personal_path(&format!("cd \"{NOBODYS_HOME}/x\"")), None);
        assert_eq!(
            personal_path(&format!("upper={{root}}{}inner", PERSONAL[0])),
            None
        );
        assert_eq!(personal_path("nothing here"), None);
    }
}
