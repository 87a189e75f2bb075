//! Which crate may depend on which of ours, and what must stay out of the engines.
//!
//! ```text
//! wrenn-agent ─────────────────────────┐            (wrenn-agent, wrenn-cli ──▶ wrenn-proto)
//!                                      ▼
//! wrenn-cli ──▶ wrenn-machine ──▶ wrenn-core ──▶ wrenn-proto ◀── wrenn-envd
//!     │              └──▶ wrenn-images ▲                      wrenn-vmm, wrenn-bench: alone
//!     └────────────────────────────────┘
//! ```

use std::collections::{BTreeSet, HashMap};

use anyhow::Result;

use super::no_complaints;
use crate::workspace::{DependencyKind, Package, Workspace};

/// What each crate of ours may name in its manifest, apart from its tests.
const ALLOWED: &[(&str, &[&str])] = &[
    ("wrenn-proto", &[]),
    ("wrenn-nss", &[]),
    ("wrenn-api", &[]),
    ("wrenn-server", &["wrenn-api", "wrenn-nss", "wrenn-proto"]),
    ("wrenn-sdk", &["wrenn-api"]),
    (
        "wrenn-testing",
        &["wrenn-api", "wrenn-proto", "wrenn-sdk", "wrenn-server"],
    ),
    ("wrenn-bench", &[]),
    ("wrenn-vmm", &[]),
    ("wrenn-envd", &["wrenn-proto"]),
    ("wrenn-images", &[]),
    ("wrenn-core", &["wrenn-proto"]),
    ("wrenn-machine", &["wrenn-core", "wrenn-images"]),
    ("wrenn-agent", &["wrenn-core", "wrenn-nss", "wrenn-proto"]),
    (
        "wrenn-cli",
        &[
            "wrenn-api",
            "wrenn-core",
            "wrenn-images",
            "wrenn-machine",
            "wrenn-nss",
            "wrenn-proto",
            "wrenn-sdk",
            "wrenn-server",
        ],
    ),
    ("wrenn-examples", &["wrenn-core", "wrenn-sdk"]),
    ("xtask", &["wrenn-bench"]),
    (
        "xtask-provision",
        &["wrenn-core", "wrenn-images", "wrenn-machine"],
    ),
];

/// What tests may use on top of that: measuring, and starting other crates in-process.
const ALLOWED_IN_TESTS: &[(&str, &[&str])] = &[
    ("wrenn-core", &["wrenn-envd", "wrenn-vmm"]),
    ("wrenn-envd", &["wrenn-core"]),
    ("wrenn-server", &["wrenn-sdk", "wrenn-testing"]),
    ("wrenn-sdk", &["wrenn-server", "wrenn-testing"]),
    (
        "wrenn-cli",
        &["wrenn-agent", "wrenn-bench", "wrenn-testing"],
    ),
];

/// HTTP servers and databases: the engines must work without either.
const NOT_IN_ENGINES: &[&str] = &[
    "actix-web",
    "axum",
    "poem",
    "rocket",
    "salvo",
    "tide",
    "tonic",
    "warp", //
    "diesel",
    "libsqlite3-sys",
    "postgres",
    "rusqlite",
    "sea-orm",
    "sqlx",
    "tokio-postgres",
];

pub(super) fn check() -> Result<()> {
    let workspace = Workspace::load()?;
    let members: Vec<&Package> = workspace.members().into_values().collect();
    let mut complaints = between_ours(&members);
    let all = Workspace::load_with_dependencies()?;
    complaints.extend(in_engines(&all.packages));
    no_complaints(&complaints)
}

fn between_ours(members: &[&Package]) -> Vec<String> {
    let names: BTreeSet<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut complaints = Vec::new();
    for member in members {
        let name = member.name.as_str();
        let Some(allowed) = row(ALLOWED, name) else {
            complaints.push(format!(
                "{name} has no layer yet: add it to {} and to ARCHITECTURE.md",
                file!()
            ));
            continue;
        };
        let in_tests = row(ALLOWED_IN_TESTS, name).unwrap_or_default();
        for dependency in &member.dependencies {
            let other = dependency.name.as_str();
            let fine = !names.contains(other)
                || allowed.contains(&other)
                || (dependency.kind == DependencyKind::Dev && in_tests.contains(&other));
            if !fine {
                complaints.push(format!("{name} must not depend on {other}"));
            }
        }
    }
    complaints
}

