//! Guests that hang, and the operations that wait for them.

use std::time::Duration;

use proptest::prelude::*;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::fakes::{DEADLINE, FakeHost, LIMITS, TEARDOWN};
use super::{CreateError, DestroyRefused, Reserved, ResumeRefused, SandboxHandle};
use crate::sandbox::{Adopted, CreateSandboxError, GreetError, ResumeError, State};

const MOMENT: Duration = Duration::from_millis(1);

/// Has a request made, and waits until its sandbox is in this state.
async fn until(sandbox: &SandboxHandle, state: State) {
    let mut status = sandbox.watch();
    status
        .wait_for(|status| status.state == state)
        .await
        .unwrap();
}

/// A paused sandbox whose guest hangs when it is resumed, and its resume.
async fn hanging_resume(
    host: &FakeHost,
) -> (
    SandboxHandle,
    tokio::task::JoinHandle<Result<(), ResumeRefused>>,
) {
    let sandbox = host.begin().unwrap().created().await.unwrap();
    sandbox.pause().await.unwrap();
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    host.set_hostile(true);
    let resuming = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.resume(None).await }
    });
    until(&sandbox, State::Resuming).await;
    (sandbox, resuming)
}

#[tokio::test(start_paused = true)]
async fn resume_without_answer_leaves_it_paused() {
    let host = FakeHost::new();
    let (sandbox, resuming) = hanging_resume(&host).await;
    let refused = resuming.await.unwrap().unwrap_err();
    let ResumeRefused::Failed { source, .. } = &refused else {
        panic!("{refused}");
    };
    assert!(
        matches!(**source, ResumeError::Greet(GreetError::Deadline(DEADLINE))),
        "{source}"
    );
    assert_eq!(sandbox.status().state, State::Paused);
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    host.set_hostile(false);
    sandbox.resume(None).await.unwrap();
    assert_eq!(sandbox.status().state, State::Running);
    assert_eq!(host.vms(), 1);
}

