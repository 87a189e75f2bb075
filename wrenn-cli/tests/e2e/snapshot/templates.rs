//! What is made of a sandbox that goes on: templates and children.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_core::SandboxId;
use wrenn_proto::connectrpc::{ConnectError, ErrorCode};
use wrenn_proto::hostagent::*;

use super::cycle::{destroy, get, no_build_is_left, pause, resume, state};
use crate::agent::stage::{TestAgent, ended, enter, enter_with, refused, small};
use crate::stage::{self, Amount, until};

/// What a sandbox is before it is frozen: something in memory, on disk, and running.
const PAST: &str = "echo memory >/run/file; echo disk >/var/tmp/file; \
    setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n >/run/count.new; \
        mv /run/count.new /run/count; sleep 0.1; done' </dev/null >/dev/null 2>&1 &
    sleep 1; dd if=/dev/urandom of=/run/random bs=64k count=64 2>/dev/null; \
    sha256sum /run/random";

/// What no two sandboxes may have in common.
const SELF: &str = "hostname; cat /proc/sys/kernel/random/boot_id; \
    head -c 16 /dev/urandom | sha256sum; cat /proc/sys/kernel/random/uuid";

pub(super) async fn create(agent: &TestAgent, template: &str) -> Result<Sandbox, ConnectError> {
    let request = CreateSandboxRequest {
        id: SandboxId::random().to_string(),
        template: template.to_owned(),
        ..CreateSandboxRequest::default()
    };
    let answer = agent.client().create_sandbox(request).await?;
    Ok(answer.into_owned().sandbox.into_option().unwrap())
}

pub(super) async fn snapshot(
    agent: &TestAgent,
    id: &str,
    name: &str,
) -> Result<Snapshot, ConnectError> {
    let request = CreateSnapshotRequest {
        id: id.to_owned(),
        name: name.to_owned(),
    };
    let answer = agent.client().create_snapshot(request).await?;
    Ok(answer.into_owned().snapshot.into_option().unwrap())
}

async fn delete(agent: &TestAgent, name: &str) -> Result<Vec<String>, ConnectError> {
    let request = DeleteSnapshotRequest {
        name: name.to_owned(),
    };
    let answer = agent.client().delete_snapshot(request).await?;
    Ok(answer.into_owned().still_needed_by)
}

async fn fork(agent: &TestAgent, id: &str, children: usize) -> Vec<Sandbox> {
    let ids = (0..children).map(|_| SandboxId::random().to_string());
    let request = ForkSandboxRequest {
        id: id.to_owned(),
        children: ids.collect(),
    };
    let answer = agent.client().fork_sandbox(request).await.unwrap();
    let answer = answer.into_owned();
    assert!(answer.failed.is_empty(), "{:?}", answer.failed);
    assert_eq!(answer.sandboxes.len(), children);
    answer.sandboxes
}

/// By how much the guest's clock is behind the host's at most, in seconds, and how long it took
/// to find out. Guests have clocks that show whole seconds, so it is asked when a new one begins.
async fn behind(agent: &TestAgent, id: &str) -> (f64, f64) {
    let since = Instant::now();
    agent.shell(id, "date +%s").await;
    let took = since.elapsed().as_secs_f64();
    let next = "now=$(date +%s); while then=$(date +%s); [ $then = $now ]; do :; done; echo $then";
    let text = agent.shell(id, next).await;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let guest: f64 = text.parse().unwrap();
    (now.unwrap().as_secs_f64() - guest, took)
}

async fn moves_on(agent: &TestAgent, id: &str) {
    let count = || async {
        let text = agent.shell(id, "cat /run/count").await;
        text.parse::<u64>().unwrap()
    };
    let before = count().await;
    until("the counter moves", || async { count().await > before }).await;
}

/// That each of these is somebody, and all have the same past.
async fn assert_selves(agent: &TestAgent, ids: &[String], sum: &str) {
    let mut seen = BTreeSet::new();
    for id in ids {
        let past = "cat /run/file /var/tmp/file; sha256sum /run/random";
        let past = agent.shell(id, past).await;
        assert_eq!(past, format!("memory\ndisk\n{sum}"), "{id}");
        moves_on(agent, id).await;
        let own = agent.shell(id, SELF).await;
        assert_eq!(own.lines().next(), Some(id.as_str()));
        for line in own.lines() {
            assert!(seen.insert(line.to_owned()), "{id} shares {line}");
        }
        // Where all is emulated, what tells the guest the time takes long, and so does asking.
        let told = get(agent, id).await.phases_ms["init"] / 1e3;
        let (behind, asked) = behind(agent, id).await;
        let tolerated = 0.05 + told + asked;
        assert!(
            (-0.05..tolerated).contains(&behind),
            "{id} is {behind} s behind, told in {told} s, asked in {asked} s"
        );
    }
}

