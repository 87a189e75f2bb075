//! A guest kernel of our own, made from Debian's sources on request.
//!
//! ```text
//! linux-source-6.1 ──dpkg -x, tar──▶ sources ─┐
//! kernel/guest.config ──merge_config.sh───────┴▶ .config ──▶ every option there? ──make──▶
//!     guest kernel/  kernel.json vmlinuz vmlinux config
//! ```
//!
//! Everything is built in, so it boots with no initramfs. Debian's kernel stays the default:
//! this one is used where its id is asked for.
//!
//! As with Debian's, the version is the newest one at the time of the build.

mod fragment;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use crate::archive::Archive;
use crate::cache::{Cache, remove_tree};
use crate::command::Program;
use crate::error::{AtPath, BuildError};
use crate::kernel::{GuestKernel, KernelDescription, write_json};
use crate::progress::{Progress, step};
use crate::recipe::Recipe;

pub use fragment::Fragment;

/// What the kernel has.
pub const FRAGMENT: &str = include_str!("../../kernel/guest.config");

/// The package that holds the sources, as an archive of the same name.
const SOURCE_PACKAGE: &str = "linux-source-6.1";
const ARCHITECTURE: &str = "x86_64";

/// Builds the kernel, or finds it in the cache. Building takes minutes and 3 GB of room.
///
/// # Errors
/// The sources cannot be fetched, an option of the fragment has not taken effect, a program
/// that compiles is missing or fails, or the cache cannot be written.
pub fn build(cache: &Cache, progress: &dyn Progress) -> Result<GuestKernel, BuildError> {
    let recipe = recipe(FRAGMENT);
    let title = format!("kernel from {SOURCE_PACKAGE}");
    let dir = cache.product(&recipe, &title, progress, |dir| {
        let work = dir.join("work");
        let sources = work.join("sources");
        let origin = step(progress, "sources", || fetch(cache, &work, &sources))?;
        step(progress, "configuration", || configure(&sources))?;
        step(progress, "compilation, which takes minutes", || {
            compile(&sources, &origin.timestamp)
        })?;
        take(&sources, dir)?;
        let description = description(&sources, &recipe, &origin.version)?;
        write_json(&description, &dir.join("kernel.json"))?;
        remove_tree(&work)
    })?;
    GuestKernel::read(dir)
}

/// Everything that decides what comes out, but for the version of the sources.
fn recipe(fragment: &str) -> Recipe {
    Recipe::new("kernel-own", 1)
        .input("package", SOURCE_PACKAGE)
        .input("architecture", ARCHITECTURE)
        .input("fragment", fragment)
}

/// Where the sources come from.
struct Origin {
    /// The package's version.
    version: String,
    /// When Debian packed them: the kernel says that it was built then, whenever it was.
    timestamp: String,
}

fn fetch(cache: &Cache, work: &Path, sources: &Path) -> Result<Origin, BuildError> {
    let package = work.join("package");
    let version = Archive::open(cache)?.unpack(SOURCE_PACKAGE, &package)?;
    let packed = package.join(format!("usr/src/{SOURCE_PACKAGE}.tar.xz"));
    let modified = fs::metadata(&packed).at("look at", &packed)?.mtime();
    let timestamp = Program::new("date")
        .args(["-u", &format!("--date=@{modified}")])
        .text()?;
    fs::create_dir_all(sources).at("create", sources)?;
    Program::new("tar")
        .args(["--extract", "--xz", "--strip-components=1", "--directory"])
        .arg(sources)
        .arg("--file")
        .arg(&packed)
        .run()?;
    remove_tree(&package)?;
    Ok(Origin {
        version,
        timestamp: timestamp.trim().to_owned(),
    })
}

/// Writes `.config`: all off, then the fragment, then what its options select.
fn configure(sources: &Path) -> Result<(), BuildError> {
    let wanted = Fragment::parse(FRAGMENT)?;
    let fragment = sources.join("wrenn.config");
    fs::write(&fragment, FRAGMENT).at("write", &fragment)?;
    in_sources("sh", sources)
        .args(["scripts/kconfig/merge_config.sh", "-n"])
        .arg(&fragment)
        .run()?;
    let config = sources.join(".config");
    let options = wanted.missing_in(&fs::read_to_string(&config).at("read", &config)?);
    if options.is_empty() {
        Ok(())
    } else {
        Err(BuildError::KernelOptions { options })
    }
}

fn compile(sources: &Path, timestamp: &str) -> Result<(), BuildError> {
    let jobs = thread::available_parallelism().map_or(1, usize::from);
    in_sources("make", sources)
        .args(["--silent", &format!("--jobs={jobs}"), "bzImage"])
        // The same sources give the same bytes, on whatever host.
        .env("KBUILD_BUILD_TIMESTAMP", timestamp)
        .env("KBUILD_BUILD_USER", "wrenn")
        .env("KBUILD_BUILD_HOST", "wrenn")
        .env("KBUILD_BUILD_VERSION", "1")
        .run()?;
    Ok(())
}

/// Moves what is booted out of the sources into `dir`.
fn take(sources: &Path, dir: &Path) -> Result<(), BuildError> {
    for (from, name) in [("arch/x86/boot/bzImage", "vmlinuz"), (".config", "config")] {
        let to = dir.join(name);
        fs::rename(sources.join(from), &to).at("move the kernel to", &to)?;
    }
    // Symbols are no part of what is loaded.
    Program::new("objcopy")
        .args(["--strip-all", "--remove-section=.comment"])
        .arg(sources.join("vmlinux"))
        .arg(dir.join("vmlinux"))
        .run()?;
    Ok(())
}

fn description(
    sources: &Path,
    recipe: &Recipe,
    package_version: &str,
) -> Result<KernelDescription, BuildError> {
    let version = in_sources("make", sources)
        .args(["--silent", "kernelversion"])
        .text()?;
    Ok(KernelDescription {
        version: 1,
        id: id(version.trim(), recipe, package_version),
        bzimage: "vmlinuz".into(),
        elf: "vmlinux".into(),
        initrd: None,
        on_request: true,
    })
}

/// Two kernels of one version that were configured differently are two kernels.
fn id(version: &str, recipe: &Recipe, package_version: &str) -> String {
    let mut digest = Recipe::new("kernel-own-id", 1)
        .input("recipe", &recipe.key())
        .input("package version", package_version)
        .key();
    digest.truncate(8);
    format!("wrenn-{version}-{digest}")
}

fn in_sources(program: &str, sources: &Path) -> Program {
    Program::new(program)
        .current_dir(sources)
        .env("ARCH", ARCHITECTURE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_fragment() {
        assert_eq!(recipe(FRAGMENT).key(), recipe(FRAGMENT).key());
        let changed = FRAGMENT.replace("CONFIG_TUN=y", "# CONFIG_TUN is not set");
        assert_ne!(recipe(FRAGMENT).key(), recipe(&changed).key());
    }

    #[test]
    fn the_id_tells_configurations_and_package_versions_apart() {
        let ours = recipe(FRAGMENT);
        let other = recipe("CONFIG_64BIT=y\n");
        let ids = [
            id("6.1.192", &ours, "6.1.192-2"),
            id("6.1.192", &ours, "6.1.192-3"),
            id("6.1.192", &other, "6.1.192-2"),
        ];
        assert!(ids.iter().all(|id| id.starts_with("wrenn-6.1.192-")));
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len(), "{ids:?}");
    }
}
