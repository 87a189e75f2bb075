//! Disks of sandboxes: snapshot targets over a base image, as the engine makes them.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::join_all;
use wrenn_core::devicemapper::{
    AdoptDiskError, Alarm, ChunkSize, CreateDiskError, DeviceMapper, FlattenError, Holder,
    RemoveDiskError, RestoreDiskError, SnapshotDisk, StoreDamage, StoreShape, StoreStatus,
};
use wrenn_core::sandbox::Host;
use wrenn_core::{RootDirectory, SandboxId};

use crate::stage::{self, until};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Set in the process that is killed: the directory of its files.
const VICTIM: &str = "WRENN_E2E_VICTIM";

/// A directory for the files of one test, beside those of the host.
struct Files(PathBuf);

impl Files {
    fn new(host: &Host) -> Self {
        let name = format!("e2e-{}", SandboxId::random());
        let path = host.root().path().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A base image of 16 MiB: data, a hole, data, a hole.
    fn base(&self) -> PathBuf {
        let path = self.path("base.img");
        let file = File::create_new(&path).unwrap();
        file.set_len(16 * MIB).unwrap();
        for at in [0, 8 * MIB] {
            file.write_all_at(&random(MIB), at).unwrap();
        }
        file.sync_all().unwrap();
        path
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn random(bytes: u64) -> Vec<u8> {
    let mut random = vec![0; usize::try_from(bytes).unwrap()];
    rand::fill(&mut random[..]);
    random
}

async fn mapper(host: &Host) -> DeviceMapper {
    DeviceMapper::open(host.root()).await.unwrap()
}

fn whole(base: &Path) -> StoreShape {
    StoreShape::for_disk(fs::metadata(base).unwrap().len())
}

fn open(disk: &SnapshotDisk) -> File {
    let mut options = File::options();
    options.read(true).write(true).open(disk.path()).unwrap()
}

fn write(disk: &SnapshotDisk, at: u64, bytes: &[u8]) {
    let device = open(disk);
    device.write_all_at(bytes, at).unwrap();
    device.sync_all().unwrap();
}

fn contents(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

async fn status(disk: &SnapshotDisk) -> StoreStatus {
    disk.usage().await.unwrap().store
}

#[test]
fn what_was_written_is_there_after_the_disk_was_removed_and_restored() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let (base, store) = (files.base(), files.path("store"));
        let untouched = contents(&base);
        let mut expected = untouched.clone();

        let mut disk = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap();
        assert_eq!(disk.bytes(), 16 * MIB);
        assert!(
            contents(disk.path()) == expected,
            "a new disk is its base image"
        );
        for round in 0..3_u64 {
            // Data over data, over a hole, across both, half a block, and the last one.
            for (at, length) in [
                (4096 * round, 4096),
                (3 * MIB, 64 << 10),
                (MIB - 8192, 16384),
                (9 * MIB + 512 * round, 512),
                (16 * MIB - 4096, 4096),
            ] {
                let bytes = random(length);
                write(&disk, at, &bytes);
                let at = usize::try_from(at).unwrap();
                expected[at..at + bytes.len()].copy_from_slice(&bytes);
            }
            assert!(contents(disk.path()) == expected, "round {round}: before");
            disk.sync().await.unwrap();
            let node = disk.path().to_owned();
            disk.remove().await.unwrap();
            assert!(!node.exists(), "the node outlives its disk");
            assert!(mapper.leftovers().await.unwrap().is_empty());
            disk = mapper.restore(&id, &base, &store).await.unwrap();
            assert!(contents(disk.path()) == expected, "round {round}: after");
        }
        assert!(contents(&base) == untouched, "the base image changed");

        // A disk is made once.
        let again = mapper.restore(&id, &base, &store).await.unwrap_err();
        assert!(
            matches!(again, RestoreDiskError::Assemble { .. }),
            "{again}"
        );
        let again = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap_err();
        assert!(matches!(again, CreateDiskError::Store { .. }), "{again}");
        disk.remove().await.unwrap();
    });
}

#[test]
fn sixteen_at_once_use_one_loop_of_their_base() {
    stage::enter(|host| async move {
        let (files, mapper) = (Files::new(&host), mapper(&host).await);
        let base = files.base();
        let made = join_all((0..16).map(|index| {
            let (mapper, base) = (mapper.clone(), base.clone());
            let store = files.path(&format!("store-{index}"));
            async move {
                let id = SandboxId::random();
                mapper
                    .create(&id, &base, &store, whole(&base))
                    .await
                    .unwrap()
            }
        }))
        .await;
        let left = mapper.leftovers().await.unwrap();
        assert_eq!((left.disks.len(), left.nodes.len()), (16, 16), "{left:#?}");
        let of_base = left.loops.iter().filter(|(_, path)| *path == base);
        assert_eq!(of_base.count(), 1, "{left:#?}");
        assert_eq!(left.loops.len(), 17, "{left:#?}");

        // Each writes to itself alone.
        for (index, disk) in (0_u8..).zip(&made) {
            write(disk, 0, &[index; BLOCK]);
        }
        for (index, disk) in (0_u8..).zip(&made) {
            assert_eq!(contents(disk.path())[..BLOCK], [index; BLOCK]);
        }
        for removed in join_all(made.into_iter().map(SnapshotDisk::remove)).await {
            removed.unwrap();
        }
        assert!(mapper.leftovers().await.unwrap().is_empty());
    });
}

#[test]
fn a_disk_that_is_dropped_or_never_awaited_is_given_back() {
    stage::enter(|host| async move {
        let (files, mapper) = (Files::new(&host), mapper(&host).await);
        let base = files.base();
        let create = |name: &str| {
            let (mapper, base, store) = (mapper.clone(), base.clone(), files.path(name));
            async move {
                let id = SandboxId::random();
                mapper.create(&id, &base, &store, whole(&base)).await
            }
        };
        drop(create("dropped").await.unwrap());
        // Polled once, so that it begins.
        assert!(create("never awaited").now_or_never().is_none());
        mapper.settled().await;
        let left = mapper.leftovers().await.unwrap();
        assert!(left.is_empty(), "{left:#?}");
    });
}

#[test]
fn what_a_killed_process_leaves_is_adopted_or_swept() {
    if let Some(directory) = std::env::var_os(VICTIM) {
        return victim(Path::new(&directory));
    }
    stage::enter(|host| async move {
        let (files, mapper) = (Files::new(&host), mapper(&host).await);
        let base = files.base();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture"])
            .arg("agent::disk::what_a_killed_process_leaves_is_adopted_or_swept")
            .env(VICTIM, &files.0)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let ids: Vec<SandboxId> = lines
            .filter_map(|line| line.unwrap().strip_prefix("made ").map(str::parse))
            .take(2)
            .collect::<Result<_, _>>()
            .unwrap();
        victim.kill().unwrap();
        victim.wait().unwrap();
        let [kept, lost] = &ids[..] else {
            panic!("{ids:?}")
        };
        let store = |id: &SandboxId| files.path(id.as_str());

        let left = mapper.leftovers().await.unwrap();
        assert_eq!((left.disks.len(), left.loops.len()), (2, 3), "{left:#?}");
        // They are nobody's business but this root directory's.
        let other = RootDirectory::new(files.path("another root"));
        let other = DeviceMapper::open(&other).await.unwrap();
        assert_eq!(other.sweep(|_| false).await.unwrap(), []);
        assert!(other.leftovers().await.unwrap().is_empty());
        drop(other);

        // Adopted only with the files that it is made of.
        let foreign = mapper.adopt(kept, &base, &store(lost)).await.unwrap_err();
        assert!(matches!(foreign, AdoptDiskError::Loop { .. }), "{foreign}");
        let stranger = mapper
            .adopt(&SandboxId::random(), &base, &store(kept))
            .await;
        assert!(
            matches!(stranger, Err(AdoptDiskError::Missing(_))),
            "{stranger:?}"
        );
        let adopted = mapper.adopt(kept, &base, &store(kept)).await.unwrap();
        assert_eq!(contents(adopted.path())[..BLOCK], [7; BLOCK]);
        write(&adopted, 0, &[8; BLOCK]);

        // The base's loop is known now, and those that come later share it.
        let id = SandboxId::random();
        let new = mapper
            .create(&id, &base, &store(&id), whole(&base))
            .await
            .unwrap();
        assert_eq!(new.loops().unwrap().0, adopted.loops().unwrap().0);
        new.remove().await.unwrap();

        let keep = kept.clone();
        let swept = mapper.sweep(move |id| *id == keep).await.unwrap();
        assert_eq!(swept, [lost.clone()]);
        let left = mapper.leftovers().await.unwrap();
        assert_eq!((left.disks.len(), left.loops.len()), (1, 2), "{left:#?}");
        adopted.remove().await.unwrap();
        assert!(mapper.leftovers().await.unwrap().is_empty());

        // Both stores hold what was written.
        for (id, byte) in [(kept, 8), (lost, 7)] {
            let disk = mapper.restore(id, &base, &store(id)).await.unwrap();
            assert_eq!(contents(disk.path())[..BLOCK], [byte; BLOCK]);
            disk.remove().await.unwrap();
        }
    });
}

/// Makes two disks, says so, and waits for its end.
fn victim(directory: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mapper = DeviceMapper::open(&stage::root()).await.unwrap();
        let base = directory.join("base.img");
        let mut disks = Vec::new();
        for _ in 0..2 {
            let id = SandboxId::random();
            let store = directory.join(id.as_str());
            let disk = mapper
                .create(&id, &base, &store, whole(&base))
                .await
                .unwrap();
            write(&disk, 0, &[7; BLOCK]);
            // The harness may have left a line unfinished.
            println!("\nmade {id}");
            disks.push(disk);
        }
        std::future::pending::<()>().await;
    });
}

