//! Pagers as processes, and VMMs as processes: who dies, and who notices.
//!
//! The VMM of these tests is this test program, started again to run one ignored test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use wrenn_core::SandboxId;
use wrenn_core::uffd::process::{LaunchPagerError, PagerExit, PagerProcess};
use wrenn_core::uffd::program::{ProgramConfig, ProgramOutcome};
use wrenn_core::uffd::stand_in::GuestMemory;
use wrenn_core::uffd::{Outcome, PAGE_SIZE};
use wrenn_core::vm::ExitReason;

use crate::saved::Saved;

const SOCKET: &str = "WRENN_TEST_PAGER_SOCKET";
const LENGTH: &str = "WRENN_TEST_MEMORY_LENGTH";
const PAGES: u64 = 256;

/// Reads offsets from standard input, and answers with the words there.
#[test]
#[ignore = "a VMM for other tests"]
fn vmm() {
    let socket = std::env::var_os(SOCKET).expect("only other tests start this");
    let length = std::env::var(LENGTH).unwrap().parse().unwrap();
    let memory = GuestMemory::new(length).unwrap();
    let _connection = memory.hand_over(Path::new(&socket)).unwrap();
    println!("\nhanded over");
    for line in std::io::stdin().lines() {
        let word = memory.load(line.unwrap().parse().unwrap());
        println!("\nword {word}");
    }
}

