//! Builds that are damaged, incomplete or hostile.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use wrenn_core::RootDirectory;
use wrenn_core::snapshot::{
    BuildDetails, BuildId, BuildStore, Inspection, MemoryFile, OpenSnapshotError, Snapshot,
    WriteBuildError,
};

use crate::guest::{Guest, PAGE};

struct Chain {
    _directory: tempfile::TempDir,
    root: RootDirectory,
    store: BuildStore,
    first: BuildId,
    second: BuildId,
}

/// Two builds, the second of which needs the first.
fn chain() -> Chain {
    let directory = tempfile::tempdir().unwrap();
    let root = RootDirectory::new(directory.path());
    let store = BuildStore::open(&root).unwrap();
    let mut guest = Guest::new(64);
    for page in 0..40 {
        guest.write(page, 7);
    }
    let first = guest.pause(&store, None).unwrap();
    guest.write(20, 8);
    let disk = directory.path().join("store.cow");
    fs::write(&disk, "blocks of a disk").unwrap();
    let mut writer = store.begin().unwrap();
    guest.write_memory(&writer.memory(), true);
    fs::write(writer.vmstate(), "state of a VM").unwrap();
    writer.take_file("store.cow", &disk).unwrap();
    assert!(!disk.exists());
    let second = writer
        .publish(MemoryFile::Diff(&first), BuildDetails::default())
        .unwrap();
    second.verify().unwrap();
    let (first, second) = (first.id().clone(), second.id().clone());
    Chain {
        _directory: directory,
        root,
        store,
        first,
        second,
    }
}

/// Why a snapshot cannot be used: found when it is opened, or when it is verified.
fn refusal(root: &RootDirectory, id: &BuildId) -> Option<String> {
    match Snapshot::open(root, id) {
        Err(error) => Some(error.to_string()),
        Ok(snapshot) => snapshot.verify().err().map(|error| error.to_string()),
    }
}

fn flip(path: &Path, bit: u64) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    byte[0] ^= 1 << (bit % 8);
    file.write_all_at(&byte, bit / 8).unwrap();
}

#[test]
fn a_flipped_bit_anywhere_is_refused() {
    let chain = chain();
    for id in [&chain.first, &chain.second] {
        for entry in fs::read_dir(chain.store.directory(id)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            // Of the first build only memory is needed by the second.
            let is_needed = *id == chain.second || name.starts_with("memory");
            let bits = fs::metadata(&path).unwrap().len() * 8;
            for bit in [0, bits / 3, bits - 1].into_iter().filter(|_| is_needed) {
                // What no extent comes from is not looked at: page 20 is new in the second.
                let whose = if *id == chain.second { 20 } else { 3 };
                let bit = if name == "memory.bin" {
                    whose * PAGE as u64 * 8 + bit % 1000
                } else {
                    bit
                };
                flip(&path, bit);
                let refusal = refusal(&chain.root, &chain.second);
                let message =
                    refusal.unwrap_or_else(|| panic!("bit {bit} of {name} was flipped unnoticed"));
                assert!(message.contains(path.to_str().unwrap()), "{message}");
                flip(&path, bit);
            }
        }
    }
    assert_eq!(refusal(&chain.root, &chain.second), None);
}

#[test]
fn a_file_that_is_cut_or_gone_is_refused() {
    let chain = chain();
    for name in [
        "header.bin",
        "memory.bin",
        "memory.sums",
        "vmstate.bin",
        "build.json",
        "store.cow",
    ] {
        let path = chain.store.directory(&chain.second).join(name);
        let whole = fs::read(&path).unwrap();
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_len(whole.len() as u64 - 1).unwrap();
        assert!(
            refusal(&chain.root, &chain.second).is_some(),
            "{name} was cut unnoticed"
        );
        fs::remove_file(&path).unwrap();
        assert!(
            refusal(&chain.root, &chain.second).is_some(),
            "{name} was removed unnoticed"
        );
        fs::write(&path, whole).unwrap();
    }
    assert_eq!(refusal(&chain.root, &chain.second), None);
}

#[test]
fn a_missing_build_is_named() {
    let chain = chain();
    fs::rename(
        chain.store.directory(&chain.first),
        chain.root.path().join("elsewhere"),
    )
    .unwrap();
    let error = Snapshot::open(&chain.root, &chain.second).unwrap_err();
    let OpenSnapshotError::MissingBuild { missing, .. } = &error else {
        panic!("{error}")
    };
    assert_eq!(missing, &chain.first);
    assert!(error.to_string().contains(chain.first.as_str()));

    // It can be inspected all the same.
    let inspection = Inspection::of(&chain.store.directory(&chain.second)).unwrap();
    let present: Vec<bool> = inspection.chain.iter().map(|layer| layer.present).collect();
    assert_eq!(present, [true, false]);
    assert!(inspection.verify().is_err());

    let error = Snapshot::open(&chain.root, &BuildId::random()).unwrap_err();
    assert!(matches!(error, OpenSnapshotError::Unknown { .. }));
}

#[test]
fn a_damaged_snapshot_is_not_compacted_into_a_sound_one() {
    let chain = chain();
    flip(
        &chain.store.directory(&chain.first).join("memory.bin"),
        12345,
    );
    assert!(chain.store.compact(&chain.second).is_err());
    assert_eq!(chain.store.list().unwrap().len(), 2);
    assert_eq!(fs::read_dir(chain.store.path()).unwrap().count(), 2);
}

#[test]
fn what_a_vmm_may_not_hand_over_is_refused_and_leaves_nothing() {
    let chain = chain();
    let secret = chain.root.path().join("secret");
    fs::write(&secret, vec![1; 64 * PAGE]).unwrap();
    type Prepare = fn(&Path, &Path);
    let cases: [(&str, Prepare); 5] = [
        ("a link to a file of the host", |memory, secret| {
            std::os::unix::fs::symlink(secret, memory).unwrap();
        }),
        ("a second name of a file of the host", |memory, secret| {
            fs::hard_link(secret, memory).unwrap();
        }),
        ("a pipe", |memory, _| {
            nix::unistd::mkfifo(memory, nix::sys::stat::Mode::S_IRWXU).unwrap();
        }),
        ("memory of another size", |memory, _| {
            fs::write(memory, "short").unwrap()
        }),
        ("no memory at all", |_, _| {}),
    ];
    for (what, prepare) in cases {
        let parent = Snapshot::open(&chain.root, &chain.first).unwrap();
        let writer = chain.store.begin().unwrap();
        prepare(&writer.memory(), &secret);
        fs::write(writer.vmstate(), "state").unwrap();
        let result = writer.publish(MemoryFile::Diff(&parent), BuildDetails::default());
        assert!(
            matches!(
                result,
                Err(WriteBuildError::File(_) | WriteBuildError::MemoryLength { .. })
            ),
            "{what} was taken"
        );
        assert_eq!(
            fs::read_dir(chain.store.path()).unwrap().count(),
            2,
            "{what}"
        );
    }
    let mut writer = chain.store.begin().unwrap();
    for name in ["../secret", "memory.bin", ".hidden", "", "a/b"] {
        let result = writer.copy_file(name, &secret);
        assert!(
            matches!(result, Err(WriteBuildError::FileName(_))),
            "{name}"
        );
    }
}