#[test]
fn an_image_of_a_disk_is_equal_to_it_and_keeps_holes() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let base = files.base();
        let store = files.path("store");
        let disk = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap();
        // Data where there was none, zeros where there was some, zeros where there was none.
        write(&disk, 4 * MIB, &random(100 << 10));
        write(&disk, 8 * MIB, &vec![0; 512 << 10]);
        write(&disk, 12 * MIB, &vec![0; 512 << 10]);
        let expected = contents(disk.path());
        // Where blocks can be shared with the base image, and where they can't.
        let elsewhere = PathBuf::from(format!("/tmp/e2e-{id}.img"));
        for image in [files.path("image"), elsewhere] {
            disk.flatten(&image).await.unwrap();
            assert!(contents(&image) == expected, "{}", image.display());
            let metadata = fs::metadata(&image).unwrap();
            let data = (2 * MIB - (512 << 10)) + (100 << 10);
            assert!(
                metadata.blocks() * 512 <= data + 64 * 1024,
                "{} takes {} bytes for {data}",
                image.display(),
                metadata.blocks() * 512
            );
            let again = disk.flatten(&image).await.unwrap_err();
            assert!(matches!(again, FlattenError::Exists { .. }), "{again}");
            fs::remove_file(&image).unwrap();
        }
        let partial = fs::read_dir(&files.0).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().contains("partial")
        });
        assert_eq!(partial.count(), 0, "a failed image stays");
        disk.remove().await.unwrap();
    });
}

