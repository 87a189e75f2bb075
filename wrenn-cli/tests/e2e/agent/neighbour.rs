//! One sandbox that takes all it can get, beside one that only wants to answer.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use wrenn_proto::hostagent::DestroySandboxRequest;

use super::stage::{TestAgent, enter};
use crate::stage::{self, until};

const MIB: u64 = 1 << 20;
/// How often the neighbour is asked before the noise, and under it.
const ASKED: usize = 12;
/// How much longer a neighbour's answer may take under the noise. It shares few processors
/// with a guest that burns one and a half.
const SLOWER: u32 = 10;
/// What its console has printed when the noise is there. Each byte is an exit of the VM,
/// which takes long where one VM emulates another.
const CONSOLE_NOISE: u64 = 4096;
/// Threads that burn, memory that grows to the limit, a disk and a console that are written
/// to without end.
const NOISE: &str = "
    cd /; exec </dev/null >/dev/null 2>&1
    for i in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done
    (while :; do tail /dev/zero; done) &
    (while :; do dd if=/dev/zero of=/flood bs=1M count=24 conv=fsync; done) &
    (while :; do cat /bin/busybox > /dev/ttyS0; done) &
    (while :; do cat /bin/busybox > /dev/console; done) &";

async fn latency(agent: &TestAgent, id: &str) -> Duration {
    let mut samples = Vec::new();
    for _ in 0..ASKED {
        let begun = Instant::now();
        assert_eq!(agent.shell(id, "echo here").await, "here");
        samples.push(begun.elapsed());
    }
    samples.sort();
    samples[ASKED / 2]
}

fn directory(id: &str) -> PathBuf {
    stage::root().path().join("sandboxes").join(id)
}

/// Room on the disk that a file takes.
fn taken(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.blocks() * 512)
}

fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib << 10
}

#[test]
fn a_noisy_sandbox_is_bounded_and_its_neighbour_answers() {
    enter(|agent| async move {
        let (quiet, noisy) = tokio::join!(agent.create(), agent.create());
        let before = latency(&agent, &quiet.id).await;
        let memory_before = available_memory();

        agent.shell(&noisy.id, NOISE).await;
        let files = directory(&noisy.id);
        let console = files.join("console.log");
        let printed = || fs::metadata(&console).unwrap().len();
        let quiet_console = printed();
        until("the console is flooded", || async {
            printed() > quiet_console + CONSOLE_NOISE
        })
        .await;
        let group = Path::new("/sys/fs/cgroup/wrenn").join(&noisy.id);
        let number = |file: &str| -> u64 {
            let text = fs::read_to_string(group.join(file)).unwrap();
            text.trim().parse().unwrap()
        };
        until("its memory is taken", || async {
            number("memory.current") > 100 * MIB
        })
        .await;

        let under_noise = latency(&agent, &quiet.id).await;
        eprintln!("an exec took {before:?} before the noise and {under_noise:?} under it");
        assert!(
            under_noise < before * SLOWER,
            "an exec took {before:?} before the noise and {under_noise:?} under it"
        );

        assert!(number("memory.current") <= number("memory.max"));
        let most = number("memory.max") + 256 * MIB;
        let lost = memory_before.saturating_sub(available_memory());
        assert!(lost < most, "the host lost {} MiB", lost / MIB);
        if stage_disk_is_anonymous() {
            eprintln!("no disk below the root directory: io.max is not looked at");
        } else {
            let limits = fs::read_to_string(group.join("io.max")).unwrap();
            assert!(limits.contains("wbps=268435456"), "{limits}");
        }
        let logs = taken(&console) + taken(&files.join("vmm.log"));
        assert!(logs < 32 * MIB, "logs take {} MiB", logs / MIB);

        let request = DestroySandboxRequest { id: noisy.id };
        agent.client().destroy_sandbox(request).await.unwrap();
        assert_eq!(agent.shell(&quiet.id, "echo still").await, "still");
    });
}

/// Whether the root directory lies on a file system without a disk of its own.
fn stage_disk_is_anonymous() -> bool {
    rustix::fs::major(fs::metadata(stage::root().path()).unwrap().dev()) == 0
}
