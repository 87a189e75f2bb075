//! What a jail is like is asked of this very program, which is static: it is started in
//! place of a VMM, and told to run [`probe`] alone. What the probe is to do stands on the
//! disk that it is given.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::time::{Duration, Instant};

use nix::sys::stat::{SFlag, mknod};
use nix::unistd::{getgroups, getresgid, getresuid, getsid};

use super::*;
use crate::vm::{Cgroups, Device, Limits, Resources, VmUsers};

const PROBE: &str = "vm::process::tests::probe";
const OWNER_TEST: &str = "vm::process::tests::owner";
/// Tells the owner whether its VMM is to die with it; and begins what the owner says.
const OWNER: &str = "WRENN_TEST_OWNER";
const PATIENCE: Duration = Duration::from_secs(60);
/// A user of nobody else's.
const SLOT: u16 = 40_000;

/// Runs in the jail; anywhere else it does nothing.
#[test]
#[expect(clippy::exit, reason = "the test wants to see an exit code")]
fn probe() {
    let disk = LaunchSpec::stable_disk_path();
    if Path::new("/proc").exists() || !disk.exists() {
        return;
    }
    match std::fs::read_to_string(&disk).unwrap_or_default().as_str() {
        "exit" => std::process::exit(7),
        _ => println!("{}", report()),
    }
    loop {
        std::thread::sleep(PATIENCE);
    }
}

/// Starts a VMM, says which process it is, and waits to be killed. As a test of its own it does
/// nothing.
#[tokio::test]
async fn owner() {
    let Some(dies_with_parent) = std::env::var_os(OWNER) else {
        return;
    };
    let mut cell = Cell::new("report");
    cell.spec.dies_with_parent = dies_with_parent == "1";
    let inmate = cell.launch().await.unwrap();
    inmate.report().await;
    let identity = ProcessIdentity::of(inmate.process.pid().cast_signed()).unwrap();
    eprintln!("{OWNER}{}", serde_json::to_string(&identity).unwrap());
    loop {
        tokio::time::sleep(PATIENCE).await;
    }
}

/// Starts [`owner`] in a process of its own, kills that, and gives its VMM.
fn vmm_of_killed_owner(dies_with_parent: bool) -> ProcessIdentity {
    use std::io::BufRead as _;
    let mut owner = std::process::Command::new(std::env::current_exe().unwrap())
        .args([OWNER_TEST, "--exact", "--nocapture"])
        .env(OWNER, if dies_with_parent { "1" } else { "0" })
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = io::BufReader::new(owner.stderr.take().unwrap()).lines();
    let identity = lines
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix(OWNER).map(str::to_owned));
    let identity = serde_json::from_str(&identity.expect("the owner starts a VMM")).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();
    identity
}

