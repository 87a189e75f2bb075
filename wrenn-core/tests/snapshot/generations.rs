//! Many generations of pauses and resumes, with everything that may happen in between.

use proptest::prelude::*;
use wrenn_core::RootDirectory;
use wrenn_core::snapshot::{BuildId, BuildStore, Holder, Reference, Snapshot, Source};

use crate::guest::{Guest, PAGE};

const PAGES: usize = 80;

fn store() -> (tempfile::TempDir, RootDirectory, BuildStore) {
    let directory = tempfile::tempdir().unwrap();
    let root = RootDirectory::new(directory.path());
    let store = BuildStore::open(&root).unwrap();
    (directory, root, store)
}

#[test]
fn a_page_that_became_zero_is_zero_after_the_second_resume() {
    let (_directory, root, store) = store();
    let mut guest = Guest::new(PAGES);
    for page in 0..40 {
        guest.write(page, 7);
    }
    let first = guest.pause(&store, None).unwrap();
    guest.write(3, 0);
    guest.write(20, 0);
    guest.write(21, 9);
    let second = guest.pause(&store, Some(&first)).unwrap();
    guest.assert_is_in(&second);
    let zero = second.header().extents().lookup(3 * PAGE as u64).unwrap();
    assert_eq!((zero.source, zero.length), (Source::Zero, PAGE as u64));

    guest.write(60, 1);
    let third = guest.pause(&store, Some(&second)).unwrap();
    let third = Snapshot::open(&root, third.id()).unwrap();
    guest.assert_is_in(&third);
    assert_eq!(third.header().head.generation, 2);
}

#[test]
fn memory_can_be_read_by_whoever_is_shown_it_whatever_the_umask() {
    use std::os::unix::fs::PermissionsExt;

    let (_directory, _root, store) = store();
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let mut guest = Guest::new(PAGES);
    for page in 0..PAGES {
        guest.write(page, 7);
    }
    let first = guest.pause(&store, None).unwrap();
    for page in 0..PAGES {
        // Most are written and stay as they are.
        guest.write(page, if page < 3 { 8 } else { 7 });
    }
    let second = guest.pause(&store, Some(&first)).unwrap();
    nix::sys::stat::umask(before);
    guest.assert_is_in(&second);
    for snapshot in [&first, &second] {
        let memory = snapshot.layers()[0].memory().metadata().unwrap();
        assert_eq!(memory.permissions().mode() & 0o777, 0o444);
    }
}

#[test]
fn a_pause_writes_what_changed_and_nothing_else() {
    use std::os::unix::fs::MetadataExt;

    let (_directory, _root, store) = store();
    let mut guest = Guest::new(16 << 8);
    for page in 0..2000 {
        guest.write(page, 7);
    }
    let first = guest.pause(&store, None).unwrap();
    let allocated =
        |snapshot: &Snapshot| snapshot.layers()[0].memory().metadata().unwrap().blocks() * 512;
    // The VMM wrote 16 MiB, of which half is zero.
    assert!(allocated(&first) < 9 << 20, "{} bytes", allocated(&first));
    guest.write(5, 0);
    guest.write(3000, 8);
    let second = guest.pause(&store, Some(&first)).unwrap();
    assert!(
        allocated(&second) <= 4 * PAGE as u64,
        "{} bytes",
        allocated(&second)
    );
    guest.assert_is_in(&second);
}

#[test]
fn only_a_build_that_needs_no_other_is_mapped() {
    let (_directory, _root, store) = store();
    let mut guest = Guest::new(PAGES);
    guest.write(1, 7);
    let first = guest.pause(&store, None).unwrap();
    let mapped = std::fs::read(first.mappable().unwrap()).unwrap();
    assert!(mapped == guest.memory);
    guest.write(2, 7);
    let second = guest.pause(&store, Some(&first)).unwrap();
    assert_eq!(second.mappable(), None);
    // Nothing of the first is needed any more: zeros are zeros in the file, too.
    guest.write(1, 0);
    guest.write(2, 8);
    let third = guest.pause(&store, Some(&second)).unwrap();
    let mapped = std::fs::read(third.mappable().unwrap()).unwrap();
    assert!(mapped == guest.memory);
}

