//! What every guest needs of its root file system, put into one that came from elsewhere.
//!
//! It goes into a tree on the host by way of [`Tree`], and into an ext4 image by way of
//! debugfs, which is given names of ours only.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};

use super::accounts::{Accounts, HOME, NewUser, USER};
use super::error::ImportError;
use super::tree::{EntryPath, PlaceError, Tree};
use crate::error::AtPath as _;
use crate::rootfs::{Debugfs, ENVD};

/// Directories that are mounted over, and the mode of those that are not.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
    ("usr/local/bin", 0o755),
];

const HOSTS: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n";
const SUDO: &str = "user ALL=(ALL:ALL) NOPASSWD: ALL\n";

/// The longest list of users that is read.
const LONGEST_LIST: u64 = 4 << 20;

/// Who a file belongs to, and its mode.
#[derive(Debug, Clone, Copy)]
struct Owned {
    uid: u32,
    gid: u32,
    mode: u32,
}

const ROOTS: Owned = Owned {
    uid: 0,
    gid: 0,
    mode: 0o644,
};

/// Prepares the tree, with the daemon `envd`. Returns who is a user in it.
pub(super) fn tree(tree: &Tree, envd: &Path) -> Result<Accounts, ImportError> {
    for (directory, mode) in DIRECTORIES {
        let path = path(directory);
        if !tree.has_directory(&path) {
            make_directory(
                tree,
                &path,
                Owned {
                    mode: *mode,
                    ..ROOTS
                },
            )
            .map_err(failed(directory))?;
        }
    }
    let daemon = crate::strip::program(envd).at("read", envd)?;
    let program = Owned {
        mode: 0o755,
        ..ROOTS
    };
    write(tree, ENVD, &daemon, program).map_err(failed(ENVD))?;
    if !exists(tree, "etc/hosts") {
        write(tree, "etc/hosts", HOSTS.as_bytes(), ROOTS).map_err(failed("etc/hosts"))?;
    }

    let list = |name: &str| read(tree, name).map_err(failed(name));
    let mut accounts = Accounts {
        passwd: list("etc/passwd")?.unwrap_or_default(),
        group: list("etc/group")?.unwrap_or_default(),
        shadow: list("etc/shadow")?,
    };
    let shell = ["bin/bash", "usr/bin/bash"]
        .iter()
        .find(|shell| exists(tree, shell))
        .map_or("/bin/sh", |_| "/bin/bash");
    if let Some(new) = accounts.add_user(shell) {
        let shadow = accounts.shadow.as_ref();
        let files = [
            ("etc/passwd", Some(&accounts.passwd), 0o644),
            ("etc/group", Some(&accounts.group), 0o644),
            ("etc/shadow", shadow, 0o600),
        ];
        for (name, contents, mode) in files {
            if let Some(contents) = contents {
                write(tree, name, contents, Owned { mode, ..ROOTS }).map_err(failed(name))?;
            }
        }
        let home = Owned {
            uid: new.uid,
            gid: new.gid,
            mode: 0o755,
        };
        make_directory(tree, &path(HOME), home).map_err(failed(HOME))?;
        if tree.has_directory(&path("etc/sudoers.d")) {
            let rule = Owned {
                mode: 0o440,
                ..ROOTS
            };
            write(tree, "etc/sudoers.d/user", SUDO.as_bytes(), rule).map_err(failed(USER))?;
        }
    }
    Ok(accounts)
}

