//! The one way onto the host, with the leak check at the exit.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use wrenn_core::RootDirectory;
use wrenn_core::fleet::{Fleet, Limits};
use wrenn_core::sandbox::{Host, HostConfig, Leftovers, Sandbox, SandboxConfig};
use wrenn_core::vm::Resources;

/// The small template, for tests that need no more than a shell.
pub(crate) const MINIMAL: &str = "minimal";
/// How long a condition may take to come true. Generous: one VM may emulate another.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// How long a guest may take to boot where several boot at a time under emulation.
const BOOT_DEADLINE: Duration = Duration::from_secs(180);
/// How long a test may take before it counts as hanging.
const LIMIT: Duration = Duration::from_secs(600);
/// The same where more was asked for than a suite can bear.
const LONG_LIMIT: Duration = Duration::from_secs(6 * 3600);

static STAGE: Mutex<()> = Mutex::new(());

/// Runs one test alone on the host, then asserts that nothing of it is left.
pub(crate) fn enter<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F) {
    let _alone = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let host = open().await;
        // A run that was cut off leaves sandboxes that were to outlive it.
        destroy_orphans(&host).await;
        let before = host.leftovers().await.unwrap();
        assert!(
            before.is_empty(),
            "the host was not clean at the start: {before:#?}"
        );
        let descriptors = open_descriptors();
        let outcome = AssertUnwindSafe(tokio::time::timeout(limit(), test(host.clone())))
            .catch_unwind()
            .await;
        // Whatever became of it, the next test finds a clean host.
        host.settled().await;
        match outcome {
            Ok(outcome) => outcome.expect("the test hangs"),
            Err(panic) => resume_unwind(panic),
        }
        let after = host.leftovers().await.unwrap();
        assert!(
            after.is_empty(),
            "the test left something behind: {after:#?}"
        );
        drop(host);
        until("descriptors are closed", || async {
            open_descriptors() <= descriptors
        })
        .await;
    });
}

/// Something of which one can ask for more than a suite can bear that runs where everything is
/// emulated.
#[derive(Clone, Copy)]
pub(crate) enum Amount {
    /// How often an agent is killed.
    Kills,
    /// How often a sandbox is paused and resumed.
    Cycles,
    /// How much of its memory changes all the while.
    MemoryMib,
    /// How many sandboxes are made of one at once.
    Spawns,
    /// How much a large file holds.
    FileMib,
}

impl Amount {
    const ALL: [Self; 5] = [
        Self::Kills,
        Self::Cycles,
        Self::MemoryMib,
        Self::Spawns,
        Self::FileMib,
    ];

    const fn variable(self) -> &'static str {
        match self {
            Self::Kills => "WRENN_E2E_KILLS",
            Self::Cycles => "WRENN_E2E_CYCLES",
            Self::MemoryMib => "WRENN_E2E_MEMORY_MIB",
            Self::Spawns => "WRENN_E2E_SPAWNS",
            Self::FileMib => "WRENN_E2E_FILE_MIB",
        }
    }

    fn asked(self) -> Option<usize> {
        let text = std::env::var(self.variable()).ok()?;
        Some(text.parse().unwrap())
    }

    /// What was asked for, or what a suite can bear.
    pub(crate) fn or(self, bearable: usize) -> usize {
        self.asked().unwrap_or(bearable)
    }
}

fn limit() -> Duration {
    if Amount::ALL.iter().any(|amount| amount.asked().is_some()) {
        LONG_LIMIT
    } else {
        LIMIT
    }
}

/// Destroys every sandbox that outlived its owner.
pub(crate) async fn destroy_orphans(host: &Host) {
    let fleet = Fleet::open(host.clone(), Limits::of_this_host())
        .await
        .unwrap();
    for sandbox in fleet.list() {
        sandbox.destroy().await.unwrap();
    }
    fleet.leave().await;
}

/// Opens the host that the suite runs on. Sweeps what earlier processes left.
pub(crate) async fn open() -> Host {
    Host::open(HostConfig {
        root: root(),
        vmm: vmm(),
        pager: pager(),
        boot_deadline: BOOT_DEADLINE,
        ..HostConfig::default()
    })
    .await
    .unwrap()
}

/// The directory that holds the templates.
pub(crate) fn root() -> RootDirectory {
    RootDirectory::new(
        std::env::var_os("AGENT_FILES_ROOTDIR").unwrap_or_else(|| RootDirectory::DEFAULT.into()),
    )
}

/// What is written down of a sandbox that outlives its owner.
pub(crate) fn record(id: &str) -> serde_json::Value {
    let sandbox = root().path().join("sandboxes").join(id);
    let record = std::fs::read_to_string(sandbox.join("sandbox.json")).unwrap();
    serde_json::from_str(&record).unwrap()
}

/// The program that runs VMs.
pub(crate) fn vmm() -> Option<PathBuf> {
    std::env::var_os("WRENN_VMM").map(PathBuf::from)
}

/// The program that feeds restored VMs their memory.
pub(crate) fn pager() -> Option<PathBuf> {
    std::env::var_os("WRENN_PAGER").map(PathBuf::from)
}

/// The `wrenn` program under test.
pub(crate) fn wrenn() -> PathBuf {
    std::env::var_os("WRENN_E2E_WRENN")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_wrenn")), PathBuf::from)
}

/// A sandbox of the small template.
pub(crate) async fn minimal(host: &Host) -> Sandbox {
    host.create(small()).await.unwrap()
}

/// What a small sandbox is made of.
pub(crate) fn small() -> SandboxConfig {
    SandboxConfig {
        resources: Resources::new(1, 128).unwrap(),
        ..SandboxConfig::from_template(MINIMAL)
    }
}

/// Polls a condition until it holds.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let start = Instant::now();
    let mut pause = Duration::from_millis(5);
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// Whether nothing of any sandbox is on the host.
pub(crate) async fn leftovers(host: &Host) -> Leftovers {
    host.leftovers().await.unwrap()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
