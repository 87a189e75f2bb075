//! Debian packages, fetched and unpacked without installing anything.
//!
//! The host's own apt settings decide about proxies, but which release is read is ours: one
//! recipe must give the same thing on every host. The lists live in the cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::cache::Cache;
use crate::command::{CommandError, Program};
use crate::error::{AtPath, BuildError};

/// The release that everything is built from.
pub const RELEASE: &str = "bookworm";

/// Where packages come from, as mmdebstrap and apt understand it.
pub const SOURCES: &[&str] = &[
    "deb http://deb.debian.org/debian bookworm main",
    "deb http://deb.debian.org/debian bookworm-updates main",
    "deb http://deb.debian.org/debian-security bookworm-security main",
];

/// Older package lists are fetched anew before they are used.
const LISTS_FRESH_FOR: Duration = Duration::from_secs(3600);

/// The Debian archive, with package lists of our own. Holds a lock on them while it lives.
#[derive(Debug)]
pub struct Archive {
    options: Vec<String>,
    _lock: Flock<File>,
}

impl Archive {
    /// Opens the archive, fetching the package lists if they are missing or old.
    ///
    /// # Errors
    /// The cache cannot be written, or the lists cannot be fetched.
    pub fn open(cache: &Cache) -> Result<Self, BuildError> {
        let dir = cache.dir().join(format!("apt-{RELEASE}"));
        for sub in ["state/lists/partial", "archives/partial"] {
            let path = dir.join(sub);
            fs::create_dir_all(&path).at("create", &path)?;
        }
        let lock_path = dir.join("lock");
        let lock = File::create(&lock_path).at("create", &lock_path)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| BuildError::file("lock", &lock_path, errno.into()))?;

        let sources = dir.join("sources.list");
        fs::write(&sources, SOURCES.join("\n") + "\n").at("write", &sources)?;
        let status = dir.join("status");
        fs::write(&status, "").at("write", &status)?;
        let options = [
            ("Dir::Etc::sourcelist", sources.display().to_string()),
            ("Dir::Etc::sourceparts", "-".to_owned()),
            ("Dir::State", dir.join("state").display().to_string()),
            ("Dir::State::status", status.display().to_string()),
            ("Dir::Cache", dir.display().to_string()),
            ("APT::Architecture", "amd64".to_owned()),
            // The user _apt may not enter the home directory that the cache lies in.
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
            ("Acquire::Retries", "3".to_owned()),
        ]
        .map(|(name, value)| format!("-o{name}={value}"))
        .to_vec();

        let archive = Self {
            options,
            _lock: lock,
        };
        archive.refresh(&dir.join("refreshed"))?;
        Ok(archive)
    }

    /// What the metapackage `name` stands for: its first dependency that starts with
    /// `prefix`, for example `linux-image-6.1.0-30-amd64` for `linux-image-amd64`.
    ///
    /// # Errors
    /// There is no such package or dependency.
    pub fn dependency(&self, name: &str, prefix: &str) -> Result<String, BuildError> {
        let no_package = || BuildError::NoPackage {
            name: name.to_owned(),
        };
        let shown = match self
            .program("apt-cache")
            .args(["show", "--no-all-versions", name])
            .text()
        {
            Err(CommandError::Failed { .. }) => return Err(no_package()),
            other => other?,
        };
        dependency_in(&shown, prefix)
            .map(str::to_owned)
            .ok_or_else(no_package)
    }

    /// Unpacks `package` into the directory `into`. Returns its version.
    ///
    /// # Errors
    /// It cannot be fetched or unpacked.
    pub fn unpack(&self, package: &str, into: &Path) -> Result<String, BuildError> {
        let downloads = into.join(".download");
        fs::create_dir_all(&downloads).at("create", &downloads)?;
        self.program("apt-get")
            .args(["-q", "download", package])
            .current_dir(&downloads)
            .run()?;
        let deb = only_entry(&downloads)?.ok_or_else(|| BuildError::NoPackage {
            name: package.to_owned(),
        })?;
        let version = Program::new("dpkg-deb")
            .arg("-f")
            .arg(&deb)
            .arg("Version")
            .text()?;
        Program::new("dpkg-deb")
            .arg("-x")
            .arg(&deb)
            .arg(into)
            .run()?;
        fs::remove_dir_all(&downloads).at("remove", &downloads)?;
        Ok(version.trim().to_owned())
    }

    fn refresh(&self, stamp: &Path) -> Result<(), BuildError> {
        let age = stamp
            .metadata()
            .and_then(|metadata| metadata.modified())
            .map(|at| at.elapsed());
        if matches!(age, Ok(Ok(age)) if age < LISTS_FRESH_FOR) {
            return Ok(());
        }
        self.program("apt-get").args(["-q", "update"]).run()?;
        fs::write(stamp, "").at("write", stamp)
    }

    fn program(&self, name: &str) -> Program {
        Program::new(name).args(&self.options)
    }
}

fn only_entry(dir: &Path) -> Result<Option<PathBuf>, BuildError> {
    let mut entries = fs::read_dir(dir).at("list", dir)?;
    entries
        .next()
        .transpose()
        .map(|entry| entry.map(|entry| entry.path()))
        .at("list", dir)
}

fn dependency_in<'a>(shown: &'a str, prefix: &str) -> Option<&'a str> {
    shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependency_of_a_metapackage() {
        let shown = "Package: linux-image-amd64\n\
            Provides: linux-image-5 \n\
            Depends: kmod, linux-image-6.1.0-56-amd64 (= 6.1.192-2), linux-image-x\n\
            Description: Linux\n";
        assert_eq!(
            dependency_in(shown, "linux-image-6"),
            Some("linux-image-6.1.0-56-amd64")
        );
        assert_eq!(dependency_in(shown, "busybox"), None);
        assert_eq!(dependency_in("Package: x\n", "x"), None);
    }
}