#[test]
fn vmm_dies_with_killed_owner() {
    let vmm = vmm_of_killed_owner(true);
    let begun = Instant::now();
    while vmm.open().unwrap().is_some() {
        assert!(begun.elapsed() < PATIENCE, "it goes on");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn kept_vmm_outlives_killed_owner() {
    let vmm = vmm_of_killed_owner(false)
        .open()
        .unwrap()
        .expect("it goes on");
    vmm.kill().unwrap();
}

#[tokio::test]
async fn vmm_goes_first_when_memory_runs_out() {
    let inmate = Cell::new("wait").launch().await.unwrap();
    let pid = inmate.process.pid();
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim(), "500");
    inmate.process.kill().await;
}

#[tokio::test]
async fn vmm_outlives_launching_thread() {
    let mut cell = Cell::new("report");
    cell.spec.dies_with_parent = true;
    let inmate = cell.launch().await.unwrap();
    inmate.report().await;
    assert!(inmate.process.exit.borrow().is_none());
    // The thread that waits for it is in none of its namespaces that hold files or addresses.
    let names = |task: &Path| {
        ["mnt", "net"].map(|kind| std::fs::read_link(task.join("ns").join(kind)).ok())
    };
    let host = names(Path::new("/proc/self"));
    // A thread may end meanwhile, and one of another test may be launching.
    let is_elsewhere = |task: io::Result<std::fs::DirEntry>| {
        let task = names(&task.unwrap().path());
        task.iter().all(Option::is_some) && task != host
    };
    let begun = Instant::now();
    while std::fs::read_dir("/proc/self/task")
        .unwrap()
        .any(is_elsewhere)
    {
        assert!(begun.elapsed() < PATIENCE, "it stays in a namespace");
        std::thread::yield_now();
    }
    inmate.process.kill().await;
}

/// What there is to see from inside, a fact a line.
fn report() -> String {
    let mut text = String::new();
    let (user, group) = (getresuid().unwrap(), getresgid().unwrap());
    let mut fact = |name: &str, value: String| writeln!(text, "{name}={value}").unwrap();
    fact("pid", std::process::id().to_string());
    fact("session", getsid(None).unwrap().to_string());
    fact(
        "users",
        format!("{} {} {}", user.real, user.effective, user.saved),
    );
    fact(
        "groups",
        format!(
            "{} {} {} {:?}",
            group.real,
            group.effective,
            group.saved,
            getgroups().unwrap()
        ),
    );
    fact("environment", std::env::vars_os().count().to_string());
    fact(
        "name",
        nix::unistd::gethostname().unwrap().into_string().unwrap(),
    );
    let mut paths = Vec::new();
    walk(Path::new("/"), &mut paths);
    for path in paths {
        fact("path", path);
    }
    for path in ["/file", "/dev/file", "/run/wrenn/vm/file"] {
        fact("new", format!("{path} {:?}", refusal(File::create(path))));
    }
    for path in ["/vmm", "/run/wrenn/vm/vmlinux", "/run/wrenn/vm/vmm.log"] {
        let opened = File::options().write(true).open(path);
        fact("write", format!("{path} {:?}", refusal(opened)));
    }
    fact(
        "shared",
        format!(
            "{:?}",
            refusal(File::create("/run/wrenn/vm/shared/vmm.sock"))
        ),
    );
    fact("done", "yes".to_owned());
    text
}

fn refusal(outcome: io::Result<File>) -> Option<io::ErrorKind> {
    outcome.err().map(|error| error.kind())
}

/// Lists everything below a directory, with its kind.
fn walk(directory: &Path, paths: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = path.symlink_metadata().unwrap();
        let kind = match found.file_type() {
            kind if kind.is_dir() => "directory",
            kind if kind.is_char_device() => "character device",
            kind if kind.is_block_device() => "block device",
            kind if kind.is_file() => "file",
            _ => "other",
        };
        paths.push(format!("{} {kind} of {}", path.display(), found.uid()));
        if found.is_dir() {
            walk(&path, paths);
        }
    }
}

/// A jail around the probe, which does as `order` says.
struct Cell {
    directory: tempfile::TempDir,
    spec: LaunchSpec,
}

impl Cell {
    fn new(order: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        std::fs::write(&disk, order).unwrap();
        let kernel = directory.path().join("kernel");
        std::fs::write(&kernel, "this is the kernel").unwrap();
        std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o666)).unwrap();
        let spec = LaunchSpec {
            binary: VmmBinary::find(Some(&std::env::current_exe().unwrap()), None).unwrap(),
            id: SandboxId::random(),
            directory: directory.path().join("sandbox"),
            network_namespace: None,
            jail: JailSpec {
                user: VmUsers::default().of_slot(SLOT),
                files: vec![
                    JailFile::writable(&disk, "rootfs.ext4"),
                    JailFile::read_only(&kernel, "vmlinux"),
                ],
                devices: vec![Device::NetTun],
            },
            cgroup: None,
            dies_with_parent: false,
        };
        std::fs::create_dir(&spec.directory).unwrap();
        Self { directory, spec }
    }

    fn user(&self) -> u32 {
        self.spec.jail.user.get()
    }

    async fn launch(self) -> Result<Inmate, LaunchError> {
        let Self {
            directory,
            mut spec,
        } = self;
        let console = spec.console();
        let name = spec.arguments().remove(0);
        let words = [PROBE, "--exact", "--nocapture", "--quiet"];
        let words = words.iter().map(|word| word.as_bytes().to_vec());
        let cgroup = spec.cgroup.take();
        let arguments = std::iter::once(name).chain(words).collect();
        let process = VmmProcess::launch_with(spec, cgroup, arguments).await?;
        Ok(Inmate {
            _directory: directory,
            console,
            process,
        })
    }
}

