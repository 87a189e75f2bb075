//! Licences of everything that our programs are made of, held to the list in deny.toml.
//!
//! cargo-deny reads the same list and knows more (advisories, sources). It takes minutes to
//! compile, so what every contributor needs is checked here without it.

use std::path::Path;

use anyhow::{Context, Result};

use super::{no_complaints, spdx};
use crate::workspace::Workspace;

pub(super) fn check() -> Result<()> {
    let workspace = Workspace::load_with_dependencies()?;
    let allowed = allowed(&workspace.workspace_root.join("deny.toml"))?;
    let complaints: Vec<String> = workspace
        .packages
        .iter()
        .filter(|package| {
            let licence = package.license.as_deref();
            !licence.is_some_and(|licence| spdx::satisfied(licence, &allowed))
        })
        .map(|package| {
            let licence = package.license.as_deref().unwrap_or("no licence at all");
            format!("{} {}: {licence}", package.name, package.version)
        })
        .collect();
    no_complaints(&complaints)
}

fn allowed(path: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    listed(&text).with_context(|| format!("{} has no list of allowed licences", path.display()))
}

/// The strings of `allow = [ … ]` in the section `[licenses]`.
fn listed(deny: &str) -> Option<Vec<String>> {
    let section = deny.split_once("\n[licenses]\n")?.1;
    let list = section.split_once("\nallow = [")?.1.split_once(']')?.0;
    // Every second piece between quotation marks stands inside of them.
    let licences: Vec<String> = list
        .split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    (!licences.is_empty()).then_some(licences)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_read_from_its_section_only() {
        let deny = "[bans]\nallow = [\"x\"]\n\n[licenses]\nversion = 2\nallow = [\n  \
                    \"MIT\",\n  \"Apache-2.0 WITH LLVM-exception\",\n]\n";
        assert_eq!(
            listed(deny).unwrap(),
            ["MIT", "Apache-2.0 WITH LLVM-exception"]
        );
        assert_eq!(listed("[bans]\nallow = [\"x\"]\n"), None);
    }

    #[test]
    fn our_own_deny_file_is_readable() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
        assert!(allowed(&path).unwrap().contains(&"MIT".to_owned()));
    }
}
