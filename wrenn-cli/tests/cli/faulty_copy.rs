//! `wrenn sandbox cp` where a disk is full, or the connection breaks.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::wrenn::{Ran, Wrenn, run};

/// More than a small disk holds.
const LARGE: usize = 4 << 20;
const SMALL_DISK: &str = "size=1m";

/// Runs the program where `disk` is a small file system, and gives the files that are in it
/// afterwards. Only the thread of the program sees that file system.
fn run_with_small_disk(mut command: Command, disk: &Path) -> (Ran, Vec<PathBuf>) {
    let disk = disk.to_owned();
    let running = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("mounting a small file system takes root");
        let none: Option<&str> = None;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let kind = Some("tmpfs");
        mount(kind, &disk, kind, MsFlags::empty(), Some(SMALL_DISK)).unwrap();
        let output = command.output().unwrap();
        (Ran::from(output), files(&disk))
    });
    running.join().unwrap()
}

/// The files of a directory and of those below it.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            files.push(path);
        }
    }
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_here_is_named() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let make = format!("mkdir tree; head -c {LARGE} /dev/zero | tee tree/large > large");
    wrenn.shell(&make).await;
    let disk = wrenn.path("disk");
    fs::create_dir(&disk).unwrap();
    for (from, to, said) in [
        ("web:large", "disk/copy", "cannot write disk/copy"),
        ("web:large", "disk", "cannot write disk/large"),
        (
            "web:tree",
            "disk/tree",
            "cannot copy into disk/tree: cannot write \"large\"",
        ),
    ] {
        let command = wrenn.command(&["sandbox", "cp", from, to]);
        let disk = disk.clone();
        let ran = tokio::task::spawn_blocking(move || run_with_small_disk(command, &disk));
        let (ran, left) = ran.await.unwrap();
        assert_eq!(ran.code, Some(1), "{from} {to}: {ran:?}");
        let said = format!("wrenn: {said}: No space left on device");
        assert!(ran.stderr.contains(&said), "{from} {to}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        assert!(left.is_empty(), "{from} {to}: {left:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_disk_of_sandbox_is_named() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    fs::create_dir(wrenn.path("tree")).unwrap();
    for name in ["large", "tree/large"] {
        fs::write(wrenn.path(name), vec![0; LARGE]).unwrap();
    }
    let script = format!("mkdir disk && mount -t tmpfs -o {SMALL_DISK},mode=0777 tmpfs disk");
    let words = [
        "sandbox",
        "exec",
        "--user",
        "root",
        "--cwd",
        "/home/user",
        "web",
        "--",
    ];
    wrenn
        .ok(&[&words[..], &["sh", "-c", &script]].concat())
        .await;
    for (from, to, path) in [
        ("large", "web:disk/copy", "/home/user/disk/copy"),
        ("tree", "web:disk/tree", "large"),
    ] {
        let ran = wrenn.run(&["sandbox", "cp", from, to]).await;
        assert_eq!(ran.code, Some(1), "{from} {to}: {ran:?}");
        let said =
            format!("wrenn: sandbox web: cannot write '{path}': not enough disk space available");
        assert!(ran.stderr.starts_with(&said), "{from} {to}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
        let left = wrenn.shell("find disk -type f").await;
        assert_eq!(left, "", "{from} {to}");
    }
}

/// Carries bytes between the program and the server, and breaks connections.
struct Link {
    address: SocketAddr,
}

/// The state of a link after its connection broke.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Afterwards {
    /// It takes another connection.
    Mended,
    /// It ends every other connection too.
    Broken,
}

/// The direction in which bytes are counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToServer,
    ToProgram,
}

impl Link {
    /// A link that breaks each connection in the middle of a large file.
    async fn start(server: SocketAddr, direction: Direction, afterwards: Afterwards) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let is_broken = Arc::new(AtomicBool::new(false));
        tokio::spawn(async move {
            while let Ok((mut program, _)) = listener.accept().await {
                let is_broken = Arc::clone(&is_broken);
                tokio::spawn(async move {
                    if is_broken.load(Ordering::SeqCst) {
                        return;
                    }
                    // The program must not come again before that is known.
                    let broke = carry(&mut program, server, direction).await;
                    let lasts = afterwards == Afterwards::Broken;
                    is_broken.fetch_or(broke && lasts, Ordering::SeqCst);
                });
            }
        });
        Self { address }
    }

    fn command(&self, wrenn: &Wrenn, words: &[&str]) -> Command {
        let mut command = wrenn.command(words);
        command.env("WRENN_API_URL", format!("http://{}", self.address));
        command
    }
}