#[test]
fn sandboxes_of_a_snapshot_have_its_past_and_are_themselves() {
    let spawns = Amount::Spawns.or(4);
    // And what they are made of, and what is made of them.
    let vcpus = (spawns + 4).to_string();
    enter_with(&["--max-vcpus", &vcpus], |agent| async move {
        let source = agent.create().await.id;
        let sum = agent.shell(&source, PAST).await;
        let named = snapshot(&agent, &source, "warm").await.unwrap();
        assert_eq!((named.name.as_str(), &named.source), ("warm", &source));
        assert_eq!(named.template, "minimal");
        assert_eq!(named.resources.memory_mib, 128);
        assert!(named.disk_bytes > 4 << 20, "{named:?}");
        // What it was goes on, and its future is nobody else's.
        moves_on(&agent, &source).await;
        agent.shell(&source, "echo later >/run/file").await;

        let all = join_all((0..spawns).map(|_| create(&agent, "warm"))).await;
        let all: Vec<Sandbox> = all.into_iter().collect::<Result<_, _>>().unwrap();
        let ids: Vec<_> = all.iter().map(|sandbox| sandbox.id.clone()).collect();
        let tokens: BTreeSet<_> = all.iter().map(|one| one.access_token.clone()).collect();
        assert_eq!(tokens.len(), all.len());
        assert!(all.iter().all(|one| one.resources.memory_mib == 128));
        assert_selves(&agent, &ids, &sum).await;

        // They live as any other: they are paused, and frozen in turn.
        let child = &ids[0];
        agent.shell(child, "echo own >/var/tmp/own").await;
        pause(&agent, child).await.unwrap();
        snapshot(&agent, child, "warmer").await.unwrap();
        assert_eq!(state(&agent, child).await, State::STATE_PAUSED);
        resume(&agent, child).await.unwrap();
        assert_eq!(agent.shell(child, "cat /var/tmp/own").await, "own");
        let grandchild = create(&agent, "warmer").await.unwrap().id;
        assert_eq!(agent.shell(&grandchild, "cat /var/tmp/own").await, "own");
        assert_selves(&agent, std::slice::from_ref(&grandchild), &sum).await;

        // The names go, and what is needed stays.
        let mut needed = delete(&agent, "warm").await.unwrap();
        needed.sort();
        let mut expected = ids.clone();
        expected.push(grandchild.clone());
        expected.sort();
        assert_eq!(needed, expected);
        delete(&agent, "warmer").await.unwrap();
        refused(create(&agent, "warm").await, ErrorCode::NotFound, "warm");
        pause(&agent, &grandchild).await.unwrap();
        resume(&agent, &grandchild).await.unwrap();
        assert_selves(&agent, std::slice::from_ref(&grandchild), &sum).await;
        for id in ids.iter().chain([&grandchild, &source]) {
            destroy(&agent, id).await;
        }
        no_build_is_left().await;
    });
}

#[test]
fn children_of_a_running_sandbox_go_their_own_way() {
    enter(|agent| async move {
        let parent = agent.create().await.id;
        let sum = agent.shell(&parent, PAST).await;
        let children = fork(&agent, &parent, 2).await;
        let ids: Vec<_> = children.iter().map(|child| child.id.clone()).collect();
        assert_selves(&agent, &ids, &sum).await;
        for id in &ids {
            agent
                .shell(
                    id,
                    &format!("echo {id} >/run/file; echo {id} >/var/tmp/file"),
                )
                .await;
        }
        moves_on(&agent, &parent).await;
        for id in &ids {
            let own = agent.shell(id, "sync; cat /run/file /var/tmp/file").await;
            assert_eq!(own, format!("{id}\n{id}"));
        }
        let own = agent.shell(&parent, "cat /run/file /var/tmp/file").await;
        assert_eq!(own, "memory\ndisk");

        // A child of a child, of one that lies on disk: it stays there.
        pause(&agent, &ids[0]).await.unwrap();
        destroy(&agent, &parent).await;
        let grandchild = fork(&agent, &ids[0], 1).await.remove(0).id;
        assert_eq!(agent.shell(&grandchild, "cat /run/file").await, ids[0]);
        assert_eq!(state(&agent, &ids[0]).await, State::STATE_PAUSED);
        // What was written down of one that runs is what its next pause is built upon.
        let second = ids[1].as_str();
        let change = "dd if=/dev/urandom of=/run/random bs=64k count=8 conv=notrunc 2>/dev/null; \
            sync; sha256sum /run/random";
        agent.shell(second, change).await;
        let youngest = fork(&agent, second, 1).await.remove(0).id;
        let changed = agent.shell(second, change).await;
        pause(&agent, second).await.unwrap();
        resume(&agent, second).await.unwrap();
        assert_eq!(agent.shell(second, "sha256sum /run/random").await, changed);
        for id in ids.iter().chain([&grandchild, &youngest]) {
            destroy(&agent, id).await;
        }
        no_build_is_left().await;
    });
}