/// A probe in its jail.
struct Inmate {
    _directory: tempfile::TempDir,
    console: PathBuf,
    process: VmmProcess,
}

impl Inmate {
    /// Waits for its whole report.
    async fn report(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let text = std::fs::read_to_string(&self.console).unwrap();
            if text.contains("\ndone=yes") {
                return text.lines().map(str::to_owned).collect();
            }
            let ended = *self.process.exit.borrow();
            assert!(ended.is_none(), "it ended: {ended:?}: {text}");
            assert!(begun.elapsed() < PATIENCE, "no report: {text}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// One of its files in the host's `/proc`.
    fn proc(&self, file: &str) -> String {
        std::fs::read_to_string(self.proc_path(file)).unwrap()
    }

    fn proc_path(&self, file: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.process.pid().to_string())
            .join(file)
    }
}

fn values<'a>(report: &'a [String], name: &str) -> BTreeSet<&'a str> {
    let of_name = |line: &'a String| line.strip_prefix(name)?.strip_prefix('=');
    report.iter().filter_map(of_name).collect()
}

#[tokio::test]
async fn many_are_started_at_once() {
    for _ in 0..4 {
        let launches = (0..16).map(|_| tokio::spawn(Cell::new("wait").launch()));
        for launched in futures::future::join_all(launches).await {
            launched.unwrap().unwrap().process.kill().await;
        }
    }
}

#[tokio::test]
async fn it_sees_next_to_nothing_and_changes_less() {
    let cell = Cell::new("report");
    let user = cell.user();
    let inmate = cell.launch().await.unwrap();
    let report = inmate.report().await;
    assert_eq!(
        values(&report, "path"),
        BTreeSet::from([
            "/vmm file of 0",
            "/dev directory of 0",
            "/dev/net directory of 0",
            &format!("/dev/net/tun character device of {user}"),
            "/run directory of 0",
            "/run/wrenn directory of 0",
            "/run/wrenn/vm directory of 0",
            &format!("/run/wrenn/vm/rootfs.ext4 file of {user}"),
            "/run/wrenn/vm/vmlinux file of 0",
            &format!("/run/wrenn/vm/vmm.log file of {user}"),
            &format!("/run/wrenn/vm/shared directory of {user}"),
        ])
    );
    assert_eq!(
        values(&report, "new"),
        BTreeSet::from([
            "/file Some(ReadOnlyFilesystem)",
            "/dev/file Some(ReadOnlyFilesystem)",
            "/run/wrenn/vm/file Some(ReadOnlyFilesystem)",
        ])
    );
    assert_eq!(
        values(&report, "write"),
        BTreeSet::from([
            "/vmm Some(PermissionDenied)",
            "/run/wrenn/vm/vmlinux Some(ReadOnlyFilesystem)",
            "/run/wrenn/vm/vmm.log None",
        ])
    );
    assert_eq!(values(&report, "shared"), BTreeSet::from(["None"]));

    // Nothing of the host's is mounted there, and nothing of it on the host.
    let mounts: BTreeMap<String, String> = inmate
        .proc("mountinfo")
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (fields[4].to_owned(), fields[5].to_owned())
        })
        .collect();
    for (place, options) in &mounts {
        let has = |wanted| options.split(',').any(|option| option == wanted);
        assert!(has("nosuid"), "{place}: {options}");
        assert_eq!(has("noexec"), place != "/vmm", "{place}: {options}");
        assert_eq!(has("nodev"), place != "/dev", "{place}: {options}");
    }
    let places: Vec<_> = mounts.keys().map(String::as_str).collect();
    assert_eq!(
        places,
        [
            "/",
            "/dev",
            "/run/wrenn/vm/rootfs.ext4",
            "/run/wrenn/vm/shared",
            "/run/wrenn/vm/vmlinux",
            "/run/wrenn/vm/vmm.log",
            "/vmm"
        ]
    );
    assert!(!LaunchSpec::stable_disk_path().exists());
    inmate.process.kill().await;
}

