//! Dependencies that are declared and never named.
//!
//! A dependency counts as used where its identifier stands as a path (`serde::`,
//! `use serde`) or in an attribute (`#[serde`) of a source file that it may be used in. What only
//! generated code uses is excepted in the manifest, in the form that cargo-machete reads too:
//! `[package.metadata.cargo-machete] ignored = ["…"]`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

use super::no_complaints;
use crate::workspace::{DependencyKind, Package, Workspace};

pub(super) fn check() -> Result<()> {
    let workspace = Workspace::load()?;
    let members = workspace.members();
    let mut complaints = Vec::new();
    for package in members.values() {
        complaints.extend(unused_of(package)?);
    }
    complaints.extend(unused_shared(&workspace, members.values().copied())?);
    no_complaints(&complaints)
}

fn unused_of(package: &Package) -> Result<Vec<String>> {
    let folder = package.manifest_path.parent().unwrap_or(Path::new("."));
    let main = sources(&folder.join("src"))?;
    let mut tests = Vec::new();
    for place in ["tests", "examples", "benches"] {
        tests.extend(sources(&folder.join(place))?);
    }
    // A package may keep its examples elsewhere than in the usual places.
    for target in package
        .targets
        .iter()
        .filter(|target| target.kind == ["example"])
    {
        tests.extend(sources(&target.src_path)?);
    }
    let build = sources(&folder.join("build.rs"))?;
    let excepted = package.used_by_generated_code();
    let mut complaints = Vec::new();
    for dependency in &package.dependencies {
        let places: Vec<&String> = match dependency.kind {
            DependencyKind::Normal => main.iter().collect(),
            DependencyKind::Dev => main.iter().chain(&tests).collect(),
            DependencyKind::Build => build.iter().collect(),
        };
        let identifier = dependency.identifier();
        let used = places.iter().any(|source| names(source, &identifier));
        if !used && !excepted.contains(&dependency.name.as_str()) {
            let kind = match dependency.kind {
                DependencyKind::Normal => "dependencies",
                DependencyKind::Dev => "dev-dependencies",
                DependencyKind::Build => "build-dependencies",
            };
            complaints.push(format!(
                "{}: {} in [{kind}] is unused",
                package.name, dependency.name
            ));
        }
    }
    Ok(complaints)
}

/// Entries of `[workspace.dependencies]` that no package takes up.
fn unused_shared<'a>(
    workspace: &Workspace,
    members: impl Iterator<Item = &'a Package>,
) -> Result<Vec<String>> {
    let path = workspace.workspace_root.join("Cargo.toml");
    let manifest = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let taken: BTreeSet<&str> = members
        .flat_map(|member| &member.dependencies)
        .flat_map(|dependency| [Some(dependency.name.as_str()), dependency.rename.as_deref()])
        .flatten()
        .collect();
    Ok(shared(&manifest)
        .filter(|name| !taken.contains(name))
        .map(|name| format!("{name} in [workspace.dependencies] is unused"))
        .collect())
}

/// The keys of the section `[workspace.dependencies]`.
fn shared(manifest: &str) -> impl Iterator<Item = &str> {
    manifest
        .lines()
        .skip_while(|line| *line != "[workspace.dependencies]")
        .skip(1)
        .take_while(|line| !line.starts_with('['))
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(" = "))
        .map(|(name, _)| name.trim_matches('"'))
}

/// The contents of the Rust files at or below a path, none where nothing is there.
fn sources(path: &Path) -> Result<Vec<String>> {
    let mut contents = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        let failed = || format!("cannot read {}", path.display());
        if path.is_dir() {
            for entry in std::fs::read_dir(&path).with_context(failed)? {
                open.push(entry.with_context(failed)?.path());
            }
        } else if path.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
            contents.push(std::fs::read_to_string(&path).with_context(failed)?);
        }
    }
    Ok(contents)
}

/// Whether a source names a crate as a path, an import or an attribute, comments left out.
fn names(source: &str, identifier: &str) -> bool {
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .any(|line| {
            line.match_indices(identifier).any(|(start, _)| {
                let before = &line[..start];
                let after = &line[start + identifier.len()..];
                let whole = !before.ends_with(is_word) && !after.starts_with(is_word);
                let as_path = after.starts_with("::");
                let as_import = ["use ", "extern crate "]
                    .iter()
                    .any(|word| before.ends_with(word));
                let as_attribute = before.ends_with("#[");
                whole && (as_path || as_import || as_attribute)
            })
        })
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_an_import_or_an_attribute_is_a_use() {
        assert!(names("let x = serde_json::from_str(text);", "serde_json"));
        assert!(names("pub use serde;", "serde"));
        assert!(names("use serde::{Deserialize, Serialize};", "serde"));
        assert!(names("    #[serde(default)]", "serde"));
    }

    #[test]
    fn a_part_of_a_word_or_a_comment_is_none() {
        assert!(!names("use serde_json::Value;", "serde"));
        assert!(!names("let x = my_serde::from_str(text);", "serde"));
        assert!(!names("/// See serde::Serialize.", "serde"));
        assert!(!names("let serde = 3;", "serde"));
    }

    #[test]
    fn shared_dependencies_are_the_keys_of_their_section() {
        let manifest = "[package]\nname = \"x\"\n\n[workspace.dependencies]\n# Ours\n\
                        one = \"1\"\ntwo = { version = \"2\", features = [\n    \"a\",\n] }\n\n\
                        [profile.dev]\nopt-level = 1\n";
        assert_eq!(shared(manifest).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn sources_of_nowhere_are_none_and_of_here_are_some() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(sources(&here.join("no such folder")).unwrap().is_empty());
        assert!(sources(&here.join("src")).unwrap().len() > 10);
        assert_eq!(sources(&here.join("src/main.rs")).unwrap().len(), 1);
    }
}
