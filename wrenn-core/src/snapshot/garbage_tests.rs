use std::cell::RefCell;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::*;
use crate::RootDirectory;
use crate::snapshot::{BuildDetails, Geometry, MemoryFile, Snapshot};

const PAGE: u64 = 4096;
const PAGES: u64 = 16;

fn store() -> (tempfile::TempDir, BuildStore) {
    let directory = tempfile::tempdir().unwrap();
    let store = BuildStore::open(&RootDirectory::new(directory.path())).unwrap();
    (directory, store)
}

/// A build in which some pages are new.
fn build(store: &BuildStore, parent: Option<&Snapshot>, pages: &[u64]) -> Snapshot {
    let writer = store.begin().unwrap();
    let memory = std::fs::File::create(writer.memory()).unwrap();
    memory.set_len(PAGES * PAGE).unwrap();
    for page in pages {
        memory
            .write_all_at(writer.id().as_str().as_bytes(), page * PAGE)
            .unwrap();
    }
    std::fs::write(writer.vmstate(), "state").unwrap();
    let file = parent.map_or_else(
        || MemoryFile::Full(Geometry::new(PAGES * PAGE, PAGE).unwrap()),
        MemoryFile::Diff,
    );
    writer.publish(file, BuildDetails::default()).unwrap()
}

fn template(build: &BuildId) -> Reference {
    Reference {
        build: build.clone(),
        holder: Holder::Template("t".to_owned()),
    }
}

fn nothing() -> Result<Vec<Reference>, ReferencesError> {
    Ok(Vec::new())
}

#[test]
fn a_store_can_be_opened_while_it_is_swept() {
    const ROUNDS: usize = 200;

    let (directory, swept) = store();
    let root = RootDirectory::new(directory.path());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                assert!(swept.sweep().unwrap().is_empty());
            }
        });
        for _ in 0..ROUNDS {
            BuildStore::open(&root).unwrap();
        }
    });
}

#[test]
fn what_is_needed_cannot_be_deleted_and_the_holders_are_named() {
    let (_directory, store) = store();
    let first = build(&store, None, &[0, 1, 2]);
    let second = build(&store, Some(&first), &[1]);
    let (first_id, second_id) = (first.id().clone(), second.id().clone());

    let holders = |result| match result {
        Err(DeleteBuildError::InUse { holders, .. }) => holders,
        other => panic!("{other:?}"),
    };
    drop(second);
    let named = vec![template(&first_id)];
    let found = holders(store.delete(&first_id, || Ok(named.clone())));
    let wanted = [
        Holder::Build(second_id.clone()),
        Holder::Template("t".to_owned()),
        Holder::Process,
    ];
    assert_eq!(found, wanted);
    drop(first);
    let error = store.delete(&first_id, nothing).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("build {first_id} is needed by build {second_id}")
    );

    store.delete(&second_id, nothing).unwrap();
    store.delete(&first_id, nothing).unwrap();
    assert!(matches!(
        store.delete(&first_id, nothing),
        Err(DeleteBuildError::Unknown(_))
    ));
    assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 0);
}

#[test]
fn nothing_is_removed_when_nobody_can_say_what_is_needed() {
    let (_directory, store) = store();
    let id = build(&store, None, &[0]).id().clone();
    let unreadable = || Err("sandbox.json is damaged".into());
    assert!(matches!(
        store.gc(unreadable),
        Err(CollectError::Look(LookError::References(_)))
    ));

    // A damaged build that is needed: what it needs is unknown, so nothing goes.
    let other = build(&store, None, &[0]).id().clone();
    let header = store.directory(&id).join("header.bin");
    let whole = std::fs::read(&header).unwrap();
    let mut damaged = whole.clone();
    damaged[80] ^= 1;
    std::fs::write(&header, damaged).unwrap();
    let needed = || Ok(vec![template(&id)]);
    assert!(matches!(
        store.gc(needed),
        Err(CollectError::Look(LookError::Head { .. }))
    ));
    assert_eq!(store.list().unwrap().len(), 2);
    // A damaged one that nobody needs is garbage like any other.
    let mut collected = store.gc(nothing).unwrap();
    collected.sort();
    let mut wanted = [id, other];
    wanted.sort();
    assert_eq!(collected, wanted);
}

#[test]
fn a_record_that_is_written_while_garbage_is_collected_is_seen() {
    let (_directory, store) = store();
    let snapshot = RefCell::new(Some(build(&store, None, &[0])));
    let id = snapshot.borrow().as_ref().unwrap().id().clone();
    // The first look sees no record. Before the second its writer writes it and lets go.
    let looks = RefCell::new(0);
    let references = || {
        *looks.borrow_mut() += 1;
        if *looks.borrow() == 1 {
            let named = nothing();
            drop(snapshot.take());
            return named;
        }
        Ok(vec![template(&id)])
    };
    assert_eq!(store.gc(references).unwrap(), []);
    assert_eq!(store.list().unwrap(), [id]);
}