struct Vmm {
    child: Child,
    input: ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Vmm {
    /// Starts one and waits until it has handed its memory over.
    fn start(saved: &Saved) -> Self {
        let mut this = Self::spawn(saved);
        assert!(this.line("handed over").is_some());
        this
    }

    fn spawn(saved: &Saved) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "failures::vmm", "--ignored", "--nocapture"])
            .env(SOCKET, saved.socket())
            .env(LENGTH, saved.length().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    /// What follows this at the start of a line; `None` if the VMM ends before.
    fn line(&mut self, start: &str) -> Option<String> {
        let mut lines = (&mut self.output).lines().map_while(Result::ok);
        lines.find_map(|line| line.strip_prefix(start).map(str::to_owned))
    }

    fn ask(&mut self, offset: u64) {
        writeln!(self.input, "{offset}").unwrap();
    }

    fn word(&mut self, offset: u64) -> Option<u64> {
        self.ask(offset);
        self.line("word ").map(|word| word.parse().unwrap())
    }

    fn kill(self) {
        drop(self);
    }

    fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// One that hangs does not end by itself.
impl Drop for Vmm {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn config(saved: &Saved) -> ProgramConfig {
    ProgramConfig {
        socket: saved.socket(),
        files: saved.files.clone(),
        extents: saved.extents.clone(),
        ..ProgramConfig::default()
    }
}

async fn launch(saved: &Saved, config: &ProgramConfig) -> Result<PagerProcess, LaunchPagerError> {
    let program = Path::new(env!("CARGO_BIN_EXE_wrenn-pager"));
    let log = saved.path("pager.log");
    PagerProcess::launch(program, program, &SandboxId::random(), config, &log).await
}

fn reason_of(exit: &PagerExit) -> &str {
    match &exit.report.as_ref().expect("it was killed").outcome {
        ProgramOutcome::Failed(reason) => reason,
        ProgramOutcome::Ended => panic!("it did not fail"),
    }
}

#[tokio::test]
async fn a_pager_ends_when_its_vmm_does_and_says_what_it_did() {
    let saved = Saved::of_pages(PAGES);
    let pager = launch(&saved, &config(&saved)).await.unwrap();
    let mut vmm = Vmm::start(&saved);
    assert_eq!(vmm.word(4096), Some(saved.word(4096)));
    assert!(!saved.socket().exists(), "nobody else can connect");
    vmm.kill();
    let exit = pager.exited().await;
    assert_eq!(exit.reason, ExitReason::Code(0));
    let report = exit.report.unwrap();
    assert_eq!(report.outcome, ProgramOutcome::Ended);
    assert_eq!(report.counters.faults, 1);
}

#[tokio::test]
async fn a_pager_that_dies_is_noticed_while_its_vmm_hangs() {
    let saved = Saved::of_pages(PAGES);
    let pager = launch(&saved, &config(&saved)).await.unwrap();
    let mut vmm = Vmm::start(&saved);
    assert_eq!(vmm.word(0), Some(saved.word(0)));
    let exit = pager.kill().await;
    assert_eq!(exit.reason, ExitReason::Signal(9));
    assert_eq!(exit.report, None);
    // It waits for a page that nobody brings; who owns it knows, and ends it.
    vmm.ask(200 * PAGE_SIZE);
    assert!(vmm.child.try_wait().unwrap().is_none());
    vmm.kill();
}

#[tokio::test]
async fn a_file_that_is_cut_short_ends_the_vm_with_the_reason() {
    let saved = Saved::of_pages(PAGES);
    let pager = launch(&saved, &config(&saved)).await.unwrap();
    let mut vmm = Vmm::start(&saved);
    let file = File::options().write(true).open(&saved.files[0]).unwrap();
    file.set_len(100 * PAGE_SIZE).unwrap();
    assert_eq!(vmm.word(0), Some(saved.word(0)));
    assert_eq!(vmm.word(200 * PAGE_SIZE), None);
    assert_eq!(vmm.ended().signal(), Some(9));
    let exit = pager.exited().await;
    assert_eq!(exit.reason, ExitReason::Code(1));
    let path = saved.files[0].display().to_string();
    assert!(reason_of(&exit).contains(&path), "{exit:?}");
}

#[tokio::test]
async fn a_file_that_is_too_short_starts_no_pager() {
    let saved = Saved::of_pages(PAGES);
    let file = File::options().write(true).open(&saved.files[0]).unwrap();
    file.set_len(100 * PAGE_SIZE).unwrap();
    let error = launch(&saved, &config(&saved)).await.unwrap_err();
    assert!(error.to_string().contains("damaged"), "{error}");
    assert!(!saved.socket().exists());
}

#[tokio::test]
async fn a_vmm_whose_message_is_refused_does_not_hang() {
    let (saved, other) = (Saved::of_pages(PAGES), Saved::of_pages(PAGES / 2));
    let mut config = config(&other);
    config.socket = saved.socket();
    let pager = launch(&other, &config).await.unwrap();
    let vmm = Vmm::spawn(&saved);
    assert_eq!(vmm.ended().signal(), Some(9));
    let exit = pager.exited().await;
    assert!(reason_of(&exit).contains("saved memory"), "{exit:?}");
}

#[tokio::test]
async fn it_gives_up_its_rights_and_still_can_do_all_it_must() {
    let nobody = (65534, 65534);
    let saved = Saved::of_pages(PAGES);
    let owned = saved.path("owned");
    std::fs::create_dir(&owned).unwrap();
    std::os::unix::fs::chown(&owned, Some(nobody.0), Some(nobody.1)).unwrap();
    let mut config = config(&saved);
    config.user = Some(nobody);
    config.working_set = Some(owned.join("working-set.bin"));
    let pager = launch(&saved, &config).await.unwrap();
    let mut vmm = Vmm::start(&saved);
    let status = std::fs::read_to_string(format!("/proc/{}/status", pager.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.map(str::trim).unwrap_or_default().to_owned()
    };
    let uid = nobody.0;
    assert_eq!(field("Uid:"), format!("{uid}\t{uid}\t{uid}\t{uid}"));
    assert_eq!(
        (field("Groups:"), field("Seccomp:")),
        (String::new(), "2".to_owned())
    );
    assert_eq!(field("NoNewPrivs:"), "1");
    let kill_only = format!("{:016x}", 1 << 5);
    assert_eq!(
        (field("CapPrm:"), field("CapEff:")),
        (kill_only.clone(), kill_only)
    );
    for empty in ["CapInh:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(empty), "0000000000000000", "{empty}");
    }
    assert_eq!(vmm.word(8), Some(saved.word(8)));

    // The VMM runs as root, so killing it needs the one right that is left.
    let file = File::options().write(true).open(&saved.files[0]).unwrap();
    file.set_len(PAGE_SIZE).unwrap();
    assert_eq!(vmm.word(200 * PAGE_SIZE), None);
    assert_eq!(vmm.ended().signal(), Some(9));
    assert_eq!(pager.exited().await.reason, ExitReason::Code(1));

    // And what it may write is the working set.
    file.set_len(saved.length()).unwrap();
    std::fs::remove_file(saved.socket()).unwrap();
    let pager = launch(&saved, &config).await.unwrap();
    let mut vmm = Vmm::start(&saved);
    assert!(vmm.word(8).is_some());
    vmm.kill();
    assert_eq!(pager.exited().await.reason, ExitReason::Code(0));
    let metadata = std::fs::metadata(owned.join("working-set.bin")).unwrap();
    assert!(metadata.size() > 0);
    assert_eq!(std::fs::read_dir(&owned).unwrap().count(), 1);
}

/// A pager on a thread of the owner kills a VMM that is a process.
#[test]
fn a_pager_within_a_program_ends_a_vm_that_it_cannot_serve() {
    let saved = Saved::of_pages(PAGES);
    let pager = saved.serve();
    let mut vmm = Vmm::start(&saved);
    let file = File::options().write(true).open(&saved.files[0]).unwrap();
    file.set_len(0).unwrap();
    assert_eq!(vmm.word(0), None);
    assert_eq!(vmm.ended().signal(), Some(9));
    let report = pager.join().unwrap();
    assert!(matches!(report.outcome, Outcome::Failed(_)), "{report:?}");
}
