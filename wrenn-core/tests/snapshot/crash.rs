//! A process that writes, compacts and collects, and is killed at any moment.

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use wrenn_core::RootDirectory;
use wrenn_core::snapshot::{BuildId, BuildStore, Holder, Reference, ReferencesError, Snapshot};

use crate::guest::Guest;

const ROOT: &str = "WRENN_TEST_SNAPSHOT_ROOT";

/// The record of a sandbox: the build that it is paused in.
fn record(root: &RootDirectory) -> Result<Vec<Reference>, ReferencesError> {
    let Ok(text) = fs::read_to_string(root.path().join("record")) else {
        return Ok(Vec::new());
    };
    let build: BuildId = text.parse()?;
    let holder = Holder::Template("record".to_owned());
    Ok(vec![Reference { build, holder }])
}

fn write_record(root: &RootDirectory, id: &BuildId) {
    let aside = root.path().join("record.new");
    fs::write(&aside, id.as_str()).unwrap();
    fs::rename(aside, root.path().join("record")).unwrap();
}

#[test]
#[ignore = "runs in a process of its own, which the next test kills"]
fn process_that_is_killed() {
    let root = RootDirectory::new(std::env::var_os(ROOT).unwrap());
    let store = BuildStore::open(&root).unwrap();
    let mut guest = Guest::new(600);
    let mut snapshot: Option<Snapshot> = None;
    for round in 0.. {
        for page in 0..20 {
            guest.write(round * 31 + page * 7, u8::try_from(round % 251).unwrap());
        }
        let mut next = guest.pause(&store, snapshot.as_ref()).unwrap();
        if round % 5 == 4 {
            next = store.compact(next.id()).unwrap();
        }
        write_record(&root, next.id());
        snapshot = Some(next);
        if round % 3 == 2 {
            store.gc(|| record(&root)).unwrap();
        }
        // One byte a round tells the test how far this is.
        std::io::stderr().write_all(b".").unwrap();
    }
}

#[test]
fn whenever_a_writer_is_killed_every_build_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let root = RootDirectory::new(directory.path());
    let store = BuildStore::open(&root).unwrap();
    for kill in 0..12_u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--ignored",
                "--exact",
                "--nocapture",
                "crash::process_that_is_killed",
            ])
            .env(ROOT, directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut rounds = vec![0; 1 + usize::try_from(kill).unwrap() % 6];
        child
            .stderr
            .as_mut()
            .unwrap()
            .read_exact(&mut rounds)
            .unwrap();
        assert!(
            rounds.iter().all(|byte| *byte == b'.'),
            "{}",
            String::from_utf8_lossy(&rounds)
        );
        // Some work of the next round, so that the kill falls on another step each time.
        let work = (0..kill * 40_000).fold(kill, |all, one| std::hint::black_box(all ^ one));
        std::hint::black_box(work);
        child.kill().unwrap();
        child.wait().unwrap();

        for id in store.list().unwrap() {
            Snapshot::open(&root, &id).unwrap().verify().unwrap();
        }
        let named = record(&root).unwrap().remove(0).build;
        Snapshot::open(&root, &named).unwrap().verify().unwrap();
        store.sweep().unwrap();
        store.gc(|| record(&root)).unwrap();
        let snapshot = Snapshot::open(&root, &named).unwrap();
        snapshot.verify().unwrap();
        let left = fs::read_dir(store.path()).unwrap().count();
        assert_eq!(left, snapshot.layers().len(), "something was left behind");
    }
}