fn row(table: &[(&str, &'static [&'static str])], name: &str) -> Option<&'static [&'static str]> {
    table
        .iter()
        .find(|(own, _)| *own == name)
        .map(|(_, allowed)| *allowed)
}

/// Follows the dependencies of wrenn-core, tests left out, and names the way to each
/// package that must not be among them.
fn in_engines(packages: &[Package]) -> Vec<String> {
    let by_name: HashMap<&str, &Package> = packages
        .iter()
        .map(|package| (package.name.as_str(), package))
        .collect();
    let mut ways: HashMap<&str, String> = HashMap::new();
    let mut open = vec![("wrenn-core", "wrenn-core".to_owned())];
    let mut complaints = Vec::new();
    while let Some((name, way)) = open.pop() {
        if ways.insert(name, way.clone()).is_some() {
            continue;
        }
        if NOT_IN_ENGINES.contains(&name) {
            complaints.push(format!("{name} does not belong in the engines: {way}"));
        }
        let dependencies = by_name
            .get(name)
            .map(|package| package.dependencies.as_slice());
        for dependency in dependencies.unwrap_or_default() {
            // An optional dependency that nobody switched on is not among the packages.
            let next = dependency.name.as_str();
            if dependency.kind == DependencyKind::Normal && by_name.contains_key(next) {
                open.push((next, format!("{way} → {next}")));
            }
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dependencies: &[(&str, &str)]) -> Package {
        let dependencies: Vec<_> = dependencies
            .iter()
            .map(|(name, kind)| {
                let kind = if *kind == "normal" { None } else { Some(*kind) };
                serde_json::json!({ "name": name, "kind": kind })
            })
            .collect();
        serde_json::from_value(serde_json::json!({
            "id": name, "name": name, "version": "1.0.0", "license": null,
            "manifest_path": "Cargo.toml", "dependencies": dependencies, "targets": [],
        }))
        .unwrap()
    }

    #[test]
    fn a_layer_that_reaches_up_is_named() {
        let core = package(
            "wrenn-core",
            &[("wrenn-proto", "normal"), ("wrenn-cli", "normal")],
        );
        let cli = package(
            "wrenn-cli",
            &[("wrenn-core", "normal"), ("serde", "normal")],
        );
        assert_eq!(
            between_ours(&[&core, &cli]),
            ["wrenn-core must not depend on wrenn-cli"]
        );
    }

    #[test]
    fn tests_may_use_more_than_the_crate_itself() {
        let cli = package("wrenn-cli", &[("wrenn-bench", "dev")]);
        let bench = package("wrenn-bench", &[]);
        assert!(between_ours(&[&cli, &bench]).is_empty());
        let cli = package("wrenn-cli", &[("wrenn-bench", "normal")]);
        assert_eq!(
            between_ours(&[&cli, &bench]),
            ["wrenn-cli must not depend on wrenn-bench"]
        );
    }

    #[test]
    fn a_new_crate_needs_a_layer() {
        let complaints = between_ours(&[&package("wrenn-new", &[])]);
        assert!(
            complaints[0].starts_with("wrenn-new has no layer yet"),
            "{complaints:?}"
        );
    }

    #[test]
    fn a_server_in_the_engines_is_found_through_others() {
        let packages = [
            package("wrenn-core", &[("middle", "normal"), ("tester", "dev")]),
            package("middle", &[("axum", "normal"), ("wrenn-core", "normal")]),
            package("tester", &[("sqlx", "normal")]),
            package("axum", &[]),
            package("sqlx", &[]),
        ];
        assert_eq!(
            in_engines(&packages),
            ["axum does not belong in the engines: wrenn-core → middle → axum"]
        );
    }
}