#[test]
fn what_cannot_be_frozen_named_or_made_is_refused_in_words() {
    enter(|agent| async move {
        let nobody = SandboxId::random().to_string();
        refused(
            snapshot(&agent, &nobody, "x").await,
            ErrorCode::NotFound,
            "no sandbox",
        );
        refused(
            delete(&agent, "nothing").await,
            ErrorCode::NotFound,
            "no snapshot",
        );
        let id = agent.create().await.id;
        for name in ["", "No", "a/b", "..", &"x".repeat(300)] {
            let answer = snapshot(&agent, &id, name).await;
            refused(answer, ErrorCode::InvalidArgument, "is no name");
        }
        let answer = snapshot(&agent, &id, "minimal").await;
        refused(answer, ErrorCode::AlreadyExists, "already");
        let request = ForkSandboxRequest {
            id: id.clone(),
            children: Vec::new(),
        };
        let answer = agent.client().fork_sandbox(request).await;
        refused(answer, ErrorCode::InvalidArgument, "1 to 64 children");
        // Nobody stood still for any of it.
        assert_eq!(state(&agent, &id).await, State::STATE_RUNNING);

        snapshot(&agent, &id, "once").await.unwrap();
        let answer = snapshot(&agent, &id, "once").await;
        refused(answer, ErrorCode::AlreadyExists, "already");
        let larger = CreateSandboxRequest {
            template: "once".to_owned(),
            resources: Some(Resources {
                vcpus: 2,
                memory_mib: 256,
            })
            .into(),
            ..small()
        };
        let answer = agent.client().create_sandbox(larger).await;
        refused(answer, ErrorCode::InvalidArgument, "cannot be changed");
        let client = agent.client();
        let listed = client.list_snapshots(ListSnapshotsRequest::default());
        let listed = listed.await.unwrap().into_owned().snapshots;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].name, "once");

        // A snapshot that is damaged makes nothing, and says so.
        let build = stage::root().builds().join(&listed[0].build_id);
        let state_file = build.join("vmstate.bin");
        let mut bytes = std::fs::read(&state_file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&state_file, bytes).unwrap();
        refused(create(&agent, "once").await, ErrorCode::DataLoss, "damaged");
        delete(&agent, "once").await.unwrap();
        destroy(&agent, &id).await;
        no_build_is_left().await;
    });
}

#[test]
fn an_idle_sandbox_is_named_until_somebody_knows() {
    enter(|agent| async move {
        let request = CreateSandboxRequest {
            timeout_sec: 2,
            ..small()
        };
        let id = request.id.clone();
        agent.client().create_sandbox(request).await.unwrap();
        let named = |agent: Arc<TestAgent>| async move {
            let client = agent.client();
            let answer = client.list_sandboxes(ListSandboxesRequest::default());
            answer.await.unwrap().into_owned().auto_paused_sandbox_ids
        };
        until("it is paused", || async {
            named(agent.clone()).await == [id.clone()]
        })
        .await;
        // Whoever did not hear it hears it again, from the next agent too.
        agent.end(Signal::SIGKILL).await;
        agent.start().await;
        assert_eq!(named(agent.clone()).await, [id.clone()]);
        let request = AcknowledgeAutoPausedRequest {
            ids: vec![id.clone(), SandboxId::random().to_string()],
        };
        let answer = agent.client().acknowledge_auto_paused(request).await;
        answer.unwrap();
        assert!(named(agent.clone()).await.is_empty());
        assert_eq!(state(&agent, &id).await, State::STATE_PAUSED);
        agent.end(Signal::SIGTERM).await;
        agent.start().await;
        assert!(named(agent.clone()).await.is_empty());
        let request = ResumeSandboxRequest {
            id: id.clone(),
            timeout_sec: Some(0),
        };
        agent.client().resume_sandbox(request).await.unwrap();
        pause(&agent, &id).await.unwrap();
        assert!(named(agent.clone()).await.is_empty());
        destroy(&agent, &id).await;
    });
}

/// One whose memory lies in two builds, and which is fed by a pager.
async fn paged(agent: &TestAgent) -> Sandbox {
    let id = agent.create().await.id;
    agent
        .shell(
            &id,
            "dd if=/dev/urandom of=/run/random bs=64k count=64 2>/dev/null",
        )
        .await;
    for round in 0..2 {
        agent.shell(&id, &format!("echo {round} >/run/round")).await;
        pause(agent, &id).await.unwrap();
        resume(agent, &id).await.unwrap();
    }
    let sandbox = get(agent, &id).await;
    assert_ne!(sandbox.pager_pid, 0, "nobody feeds it");
    sandbox
}

