//! Kernel modules and the order in which they must be loaded.
//!
//! A package as it comes has no `modules.dep`, since depmod runs at installation. What a
//! module needs stands in its own `.modinfo` section, as NUL-ended `key=value` strings.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use crate::error::{AtPath, BuildError};

/// Orders that no module states: the first must be loaded before the second. The checksum
/// users ask for an *algorithm*, which the kernel would otherwise fetch through modprobe.
const UNSTATED: &[(&str, &str)] = &[("crc32c_generic", "libcrc32c"), ("crc32c_generic", "ext4")];

/// All modules of one kernel, by name.
#[derive(Debug)]
pub struct ModuleTree {
    files: BTreeMap<String, PathBuf>,
    built_in: HashSet<String>,
}

impl ModuleTree {
    /// Reads which modules lie under `dir`, a `lib/modules/VERSION` folder.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn read(dir: &Path) -> Result<Self, BuildError> {
        let list = dir.join("modules.builtin");
        let built_in = fs::read_to_string(&list)
            .at("read", &list)?
            .lines()
            .filter_map(|line| name_of(Path::new(line)))
            .collect();
        let mut files = BTreeMap::new();
        let mut pending = vec![dir.to_path_buf()];
        while let Some(folder) = pending.pop() {
            for entry in fs::read_dir(&folder).at("list", &folder)? {
                let entry = entry.at("list", &folder)?;
                let path = entry.path();
                if entry.file_type().at("look at", &path)?.is_dir() {
                    pending.push(path);
                } else if let Some(name) = name_of(&path) {
                    files.insert(name, path);
                }
            }
        }
        Ok(Self { files, built_in })
    }

    /// The files of the modules `wanted` and of all that they need, in an order in which each
    /// comes after what it needs. What is built into the kernel needs no file.
    ///
    /// # Errors
    /// A module is missing or damaged, or modules need each other.
    pub fn load_order<'a>(
        &self,
        wanted: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<PathBuf>, BuildError> {
        let wanted: Vec<String> = wanted.into_iter().map(canonical).collect();
        let mut needs = HashMap::new();
        let mut pending = wanted.clone();
        while let Some(name) = pending.pop() {
            if needs.contains_key(&name) || self.built_in.contains(&name) {
                continue;
            }
            let path = self.file(&name)?;
            let stated = dependencies(path)?;
            let unstated = UNSTATED.iter().filter(|(_, later)| *later == name);
            let all: Vec<String> = unstated
                .map(|(first, _)| (*first).to_owned())
                .chain(stated)
                .collect();
            pending.extend(all.iter().cloned());
            needs.insert(name, all);
        }
        let ordered = order(&wanted, &needs)?;
        ordered
            .iter()
            .map(|name| self.file(name).cloned())
            .collect()
    }

    fn file(&self, name: &str) -> Result<&PathBuf, BuildError> {
        self.files.get(name).ok_or_else(|| BuildError::NoModule {
            name: name.to_owned(),
        })
    }
}

/// Depth first, so that what is needed comes first. Names without an entry in `needs` are
/// built in and are left out.
fn order(
    wanted: &[String],
    needs: &HashMap<String, Vec<String>>,
) -> Result<Vec<String>, BuildError> {
    fn visit(
        name: &String,
        needs: &HashMap<String, Vec<String>>,
        path: &mut Vec<String>,
        ordered: &mut Vec<String>,
    ) -> Result<(), BuildError> {
        let Some(needed) = needs.get(name) else {
            return Ok(());
        };
        if ordered.contains(name) {
            return Ok(());
        }
        if path.contains(name) {
            path.push(name.clone());
            return Err(BuildError::ModuleCircle {
                names: path.clone(),
            });
        }
        path.push(name.clone());
        for other in needed {
            visit(other, needs, path, ordered)?;
        }
        path.pop();
        ordered.push(name.clone());
        Ok(())
    }

    let mut ordered = Vec::new();
    for name in wanted {
        visit(name, needs, &mut Vec::new(), &mut ordered)?;
    }
    Ok(ordered)
}

fn dependencies(module: &Path) -> Result<Vec<String>, BuildError> {
    let bytes = fs::read(module).at("read", module)?;
    let bad = |source| BuildError::BadModule {
        path: module.to_path_buf(),
        source,
    };
    let file = object::File::parse(&*bytes).map_err(bad)?;
    let Some(section) = file.section_by_name(".modinfo") else {
        return Ok(Vec::new());
    };
    Ok(dependencies_in(section.data().map_err(bad)?))
}

fn dependencies_in(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(canonical)
        .collect()
}

/// A module's name: its file's, with `_` for `-`, which the kernel treats as the same.
fn name_of(path: &Path) -> Option<String> {
    path.file_name()?
        .to_str()?
        .strip_suffix(".ko")
        .map(canonical)
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    fn needs(list: &[(&str, &[&str])]) -> HashMap<String, Vec<String>> {
        list.iter()
            .map(|(name, needed)| ((*name).to_owned(), names(needed)))
            .collect()
    }

    #[test]
    fn each_module_comes_after_what_it_needs() {
        let needs = needs(&[
            ("virtio_net", &["virtio", "net_failover"]),
            ("net_failover", &["failover"]),
            ("failover", &[]),
            ("virtio", &[]),
            ("virtio_blk", &["virtio", "crc"]),
        ]);
        let ordered = order(&names(&["virtio_net", "virtio_blk", "virtio"]), &needs).unwrap();
        assert_eq!(
            ordered,
            [
                "virtio",
                "failover",
                "net_failover",
                "virtio_net",
                "virtio_blk"
            ]
        );
    }

    #[test]
    fn a_circle_is_named() {
        let needs = needs(&[("a", &["b"]), ("b", &["a"])]);
        let error = order(&names(&["a"]), &needs).unwrap_err();
        assert!(error.to_string().contains(r#"["a", "b", "a"]"#), "{error}");
    }

    #[test]
    fn modinfo_names_the_dependencies() {
        let modinfo = b"license=GPL\0depends=virtio_ring,net-failover\0name=virtio_net\0";
        assert_eq!(dependencies_in(modinfo), ["virtio_ring", "net_failover"]);
        assert!(dependencies_in(b"depends=\0name=x\0").is_empty());
        assert!(dependencies_in(b"").is_empty());
    }

    #[test]
    fn built_in_modules_need_no_file_and_unknown_ones_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        let tree = ModuleTree::read(dir.path()).unwrap();
        assert!(tree.load_order(["ext4"]).unwrap().is_empty());
        let error = tree.load_order(["xfs"]).unwrap_err();
        assert!(matches!(error, BuildError::NoModule { name } if name == "xfs"));
    }
}