#[test]
fn a_disk_that_is_open_is_removed_once_it_is_closed() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let base = files.base();
        let store = files.path("store");
        let disk = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap();
        // Somebody lets go in time.
        let user = open(&disk);
        let mut removal = Box::pin(disk.remove());
        let early = tokio::time::timeout(Duration::from_millis(300), &mut removal).await;
        assert!(early.is_err(), "an open disk was removed: {early:?}");
        drop(user);
        removal.await.unwrap();

        // Somebody does not, and is named.
        let disk = mapper.restore(&id, &base, &store).await.unwrap();
        let user = open(&disk);
        let error = disk.remove().await.unwrap_err();
        let RemoveDiskError::Busy { holders, .. } = &error else {
            panic!("{error}")
        };
        let is_us = |holder: &Holder| matches!(holder, Holder::Process { pid, .. } if *pid == std::process::id());
        assert!(holders.0.iter().any(is_us), "{error}");
        assert_eq!(mapper.leftovers().await.unwrap().disks, [id]);
        drop(user);
        until("the reaper has removed it", || async {
            mapper.leftovers().await.unwrap().is_empty()
        })
        .await;
        mapper.settled().await;
    });
}

#[test]
fn a_store_that_fills_up_is_noticed_in_time_and_loses_nothing() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let (base, store) = (files.base(), files.path("store"));
        // As many as one area of tables lists: the kernel then wipes the next area, and
        // gives the store up if there is no room for it.
        let blocks = 256_u16;
        let shape = StoreShape {
            capacity_bytes: u64::from(blocks) * BLOCK as u64,
            chunk: ChunkSize::default(),
        };
        let disk = mapper.create(&id, &base, &store, shape).await.unwrap();
        assert!(disk.can_fill());
        let mut alarm = Box::pin(disk.watch(90, Duration::from_millis(5)));
        assert!(
            (&mut alarm).now_or_never().is_none(),
            "an alarm over an empty store"
        );

        let put = |block: u16| {
            let device = open(&disk);
            device
                .write_all_at(
                    &[block.to_le_bytes()[0]; BLOCK],
                    u64::from(block) * BLOCK as u64,
                )
                .and_then(|()| device.sync_all())
        };
        let mut next = 0;
        while status(&disk).await.used_percent() < 90 {
            put(next).unwrap();
            next += 1;
        }
        let raised = alarm.await.unwrap();
        assert!(
            matches!(
                raised,
                Alarm::Filling {
                    used_percent: 90..100
                }
            ),
            "{raised:?}"
        );
        assert!(matches!(status(&disk).await, StoreStatus::Active { .. }));

        // Nobody heeds it: all that was promised fits, and the next write fails.
        while next < blocks {
            put(next).unwrap();
            next += 1;
        }
        assert!(matches!(status(&disk).await, StoreStatus::Active { .. }));
        assert!(put(blocks).is_err(), "a full store took a write");
        assert_eq!(status(&disk).await, StoreStatus::Overflow);
        let raised = disk.watch(90, Duration::from_millis(5)).await.unwrap();
        assert_eq!(raised, Alarm::Overflow);
        let check = |disk: &SnapshotDisk| {
            let device = open(disk);
            let mut block = [0; BLOCK];
            for written in 0..blocks {
                device
                    .read_exact_at(&mut block, u64::from(written) * BLOCK as u64)
                    .unwrap();
                assert!(
                    block == [written.to_le_bytes()[0]; BLOCK],
                    "block {written} is lost"
                );
            }
        };
        check(&disk);
        disk.remove().await.unwrap();
        let disk = mapper.restore(&id, &base, &store).await.unwrap();
        check(&disk);

        // A watch ends with its disk.
        let orphan = tokio::spawn(disk.watch(101, Duration::from_millis(5)));
        disk.remove().await.unwrap();
        orphan.await.unwrap().unwrap_err();
    });
}