#[test]
fn a_pager_outlives_the_agent_and_its_vm_does_not_outlive_it() {
    enter(|agent| async move {
        let sandbox = paged(&agent).await;
        let (id, pager) = (sandbox.id.as_str(), sandbox.pager_pid);
        let sum = agent.shell(id, "sha256sum /run/random").await;
        agent.end(Signal::SIGKILL).await;
        agent.start().await;
        assert_eq!(get(&agent, id).await.pager_pid, pager);
        assert_eq!(agent.shell(id, "sha256sum /run/random").await, sum);
        assert_eq!(agent.shell(id, "cat /run/round").await, "1");

        let pid = Pid::from_raw(pager.cast_signed());
        kill(pid, Signal::SIGKILL).unwrap();
        until("it is broken", || async {
            state(&agent, id).await == State::STATE_ERROR
        })
        .await;
        let reason = get(&agent, id).await.reason;
        assert!(reason.contains("pager"), "{reason}");
        destroy(&agent, id).await;

        // While nobody looked, too.
        let sandbox = paged(&agent).await;
        agent.end(Signal::SIGKILL).await;
        let pid = Pid::from_raw(sandbox.pager_pid.cast_signed());
        kill(pid, Signal::SIGKILL).unwrap();
        until("the pager has ended", || async { ended(sandbox.pager_pid) }).await;
        agent.start().await;
        let found = get(&agent, &sandbox.id).await;
        assert_eq!(found.state.as_known(), Some(State::STATE_ERROR));
        assert!(found.reason.contains("pager"), "{}", found.reason);
        destroy(&agent, &sandbox.id).await;
        no_build_is_left().await;
    });
}

#[test]
fn what_a_guest_needs_first_is_recorded_once_and_brought_ahead_from_then_on() {
    enter(|agent| async move {
        let source = paged(&agent).await.id;
        let sum = agent.shell(&source, "sha256sum /run/random").await;
        let named = snapshot(&agent, &source, "chained").await.unwrap();
        destroy(&agent, &source).await;
        let working_set = stage::root().snapshots().join("working-sets");
        let working_set = working_set.join(&named.build_id);
        assert!(!working_set.exists());
        for _ in 0..2 {
            let sandbox = create(&agent, "chained").await.unwrap();
            assert_ne!(sandbox.pager_pid, 0, "nobody feeds it");
            assert_eq!(agent.shell(&sandbox.id, "sha256sum /run/random").await, sum);
            until("its needs are known", || async { working_set.exists() }).await;
            destroy(&agent, &sandbox.id).await;
        }
        delete(&agent, "chained").await.unwrap();
        no_build_is_left().await;
        until("the working set is gone too", || async {
            !working_set.exists()
        })
        .await;
    });
}

/// The guest's time since its boot and its clock, in seconds, as a program saw them.
fn times(text: &str) -> Vec<(f64, u64)> {
    let pair = |line: &str| {
        let (since_boot, clock) = line.split_once(' ').unwrap();
        (since_boot.parse().unwrap(), clock.parse().unwrap())
    };
    text.lines().map(pair).collect()
}

#[test]
fn no_program_sees_the_time_of_before() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let watch = "setsid sh -c 'while :; do read up rest </proc/uptime; \
            echo $up $(date +%s) >>/run/times; done' </dev/null >/dev/null 2>&1 &";
        agent.shell(&id, watch).await;
        until("it watches the clock", || async {
            agent
                .shell(&id, "touch /run/times; wc -l </run/times")
                .await
                != "0"
        })
        .await;
        pause(&agent, &id).await.unwrap();
        // Long enough for a clock that was set to be told from one that stood still.
        let since = SystemTime::now();
        until("time has passed", || async {
            since.elapsed().unwrap().as_secs() >= 10
        })
        .await;
        resume(&agent, &id).await.unwrap();
        let told = get(&agent, &id).await.phases_ms["init"] / 1e3;
        // Between two of its looks at the clock it stood still: between the last look before
        // and the second one after, since it may have stood in the middle of the first.
        let around = |text: String| {
            let seen = times(&text);
            let mut fours = seen.windows(4);
            fours
                .find(|four| four[2].1 >= four[1].1 + 8)
                .map(<[_]>::to_vec)
        };
        until("it sees the new time", || async {
            around(agent.shell(&id, "cat /run/times").await).is_some()
        })
        .await;
        let around = around(agent.shell(&id, "cat /run/times").await).unwrap();
        let gaps = around.windows(2).map(|pair| pair[1].0 - pair[0].0);
        let stood_still = gaps.fold(0.0, f64::max);
        // The guest ran for as long as it took to tell it the time, and the program did not.
        assert!(
            stood_still > told - 0.02,
            "it stood still for {stood_still} s, and the guest was told in {told} s: {around:?}"
        );
    });
}
