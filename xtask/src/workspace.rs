//! What cargo knows about the workspace: the part of `cargo metadata` that is used here.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// The workspace and, where asked for, everything it is built from.
#[derive(Debug, Deserialize)]
pub(crate) struct Workspace {
    pub(crate) packages: Vec<Package>,
    pub(crate) workspace_root: PathBuf,
    workspace_members: Vec<String>,
    resolve: Option<Resolve>,
}

/// What cargo compiles because of what, optional dependencies that are off left out.
#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    #[serde(default, deserialize_with = "kind_or_normal")]
    kind: DependencyKind,
}

/// One package, ours or another's.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) targets: Vec<Target>,
    #[serde(default)]
    metadata: serde_json::Value,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) rename: Option<String>,
    #[serde(default, deserialize_with = "kind_or_normal")]
    pub(crate) kind: DependencyKind,
}

/// In which of a manifest's tables a dependency stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DependencyKind {
    #[default]
    Normal,
    Dev,
    Build,
}

/// Something that cargo builds from a package: a library, a program, a test.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
    pub(crate) src_path: PathBuf,
}

/// cargo writes `null` for a normal dependency.
fn kind_or_normal<'de, D: serde::Deserializer<'de>>(from: D) -> Result<DependencyKind, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

impl Workspace {
    /// Reads our own packages only, which needs no network and no index.
    pub(crate) fn load() -> Result<Self> {
        Self::read(&["--no-deps"])
    }

    /// Reads all packages that are compiled for our target.
    pub(crate) fn load_with_dependencies() -> Result<Self> {
        Self::read(&["--filter-platform", "x86_64-unknown-linux-gnu"])
    }

    fn read(arguments: &[&str]) -> Result<Self> {
        let mut cargo = process::cargo();
        cargo
            .args(["metadata", "--format-version", "1"])
            .args(arguments);
        let json = process::output(&mut cargo)?;
        serde_json::from_str(&json).context("cargo metadata has a form that is not known here")
    }

    /// The names of packages with those of their normal dependencies that are compiled.
    pub(crate) fn compiled(&self) -> BTreeMap<&str, Vec<&str>> {
        let names: BTreeMap<&str, &str> = self
            .packages
            .iter()
            .map(|package| (package.id.as_str(), package.name.as_str()))
            .collect();
        let name = |id: &str| names.get(id).copied();
        let mut compiled: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for node in self.resolve.iter().flat_map(|resolve| &resolve.nodes) {
            let normal = node.deps.iter().filter(|edge| {
                let mut kinds = edge.dep_kinds.iter();
                kinds.any(|kind| kind.kind == DependencyKind::Normal)
            });
            if let Some(own) = name(&node.id) {
                let own = compiled.entry(own).or_default();
                own.extend(normal.filter_map(|edge| name(&edge.pkg)));
            }
        }
        compiled
    }

    /// Our own packages, by name.
    pub(crate) fn members(&self) -> BTreeMap<&str, &Package> {
        let ours = |package: &&Package| self.workspace_members.contains(&package.id);
        self.packages
            .iter()
            .filter(ours)
            .map(|package| (package.name.as_str(), package))
            .collect()
    }
}

impl Package {
    /// Dependencies that an unused-dependency check must leave alone, since only
    /// generated code names them: `[package.metadata.cargo-machete] ignored`.
    pub(crate) fn used_by_generated_code(&self) -> Vec<&str> {
        let ignored = &self.metadata["cargo-machete"]["ignored"];
        ignored
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(serde_json::Value::as_str)
            .collect()
    }

    /// The names of its targets of one kind (`test`, `bench`, `bin`), in cargo's order.
    pub(crate) fn targets_of_kind(&self, kind: &str) -> impl Iterator<Item = &str> {
        let has_kind = move |target: &&Target| target.kind.iter().any(|own| own == kind);
        self.targets
            .iter()
            .filter(has_kind)
            .map(|target| target.name.as_str())
    }
}

impl Dependency {
    /// The name by which source code knows it.
    pub(crate) fn identifier(&self) -> String {
        self.rename.as_ref().unwrap_or(&self.name).replace('-', "_")
    }
}
