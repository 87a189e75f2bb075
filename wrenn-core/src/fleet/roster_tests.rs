//! Requests that cross each other, with creations made of channels.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;

use super::*;
use crate::sandbox::{Keep, Remains, Sandbox, State};
use crate::vm::Resources;

const LIMITS: Limits = Limits {
    sandboxes: 2,
    vcpus: 8,
    memory_mib: 4096,
    disk_reserve_mib: 0,
};

type Outcome = Result<Sandbox, CreateSandboxError>;

/// A roster, and the number of creations that it has begun.
struct Stage {
    roster: Roster,
    directory: tempfile::TempDir,
    begun: Arc<AtomicUsize>,
}

impl Stage {
    fn new() -> Self {
        Self {
            roster: Roster::new(LIMITS),
            directory: tempfile::tempdir().unwrap(),
            begun: Arc::default(),
        }
    }

    fn root(&self) -> RootDirectory {
        RootDirectory::new(self.directory.path())
    }

    /// Begins a creation that ends as, and when, the sender says.
    fn begin(
        &self,
        config: &SandboxConfig,
    ) -> (Result<SandboxHandle, CreateError>, oneshot::Sender<Outcome>) {
        let (end, ended) = oneshot::channel::<Outcome>();
        let begun = Arc::clone(&self.begun);
        let handle = self
            .roster
            .begin(config.clone(), &self.root(), |_, cancelled| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::select! {
                    outcome = ended => outcome.unwrap_or(Err(CreateSandboxError::Thread)),
                    () = cancelled.cancelled() => Err(CreateSandboxError::Abandoned),
                }
            });
        (handle, end)
    }
}

fn config() -> SandboxConfig {
    SandboxConfig {
        keep: Keep::UntilDestroyed,
        ..SandboxConfig::from_template("minimal")
    }
}

fn fail(end: oneshot::Sender<Outcome>) {
    end.send(Err(CreateSandboxError::Thread)).unwrap();
}

#[tokio::test]
async fn the_same_request_again_waits_for_the_first() {
    let stage = Stage::new();
    let config = config();
    let (first, end) = stage.begin(&config);
    let (second, _never) = stage.begin(&SandboxConfig {
        timeout: Duration::from_secs(60),
        ..config.clone()
    });
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.status().state, State::Pending);
    fail(end);
    let (first, second) = tokio::join!(first.created(), second.created());
    for outcome in [first, second] {
        let error = outcome.unwrap_err();
        assert!(matches!(error, CreateError::Failed(_)), "{error}");
    }
    assert_eq!(stage.begun.load(Ordering::SeqCst), 1);
    // What failed is nobody's: the id may be used again.
    assert!(stage.roster.get(&config.id).is_none());
    assert_eq!(stage.roster.reserved().0, Reserved::default());
    assert!(stage.begin(&config).0.is_ok());
}

#[tokio::test]
async fn another_request_of_the_same_id_is_refused() {
    let stage = Stage::new();
    let config = config();
    let (_first, _end) = stage.begin(&config);
    let other = SandboxConfig {
        resources: Resources::new(2, 512).unwrap(),
        ..config.clone()
    };
    let error = stage.begin(&other).0.unwrap_err();
    assert!(matches!(error, CreateError::Exists(id) if id == config.id));
}

#[tokio::test]
async fn a_full_host_refuses_and_has_room_again_later() {
    let stage = Stage::new();
    let (first, end) = stage.begin(&config());
    let (_second, _end) = stage.begin(&config());
    let error = stage.begin(&config()).0.unwrap_err();
    assert!(matches!(
        error,
        CreateError::Refused(crate::fleet::Refusal::Sandboxes(2))
    ));
    fail(end);
    first.unwrap().created().await.unwrap_err();
    assert!(stage.begin(&config()).0.is_ok());
}

