//! Sandboxes that are paused and resumed, by the agent.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_core::snapshot::{GENERATION_LIMIT, Inspection};
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::*;

use crate::agent::stage::{Followed, TestAgent, enter, enter_with, next, refused, sh, small};
use crate::stage::{self, Amount, record, until};

/// What goes on in the guest all the while: a counter in the memory of one process, a
/// sleeper, and a connection whose ends are two programs.
const COMPANY: &str = "mkdir -p /var/tmp/tree /run/memory; mkfifo /run/pipe
    setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n >/run/count.new; \
        mv /run/count.new /run/count; sleep 0.1; done' </dev/null >/dev/null 2>&1 &
    setsid sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/run/sleeper
    setsid sh -c 'sleep 100000 | nc -l -p 7777 >/run/received' </dev/null >/dev/null 2>&1 &
    setsid sh -c 'exec 3<>/run/pipe; sleep 100000' </dev/null >/dev/null 2>&1 &
    setsid sh -c 'until nc 127.0.0.1 7777 </run/pipe; do sleep 0.2; done' >/dev/null 2>&1 &";
/// Among how many files what changes is divided.
const FILES: usize = 4;
/// Everything that must be as it was, from memory and, past the cache, from the disk.
const SUMS: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; \
    find /run/memory /var/tmp/tree -type f | sort | xargs sha256sum; \
    cat /proc/sys/kernel/random/boot_id; cat /run/sleeper; \
    cut -d' ' -f22 /proc/$(cat /run/sleeper)/stat";

pub(super) async fn get(agent: &TestAgent, id: &str) -> Sandbox {
    let request = GetSandboxRequest { id: id.to_owned() };
    let answer = agent.client().get_sandbox(request).await.unwrap();
    answer.into_owned().sandbox.into_option().unwrap()
}

pub(super) async fn state(agent: &TestAgent, id: &str) -> State {
    get(agent, id).await.state.as_known().unwrap()
}

pub(super) async fn pause(agent: &TestAgent, id: &str) -> Result<(), ConnectError> {
    let request = PauseSandboxRequest { id: id.to_owned() };
    agent.client().pause_sandbox(request).await.map(drop)
}

pub(super) async fn resume(agent: &TestAgent, id: &str) -> Result<(), ConnectError> {
    let request = ResumeSandboxRequest {
        id: id.to_owned(),
        timeout_sec: None,
    };
    agent.client().resume_sandbox(request).await.map(drop)
}

pub(super) async fn destroy(agent: &TestAgent, id: &str) {
    let request = DestroySandboxRequest { id: id.to_owned() };
    agent.client().destroy_sandbox(request).await.unwrap();
}

pub(super) async fn reserved(agent: &TestAgent) -> u32 {
    let host = agent.client().get_host(GetHostRequest::default()).await;
    host.unwrap().into_owned().sandboxes
}

/// The build that a sandbox is paused as, or was resumed from.
pub(super) fn build_of(id: &str) -> PathBuf {
    let build = record(id)["build"].as_str().unwrap().to_owned();
    stage::root().builds().join(build)
}

fn builds() -> usize {
    std::fs::read_dir(stage::root().builds()).map_or(0, Iterator::count)
}

pub(super) async fn no_build_is_left() {
    until("builds that nobody needs are gone", || async {
        builds() == 0
    })
    .await;
}

async fn knows_the_time(agent: &TestAgent, id: &str) {
    let seconds: u64 = agent.shell(id, "date +%s").await.parse().unwrap();
    let guest = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let difference = SystemTime::now()
        .duration_since(guest)
        .unwrap_or_else(|error| error.duration());
    assert!(difference < Duration::from_secs(10), "{difference:?}");
}

/// Fills its memory with this much that is nowhere else.
async fn fill(agent: &TestAgent, id: &str, mib: usize) {
    let each = mib.div_ceil(FILES) * 16;
    for file in 0..FILES {
        let line = format!("dd if=/dev/urandom of=/run/memory/{file} bs=64k count={each}");
        agent.shell(id, &format!("{line} 2>/dev/null")).await;
    }
}

