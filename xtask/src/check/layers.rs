//! Which crate may depend on which of ours, and what must stay out of the engines.
//!
//! ```text
//! wrenn-agent ─────────────────────────┐            (wrenn-agent, wrenn-cli ──▶ wrenn-proto)
//!                                      ▼
//! wrenn-cli ──▶ wrenn-machine ──▶ wrenn-core ──▶ wrenn-proto ◀── wrenn-envd
//!     │              └──▶ wrenn-images ▲                      wrenn-vmm, wrenn-bench: alone
//!     └────────────────────────────────┘
//! ```

use std::collections::{BTreeMap, BTreeSet};

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
    (
        "wrenn-server",
        &["wrenn-bench", "wrenn-sdk", "wrenn-testing"],
    ),
    ("wrenn-sdk", &["wrenn-server", "wrenn-testing"]),
    (
        "wrenn-cli",
        &["wrenn-agent", "wrenn-bench", "wrenn-testing"],
    ),
    ("wrenn-examples", &["wrenn-testing"]),
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

/// Other TLS providers than ring: two in one program fail at the first handshake.
const NOT_ANYWHERE: &[&str] = &["aws-lc-rs", "aws-lc-sys", "native-tls", "openssl-sys"];

/// Servers and databases: who embeds the SDK builds neither.
const NOT_IN_CLIENTS: &[&str] = &["axum", "libsqlite3-sys", "sqlx"];

pub(super) fn check() -> Result<()> {
    let workspace = Workspace::load()?;
    let members: Vec<&Package> = workspace.members().into_values().collect();
    let mut complaints = between_ours(&members);
    let all = Workspace::load_with_dependencies()?;
    let compiled = all.compiled();
    complaints.extend(banned_below("wrenn-core", NOT_IN_ENGINES, &compiled));
    complaints.extend(banned_everywhere(&members, &compiled));
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

/// Follows the dependencies of a crate of ours, tests left out, and names the way to each
/// package that must not be among them.
fn banned_below(
    crate_name: &str,
    banned: &[&str],
    compiled: &BTreeMap<&str, Vec<&str>>,
) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut open = vec![(crate_name, crate_name.to_owned())];
    let mut complaints = Vec::new();
    while let Some((name, way)) = open.pop() {
        if !seen.insert(name) {
            continue;
        }
        if banned.contains(&name) {
            complaints.push(format!("{name} does not belong into {crate_name}: {way}"));
        }
        for next in compiled.get(name).into_iter().flatten() {
            open.push((next, format!("{way} → {next}")));
        }
    }
    complaints
}

/// The same for every program, and for the SDK, which is in other people's programs.
fn banned_everywhere(members: &[&Package], compiled: &BTreeMap<&str, Vec<&str>>) -> Vec<String> {
    let mut complaints: Vec<String> = members
        .iter()
        .flat_map(|member| banned_below(&member.name, NOT_ANYWHERE, compiled))
        .collect();
    complaints.extend(banned_below("wrenn-sdk", NOT_IN_CLIENTS, compiled));
    complaints.extend(banned_below("wrenn-server", &["wrenn-core"], compiled));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn banned_package_is_named_with_the_way_to_it() {
        let compiled = BTreeMap::from([
            ("wrenn-core", vec!["a"]),
            ("a", vec!["axum", "wrenn-core"]),
            ("b", vec!["sqlx"]),
        ]);
        assert_eq!(
            banned_below("wrenn-core", NOT_IN_ENGINES, &compiled),
            ["axum does not belong into wrenn-core: wrenn-core → a → axum"]
        );
        assert!(banned_below("b", &["axum"], &compiled).is_empty());
    }

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
}
