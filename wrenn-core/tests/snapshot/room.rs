//! A disk that is full, at every step.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use wrenn_core::RootDirectory;
use wrenn_core::snapshot::{BuildStore, FileError, Snapshot, WriteBuildError};

use crate::guest::{Guest, PAGE};

/// A small file system of memory at `place`, seen by this thread only.
fn mount_small(place: &Path, pages: usize) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).unwrap();
    let size = format!("size={}", pages * PAGE);
    let name = Some("tmpfs");
    mount(name, place, name, MsFlags::empty(), Some(size.as_str())).unwrap();
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: mounting a small file system needs root");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    mount_small(directory.path(), 400);
    let root = RootDirectory::new(directory.path());
    let store = BuildStore::open(&root).unwrap();
    let mut guest = Guest::new(64);
    for page in 0..64 {
        guest.write(page, 7);
    }
    let first = guest.pause(&store, None).unwrap();
    // Pages of which every second one changes: the header has a page of its own.
    for page in 0..64 {
        guest.write(page, if page % 2 == 0 { 0 } else { 9 });
    }

    let ballast = directory.path().join("ballast");
    let mut refusals = 0;
    // As much ballast as fits beside the VMM's files, then less and less.
    for spare in 0..20 {
        let writer = store.begin().unwrap();
        guest.write_memory(&writer.memory(), true);
        fs::write(writer.vmstate(), "state").unwrap();
        fill(&ballast, spare);
        let memory = wrenn_core::snapshot::MemoryFile::Diff(&first);
        let result = writer.publish(memory, Default::default());
        fs::remove_file(&ballast).unwrap();
        match result {
            Ok(second) => {
                guest.assert_is_in(&second);
                assert!(refusals > 2, "the disk was never full");
                return;
            }
            Err(error) => {
                assert!(
                    matches!(error, WriteBuildError::File(FileError::NoSpace { .. })),
                    "{error:?}"
                );
                refusals += 1;
            }
        }
        let left: Vec<_> = fs::read_dir(store.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        Snapshot::open(&root, first.id()).unwrap().verify().unwrap();
    }
    panic!("the build never fitted");
}

/// Fills the disk but for some pages.
fn fill(path: &Path, spare: usize) {
    use std::io::Write;

    let mut file = fs::File::create(path).unwrap();
    while file.write_all(&[1; PAGE]).is_ok() {}
    let length = file.metadata().unwrap().len();
    file.set_len(length - (spare * PAGE) as u64).unwrap();
}
