//! A host whose disk runs full below the sandboxes' sparse stores. It is a small file system
//! in memory, made for the test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::{GetSandboxRequest, ResumeSandboxRequest, Sandbox, State};

use super::stage::{TestAgent, enter_at, refused};
use crate::stage::{self, until};

const MIB: u64 = 1 << 20;
/// Sandboxes go on with half of it.
const RESERVE_MIB: u64 = 256;

/// A root directory on a small disk of its own, with the templates of the other one.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (kind, options) = (Some("tmpfs"), Some("size=640m,mode=0755"));
        mount(kind, directory.path(), kind, MsFlags::empty(), options).unwrap();
        for shared in ["kernels", "templates"] {
            let from = stage::root().path().join(shared);
            symlink(from, directory.path().join(shared)).unwrap();
        }
        Self(directory)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills the disk so far that this much is free.
    fn leave_free(&self, mib: u64) {
        drop(fs::remove_file(self.ballast()));
        let numbers = rustix::fs::statvfs(self.path()).unwrap();
        let free = numbers.f_bavail * numbers.f_frsize;
        let file = fs::File::create(self.ballast()).unwrap();
        let flags = rustix::fs::FallocateFlags::empty();
        rustix::fs::fallocate(&file, flags, 0, free - mib * MIB).unwrap();
    }

    fn leave_all_free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(self.path(), MntFlags::MNT_DETACH).unwrap();
    }
}

async fn get(agent: &TestAgent, id: &str) -> Sandbox {
    let request = GetSandboxRequest { id: id.to_owned() };
    let answer = agent.client().get_sandbox(request).await.unwrap();
    answer.into_owned().sandbox.into_option().unwrap()
}

async fn is(agent: &TestAgent, id: &str, state: State) -> bool {
    get(agent, id).await.state.as_known() == Some(state)
}

#[test]
fn sandboxes_stop_before_the_hosts_disk_is_full_and_lose_nothing() {
    let disk = SmallDisk::new();
    let reserve = RESERVE_MIB.to_string();
    let options = ["--disk-reserve-mib", &reserve];
    enter_at(disk.path(), &options, |agent| async {
        let (agent, disk) = (agent, &disk);
        let id = agent.create().await.id;
        let write =
            "dd if=/dev/urandom of=/keep bs=1M count=8 2>/dev/null && sync && sha256sum /keep";
        let written = agent.shell(&id, write).await;
        let busy = "(while :; do dd if=/dev/urandom of=/flood bs=64k count=32 conv=fsync; done) \
                    </dev/null >/dev/null 2>&1 & echo $!";
        let pid = agent.shell(&id, busy).await;

        // Too little for its memory to be written down: it stands still.
        disk.leave_free(100);
        until("it stands still", || is(&agent, &id, State::STATE_PAUSING)).await;
        let full = "this host's disk is nearly full";
        let halted = get(&agent, &id).await;
        assert!(halted.reason.contains(full), "{}", halted.reason);
        refused(
            agent.exec(&id, "true").await,
            ErrorCode::FailedPrecondition,
            full,
        );
        let resume = || {
            let request = ResumeSandboxRequest {
                id: id.clone(),
                timeout_sec: None,
            };
            async { agent.client().resume_sandbox(request).await }
        };
        refused(
            resume().await,
            ErrorCode::ResourceExhausted,
            "must stay free",
        );

        // Enough for that, and not for it to go on.
        disk.leave_free(250);
        until("it is paused", || is(&agent, &id, State::STATE_PAUSED)).await;
        let paused = get(&agent, &id).await;
        assert!(paused.reason.contains(full), "{}", paused.reason);
        refused(
            agent.exec(&id, "true").await,
            ErrorCode::FailedPrecondition,
            full,
        );

        disk.leave_all_free();
        resume().await.unwrap();
        assert_eq!(get(&agent, &id).await.reason, "");
        let again = agent.shell(&id, "sha256sum /keep").await;
        assert_eq!(again, written);
        agent.shell(&id, &format!("kill -0 {pid}")).await;

        // One that stands still goes on by itself once there is room.
        disk.leave_free(100);
        until("it stands still again", || {
            is(&agent, &id, State::STATE_PAUSING)
        })
        .await;
        disk.leave_all_free();
        until("it goes on or is paused", || async {
            is(&agent, &id, State::STATE_RUNNING).await
                || is(&agent, &id, State::STATE_PAUSED).await
        })
        .await;
        resume().await.unwrap();
        assert_eq!(agent.shell(&id, "sha256sum /keep").await, written);
    });
}
