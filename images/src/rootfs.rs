//! The root file systems of templates.
//!
//! Each is an ext4 image made in two steps, so that a new guest daemon does not repeat the
//! long one: first all that comes from Debian, then the daemon written into a copy.

mod base;
mod debugfs;
mod ext4;
mod minimal;

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::Cache;
use crate::error::{AtPath, BuildError};
use crate::install::copy_sparse;
use crate::progress::Progress;
use crate::recipe::{Recipe, sha256_of_file};

pub(crate) use debugfs::Debugfs;
pub(crate) use ext4::format;
pub use ext4::{Filesystem, make as make_ext4};
pub use minimal::add_busybox;

/// Where the guest daemon lies in every template.
pub(crate) const ENVD: &str = "/usr/local/bin/wrenn-envd";

/// The moment that all files of all images bear: 2025-01-01 00:00:00 UTC.
const EPOCH: u64 = 1_735_689_600;

/// The names of the templates that can be built.
pub const TEMPLATES: &[&str] = &["base", "minimal"];

/// A finished root file system.
#[derive(Debug, Clone)]
pub struct RootImage {
    pub name: &'static str,
    pub file: PathBuf,
    pub sha256: String,
    pub size_mib: u64,
}

/// What sets a template apart from the others.
struct Template {
    name: &'static str,
    /// Folders of its two products in the cache.
    kinds: [&'static str; 2],
    filesystem: Filesystem,
    /// Everything that decides about the first step.
    recipe: fn(Recipe) -> Recipe,
    /// Fills an empty directory with the tree.
    fill: fn(&Cache, &Path) -> Result<(), BuildError>,
}

/// Builds the template `name` with the guest daemon `envd` in it.
///
/// # Errors
/// There is no such template, packages cannot be fetched, or the cache not written.
pub fn build(
    name: &str,
    cache: &Cache,
    envd: &Path,
    progress: &dyn Progress,
) -> Result<RootImage, BuildError> {
    let template = [base::TEMPLATE, minimal::TEMPLATE]
        .into_iter()
        .find(|template| template.name == name)
        .ok_or_else(|| BuildError::UnknownTemplate {
            name: name.to_owned(),
        })?;
    let debian = template.without_daemon(cache, progress)?;
    template.with_daemon(&debian, cache, envd, progress)
}

impl Template {
    fn without_daemon(
        &self,
        cache: &Cache,
        progress: &dyn Progress,
    ) -> Result<PathBuf, BuildError> {
        let recipe =
            Recipe::new(self.kinds[0], 1).input("filesystem", &format!("{:?}", self.filesystem));
        let recipe = (self.recipe)(recipe);
        let step = format!("root file system {}", self.name);
        let product = cache.product(&recipe, &step, progress, |dir| {
            if !nix::unistd::geteuid().is_root() {
                return Err(BuildError::NeedsRoot {
                    template: self.name,
                });
            }
            let tree = dir.join("tree");
            fs::create_dir(&tree).at("create", &tree)?;
            (self.fill)(cache, &tree)?;
            // The daemon's folder is there already, so that writing it changes one folder.
            let bin = tree.join("usr/local/bin");
            fs::create_dir_all(&bin).at("create", &bin)?;
            ext4::make(&tree, &dir.join("rootfs.ext4"), &self.filesystem)?;
            crate::cache::remove_tree(&tree)
        })?;
        Ok(product.join("rootfs.ext4"))
    }

    fn with_daemon(
        &self,
        debian: &Path,
        cache: &Cache,
        envd: &Path,
        progress: &dyn Progress,
    ) -> Result<RootImage, BuildError> {
        let recipe = Recipe::new(self.kinds[1], 2)
            .input("debian", &debian.display().to_string())
            .file("envd", envd)
            .at("read", envd)?;
        let step = format!("guest daemon in {}", self.name);
        let product = cache.product(&recipe, &step, progress, |dir| {
            let image = dir.join("rootfs.ext4");
            copy_sparse(debian, &image)?;
            Debugfs::of(&image).write_program(envd, ENVD)?;
            let sha256 = sha256_of_file(&image).at("read", &image)?;
            fs::write(dir.join("sha256"), sha256).at("write", dir)
        })?;
        let sha256 = product.join("sha256");
        Ok(RootImage {
            name: self.name,
            file: product.join("rootfs.ext4"),
            sha256: fs::read_to_string(&sha256).at("read", &sha256)?,
            size_mib: self.filesystem.size_mib,
        })
    }
}
