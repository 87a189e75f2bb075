//! A host whose power fails. Its root directory is a file system of its own, which is stopped
//! at once: what the kernel had not written by then is gone.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use wrenn_core::RootDirectory;
use wrenn_core::crash::POINTS;
use wrenn_core::devicemapper::DeviceMapper;
use wrenn_core::snapshot::Inspection;
use wrenn_proto::hostagent::*;

use super::crash::{assert_unchanged, change, end_at, forget_snapshot};
use super::cycle::{destroy, get, pause, resume};
use super::sys;
use crate::agent::stage::{TestAgent, enter_at, small};
use crate::stage::{self, Amount, until};

const BLOCK: u64 = 4096;
const DISK: u64 = 1 << 30;
/// The steps after which something lasting has changed. All of them where kills are asked for.
const LASTING: [&str; 5] = [
    "pause.published",
    "pause.recorded",
    "resume.loaded",
    "resume.recorded",
    "snapshot.named",
];
const CGROUPS: &str = "/sys/fs/cgroup/wrenn";
const NAMESPACES: &str = "/run/netns";

/// A root directory on an ext4 of its own, with the templates of the other one.
struct PoweredDisk {
    directory: tempfile::TempDir,
}

impl PoweredDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let empty = std::env::var_os("WRENN_E2E_DISK").expect("WRENN_E2E_DISK is an empty ext4");
        let disk = Self { directory };
        fs::copy(empty, disk.image()).unwrap();
        let image = File::options().write(true).open(disk.image()).unwrap();
        image.set_len(DISK).unwrap();
        fs::create_dir(disk.root()).unwrap();
        disk.mount();
        sys::enlarge(&File::open(disk.root()).unwrap(), DISK / BLOCK).unwrap();
        for shared in ["kernels", "templates"] {
            let from = stage::root().path().join(shared);
            std::os::unix::fs::symlink(from, disk.root().join(shared)).unwrap();
        }
        // What is there from the start is not what is tested.
        nix::unistd::syncfs(File::open(disk.root()).unwrap()).unwrap();
        disk
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]);
        let status = mount.arg(self.image()).arg(self.root()).status().unwrap();
        assert!(status.success(), "the disk cannot be mounted");
    }

    /// Cuts the power and gives it back. The agent is dead by then. Says whether something was
    /// lost that nobody had waited for.
    async fn cut(&self) -> bool {
        let sandboxes = self.sandboxes();
        let unwritten = self.root().join("unwritten");
        fs::write(&unwritten, "anything").unwrap();
        sys::stop(&File::open(self.root()).unwrap()).unwrap();
        self.end_all(&sandboxes).await;
        until("nobody uses the disk", || async {
            umount2(&self.root(), MntFlags::empty()).is_ok()
        })
        .await;
        self.mount();
        let lost = !unwritten.exists();
        drop(fs::remove_file(unwritten));
        lost
    }

    fn sandboxes(&self) -> Vec<PathBuf> {
        let sandboxes = fs::read_dir(self.root().join("sandboxes")).unwrap();
        let sandboxes = sandboxes.map(|entry| entry.unwrap().path());
        sandboxes.filter(|path| path.is_dir()).collect()
    }

    /// Ends what does not outlive the power: VMs and what serves them, disks in the kernel, and
    /// network namespaces with their links. What is written down of a slot is lost with the
    /// power; a namespace that had no link at that moment would be nobody's afterwards.
    async fn end_all(&self, sandboxes: &[PathBuf]) {
        for sandbox in sandboxes {
            let group = Path::new(CGROUPS).join(sandbox.file_name().unwrap());
            // It may not be there.
            drop(fs::write(group.join("cgroup.kill"), "1"));
            until("its processes have ended", || async {
                fs::read_to_string(group.join("cgroup.events"))
                    .map_or(true, |events| events.contains("populated 0"))
            })
            .await;
        }
        let disks = DeviceMapper::open(&RootDirectory::new(self.root())).await;
        disks.unwrap().sweep(|_| false).await.unwrap();
        // The test is alone on the host, so all slots are those of the dead agent.
        for namespace in fs::read_dir(NAMESPACES).unwrap() {
            let namespace = namespace.unwrap();
            if namespace
                .file_name()
                .as_encoded_bytes()
                .starts_with(b"wrenn-")
            {
                // Its maker may have died before it was mounted.
                umount2(&namespace.path(), MntFlags::MNT_DETACH).ok();
                fs::remove_file(namespace.path()).unwrap();
            }
        }
    }
}

impl Drop for PoweredDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.root(), MntFlags::MNT_DETACH) {
            eprintln!("the disk stays mounted: {error}");
        }
    }
}

/// A sandbox that came from a snapshot, as most have in the end.
async fn resumed(agent: &TestAgent) -> String {
    let id = agent.create().await.id;
    pause(agent, &id).await.unwrap();
    resume(agent, &id).await.unwrap();
    id
}

/// The build of a sandbox, of which all that is named is there.
fn assert_build_is_whole(root: &Path, id: &str) {
    let record = fs::read_to_string(root.join("sandboxes").join(id).join("sandbox.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let builds = RootDirectory::new(root).builds();
    let build = builds.join(record["build"].as_str().unwrap());
    Inspection::of(&build).unwrap().verify().unwrap();
}

#[test]
fn after_a_power_cut_at_any_step_all_is_there_that_was_acknowledged() {
    let disk = PoweredDisk::new();
    let points = match Amount::Kills.or(0) {
        0 => &LASTING[..],
        _ => &POINTS[..],
    };
    enter_at(&disk.root(), &["--disk-reserve-mib", "64"], |agent| async {
        let (agent, disk) = (agent, &disk);
        let mut id = resumed(&agent).await;
        let mut lost = 0;
        for (round, point) in points.iter().copied().enumerate() {
            change(&agent, &id, round).await;
            end_at(point, &agent, &id).await;
            lost += usize::from(disk.cut().await);
            agent.start().await;

            let found = get(&agent, &id).await;
            match found.state.as_known() {
                Some(State::STATE_PAUSED) => {
                    resume(&agent, &id).await.unwrap();
                    assert_unchanged(&agent, &id, round).await;
                }
                Some(State::STATE_ERROR) => {
                    // It ran, and what was in its memory only is gone with the power.
                    assert!(!is_paused_at(point), "{point}: {}", found.reason);
                    assert_build_is_whole(&disk.root(), &id);
                    destroy(&agent, &id).await;
                    id = resumed(&agent).await;
                }
                other => panic!("{point}: it is {other:?}: {}", found.reason),
            }
            if point == "snapshot.named" {
                let request = CreateSandboxRequest {
                    template: "named".to_owned(),
                    resources: None.into(),
                    ..small()
                };
                let spawned = request.id.clone();
                agent.client().create_sandbox(request).await.unwrap();
                assert_unchanged(&agent, &spawned, round).await;
                destroy(&agent, &spawned).await;
            }
            forget_snapshot(&agent).await;
        }
        destroy(&agent, &id).await;
        // Or the power was never cut.
        assert!(lost > 0, "nothing was lost that had not been written");
    });
}

/// Whether what is written down at a point is that the sandbox is paused, and nothing later.
fn is_paused_at(point: &str) -> bool {
    match point.split_once('.') {
        Some(("pause", step)) => ["recorded", "ended"].contains(&step),
        Some(("resume", step)) => step != "recorded",
        _ => false,
    }
}