#[tokio::test(start_paused = true)]
async fn resume_without_answer_or_build_breaks_it() {
    let host = FakeHost::new();
    let (sandbox, resuming) = hanging_resume(&host).await;
    host.remove_builds();
    let refused = resuming.await.unwrap().unwrap_err();
    assert!(matches!(refused, ResumeRefused::Broken { .. }), "{refused}");
    assert_eq!(sandbox.status().state, State::Error);
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    sandbox.destroy().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn destroy_cancels_a_hanging_resume() {
    let host = FakeHost::new();
    let (sandbox, resuming) = hanging_resume(&host).await;
    let begun = Instant::now();
    sandbox.destroy().await.unwrap();
    assert!(begun.elapsed() < DEADLINE);
    assert_eq!(sandbox.status().state, State::Stopped);
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    resuming.await.unwrap().unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn destroy_precedes_queued_requests() {
    let host = FakeHost::new();
    let (sandbox, resuming) = hanging_resume(&host).await;
    let mut queued = JoinSet::new();
    // More than the queue holds.
    for _ in 0..100 {
        let sandbox = sandbox.clone();
        queued.spawn(async move { sandbox.resume(None).await });
    }
    sleep(MOMENT).await;
    let begun = Instant::now();
    sandbox.destroy().await.unwrap();
    assert!(begun.elapsed() < DEADLINE);
    resuming.await.unwrap().unwrap_err();
    for resumed in queued.join_all().await {
        resumed.unwrap_err();
    }
}

#[tokio::test(start_paused = true)]
async fn creation_without_answer_is_removed() {
    let host = FakeHost::new();
    host.set_hostile(true);
    let sandbox = host.begin().unwrap();
    let error = sandbox.created().await.unwrap_err();
    let CreateError::Failed(error) = error else {
        panic!("{error}");
    };
    assert!(matches!(*error, CreateSandboxError::Restore(_)), "{error}");
    assert!(host.roster().list().is_empty());
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
}

#[tokio::test(start_paused = true)]
async fn destroyed_creation_is_counted_until_torn_down() {
    let host = FakeHost::new();
    host.set_hostile(true);
    let sandbox = host.begin().unwrap();
    sleep(MOMENT).await;
    assert_eq!(host.vms(), 1);
    let destroying = tokio::spawn({
        let sandbox = sandbox.clone();
        async move { sandbox.destroy().await }
    });
    sleep(TEARDOWN / 2).await;
    // Its VM is there still, so it is listed and has its share of the host.
    assert_eq!((host.vms(), host.reserved().sandboxes), (1, 1));
    assert_eq!(host.roster().list().len(), 1);
    assert!(!destroying.is_finished());
    destroying.await.unwrap().unwrap();
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    let error = sandbox.created().await.unwrap_err();
    assert!(matches!(error, CreateError::Destroyed(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn leaving_ends_with_a_hanging_resume() {
    let host = FakeHost::new();
    let (sandbox, resuming) = hanging_resume(&host).await;
    let mut queued = JoinSet::new();
    for _ in 0..100 {
        let sandbox = sandbox.clone();
        queued.spawn(async move { sandbox.resume(None).await });
    }
    sleep(MOMENT).await;
    let begun = Instant::now();
    host.roster().leave().await;
    assert!(begun.elapsed() < DEADLINE * 2);
    resuming.await.unwrap().unwrap_err();
    let refused = sandbox.destroy().await.unwrap_err();
    assert!(matches!(refused, DestroyRefused::Left(_)), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn hanging_guest_delays_no_other_adoption() {
    let host = FakeHost::new();
    host.set_hostile(true);
    let begun = Instant::now();
    for _ in 0..LIMITS.sandboxes {
        let adopted = Adopted::Running(Box::new(host.left_by_another()));
        host.roster().take_in(adopted).await;
    }
    assert_eq!(begun.elapsed(), Duration::ZERO);
    let sandboxes = host.roster().list();
    for sandbox in &sandboxes {
        assert_eq!(sandbox.status().state, State::Running);
        sandbox.destroy().await.unwrap();
    }
    assert!(begun.elapsed() < DEADLINE);
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
}

#[tokio::test(start_paused = true)]
async fn adopted_guest_is_thawed_once_it_answers() {
    let host = FakeHost::new();
    host.set_hostile(true);
    let sandbox = host.left_by_another();
    let thawed = sandbox.thawed();
    host.roster()
        .take_in(Adopted::Running(Box::new(sandbox)))
        .await;
    sleep(DEADLINE * 2).await;
    assert!(!thawed.is_cancelled());
    host.set_hostile(false);
    thawed.cancelled().await;
}

/// Something that a caller does.
#[derive(Clone, Debug)]
enum Step {
    Create,
    Destroy(prop::sample::Index),
    Pause(prop::sample::Index),
    Resume(prop::sample::Index),
    /// Guests hang from now on, or answer again.
    Hostile(bool),
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    let any_of = any::<prop::sample::Index>;
    prop_oneof![
        3 => Just(Step::Create),
        2 => any_of().prop_map(Step::Destroy),
        2 => any_of().prop_map(Step::Pause),
        3 => any_of().prop_map(Step::Resume),
        2 => any::<bool>().prop_map(Step::Hostile),
        3 => (1_u64..2000).prop_map(|ms| Step::Wait(Duration::from_millis(ms))),
    ]
}

/// Takes these steps, none of which waits for the one before, and destroys all in the end.
async fn take(steps: Vec<Step>) {
    let host = FakeHost::new();
    let mut known: Vec<SandboxHandle> = Vec::new();
    let mut calls = JoinSet::new();
    for step in steps {
        match (step, known.as_slice()) {
            (Step::Create, _) => known.extend(host.begin().ok()),
            (Step::Hostile(hostile), _) => host.set_hostile(hostile),
            (Step::Wait(time), _) => sleep(time).await,
            (_, []) => {}
            (Step::Destroy(index), some) => {
                let sandbox = index.get(some).clone();
                calls.spawn(async move { drop(sandbox.destroy().await) });
            }
            (Step::Pause(index), some) => {
                let sandbox = index.get(some).clone();
                calls.spawn(async move { drop(sandbox.pause().await) });
            }
            (Step::Resume(index), some) => {
                let sandbox = index.get(some).clone();
                calls.spawn(async move { drop(sandbox.resume(None).await) });
            }
        }
        // The number of VMs is compared with what is reserved wherever it is asked for.
        sleep(MOMENT).await;
        host.vms();
    }
    host.set_hostile(true);
    let begun = Instant::now();
    for sandbox in &known {
        sandbox.destroy().await.unwrap();
        host.vms();
    }
    assert!(begun.elapsed() < DEADLINE);
    calls.join_all().await;
    assert_eq!((host.vms(), host.reserved()), (0, Reserved::default()));
    assert!(host.roster().list().is_empty());
}

proptest! {
    #[test]
    fn vms_stay_within_what_is_admitted(steps in prop::collection::vec(step(), 0..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(take(steps));
    }
}