#[tokio::test]
async fn destroying_ends_a_creation_for_everybody() {
    let stage = Stage::new();
    let config = config();
    let (handle, mut end) = stage.begin(&config);
    let handle = handle.unwrap();
    let mut events = stage.roster.events();
    let waiting = tokio::spawn({
        let handle = handle.clone();
        async move { handle.created().await.map(drop) }
    });
    handle.destroy().await.unwrap();
    // The creation was cancelled and has ended.
    end.closed().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, CreateError::Destroyed(id) if id == config.id));
    assert!(stage.roster.list().is_empty());
    assert_eq!(stage.roster.reserved().0, Reserved::default());
    assert!(matches!(
        events.recv().await.unwrap(),
        FleetEvent::Abandoned(id) if id == config.id
    ));
    // Once more is no error.
    handle.destroy().await.unwrap();
}

#[tokio::test]
async fn panic_of_a_creation_is_its_failure() {
    let stage = Stage::new();
    let creation = |_, _| async { panic!("on purpose") };
    let begun = stage
        .roster
        .begin::<Sandbox, _>(config(), &stage.root(), creation);
    let error = begun.unwrap().created().await.unwrap_err();
    assert!(matches!(error, CreateError::Failed(_)), "{error}");
    assert!(stage.roster.list().is_empty());
    assert_eq!(stage.roster.reserved().0, Reserved::default());
}

#[tokio::test]
async fn a_creation_goes_on_without_the_one_who_asked() {
    let stage = Stage::new();
    let config = config();
    let (handle, end) = stage.begin(&config);
    drop(handle);
    assert!(!end.is_closed());
    let again = stage.begin(&config).0.unwrap();
    fail(end);
    again.created().await.unwrap_err();
    assert_eq!(stage.begun.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn leaving_waits_for_what_has_begun() {
    let stage = Stage::new();
    let (handle, end) = stage.begin(&config());
    let mut leaving = tokio::spawn({
        let roster = stage.roster.clone();
        async move { roster.leave().await }
    });
    // A time-out that is set meanwhile waits for the sandbox as well.
    let set = handle.unwrap();
    tokio::select! {
        biased;
        _ = &mut leaving => panic!("it left in the middle of a creation"),
        () = tokio::task::yield_now() => {}
    }
    fail(end);
    leaving.await.unwrap();
    set.set_timeout(Duration::from_secs(1)).await.unwrap();
    assert!(stage.roster.list().is_empty());
}

#[tokio::test]
async fn a_broken_sandbox_says_why_until_it_is_destroyed() {
    let stage = Stage::new();
    let config = config();
    let remains = Remains::for_tests(&stage.root(), &config);
    stage
        .roster
        .take_in::<Sandbox>(Adopted::Broken(Box::new(remains)))
        .await;

    let handle = stage.roster.get(&config.id).unwrap();
    let status = handle.status();
    assert_eq!(status.state, State::Error);
    assert_eq!(status.reason.as_deref(), Some("its VM ended"));
    let refusal = handle.guest().unwrap_err().to_string();
    assert!(refusal.contains("is error (its VM ended)"), "{refusal}");
    assert_eq!(handle.not_running().await.state, State::Error);
    // It uses nothing, and its creation again finds it.
    assert_eq!(stage.roster.reserved().0, Reserved::default());
    assert_eq!(stage.begin(&config).0.unwrap().id(), &config.id);

    handle.destroy().await.unwrap();
    assert_eq!(handle.status().state, State::Stopped);
    assert!(!stage.root().sandbox(&config.id).exists());
    assert!(stage.roster.list().is_empty());
}

#[tokio::test]
async fn what_is_left_keeps_its_files() {
    let stage = Stage::new();
    let config = config();
    let remains = Remains::for_tests(&stage.root(), &config);
    stage
        .roster
        .take_in::<Sandbox>(Adopted::Broken(Box::new(remains)))
        .await;
    stage.roster.leave().await;
    assert!(stage.root().sandbox(&config.id).exists());
}