#[tokio::test]
async fn it_is_nobody_and_can_become_nobody_else() {
    let cell = Cell::new("report");
    let user = cell.user();
    let directory = cell.spec.directory.clone();
    let inmate = cell.launch().await.unwrap();
    let report = inmate.report().await;
    let only = |name| values(&report, name).into_iter().next().unwrap();
    assert_eq!(only("users"), format!("{user} {user} {user}"));
    assert_eq!(only("groups"), format!("{user} {user} {user} []"));
    assert_eq!((only("pid"), only("session")), ("1", "1"));
    assert_eq!(only("environment"), "0");
    assert_eq!(only("name"), HOST_NAME);

    let status = inmate.proc("status");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().trim().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("SigBlk:"), "0000000000000000");
    assert_eq!(field("Umask:"), "0077");
    assert_eq!(inmate.proc("environ"), "");
    assert!(
        inmate
            .proc("cmdline")
            .starts_with(directory.join("vmm").to_str().unwrap())
    );
    let limits = inmate.proc("limits");
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name));
        let words = line.unwrap().split_whitespace().take(2);
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(limit("Max open files"), ["2048", "2048"]);
    assert_eq!(limit("Max core file size"), ["1", "1"]);

    let targets: Vec<_> = ["0", "1", "2"]
        .map(|fd| std::fs::read_link(inmate.proc_path("fd").join(fd)).unwrap())
        .into();
    assert_eq!(
        targets,
        [
            PathBuf::from("/dev/null"),
            inmate.console.clone(),
            inmate.console.clone()
        ]
    );
    let descriptors = std::fs::read_dir(inmate.proc_path("fd")).unwrap().count();
    assert_eq!(descriptors, 3);
    for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
        let of =
            |process: &str| std::fs::read_link(format!("/proc/{process}/ns/{namespace}")).unwrap();
        assert_ne!(
            of("self"),
            of(&inmate.process.pid().to_string()),
            "{namespace}"
        );
    }
    inmate.process.kill().await;
}

#[tokio::test]
async fn a_block_device_is_at_the_same_path_and_the_hosts_node_stays_as_it_is() {
    let mut cell = Cell::new("report");
    let user = cell.user();
    let node = cell.directory.path().join("node");
    // The first loop device. Nobody opens it.
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR, 7 << 8).unwrap();
    cell.spec.jail.files[0] = JailFile::writable(&node, "rootfs.ext4");
    let inmate = cell.launch().await.unwrap();
    let report = inmate.report().await;
    let disk = format!("/run/wrenn/vm/rootfs.ext4 block device of {user}");
    assert!(
        values(&report, "path").contains(disk.as_str()),
        "{report:#?}"
    );
    assert_eq!(std::fs::metadata(&node).unwrap().uid(), 0);
    inmate.process.kill().await;
}