/// True when it broke the connection, and false when an end did.
async fn carry(program: &mut TcpStream, server: SocketAddr, counted: Direction) -> bool {
    let mut server = TcpStream::connect(server).await.unwrap();
    let (mut up, mut down) = ([0; 16 << 10], [0; 16 << 10]);
    let mut left = LARGE / 2;
    while left > 0 {
        let (direction, carried) = tokio::select! {
            read = program.read(&mut up) => {
                (Direction::ToServer, pass(read, &up, &mut server).await)
            }
            read = server.read(&mut down) => {
                (Direction::ToProgram, pass(read, &down, program).await)
            }
        };
        match carried {
            Ok(count @ 1..) if direction == counted => left = left.saturating_sub(count),
            Ok(1..) => {}
            Ok(0) | Err(_) => return false,
        }
    }
    true
}

async fn pass(read: io::Result<usize>, buffer: &[u8], to: &mut TcpStream) -> io::Result<usize> {
    let count = read?;
    to.write_all(&buffer[..count]).await?;
    Ok(count)
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_download_is_resumed_or_told() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let make = format!("mkdir tree; head -c {LARGE} /dev/urandom | tee tree/large > large");
    wrenn.shell(&make).await;
    fs::write(wrenn.path("copy"), "old").unwrap();
    for (from, to, afterwards) in [
        ("web:large", "copy", Afterwards::Broken),
        ("web:tree", "tree", Afterwards::Mended),
    ] {
        let link = Link::start(wrenn.server.address(), Direction::ToProgram, afterwards).await;
        let ran = run(link.command(&wrenn, &["sandbox", "cp", from, to])).await;
        assert_eq!(ran.code, Some(1), "{from}: {ran:?}");
        let said = "wrenn: the connection to the server broke";
        assert!(ran.stderr.starts_with(said), "{from}: {ran:?}");
        assert_eq!(ran.stderr.lines().count(), 1, "{from}: {ran:?}");
        assert_eq!(files(&wrenn.path("")), [wrenn.path("copy")]);
        assert_eq!(fs::read(wrenn.path("copy")).unwrap(), b"old");
    }

    let address = wrenn.server.address();
    let link = Link::start(address, Direction::ToProgram, Afterwards::Mended).await;
    let ran = run(link.command(&wrenn, &["sandbox", "cp", "web:large", "copy"])).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    wrenn.ok(&["sandbox", "cp", "web:large", "whole"]).await;
    let copies = ["copy", "whole"].map(|name| fs::read(wrenn.path(name)).unwrap());
    assert!(copies[0] == copies[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_upload_leaves_old_file() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    fs::create_dir(wrenn.path("tree")).unwrap();
    for name in ["large", "tree/large"] {
        fs::write(wrenn.path(name), vec![0; LARGE]).unwrap();
    }
    wrenn.shell("printf old > copy").await;
    for (from, to) in [("large", "web:copy"), ("tree", "web:tree")] {
        let link = Link::start(
            wrenn.server.address(),
            Direction::ToServer,
            Afterwards::Mended,
        )
        .await;
        let ran = run(link.command(&wrenn, &["sandbox", "cp", from, to])).await;
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(
            ran.stderr.contains("the connection to the server broke"),
            "{ran:?}"
        );
        assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
    }
    assert_eq!(wrenn.shell("cat copy").await, "old");
    // The server hears of a broken connection a little later.
    let others = "find . -type f ! -name copy";
    let removed = format!(
        "for i in $(seq 100); do test -z \"$({others})\" && exit; sleep 0.1; done; {others}; exit 1"
    );
    wrenn.shell(&removed).await;
}