#[derive(Clone, Debug)]
enum Step {
    /// A build on top of an existing one, or a full one.
    Create {
        parent: Option<usize>,
        pages: Vec<u64>,
        named: bool,
        kept_open: bool,
    },
    Forget(usize),
    Close(usize),
    Delete(usize),
    Collect,
    /// A collector that is killed after some removals.
    CollectAndDie(usize),
    /// A writer that is killed.
    WriteAndDie,
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    let pages = proptest::collection::vec(0..PAGES, 0..10);
    let create = (any::<Option<usize>>(), pages, any::<bool>(), any::<bool>());
    prop_oneof![
        6 => create.prop_map(|(parent, pages, named, kept_open)| Step::Create { parent, pages, named, kept_open }),
        2 => any::<usize>().prop_map(Step::Forget),
        2 => any::<usize>().prop_map(Step::Close),
        2 => any::<usize>().prop_map(Step::Delete),
        2 => Just(Step::Collect),
        1 => (0..4_usize).prop_map(Step::CollectAndDie),
        1 => Just(Step::WriteAndDie),
        1 => Just(Step::Sweep),
    ]
}

/// What the test knows: records that name builds, and snapshots that are open.
#[derive(Default)]
struct World {
    named: Vec<BuildId>,
    open: Vec<Snapshot>,
}

impl World {
    fn references(&self) -> Result<Vec<Reference>, ReferencesError> {
        Ok(self.named.iter().map(template).collect())
    }

    /// Every build that is named can be opened, every open one can be read.
    fn check(&self, store: &BuildStore) {
        for id in &self.named {
            let snapshot = Snapshot::open_in(store.path(), id).unwrap();
            snapshot.verify().unwrap();
        }
        for snapshot in &self.open {
            snapshot.verify().unwrap();
            for layer in snapshot.layers() {
                assert!(
                    layer.path().exists(),
                    "{} was removed under a reader",
                    layer.path().display()
                );
            }
        }
    }

    /// Builds that are needed by what is named or open.
    fn needed(&self, store: &BuildStore) -> BTreeSet<BuildId> {
        let named = self
            .named
            .iter()
            .map(|id| Snapshot::open_in(store.path(), id).unwrap());
        let opened: Vec<Snapshot> = named.collect();
        let rows = opened
            .iter()
            .chain(&self.open)
            .flat_map(|snapshot| &snapshot.header().head.rows);
        rows.map(|row| row.id.clone()).collect()
    }

    fn take(&mut self, store: &BuildStore, step: Step) {
        let pick = |ids: usize, number: usize| number.checked_rem(ids);
        match step {
            Step::Create {
                parent,
                pages,
                named,
                kept_open,
            } => {
                let ids = self.named.clone();
                let parent = parent.and_then(|number| pick(ids.len(), number));
                let parent =
                    parent.map(|number| Snapshot::open_in(store.path(), &ids[number]).unwrap());
                let made = build(store, parent.as_ref(), &pages);
                if named {
                    self.named.push(made.id().clone());
                }
                if kept_open {
                    self.open.push(made);
                }
            }
            Step::Forget(number) => {
                if let Some(number) = pick(self.named.len(), number) {
                    self.named.remove(number);
                }
            }
            Step::Close(number) => {
                if let Some(number) = pick(self.open.len(), number) {
                    self.open.remove(number);
                }
            }
            Step::Delete(number) => {
                let ids = store.list().unwrap();
                if let Some(number) = pick(ids.len(), number) {
                    let needed = self.needed(store).contains(&ids[number]);
                    let deleted = store.delete(&ids[number], || self.references());
                    // One that is not needed may still be held by garbage.
                    assert!(!(needed && deleted.is_ok()));
                }
            }
            Step::Collect => {
                let needed = self.needed(store);
                store.gc(|| self.references()).unwrap();
                let left: BTreeSet<BuildId> = store.list().unwrap().into_iter().collect();
                assert_eq!(left, needed);
            }
            Step::CollectAndDie(removals) => {
                let needed = self.needed(store).into_iter().collect();
                let mut heads = Heads::default();
                let garbage = store
                    .garbage(&mut heads, || self.references(), &needed)
                    .unwrap();
                for id in garbage.iter().take(removals) {
                    let alone = Pin::exclusive(&store.directory(id)).unwrap().unwrap();
                    remove_moved(&store.move_away(id).unwrap());
                    drop(alone);
                }
                // And one that was moved away and not yet removed.
                if let Some(id) = garbage.get(removals) {
                    std::fs::rename(store.directory(id), store.aside(id)).unwrap();
                }
            }
            Step::WriteAndDie => {
                let aside = store.aside(&BuildId::random());
                std::fs::create_dir(&aside).unwrap();
                std::fs::write(aside.join("memory.bin"), "half").unwrap();
            }
            Step::Sweep => {
                store.sweep().unwrap();
                let names = crate::snapshot::file::names_in(store.path()).unwrap();
                assert!(
                    names.iter().all(|name| name.parse::<BuildId>().is_ok()),
                    "{names:?}"
                );
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn nothing_needed_is_removed_and_all_garbage_goes(steps in proptest::collection::vec(step(), 1..30)) {
        let (_directory, store) = store();
        let mut world = World::default();
        for step in steps {
            world.take(&store, step);
            world.check(&store);
        }
        world.take(&store, Step::Collect);
        world.named.clear();
        world.open.clear();
        world.take(&store, Step::Collect);
        world.take(&store, Step::Sweep);
        prop_assert_eq!(std::fs::read_dir(store.path()).unwrap().count(), 0);
    }
}