#[test]
fn usage_is_what_the_store_takes_and_not_its_length() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let (base, store) = (files.base(), files.path("store"));
        let disk = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap();
        assert!(!disk.can_fill());
        let before = disk.usage().await.unwrap();
        assert!(before.allocated_bytes < 256 << 10, "{before:?}");
        assert!(fs::metadata(&store).unwrap().len() > 16 * MIB);
        write(&disk, 0, &random(2 * MIB));
        let after = disk.usage().await.unwrap();
        assert_eq!(
            after.allocated_bytes,
            fs::metadata(&store).unwrap().blocks() * 512
        );
        let grown = after.allocated_bytes - before.allocated_bytes;
        assert!((2 * MIB..4 * MIB).contains(&grown), "{before:?} {after:?}");
        let StoreStatus::Active {
            used_sectors,
            metadata_sectors,
            ..
        } = after.store
        else {
            panic!("{after:?}")
        };
        assert_eq!(used_sectors - metadata_sectors, 2 * MIB / 512, "{after:?}");
        disk.remove().await.unwrap();
    });
}

#[test]
fn a_damaged_store_is_refused() {
    stage::enter(|host| async move {
        let (files, mapper, id) = (Files::new(&host), mapper(&host).await, SandboxId::random());
        let (base, store) = (files.base(), files.path("store"));
        let disk = mapper
            .create(&id, &base, &store, whole(&base))
            .await
            .unwrap();
        write(&disk, 0, &random(MIB));
        let expected = contents(disk.path());
        disk.remove().await.unwrap();

        let file = File::options().read(true).write(true).open(&store).unwrap();
        let mut sound = vec![0; 2 * BLOCK];
        file.read_exact_at(&mut sound, 0).unwrap();
        let length = file.metadata().unwrap().len();
        type Damage = fn(&File) -> io::Result<()>;
        let damages: [(Damage, fn(&StoreDamage) -> bool); 5] = [
            (
                |file| file.write_all_at(&[0; 16], 0),
                |damage| *damage == StoreDamage::NoMagic,
            ),
            (
                |file| file.write_all_at(b"x", 0),
                |damage| *damage == StoreDamage::NoMagic,
            ),
            // What the kernel writes when it gives a store up.
            (
                |file| file.write_all_at(&[0; 4], 4),
                |damage| *damage == StoreDamage::Invalidated,
            ),
            // One bit of one entry.
            (
                |file| file.write_all_at(&[0x10], BLOCK as u64 + 5),
                |damage| matches!(damage, StoreDamage::Entry { index: 0, .. }),
            ),
            (
                |file| file.set_len(5000),
                |damage| *damage == StoreDamage::CutShort(5000),
            ),
        ];
        for (index, (damage, is_it)) in damages.into_iter().enumerate() {
            damage(&file).unwrap();
            let error = mapper.restore(&id, &base, &store).await.unwrap_err();
            let RestoreDiskError::Damaged { damage, .. } = &error else {
                panic!("damage {index}: {error}")
            };
            assert!(is_it(damage), "damage {index}: {damage}");
            assert!(mapper.leftovers().await.unwrap().is_empty());
            if index < 4 {
                file.write_all_at(&sound, 0).unwrap();
                assert_eq!(file.metadata().unwrap().len(), length);
            }
            if index == 3 {
                let disk = mapper.restore(&id, &base, &store).await.unwrap();
                assert!(
                    contents(disk.path()) == expected,
                    "a repaired store lost data"
                );
                disk.remove().await.unwrap();
            }
        }
    });
}
