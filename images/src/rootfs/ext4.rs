//! ext4 images, made without mounting anything and the same every time.
//!
//! mke2fs takes all that it would make up (identifiers, hash seed, times) from us. What it
//! copies from the host's file system and must not, the change times of the files, debugfs
//! sets afterwards.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use crate::command::Program;
use crate::error::{AtPath, BuildError};
use crate::rootfs::EPOCH;
use crate::rootfs::debugfs::Debugfs;

/// Random once, and the same ever since.
const UUID: &str = "6d2b5a3e-3c0f-4f0a-9a52-7c1f3f5e8d10";

/// How an image is made.
#[derive(Debug, Clone, Copy)]
pub struct Filesystem {
    pub label: &'static str,
    pub size_mib: u64,
    /// Size of the journal; none without.
    pub journal_mib: Option<u64>,
}

/// Makes the image `image` with the contents of `tree`.
///
/// # Errors
/// A program is missing or fails, or the disk is full.
pub fn make(tree: &Path, image: &Path, filesystem: &Filesystem) -> Result<(), BuildError> {
    format(tree, image, filesystem, None)?;
    let mut script = String::new();
    fix_times(tree, "", &mut script)?;
    Debugfs::of(image).run(&script)
}

/// As [`make`], for a tree whose names somebody else chose: they stay as far as mke2fs, and
/// so the times of files are those of the tree. Has room for `inodes` files, if it is told.
///
/// # Errors
/// As [`make`].
pub(crate) fn format(
    tree: &Path,
    image: &Path,
    filesystem: &Filesystem,
    inodes: Option<u64>,
) -> Result<(), BuildError> {
    let file = File::create(image).at("create", image)?;
    file.set_len(filesystem.size_mib << 20).at("size", image)?;
    drop(file);
    let journal = match filesystem.journal_mib {
        Some(size) => ["-J".to_owned(), format!("size={size}")],
        None => ["-O".to_owned(), "^has_journal".to_owned()],
    };
    fixed_time(Program::new("mke2fs"))
        .args([
            "-q", "-F", "-t", "ext4", "-b", "4096", "-I", "256", "-m", "0",
        ])
        .args(["-L", filesystem.label, "-U", UUID])
        // The file is all holes, so nothing must be zeroed, neither now nor by the guest.
        .args([
            "-E",
            &format!("hash_seed={UUID},root_owner=0:0,assume_storage_prezeroed=1"),
        ])
        .args(journal)
        .args(
            inodes
                .into_iter()
                .flat_map(|count| ["-N".to_owned(), count.to_string()]),
        )
        .arg("-d")
        .arg(tree)
        .arg(image)
        .run()?;
    Ok(())
}

/// Adds commands to `script` that set the times of all that lies in `dir`.
fn fix_times(dir: &Path, inside: &str, script: &mut String) -> Result<(), BuildError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).at("list", dir)? {
        let entry = entry.at("list", dir)?;
        let is_dir = entry.file_type().at("look at", &entry.path())?.is_dir();
        names.push((
            entry.path(),
            entry.file_name().to_string_lossy().into_owned(),
            is_dir,
        ));
    }
    names.sort();
    script.push_str(&set_times(if inside.is_empty() { "/" } else { inside }));
    for (path, name, is_dir) in names {
        let place = format!("{inside}/{name}");
        if is_dir {
            fix_times(&path, &place, script)?;
        } else {
            let modified = path.symlink_metadata().at("look at", &path)?.mtime();
            // A package's own time stays; what is younger was made by this build.
            let modified = u64::try_from(modified).unwrap_or_default().min(EPOCH);
            script.push_str(&set_times_with_modified(&place, modified));
        }
    }
    Ok(())
}

/// Commands that give `place` our time throughout.
pub(super) fn set_times(place: &str) -> String {
    set_times_with_modified(place, EPOCH)
}

fn set_times_with_modified(place: &str, modified: u64) -> String {
    let mut script = String::new();
    for (field, time) in [
        ("atime", EPOCH),
        ("ctime", EPOCH),
        ("crtime", EPOCH),
        ("mtime", modified),
    ] {
        // Writing to a String cannot fail.
        writeln!(script, "sif \"{place}\" {field} @{time}").ok();
        writeln!(script, "sif \"{place}\" {field}_extra 0").ok();
    }
    script
}

pub(super) fn fixed_time(program: Program) -> Program {
    let time = EPOCH.to_string();
    program
        .env("E2FSPROGS_FAKE_TIME", &time)
        .env("SOURCE_DATE_EPOCH", &time)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::recipe::sha256_of_file;

    const SMALL: Filesystem = Filesystem {
        label: "test",
        size_mib: 64,
        journal_mib: Some(4),
    };

    fn tree(dir: &Path) {
        fs::create_dir_all(dir.join("usr/local/bin")).unwrap();
        fs::write(dir.join("usr/a file"), "contents").unwrap();
        symlink("a file", dir.join("usr/link")).unwrap();
    }

    fn image_of(dir: &Path, name: &str) -> std::path::PathBuf {
        let place = dir.join(name);
        fs::create_dir(&place).unwrap();
        tree(&place.join("tree"));
        let image = place.join("rootfs.ext4");
        make(&place.join("tree"), &image, &SMALL).unwrap();
        let program = place.join("a program");
        fs::write(&program, vec![7; 300_000]).unwrap();
        Debugfs::of(&image)
            .write_program(&program, "/usr/local/bin/daemon")
            .unwrap();
        image
    }

    #[test]
    fn same_tree_gives_the_same_image_though_its_files_are_younger() {
        let dir = tempfile::tempdir().unwrap();
        let one = image_of(dir.path(), "one");
        let started = std::time::Instant::now();
        // Times in the image have whole seconds.
        while started.elapsed() < std::time::Duration::from_millis(1100) {
            std::thread::yield_now();
        }
        let two = image_of(dir.path(), "two");
        assert_eq!(sha256_of_file(&one).unwrap(), sha256_of_file(&two).unwrap());
    }

    #[test]
    fn image_is_sound_sparse_and_holds_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let image = image_of(dir.path(), "one");
        Program::new("e2fsck")
            .args(["-f", "-n"])
            .arg(&image)
            .run()
            .unwrap();
        assert!(image.metadata().unwrap().blocks() * 512 < 8 << 20);
        let stat = Program::new("debugfs")
            .args(["-R", "stat /usr/local/bin/daemon"])
            .arg(&image)
            .text()
            .unwrap();
        assert!(
            stat.contains("Mode:  0755") && stat.contains("Size: 300000"),
            "{stat}"
        );
    }

    #[test]
    fn program_without_room_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        tree(&dir.path().join("tree"));
        let image = dir.path().join("small.ext4");
        let small = Filesystem {
            label: "small",
            size_mib: 8,
            journal_mib: None,
        };
        make(&dir.path().join("tree"), &image, &small).unwrap();
        let program = dir.path().join("program.big");
        fs::write(&program, vec![1; 16 << 20]).unwrap();
        let error = Debugfs::of(&image)
            .write_program(&program, "/usr/local/bin/daemon")
            .unwrap_err();
        assert!(matches!(error, BuildError::NotInjected { .. }), "{error}");
    }
}