/// Changes part of all that: the files of memory one after another, each in place, and a tree.
async fn change(agent: &TestAgent, id: &str, cycle: usize) {
    let file = cycle % FILES;
    let line = format!(
        "cd /run/memory; n=$(($(wc -c <{file}) / 65536)); \
         dd if=/dev/urandom of={file} bs=64k count=$n conv=notrunc 2>/dev/null; \
         rm -rf /var/tmp/tree/{file}; mkdir -p /var/tmp/tree/{file}/{cycle}; \
         dd if=/dev/urandom of=/var/tmp/tree/{file}/{cycle}/file bs=64k count=16 2>/dev/null; \
         echo {cycle} >>/var/tmp/tree/log"
    );
    agent.shell(id, &line).await;
}

async fn count(agent: &TestAgent, id: &str) -> u64 {
    agent.shell(id, "cat /run/count").await.parse().unwrap()
}

#[test]
fn a_sandbox_goes_on_where_it_was_through_many_pauses_and_an_agents_death() {
    enter(|agent| async move {
        let mib = Amount::MemoryMib.or(4);
        let mut request = small();
        request.resources.get_or_insert_default().memory_mib += u32::try_from(mib).unwrap();
        let created = agent.client().create_sandbox(request).await.unwrap();
        let created = created.into_owned().sandbox.into_option().unwrap();
        let id = created.id.as_str();
        agent.shell(id, COMPANY).await;
        fill(&agent, id, mib).await;
        for cycle in 0..Amount::Cycles.or(4) {
            change(&agent, id, cycle).await;
            let sums = agent.shell(id, SUMS).await;
            let counted = count(&agent, id).await;
            let mut followed = Followed::start(&agent, id, sh("echo ready; sleep 1000")).await;
            followed.read_until("ready").await;

            pause(&agent, id).await.unwrap();
            pause(&agent, id).await.unwrap();
            let told = next(&mut followed.down).await;
            refused(told, ErrorCode::FailedPrecondition, "paus");
            assert_eq!(state(&agent, id).await, State::STATE_PAUSED);
            assert_eq!(reserved(&agent).await, 0);
            let exec = agent.exec(id, "true").await;
            refused(exec, ErrorCode::FailedPrecondition, "is paused");
            match cycle {
                1 => {
                    agent.end(Signal::SIGKILL).await;
                    agent.start().await;
                }
                2 => {
                    agent.end(Signal::SIGTERM).await;
                    agent.start().await;
                }
                _ => {}
            }
            assert_eq!(state(&agent, id).await, State::STATE_PAUSED);

            resume(&agent, id).await.unwrap();
            resume(&agent, id).await.unwrap();
            knows_the_time(&agent, id).await;
            assert_eq!(reserved(&agent).await, 1);
            assert_eq!(agent.shell(id, SUMS).await, sums, "cycle {cycle}");
            until("the counter moves", || async {
                count(&agent, id).await > counted
            })
            .await;
            agent
                .shell(id, &format!("echo cycle {cycle} >/run/pipe"))
                .await;
            until("the connection works", || async {
                let lines = agent.shell(id, "wc -l </run/received").await;
                lines == (cycle + 1).to_string()
            })
            .await;
            let now = get(&agent, id).await;
            assert_eq!(now.state.as_known(), Some(State::STATE_RUNNING));
            assert_eq!(
                now.access_token, created.access_token,
                "clients go on with the token that they have"
            );
        }
        let complaints =
            "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|blocked for more' || :";
        assert_eq!(agent.shell(id, complaints).await, "");
        destroy(&agent, id).await;
        no_build_is_left().await;
    });
}

