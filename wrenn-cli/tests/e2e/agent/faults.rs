//! What breaks, and what of it anybody notices.

use std::path::Path;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::*;

use super::stage::{
    Followed, TestAgent, enter, next, plain_events, read_all, read_until, refused, sh, small,
    started,
};
use crate::stage::{self, record, until};

async fn get(agent: &TestAgent, id: &str) -> Sandbox {
    let request = GetSandboxRequest { id: id.to_owned() };
    let answer = agent.client().get_sandbox(request).await.unwrap();
    answer.into_owned().sandbox.into_option().unwrap()
}

async fn destroy(agent: &TestAgent, id: &str) {
    let request = DestroySandboxRequest { id: id.to_owned() };
    agent.client().destroy_sandbox(request).await.unwrap();
}

#[test]
fn a_vmm_that_dies_is_told_to_everybody_who_waits() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let mut followed = Followed::start(&agent, &id, sh("echo ready; sleep 1000")).await;
        followed.read_until("ready").await;
        let waiting = tokio::spawn({
            let (agent, id) = (agent.clone(), id.clone());
            async move { agent.exec(&id, "sleep 1000").await.map(drop) }
        });
        until("the second command runs", || async {
            agent.shell(&id, "pidof sleep | wc -w").await == "2"
        })
        .await;
        let vmm = vmm_of(&id);
        kill(Pid::from_raw(vmm), Signal::SIGKILL).unwrap();

        refused(
            next(&mut followed.down).await,
            ErrorCode::FailedPrecondition,
            "its VM ended",
        );
        refused(
            waiting.await.unwrap(),
            ErrorCode::FailedPrecondition,
            "its VM ended",
        );
        let sandbox = get(&agent, &id).await;
        assert_eq!(sandbox.state.as_known(), Some(State::STATE_ERROR));
        assert!(sandbox.reason.contains("signal 9"), "{}", sandbox.reason);
        refused(
            agent.exec(&id, "true").await,
            ErrorCode::FailedPrecondition,
            "its VM ended",
        );
        // Its memory and processor are free again, its disk is kept.
        let host = agent.client().get_host(GetHostRequest::default()).await;
        assert_eq!(host.unwrap().into_owned().vcpus, 0);
        let request = GetMetricsRequest { id: id.clone() };
        let metrics = agent
            .client()
            .get_metrics(request)
            .await
            .unwrap()
            .into_owned();
        assert!(
            metrics.disk_bytes > 0 && metrics.memory_bytes == 0,
            "{metrics:?}"
        );
        let request = GetConsoleRequest {
            id: id.clone(),
            ..GetConsoleRequest::default()
        };
        agent.client().get_console(request).await.unwrap();
        destroy(&agent, &id).await;
        let host = agent.client().get_host(GetHostRequest::default()).await;
        assert_eq!(host.unwrap().into_owned().sandboxes, 0);
    });
}

/// The process that runs a sandbox's VM, as its record says.
fn vmm_of(id: &str) -> i32 {
    i32::try_from(record(id)["vmm"]["pid"].as_i64().unwrap()).unwrap()
}

fn slot_of(id: &str) -> u64 {
    record(id)["slot"].as_u64().unwrap()
}

#[test]
fn sandboxes_and_commands_survive_an_agent_that_is_stopped() {
    survives(Signal::SIGTERM);
}

#[test]
fn sandboxes_and_commands_survive_an_agent_that_is_killed() {
    survives(Signal::SIGKILL);
}