#[test]
fn a_compacted_snapshot_has_the_same_contents_and_needs_no_other() {
    let (directory, root, store) = store();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, "blocks").unwrap();
    let mut guest = Guest::new(PAGES);
    let mut parent: Option<Snapshot> = None;
    for round in 0..10 {
        guest.write(round, 7);
        guest.write(round * 3, u8::try_from(round).unwrap());
        parent = Some(guest.pause(&store, parent.as_ref()).unwrap());
    }
    let deep = parent.unwrap();
    assert!(deep.wants_compaction());
    let flat = store.compact(deep.id()).unwrap();
    assert!(!flat.wants_compaction());
    assert_eq!(flat.layers().len(), 1);
    guest.assert_is_in(&flat);
    let states = [deep.vmstate(), flat.vmstate()].map(|path| std::fs::read(path).unwrap());
    assert_eq!(states[0], states[1]);
    assert_eq!(flat.manifest().compacted_from.as_ref(), Some(deep.id()));

    // The next pause goes on from the compacted one, and the old chain is garbage.
    guest.write(11, 0);
    let next = guest.pause(&store, Some(&flat)).unwrap();
    let id = next.id().clone();
    drop((deep, flat, next));
    let named = || Ok(vec![paused(&id)]);
    assert_eq!(store.gc(named).unwrap().len(), 10);
    guest.assert_is_in(&Snapshot::open(&root, &id).unwrap());
}

fn paused(build: &BuildId) -> Reference {
    Reference {
        build: build.clone(),
        holder: Holder::Sandbox(wrenn_core::SandboxId::random()),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, u8),
    Pause,
    /// A full snapshot, as after a pause that failed.
    PauseWhole,
    /// A new process opens what the old one wrote.
    Reopen,
    /// Another sandbox begins from this snapshot and goes its own way.
    Fork,
    /// Goes on as another of the forks.
    Switch(usize),
    Compact,
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let value = prop_oneof![1 => Just(0), 2 => any::<u8>()];
    prop_oneof![
        12 => (0..PAGES, value).prop_map(|(page, value)| Step::Write(page, value)),
        5 => Just(Step::Pause),
        1 => Just(Step::PauseWhole),
        2 => Just(Step::Reopen),
        1 => Just(Step::Fork),
        1 => (0..4_usize).prop_map(Step::Switch),
        1 => Just(Step::Compact),
        2 => Just(Step::Collect),
    ]
}

/// A sandbox: what its memory should be now and was at its last pause.
struct Sandbox {
    now: Guest,
    at_pause: Guest,
    paused: BuildId,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn memory_is_what_it_was_after_any_number_of_generations(steps in proptest::collection::vec(step(), 1..60)) {
        let (_directory, root, store) = store();
        let mut guest = Guest::new(PAGES);
        let mut open = guest.pause(&store, None).unwrap();
        let mut sandboxes = vec![Sandbox {
            now: guest.clone(),
            at_pause: guest,
            paused: open.id().clone(),
        }];
        let mut own = 0;
        for step in steps {
            let forks = sandboxes.len();
            let sandbox = &mut sandboxes[own];
            match step {
                Step::Write(page, value) => sandbox.now.write(page, value),
                Step::Pause | Step::PauseWhole => {
                    let parent = matches!(step, Step::Pause).then_some(&open);
                    open = sandbox.now.pause(&store, parent).unwrap();
                    sandbox.paused = open.id().clone();
                    sandbox.at_pause = sandbox.now.clone();
                }
                Step::Reopen => open = Snapshot::open(&root, &sandbox.paused).unwrap(),
                Step::Fork => {
                    let fork = Sandbox {
                        now: sandbox.at_pause.clone(),
                        at_pause: sandbox.at_pause.clone(),
                        paused: sandbox.paused.clone(),
                    };
                    sandboxes.push(fork);
                }
                Step::Switch(number) => {
                    own = number % forks;
                    open = Snapshot::open(&root, &sandboxes[own].paused).unwrap();
                }
                Step::Compact => {
                    // What runs from the old build goes on with it until its next pause; here
                    // it is paused at once, so that both are the same moment.
                    if open.wants_compaction() || open.header().head.generation % 2 == 1 {
                        open = store.compact(&sandbox.paused).unwrap();
                        sandbox.paused = open.id().clone();
                    }
                }
                Step::Collect => {
                    let references = || Ok(sandboxes.iter().map(|one| paused(&one.paused)).collect());
                    store.gc(references).unwrap();
                }
            }
            sandboxes[own].at_pause.assert_is_in(&open);
        }
        for sandbox in &sandboxes {
            let snapshot = Snapshot::open(&root, &sandbox.paused).unwrap();
            snapshot.verify().unwrap();
            sandbox.at_pause.assert_is_in(&snapshot);
        }
    }
}