#[test]
fn many_pauses_leave_no_descriptor_no_thread_no_file_and_no_long_chain() {
    enter(|agent| async move {
        let files = files_of_root();
        let id = agent.create().await.id;
        // What an agent needs once, it has after this.
        for _ in 0..2 {
            pause(&agent, &id).await.unwrap();
            resume(&agent, &id).await.unwrap();
        }
        let settled = held_by(&agent);
        for cycle in 0..Amount::Cycles.or(usize::try_from(GENERATION_LIMIT).unwrap() + 2) {
            agent.shell(&id, &format!("echo {cycle} >/run/cycle")).await;
            pause(&agent, &id).await.unwrap();
            let depth = Inspection::of(&build_of(&id)).unwrap().generation;
            assert!(depth <= GENERATION_LIMIT + 1, "cycle {cycle}: {depth}");
            // It does not lie on the disk for long enough to be compacted there.
            resume(&agent, &id).await.unwrap();
        }
        let held = held_by(&agent);
        eprintln!("descriptors and threads: {settled:?} before, {held:?} after all cycles");
        until("it holds no more than before", || async {
            let (descriptors, threads) = held_by(&agent);
            descriptors <= settled.0 && threads <= settled.1 + SPARE_THREADS
        })
        .await;
        destroy(&agent, &id).await;
        // Fewer than before, if another test's builds were still being collected then.
        until("no file is left", || async {
            files_of_root().is_subset(&files)
        })
        .await;
    });
}

/// Threads for blocking work wait a while for more, and small tasks that come now and then are
/// enough to keep some of them. How many that are has nothing to do with the number of cycles.
const SPARE_THREADS: usize = 6;

/// How many descriptors and threads the agent has.
fn held_by(agent: &TestAgent) -> (usize, usize) {
    let count = |what| {
        let directory = format!("/proc/{}/{what}", agent.pid());
        std::fs::read_dir(directory).unwrap().count()
    };
    (count("fd"), count("task"))
}

/// Every file of sandboxes and snapshots. Slots are taken ahead, and others each time.
fn files_of_root() -> BTreeSet<PathBuf> {
    let mut files = BTreeSet::new();
    let mut directories = vec![stage::root().path().to_owned()];
    while let Some(directory) = directories.pop() {
        // One that goes away meanwhile has none.
        for entry in std::fs::read_dir(directory).into_iter().flatten() {
            let entry = entry.unwrap();
            match entry.file_type() {
                Ok(_) if entry.file_name() == "network" => {}
                Ok(is) if is.is_dir() => directories.push(entry.path()),
                _ => drop(files.insert(entry.path())),
            }
        }
    }
    files
}

#[test]
fn a_deep_chain_is_brought_into_one_file_while_it_lies_on_disk() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let fill = "dd if=/dev/urandom of=/run/memory bs=64k count=16 2>/dev/null; \
            sha256sum /run/memory";
        let sum = agent.shell(&id, fill).await;
        for round in 0..=GENERATION_LIMIT {
            pause(&agent, &id).await.unwrap();
            resume(&agent, &id).await.unwrap();
            agent.shell(&id, &format!("echo {round} >/run/round")).await;
        }
        assert_ne!(get(&agent, &id).await.pager_pid, 0, "its chain is deep");
        pause(&agent, &id).await.unwrap();
        let deep = build_of(&id);
        until("its memory is in one file", || async {
            build_of(&id) != deep
        })
        .await;
        resume(&agent, &id).await.unwrap();
        assert_eq!(get(&agent, &id).await.pager_pid, 0, "nobody need feed it");
        let found = agent
            .shell(&id, "sha256sum /run/memory; cat /run/round")
            .await;
        assert_eq!(found, format!("{sum}\n{GENERATION_LIMIT}"));
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn a_vmm_that_dies_after_a_resume_breaks_the_sandbox_and_not_its_build() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        pause(&agent, &id).await.unwrap();
        resume(&agent, &id).await.unwrap();
        let vmm = record(&id)["vmm"]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(vmm).unwrap()), Signal::SIGKILL).unwrap();
        until("it is broken", || async {
            state(&agent, &id).await == State::STATE_ERROR
        })
        .await;
        let refusal = pause(&agent, &id).await;
        refused(refusal, ErrorCode::FailedPrecondition, "is error");
        let refusal = resume(&agent, &id).await;
        refused(refusal, ErrorCode::FailedPrecondition, "is error");
        assert!(build_of(&id).is_dir());
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn a_resume_that_fails_leaves_the_sandbox_paused() {
    enter_with(&["--max-vcpus", "1"], |agent| async move {
        let id = agent.create().await.id;
        agent
            .shell(&id, "echo kept >/run/file; echo kept >/var/tmp/file")
            .await;
        pause(&agent, &id).await.unwrap();

        let state_file = build_of(&id).join("vmstate.bin");
        let whole = std::fs::read(&state_file).unwrap();
        let mut damaged = whole.clone();
        damaged[whole.len() / 2] ^= 0x10;
        std::fs::write(&state_file, &damaged).unwrap();
        refused(resume(&agent, &id).await, ErrorCode::DataLoss, "damaged");
        assert_eq!(state(&agent, &id).await, State::STATE_PAUSED);
        assert_eq!(reserved(&agent).await, 0);
        std::fs::write(&state_file, &whole).unwrap();

        // Somebody else has its place.
        let other = agent.client().create_sandbox(small()).await.unwrap();
        let other = other.into_owned().sandbox.into_option().unwrap().id;
        let refusal = resume(&agent, &id).await;
        refused(refusal, ErrorCode::ResourceExhausted, "vCPUs");
        assert_eq!(state(&agent, &id).await, State::STATE_PAUSED);
        destroy(&agent, &other).await;

        resume(&agent, &id).await.unwrap();
        let kept = agent.shell(&id, "cat /run/file /var/tmp/file").await;
        assert_eq!(kept, "kept\nkept");
    });
}