fn survives(signal: Signal) {
    enter(move |agent| async move {
        let (first, second) = tokio::join!(agent.create(), agent.create());
        let id = first.id.clone();
        let line = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1; done";
        let mut followed = Followed::start(&agent, &id, sh(line)).await;
        followed.read_until("ready").await;
        let pid = followed.pid;
        agent.shell(&id, "echo kept > /tmp/file").await;
        let boot = agent
            .shell(&id, "cat /proc/sys/kernel/random/boot_id")
            .await;
        let request = PingSandboxRequest {
            id: id.clone(),
            timeout_sec: Some(77),
        };
        agent.client().ping_sandbox(request).await.unwrap();

        let vmm = vmm_of(&id);
        agent.end(signal).await;
        if signal == Signal::SIGTERM {
            refused(
                next(&mut followed.down).await,
                ErrorCode::Unavailable,
                "the agent stops",
            );
        }
        agent.start().await;

        // The same sandboxes, by the same tokens, in the same VMs.
        for created in [&first, &second] {
            let found = get(&agent, &created.id).await;
            assert_eq!(
                found.state.as_known(),
                Some(State::STATE_RUNNING),
                "{}",
                found.reason
            );
            assert_eq!(found.access_token, created.access_token);
            assert_eq!(found.created_at, created.created_at);
        }
        assert_eq!(vmm_of(&id), vmm);
        assert_eq!(get(&agent, &id).await.timeout_sec, 77);
        assert_eq!(agent.shell(&id, "cat /tmp/file").await, "kept");
        assert_eq!(
            agent
                .shell(&id, "cat /proc/sys/kernel/random/boot_id")
                .await,
            boot
        );
        let host = agent.client().get_host(GetHostRequest::default()).await;
        let host = host.unwrap().into_owned();
        assert_eq!((host.sandboxes, host.vcpus), (2, 2));
        // The request whose answer may have been lost gives the same sandbox.
        let again = CreateSandboxRequest {
            id: id.clone(),
            ..small()
        };
        let again = agent
            .client()
            .create_sandbox(again)
            .await
            .unwrap()
            .into_owned();
        assert_eq!(
            again.sandbox.as_option().unwrap().access_token,
            first.access_token
        );

        // The command runs on, and whoever joins it learns its end.
        let (mut up, receive) = agent.client().connect_process().await.unwrap().into_split();
        let connect = ProcessConnect {
            id: id.clone(),
            pid,
            ..ProcessConnect::default()
        };
        let message = Some(connect.into());
        up.send(ConnectProcessRequest { message }).await.unwrap();
        let mut down = plain_events!(receive);
        assert_eq!(started(&mut down).await, pid);
        let request = SignalProcessRequest {
            id: id.clone(),
            pid,
            signal: 15,
            ..SignalProcessRequest::default()
        };
        agent.client().signal_process(request).await.unwrap();
        read_until(&mut down, "caught").await;
        assert_eq!(read_all(&mut down).await.2.code, 5);

        // No secret is in the log of either.
        assert!(!agent.log().contains(&first.access_token));
        for id in [first.id, second.id] {
            destroy(&agent, &id).await;
        }
    });
}

/// A host that starts anew has files only: no VM, no disk in the kernel, no namespace.
#[test]
fn what_a_host_that_starts_anew_has_of_a_sandbox_goes_with_it() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        agent.end(Signal::SIGKILL).await;
        let namespace = Path::new("/run/netns").join(format!("wrenn-{}", slot_of(&id)));
        kill(Pid::from_raw(vmm_of(&id)), Signal::SIGKILL).unwrap();
        umount2(&namespace, MntFlags::MNT_DETACH).unwrap();
        std::fs::remove_file(&namespace).unwrap();
        agent.start().await;
        let found = get(&agent, &id).await;
        assert_eq!(found.state.as_known(), Some(State::STATE_ERROR));
        assert!(found.reason.contains("VM ended"), "{}", found.reason);
        destroy(&agent, &id).await;
        // The stage asserts that nothing is left, its slot among that.
    });
}

#[test]
fn a_creation_goes_on_without_its_caller() {
    enter(|agent| async move {
        let request = small();
        let id = request.id.clone();
        let client = agent.client();
        let creating = tokio::spawn(async move { client.create_sandbox(request).await.map(drop) });
        until("the creation has begun", || async {
            let request = GetSandboxRequest { id: id.clone() };
            agent.client().get_sandbox(request).await.is_ok()
        })
        .await;
        creating.abort();
        until("the sandbox runs", || async {
            get(&agent, &id).await.state.as_known() == Some(State::STATE_RUNNING)
        })
        .await;
        assert_eq!(agent.shell(&id, "echo here").await, "here");
    });
}

#[test]
fn a_creation_is_ended_by_a_destroy_and_by_a_crash() {
    enter(|agent| async move {
        for crash in [false, true] {
            let request = small();
            let id = request.id.clone();
            let client = agent.client();
            let creating =
                tokio::spawn(async move { client.create_sandbox(request).await.map(drop) });
            until("its VM boots", || async {
                let console = stage::root().path().join("sandboxes").join(&id);
                console.join("console.log").exists()
            })
            .await;
            if crash {
                agent.end(Signal::SIGKILL).await;
                creating.await.unwrap().unwrap_err();
                agent.start().await;
            } else {
                destroy(&agent, &id).await;
                refused(creating.await.unwrap(), ErrorCode::Aborted, "was destroyed");
            }
            let client = agent.client();
            let listed = client.list_sandboxes(ListSandboxesRequest::default()).await;
            assert!(listed.unwrap().into_owned().sandboxes.is_empty());
        }
        // The stage asserts that nothing is left on the host.
    });
}

#[test]
fn a_second_agent_of_the_same_root_is_refused() {
    enter(|agent| async move {
        let program = std::env::var_os("WRENN_E2E_AGENT").unwrap();
        let second = std::process::Command::new(program)
            .arg("--root")
            .arg(stage::root().path())
            .args(["--listen", "127.0.0.1:0"])
            .output()
            .unwrap();
        assert_eq!(second.status.code(), Some(1));
        let stderr = String::from_utf8_lossy(&second.stderr).into_owned();
        let wanted = format!("another agent (process {})", agent.pid());
        assert!(stderr.contains(&wanted), "{stderr}");
    });
}
