//! The engines' client of this daemon: what no other test asks by it.

#![allow(clippy::unwrap_used, reason = "a test's failure is a panic")]

mod common;

use std::os::unix::fs::PermissionsExt as _;

use common::{TestDaemon, own_user};
use futures::{StreamExt as _, TryStreamExt as _};
use wrenn_core::guest::{
    AccessToken, Change, ChangeKind, Command, GuestClient, OutputOffsets, ProcessEvent, ProcessId,
    RpcCode,
};

const TOKEN: &str = "secret";

fn client(daemon: &TestDaemon) -> GuestClient {
    GuestClient::new(daemon.address, Some(AccessToken::new(TOKEN))).unwrap()
}

/// Somebody else where this test may become somebody else, and ourselves elsewhere.
fn another() -> String {
    if rustix::process::geteuid().is_root() {
        "nobody".to_owned()
    } else {
        own_user()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_those_of_the_user_that_the_client_acts_as() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();

    let user = another();
    let guest = client(&daemon).as_user(&user).unwrap();
    guest.write_file(&path("file"), "hello").await.unwrap();
    guest.make_dir(&path("directory")).await.unwrap();
    for name in ["file", "directory"] {
        assert_eq!(guest.stat(&path(name)).await.unwrap().owner, user, "{name}");
    }
    assert_eq!(guest.read_file(&path("file")).await.unwrap(), b"hello");
    let unknown = client(&daemon).as_user("no such user").unwrap();
    assert!(unknown.stat("/").await.is_err());
    assert!(client(&daemon).as_user("a:b").is_err());
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contents_stream_both_ways_and_an_error_changes_nothing() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").to_str().unwrap().to_owned();
    let guest = client(&daemon);
    let chunks = futures::stream::iter(["first ", "second"]).map(|text| Ok(text.into()));
    guest.write_stream(&path, None, None, chunks).await.unwrap();
    let read: Vec<bytes::Bytes> = guest
        .read_stream(&path)
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    assert_eq!(read.concat(), b"first second");

    let broken = [Ok("third".into()), Err(std::io::Error::other("broken"))];
    let broken = futures::stream::iter(broken);
    guest
        .write_stream(&path, None, None, broken)
        .await
        .unwrap_err();
    assert_eq!(guest.read_file(&path).await.unwrap(), b"first second");
    let missing = guest.read_stream("/no/such").await.err().unwrap();
    assert_eq!(missing.code(), Some(RpcCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_files_are_read_with_their_size() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").to_str().unwrap().to_owned();
    let empty = directory.path().join("empty").to_str().unwrap().to_owned();
    std::fs::write(&path, "0123456789").unwrap();
    std::fs::write(&empty, "").unwrap();
    let guest = client(&daemon);
    let read = async |path: &str, offset, length| {
        let contents = guest.read_part(path, offset, length).await?;
        let bytes: Vec<bytes::Bytes> = contents.chunks.try_collect().await?;
        Ok::<_, wrenn_core::guest::GuestError>((contents.total_size, bytes.concat()))
    };
    for (offset, length, expected) in [
        (0, None, "0123456789"),
        (3, None, "3456789"),
        (3, Some(4), "3456"),
        (8, Some(100), "89"),
        (9, Some(u64::MAX), "9"),
        (4, Some(0), ""),
        (10, None, ""),
        (10, Some(5), ""),
    ] {
        let (total, bytes) = read(&path, offset, length).await.unwrap();
        let what = (offset, length);
        assert_eq!(
            (total, bytes),
            (Some(10), expected.as_bytes().to_vec()),
            "{what:?}"
        );
    }
    for length in [None, Some(0), Some(1)] {
        let (total, bytes) = read(&empty, 0, length).await.unwrap();
        assert_eq!((total, bytes), (Some(0), Vec::new()), "{length:?}");
        let error = read(&path, 11, length).await.unwrap_err();
        assert_eq!(error.code(), Some(RpcCode::OutOfRange), "{error}");
    }
    // A file that the kernel makes up has no length, and its parts are found all the same.
    let (total, whole) = read("/proc/version", 0, None).await.unwrap();
    assert_eq!(total, None);
    let (_, part) = read("/proc/version", 6, Some(7)).await.unwrap();
    assert_eq!(part, whole[6..13]);
    let missing = read("/no/such", 1, None).await.unwrap_err();
    assert_eq!(missing.code(), Some(RpcCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn modes_are_set_and_times_are_told() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file").to_str().unwrap().to_owned();
    let guest = client(&daemon);
    guest.write_file(&path, "plain").await.unwrap();
    assert_eq!(guest.stat(&path).await.unwrap().mode, 0o644);
    guest
        .write_file_with_mode(&path, 0o751, "script")
        .await
        .unwrap();
    let chunks = futures::stream::iter([Ok("kept".into())]);
    guest.write_stream(&path, None, None, chunks).await.unwrap();
    let entry = guest.stat(&path).await.unwrap();
    assert_eq!(entry.mode, 0o751);
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(entry.modified, Some(modified));
    let error = guest.write_file_with_mode(&path, 0o10_000, "").await;
    assert_eq!(error.unwrap_err().code(), Some(RpcCode::InvalidArgument));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_begins_before_it_is_there() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let mut watch = client(&daemon).watch_dir(path, false).await.unwrap();
    std::fs::create_dir(directory.path().join("new")).unwrap();
    let change = watch.next().await.unwrap();
    let wanted = Change {
        name: "new".to_owned(),
        kind: ChangeKind::Created,
    };
    assert_eq!(change, wanted);
    let missing = client(&daemon).watch_dir("/no/such", false).await;
    assert_eq!(missing.unwrap_err().code(), Some(RpcCode::NotFound));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_joins_a_terminal_writes_to_it() {
    use wrenn_core::guest::PtySize;
    let daemon = TestDaemon::start_with(TOKEN).await;
    let guest = client(&daemon);
    let size = PtySize { cols: 80, rows: 24 };
    let shell = Command::new("sh").pty(size).with_stdin();
    let first = guest.start(&shell).await.unwrap();
    let mut joined = guest.connect(first.pid()).await.unwrap();
    assert!(joined.terminal());
    drop(first);
    let mut input = joined.input();
    input.write("exit $((40 + 2))\n".into()).await.unwrap();
    loop {
        match joined.next().await.unwrap() {
            ProcessEvent::Pty(_) => {}
            ProcessEvent::Exit(status) => {
                assert_eq!(status.shell_code(), 42);
                break;
            }
            other => panic!("{other:?} of a terminal"),
        }
    }
    daemon.stop().await;
}

/// A line of shell that prints so many lines of 1,024 bytes, each with its number, and says in a
/// file how far it is.
fn numbered(lines: u64, progress: &std::path::Path) -> String {
    let progress = progress.display();
    format!(
        "i=0; while [ $i -lt {lines} ]; do i=$((i+1)); printf '%01023d\\n' $i; \
         [ $((i % 64)) = 0 ] && echo $i >{progress}; done; echo end >&2; exit 7"
    )
}

/// Hazards 1 and 2 over broken connections: a client that stops reading stops the command; what
/// was on its way when its connection broke comes again, and nothing twice; the end comes once.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reconnects_loses_nothing() {
    const LINES: u64 = 12 * 1024;
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let progress = directory.path().join("progress");
    let line = numbered(LINES, &progress);
    let mut process = client(&daemon)
        .start(&Command::shell(line).tag("numbers"))
        .await
        .unwrap();
    let produced = || {
        let text = std::fs::read_to_string(&progress).unwrap_or_default();
        text.trim().parse::<u64>().unwrap_or(0) * 1024
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let mut most_in_flight = 0;
    let mut reads = [1, 0, 40, 7].into_iter().cycle();
    let exit = 'connections: loop {
        // The last stretch is read to its end.
        let events = match stdout.len() {
            read if read > 8 << 20 => usize::MAX,
            _ => reads.next().unwrap(),
        };
        for _ in 0..events {
            let event = process.next().await.unwrap();
            let (channel, bytes): (&mut Vec<u8>, _) = match event {
                ProcessEvent::Stdout(bytes) => (&mut stdout, bytes),
                ProcessEvent::Stderr(bytes) => (&mut stderr, bytes),
                ProcessEvent::Pty(_) => panic!("it has no terminal"),
                ProcessEvent::Exit(status) => break 'connections status,
            };
            assert_eq!(
                process.offset(),
                channel.len() as u64,
                "nothing lost or twice"
            );
            channel.extend_from_slice(&bytes);
        }
        // Everything on the way fills up before the connection breaks.
        let (mut last, mut still) = (produced(), 0);
        while still < 20 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            let now = produced();
            still = if now == last { still + 1 } else { 0 };
            last = now;
        }
        most_in_flight = most_in_flight.max(last.saturating_sub(stdout.len() as u64));
        drop(process);
        // Another client: the connection of the first is not used again.
        let from = OutputOffsets {
            stdout: stdout.len() as u64,
            stderr: stderr.len() as u64,
            terminal: 0,
        };
        let tag = ProcessId::Tag("numbers".to_owned());
        process = client(&daemon).connect_from(tag, from).await.unwrap();
        assert_eq!(process.tag(), Some("numbers"));
        assert!(!process.terminal());
    };
    assert_eq!((exit.code, exit.signal_number()), (7, None));
    let expected: String = (1..=LINES).map(|n| format!("{n:01023}\n")).collect();
    assert!(stdout == expected.as_bytes());
    assert_eq!(stderr, b"end\n");
    assert!(
        most_in_flight > 256 << 10 && most_in_flight < 4 << 20,
        "{most_in_flight} bytes were on their way"
    );
    // It ended, and can still be connected to: from its end, and from its beginning.
    let all = OutputOffsets {
        stdout: stdout.len() as u64,
        stderr: stderr.len() as u64,
        terminal: 0,
    };
    let mut again = client(&daemon)
        .connect_from(process.pid(), all)
        .await
        .unwrap();
    assert!(matches!(again.next().await.unwrap(), ProcessEvent::Exit(_)));
    let mut again = client(&daemon)
        .connect_from(process.pid(), OutputOffsets::default())
        .await
        .unwrap();
    match again.next().await.unwrap() {
        ProcessEvent::Stdout(bytes) => {
            let gap = usize::try_from(again.offset()).unwrap();
            assert!(gap > 0, "the ring holds less than was printed");
            assert!(stdout[gap..].starts_with(&bytes));
        }
        other => panic!("{other:?} before the output"),
    }
    daemon.stop().await;
}

/// After a resume, nobody is at the other end of the connections of before, and no packet says
/// so: a command must not wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_before_a_resume_hold_nobody_up() {
    use wrenn_core::guest::InitRequest;
    const LINES: u64 = 8 * 1024;
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let line = numbered(LINES, &directory.path().join("progress"));
    // It never reads, and stays open.
    let mut stuck = client(&daemon)
        .start(&Command::shell(line).tag("numbers"))
        .await
        .unwrap();
    let time_alone = InitRequest {
        timestamp: None,
        ..InitRequest::default()
    };
    let mut host = client(&daemon);
    host.init(&time_alone).await.unwrap();
    assert!(matches!(stuck.next().await, Ok(ProcessEvent::Stdout(_))));
    let resumed = InitRequest {
        entropy: Some("AAAA".to_owned()),
        ..InitRequest::default()
    };
    host.init(&resumed).await.unwrap();
    let tag = ProcessId::Tag("numbers".to_owned());
    let from = OutputOffsets::default();
    let mut process = client(&daemon).connect_from(tag, from).await.unwrap();
    let (mut count, mut first) = (0, None);
    loop {
        match process.next().await.unwrap() {
            ProcessEvent::Stdout(bytes) => {
                first.get_or_insert(process.offset());
                count += bytes.len() as u64;
            }
            ProcessEvent::Exit(_) => break,
            _ => {}
        }
    }
    assert_eq!(count + first.unwrap(), LINES * 1024);
    // Bytes that were on their way may still be read; then the stream ends.
    let outcome = loop {
        match stuck.next().await {
            Ok(ProcessEvent::Exit(_)) => panic!("it is closed before the end"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(outcome.code() != Some(RpcCode::NotFound), "{outcome}");
    host.stat("/").await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_are_found_and_signalled_by_their_tag() {
    use wrenn_core::guest::{PtySize, Signal};
    let daemon = TestDaemon::start_with(TOKEN).await;
    let guest = client(&daemon);
    let size = PtySize { cols: 80, rows: 24 };
    let command = Command::shell("sleep 1000").pty(size).tag("sleeper");
    let mut process = guest.start(&command).await.unwrap();
    let listed = guest.processes().await.unwrap();
    assert!(listed[0].terminal && listed[0].tag.as_deref() == Some("sleeper"));
    let tag = || ProcessId::Tag("sleeper".to_owned());
    let joined = guest.connect(tag()).await.unwrap();
    assert!(joined.terminal() && joined.pid() == process.pid());
    guest.signal(tag(), Signal::SIGNAL_SIGKILL).await.unwrap();
    loop {
        if let ProcessEvent::Exit(status) = process.next().await.unwrap() {
            assert_eq!(status.signal, Some(9));
            break;
        }
    }
    let missing = guest.signal(ProcessId::Tag("nobody".to_owned()), Signal::SIGNAL_SIGKILL);
    let error = missing.await.unwrap_err();
    assert_eq!(error.code(), Some(RpcCode::NotFound));
    let reason = wrenn_proto::hostagent::Reason::REASON_PROCESS_NOT_FOUND;
    assert_eq!(error.reason(), Some(reason));
    daemon.stop().await;
}

async fn packed(guest: &GuestClient, path: &str) -> Result<Vec<u8>, wrenn_core::guest::GuestError> {
    let chunks: Vec<bytes::Bytes> = guest.read_archive(path).await?.try_collect().await?;
    Ok(chunks.concat())
}

async fn unpacked(
    guest: &GuestClient,
    path: &str,
    archive: Vec<u8>,
) -> Result<u64, wrenn_core::guest::GuestError> {
    let pieces: Vec<_> = archive
        .chunks(100_000)
        .map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)))
        .collect();
    guest
        .write_archive(path, futures::stream::iter(pieces))
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_go_out_and_in_as_archives() {
    use std::os::unix::fs::MetadataExt as _;
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(directory.path(), open).unwrap();
    let from = directory.path().join("from");
    let to = directory.path().join("not/yet/there");
    std::fs::create_dir_all(from.join("deep").join("x".repeat(150))).unwrap();
    let long = from
        .join("deep")
        .join("x".repeat(150))
        .join("y".repeat(150));
    std::fs::write(&long, "long").unwrap();
    std::fs::write(from.join("script"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(from.join("script"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    let script = std::fs::File::open(from.join("script")).unwrap();
    script.set_modified(time).unwrap();
    std::fs::write(from.join("large"), vec![7; 3_000_000]).unwrap();
    std::fs::hard_link(from.join("script"), from.join("again")).unwrap();
    std::os::unix::fs::symlink("deep", from.join("link")).unwrap();
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        from.join("pipe"),
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();

    let user = another();
    let guest = client(&daemon).as_user(&user).unwrap();
    let archive = packed(&guest, from.to_str().unwrap()).await.unwrap();
    let entries = unpacked(&guest, to.to_str().unwrap(), archive).await;
    assert_eq!(entries.unwrap(), 7);
    assert_eq!(std::fs::read(to.join("large")).unwrap(), vec![7; 3_000_000]);
    let long = to.join("deep").join("x".repeat(150)).join("y".repeat(150));
    assert_eq!(std::fs::read_to_string(long).unwrap(), "long");
    let script = std::fs::metadata(to.join("script")).unwrap();
    assert_eq!(script.permissions().mode() & 0o7777, 0o755);
    assert_eq!((script.mtime(), script.nlink()), (1_000_000_000, 1));
    assert_eq!(
        std::fs::read_link(to.join("link")).unwrap().to_str(),
        Some("deep")
    );
    assert!(!to.join("pipe").exists());
    for path in ["", "deep", "script"] {
        let path = to.join(path).to_str().unwrap().to_owned();
        assert_eq!(guest.stat(&path).await.unwrap().owner, user, "{path}");
    }

    // A single file is an archive with one entry.
    let one = packed(&guest, from.join("script").to_str().unwrap()).await;
    let elsewhere = directory.path().join("one");
    let entries = unpacked(&guest, elsewhere.to_str().unwrap(), one.unwrap()).await;
    assert_eq!(entries.unwrap(), 1);
    assert_eq!(
        std::fs::read(elsewhere.join("script")).unwrap(),
        b"#!/bin/sh\n"
    );

    let missing = packed(&guest, "/no/such").await.unwrap_err();
    assert_eq!(missing.code(), Some(RpcCode::NotFound));
    let device = packed(&guest, "/dev/null").await.unwrap_err();
    assert_eq!(device.code(), Some(RpcCode::InvalidArgument));
    let file = from.join("script").to_str().unwrap().to_owned();
    let into_file = unpacked(&guest, &file, vec![0; 1024]).await.unwrap_err();
    assert_eq!(
        into_file.code(),
        Some(RpcCode::InvalidArgument),
        "{into_file}"
    );
    daemon.stop().await;
}

/// Hazard 61: what leads out of the directory is refused, and named.
#[tokio::test(flavor = "multi_thread")]
async fn hostile_archives_stay_in_their_directory() {
    let daemon = TestDaemon::start_with(TOKEN).await;
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("to");
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    header.set_mode(0o644);
    header.set_entry_type(tar::EntryType::Regular);
    header.as_old_mut().name[..7].copy_from_slice(b"../evil");
    header.set_cksum();
    builder.append(&header, &b"evil"[..]).unwrap();
    let mut archive = builder.into_inner().unwrap();
    // Much more than what is on the way when the entry is refused.
    archive.extend(vec![0; 20_000_000]);
    let error = unpacked(&client(&daemon), to.to_str().unwrap(), archive).await;
    let error = error.unwrap_err();
    assert_eq!(error.code(), Some(RpcCode::InvalidArgument), "{error}");
    assert!(error.to_string().contains("'../evil'"), "{error}");
    assert!(!directory.path().join("evil").exists());

    // One that breaks off leaves nothing half.
    let broken = [
        Ok(vec![b'x'; 100].into()),
        Err(std::io::Error::other("broken")),
    ];
    let guest = client(&daemon);
    let broken = guest.write_archive(to.to_str().unwrap(), futures::stream::iter(broken));
    broken.await.unwrap_err();
    assert_eq!(std::fs::read_dir(&to).unwrap().count(), 0);
    daemon.stop().await;
}

/// A file that changes while it is read leaves an archive that can be read, and one that
/// became shorter an error.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_change_do_not_corrupt_an_archive() {
    for (grows, expected) in [(true, Ok(())), (false, Err(()))] {
        let daemon = TestDaemon::start_with(TOKEN).await;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        // More than all buffers on the way hold.
        let size = 32 << 20;
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(size).unwrap();
        let guest = client(&daemon);
        let from = directory.path().to_str().unwrap();
        let mut chunks = Box::pin(guest.read_archive(from).await.unwrap());
        let mut archive = chunks.try_next().await.unwrap().unwrap().to_vec();
        file.set_len(if grows { 2 * size } else { 1 << 20 })
            .unwrap();
        let outcome = loop {
            match chunks.try_next().await {
                Ok(Some(chunk)) => archive.extend_from_slice(&chunk),
                Ok(None) => break Ok(()),
                Err(_) => break Err(()),
            }
        };
        assert_eq!(outcome, expected, "grows: {grows}");
        let mut entries = tar::Archive::new(&archive[..]);
        let mut entries = entries.entries().unwrap();
        let mut entry = entries.next().unwrap().unwrap();
        assert_eq!(entry.size(), size);
        if grows {
            let read = std::io::copy(&mut entry, &mut std::io::sink()).unwrap();
            assert_eq!(read, size);
            drop(entry);
            assert!(entries.next().is_none());
        }
        daemon.stop().await;
    }
}