#[test]
fn what_is_idle_for_too_long_is_paused_and_all_can_be() {
    enter(|agent| async move {
        let request = CreateSandboxRequest {
            timeout_sec: 3,
            ..small()
        };
        let id = request.id.clone();
        agent.client().create_sandbox(request).await.unwrap();
        agent.shell(&id, "echo kept >/run/file; sleep 5").await;
        until("it is paused", || async {
            state(&agent, &id).await == State::STATE_PAUSED
        })
        .await;
        let request = ResumeSandboxRequest {
            id: id.clone(),
            timeout_sec: Some(0),
        };
        agent.client().resume_sandbox(request).await.unwrap();
        assert_eq!(agent.shell(&id, "cat /run/file").await, "kept");
        assert_eq!(get(&agent, &id).await.timeout_sec, 0);

        let answer = agent.client().pause_all(PauseAllRequest::default()).await;
        let answer = answer.unwrap().into_owned();
        assert_eq!(answer.paused, [id.clone()]);
        assert!(answer.failed.is_empty(), "{:?}", answer.failed);
        assert_eq!(state(&agent, &id).await, State::STATE_PAUSED);
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn an_agent_that_is_killed_while_it_pauses_loses_nothing() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        agent
            .shell(&id, "echo kept >/run/file; echo kept >/var/tmp/file")
            .await;
        let asked = tokio::spawn({
            let (agent, id) = (agent.clone(), id.clone());
            async move { pause(&agent, &id).await }
        });
        let shared = stage::root()
            .path()
            .join("sandboxes")
            .join(&id)
            .join("shared");
        until("the VMM writes memory", || async {
            asked.is_finished() || shared.join("memory.bin").exists()
        })
        .await;
        agent.end(Signal::SIGKILL).await;
        drop(asked.await);
        agent.start().await;
        if state(&agent, &id).await == State::STATE_PAUSED {
            resume(&agent, &id).await.unwrap();
        }
        assert_eq!(state(&agent, &id).await, State::STATE_RUNNING);
        let kept = agent.shell(&id, "cat /run/file /var/tmp/file").await;
        assert_eq!(kept, "kept\nkept");
        pause(&agent, &id).await.unwrap();
        resume(&agent, &id).await.unwrap();
        let kept = agent.shell(&id, "cat /run/file /var/tmp/file").await;
        assert_eq!(kept, "kept\nkept");
    });
}