/// Prepares the image, with the daemon `envd`. Returns who is a user in it.
pub(super) fn image(image: &Path, envd: &Path) -> Result<Accounts, ImportError> {
    let debugfs = Debugfs::of(image);
    for (directory, mode) in DIRECTORIES {
        let mut above = String::new();
        for component in directory.split('/') {
            above = format!("{above}/{component}");
            debugfs.make_directory(&above, *mode)?;
        }
    }
    debugfs.write_program(envd, ENVD)?;
    let mut accounts = Accounts {
        passwd: debugfs.read("/etc/passwd")?.unwrap_or_default(),
        group: debugfs.read("/etc/group")?.unwrap_or_default(),
        shadow: debugfs.read("/etc/shadow")?,
    };
    let shell = if debugfs.exists("/bin/bash")? {
        "/bin/bash"
    } else {
        "/bin/sh"
    };
    if let Some(NewUser { uid, gid }) = accounts.add_user(shell) {
        debugfs.replace("/etc/passwd", &accounts.passwd, 0o644)?;
        debugfs.replace("/etc/group", &accounts.group, 0o644)?;
        if let Some(shadow) = &accounts.shadow {
            debugfs.replace("/etc/shadow", shadow, 0o600)?;
        }
        debugfs.make_directory("/home", 0o755)?;
        debugfs.make_directory(HOME, 0o755)?;
        debugfs.own(HOME, uid, gid)?;
    }
    Ok(accounts)
}

/// Checks that the daemon is a file that can be read, before all the work.
pub(super) fn check_daemon(envd: &Path) -> Result<(), ImportError> {
    let metadata = fs::metadata(envd).at("read the guest daemon", envd)?;
    if metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
        return Ok(());
    }
    Err(ImportError::Prepare {
        what: format!("the guest daemon {}", envd.display()),
        source: io::Error::other("it is no program"),
    })
}

/// Bytes and number of everything in the tree.
pub(super) fn measure(directory: &Path) -> Result<(u64, u64), ImportError> {
    let (mut bytes, mut count) = (0, 0);
    for entry in fs::read_dir(directory).at("list", directory)? {
        let entry = entry.at("list", directory)?;
        let metadata = entry
            .path()
            .symlink_metadata()
            .at("look at", &entry.path())?;
        count += 1;
        // A file with several names is counted with each: too much, never too little.
        bytes += metadata.len().next_multiple_of(4096);
        if metadata.is_dir() {
            let inside = measure(&entry.path())?;
            bytes += inside.0;
            count += inside.1;
        }
    }
    Ok((bytes, count))
}

fn path(text: &str) -> EntryPath {
    EntryPath::of_ours(text)
}

fn failed(what: &str) -> impl Fn(PlaceError) -> ImportError + '_ {
    move |error| ImportError::Prepare {
        what: what.to_owned(),
        source: match error {
            PlaceError::Io(source) => source,
            PlaceError::Problem(problem) => io::Error::other(problem),
        },
    }
}

fn make_directory(tree: &Tree, path: &EntryPath, owned: Owned) -> Result<(), PlaceError> {
    if let Some(place) = tree.place(path)? {
        tree.make_directory(&place)?;
        give(place.open_directory()?, owned)?;
    }
    Ok(())
}

fn write(tree: &Tree, name: &str, contents: &[u8], owned: Owned) -> Result<(), PlaceError> {
    if let Some(place) = tree.place(&path(name))? {
        place.clear()?;
        let mut file = place.create()?;
        file.write_all(contents)?;
        give(file, owned)?;
    }
    Ok(())
}

fn give(file: impl std::os::fd::AsFd, owned: Owned) -> io::Result<()> {
    fchown(
        &file,
        Some(Uid::from_raw(owned.uid)),
        Some(Gid::from_raw(owned.gid)),
    )?;
    Ok(fchmod(&file, Mode::from_raw_mode(owned.mode))?)
}

fn exists(tree: &Tree, name: &str) -> bool {
    tree.open_file(&path(name)).is_ok()
}

fn read(tree: &Tree, name: &str) -> Result<Option<Vec<u8>>, PlaceError> {
    let file = match tree.open_file(&path(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut contents = Vec::new();
    file.take(LONGEST_LIST + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > LONGEST_LIST {
        // Cut short and written again, it would have lost the rest.
        return Err(io::Error::other("it is far longer than such files are").into());
    }
    Ok(Some(contents))
}
