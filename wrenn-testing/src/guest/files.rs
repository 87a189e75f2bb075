//! The files of a guest: a directory of its own, and how the guest sees it.
//!
//! ```text
//!  files/home/user   the user's home     mounted on /home
//!  files/root        root's home         mounted on /root
//!  files/tmp         temporary files     mounted on /tmp
//!  files/etc         passwd and group    mounted on /etc/passwd and /etc/group
//! ```
//!
//! Root gives each guest a mount namespace with these, in which everything else is read-only:
//! a program in a guest cannot harm the files of the person who tests. Other people may make
//! no such namespace. Their guests see the host's files, and relative paths begin in the
//! guest's own home.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, User, geteuid};

/// The guest's default user where it has its own user database, as in templates.
const USER: &str = "user";
const USER_HOME: &str = "/home/user";
const USER_ID: u32 = 1000;
/// What stays writable beside the guest's own directories.
const WRITABLE: [&str; 3] = ["/dev", "/proc", "/sys"];

/// How guests are kept apart from the host's files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// A mount namespace for each.
    Mounts,
    /// A home directory for each. All programs run as this user, who runs the test.
    Home { user: String },
}

impl Isolation {
    /// The best that is possible here. Trying takes a thread, which is in another namespace
    /// afterwards.
    pub(crate) fn probe() -> io::Result<Self> {
        let possible = geteuid().is_root()
            && ["/home", "/root"]
                .iter()
                .all(|path| Path::new(path).is_dir())
            && std::thread::spawn(|| unshare(CloneFlags::CLONE_NEWNS).is_ok())
                .join()
                .unwrap_or(false);
        if possible {
            return Ok(Self::Mounts);
        }
        let uid = geteuid();
        let user = User::from_uid(uid)?.ok_or_else(|| unknown(uid))?;
        Ok(Self::Home { user: user.name })
    }

    /// Whom requests act as that name nobody.
    pub(crate) fn default_user(&self) -> &str {
        match self {
            Self::Mounts => USER,
            Self::Home { user } => user,
        }
    }
}

fn unknown(uid: Uid) -> io::Error {
    io::Error::other(format!("the user {uid} is not in /etc/passwd"))
}

/// The directory with the files of one guest.
#[derive(Clone, Debug)]
pub(crate) struct GuestFiles {
    path: PathBuf,
    isolation: Isolation,
}

impl GuestFiles {
    /// Makes the files of a new guest.
    pub(crate) fn create(path: PathBuf, isolation: Isolation) -> io::Result<Self> {
        let files = Self { path, isolation };
        fs::create_dir_all(files.home())?;
        for name in ["root", "tmp", "etc"] {
            fs::create_dir_all(files.path.join(name))?;
        }
        set_mode(&files.path.join("root"), 0o700)?;
        set_mode(&files.path.join("tmp"), 0o1777)?;
        if files.isolation == Isolation::Mounts {
            chown(files.home(), Some(USER_ID), Some(USER_ID))?;
            let user = format!("{USER}:x:{USER_ID}:{USER_ID}::{USER_HOME}:/bin/sh");
            fs::write(
                files.path.join("etc/passwd"),
                database("/etc/passwd", &user)?,
            )?;
            let group = format!("{USER}:x:{USER_ID}:");
            fs::write(
                files.path.join("etc/group"),
                database("/etc/group", &group)?,
            )?;
        }
        Ok(files)
    }

    /// Copies the files of another guest, or of a snapshot.
    pub(crate) fn copy(&self, to: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&to)?;
        let output = Command::new("cp")
            .args(["--archive", "--reflink=auto", "--no-target-directory", "--"])
            .args([&self.path, &to])
            .output()?;
        if output.status.success() {
            Ok(Self {
                path: to,
                isolation: self.isolation.clone(),
            })
        } else {
            Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        }
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Where the user's home lies on the host.
    pub(crate) fn home(&self) -> PathBuf {
        self.path.join("home").join(USER)
    }

    /// A path of a request, as the daemon takes it.
    pub(crate) fn resolve(&self, path: &str) -> String {
        let relative = match (&self.isolation, path.strip_prefix('~')) {
            (Isolation::Mounts, _) => return path.to_owned(),
            (_, Some("")) => "",
            (_, Some(rest)) if rest.starts_with('/') => rest.trim_start_matches('/'),
            _ if path.starts_with('/') => return path.to_owned(),
            _ => path,
        };
        let path = self.home().join(relative);
        path.to_string_lossy().trim_end_matches('/').to_owned()
    }

    /// Moves the calling thread, and what it starts, to where the guest is. The thread must
    /// end afterwards.
    pub(crate) fn enter(&self) -> io::Result<()> {
        if self.isolation != Isolation::Mounts {
            return Ok(());
        }
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)?;
        let temporary = std::env::temp_dir();
        let binds = [
            ("etc/passwd", Path::new("/etc/passwd")),
            ("etc/group", Path::new("/etc/group")),
            ("home", Path::new("/home")),
            ("root", Path::new("/root")),
            ("tmp", Path::new("/tmp")),
            ("tmp", &temporary),
        ];
        // The first mounts may hide the sources of later ones, so all are opened before.
        let opened = binds.iter().map(|(source, target)| {
            let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
            Ok((
                open(&self.path.join(source), flags, Mode::empty())?,
                *target,
            ))
        });
        let opened = opened.collect::<io::Result<Vec<_>>>()?;
        let own: Vec<&Path> = opened.iter().map(|(_, target)| *target).collect();
        for (source, target) in &opened {
            // The directory for temporary files may be hidden by a mount before it.
            if !target.exists() {
                continue;
            }
            let source = descriptor_path(source);
            mount(Some(&source), *target, none, MsFlags::MS_BIND, none)?;
        }
        for target in mount_points()? {
            let is_writable = WRITABLE.iter().any(|path| target.starts_with(path))
                || own.contains(&target.as_path());
            if !is_writable {
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                // One that is hidden by another cannot be reached.
                mount(none, &target, none, flags, none).ok();
            }
        }
        Ok(())
    }
}

/// The name of an open file that stays valid whatever is mounted, in this thread's namespace.
fn descriptor_path(descriptor: &impl std::os::fd::AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/thread-self/fd/{}", descriptor.as_raw_fd()))
}

fn mount_points() -> io::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    Ok(points.map(PathBuf::from).collect())
}

/// The host's user or group database with the guest's user in place of one with its name or
/// number.
fn database(path: &str, user: &str) -> io::Result<String> {
    let mut lines = vec![user.to_owned()];
    let text = fs::read(path)?;
    for line in String::from_utf8_lossy(&text).lines() {
        let mut fields = line.split(':');
        let name = fields.next().unwrap_or_default();
        let id = fields.nth(1).unwrap_or_default();
        if name != USER && id != USER_ID.to_string() {
            lines.push(line.to_owned());
        }
    }
    Ok(lines.join("\n") + "\n")
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_without_mounts_begin_in_own_home() {
        let files = GuestFiles {
            path: "/t/files".into(),
            isolation: Isolation::Home {
                user: "me".to_owned(),
            },
        };
        for (path, resolved) in [
            ("", "/t/files/home/user"),
            ("~", "/t/files/home/user"),
            ("~/a", "/t/files/home/user/a"),
            ("a/b", "/t/files/home/user/a/b"),
            ("/etc", "/etc"),
        ] {
            assert_eq!(files.resolve(path), resolved, "{path}");
        }
    }
}