#[tokio::test]
async fn it_is_born_in_its_cgroup_which_goes_with_it() {
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let found = hierarchies
        .into_iter()
        .find(|path| path.join("cgroup.procs").exists());
    let Some(hierarchy) = found else {
        eprintln!("skipped: this host has no cgroups of version 2");
        return;
    };
    let mut cell = Cell::new("report");
    let cgroups = Cgroups::open(hierarchy, cell.directory.path());
    let limits = Limits::of(Resources::default());
    let group = cgroups.create(&cell.spec.id, limits).unwrap().unwrap();
    let path = group.path().to_owned();
    cell.spec.cgroup = Some(group);
    let inmate = cell.launch().await.unwrap();
    inmate.report().await;
    assert_eq!(
        std::fs::read_to_string(path.join("cgroup.procs"))
            .unwrap()
            .trim(),
        inmate.process.pid().to_string()
    );
    assert!(cgroups.list().unwrap().contains(&path));
    drop(inmate);
    cgroups.settled().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_group_whose_owner_died_is_ended_and_removed() {
    let hierarchies = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let found = hierarchies
        .into_iter()
        .find(|path| path.join("cgroup.kill").exists() || path.join("wrenn/cgroup.kill").exists());
    let Some(hierarchy) = found else {
        eprintln!("skipped: this host has no cgroups of version 2 that can be killed");
        return;
    };
    let mut cell = Cell::new("report");
    let cgroups = Cgroups::open(hierarchy, cell.directory.path());
    let (id, limits) = (cell.spec.id.clone(), Limits::of(Resources::default()));
    let group = cgroups.create(&id, limits).unwrap().unwrap();
    let path = group.path().to_owned();
    cell.spec.cgroup = Some(group);
    let inmate = cell.launch().await.unwrap();
    inmate.report().await;
    let other = cgroups.clone();
    tokio::task::spawn_blocking(move || other.sweep(&id))
        .await
        .unwrap();
    assert_eq!(inmate.process.exited().await, ExitReason::Signal(9));
    assert!(!cgroups.list().unwrap().contains(&path));
}

#[tokio::test]
async fn its_end_is_told_with_its_code() {
    let inmate = Cell::new("exit").launch().await.unwrap();
    assert_eq!(inmate.process.exited().await, ExitReason::Code(7));
}

#[tokio::test]
async fn dropping_it_kills_it() {
    let inmate = Cell::new("report").launch().await.unwrap();
    let mut exit = inmate.process.exit.clone();
    drop(inmate);
    let reason = *exit.wait_for(Option::is_some).await.unwrap();
    assert_eq!(reason, Some(ExitReason::Signal(9)));
}

#[tokio::test]
async fn many_start_at_once() {
    let cells = (0..16_u16).map(|number| async move {
        let mut cell = Cell::new("exit");
        cell.spec.jail.user = VmUsers::default().of_slot(SLOT + number);
        cell.launch().await.unwrap().process.exited().await
    });
    for reason in futures::future::join_all(cells).await {
        assert_eq!(reason, ExitReason::Code(7));
    }
}

#[tokio::test]
async fn what_is_missing_is_named() {
    let mut cell = Cell::new("report");
    cell.spec.network_namespace = Some(PathBuf::from("/run/netns/no-such-namespace"));
    let error = cell.launch().await.err().unwrap();
    assert!(error.to_string().contains("no-such-namespace"), "{error}");

    let mut cell = Cell::new("report");
    let missing = JailFile::read_only("/no-such-kernel", "vmlinux");
    cell.spec.jail.files[1] = missing;
    let LaunchError::Jail(error) = cell.launch().await.err().unwrap() else {
        panic!("another error");
    };
    assert!(error.to_string().contains("/no-such-kernel"), "{error}");

    let cell = Cell::new("report");
    let kernel = cell.directory.path().join("kernel");
    std::fs::set_permissions(&kernel, std::fs::Permissions::from_mode(0o600)).unwrap();
    let LaunchError::Jail(error) = cell.launch().await.err().unwrap() else {
        panic!("another error");
    };
    assert!(error.to_string().contains("chmod a+r"), "{error}");
}

#[tokio::test]
async fn a_program_that_not_everybody_may_run_is_named() {
    let mut cell = Cell::new("report");
    let program = cell.directory.path().join("program");
    std::fs::write(&program, "text").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o700)).unwrap();
    cell.spec.binary = VmmBinary::find(Some(&program), None).unwrap();
    let error = cell.launch().await.err().unwrap();
    let LaunchError::Spawn { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
    assert!(
        error.to_string().contains(program.to_str().unwrap()),
        "{error}"
    );
}
