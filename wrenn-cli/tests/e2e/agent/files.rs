//! Files by RPC, large ones too.

use bytes::Bytes;
use futures::stream;
use sha2::{Digest, Sha256};
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::__buffa::oneof::watch_dir_response::Event;
use wrenn_proto::hostagent::watch_dir_response::Kind;
use wrenn_proto::hostagent::*;

use super::stage::{TestAgent, enter, refused, small};
use crate::stage::Amount;

const CHUNK: usize = 256 << 10;
/// What the small template has room for.
const SMALL_DISK_MIB: usize = 128;

pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads and resets the most memory that a process had, in KiB.
fn peak_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let peak = line.unwrap().split_whitespace().nth(1).unwrap().parse();
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
    peak.unwrap()
}

async fn write(agent: &TestAgent, id: &str, path: &str, data: &str) {
    let request = WriteFileRequest {
        id: id.to_owned(),
        path: path.to_owned(),
        data: Bytes::from(data.to_owned()),
        ..WriteFileRequest::default()
    };
    let answer = agent.client().write_file(request).await.unwrap();
    assert_eq!(answer.into_owned().size, data.len() as u64);
}

async fn read(agent: &TestAgent, id: &str, path: &str) -> Bytes {
    let request = ReadFileRequest {
        id: id.to_owned(),
        path: path.to_owned(),
        ..ReadFileRequest::default()
    };
    agent
        .client()
        .read_file(request)
        .await
        .unwrap()
        .into_owned()
        .data
}

#[test]
fn a_tree_is_made_looked_at_moved_and_removed() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();
        write(&agent, &id, "/home/user/d/a file", "hello").await;
        assert_eq!(&read(&agent, &id, "d/a file").await[..], b"hello");

        let stat = |path: &str, user: &str| {
            let request = StatRequest {
                id: id.clone(),
                path: path.to_owned(),
                user: user.to_owned(),
            };
            let client = client.clone();
            async move {
                client
                    .stat(request)
                    .await
                    .map(|answer| answer.into_owned().entry)
            }
        };
        let entry = stat("d/a file", "").await.unwrap().into_option().unwrap();
        assert_eq!(entry.kind.as_known(), Some(FileKind::FILE_KIND_FILE));
        assert_eq!((entry.size, entry.owner.as_str()), (5, "user"));
        assert_eq!(entry.path, "/home/user/d/a file");
        // The same words mean another file to another user.
        refused(
            stat("d/a file", "root").await,
            ErrorCode::NotFound,
            "/root/d/a file",
        );
        refused(
            stat("/", "nobody-here").await,
            ErrorCode::InvalidArgument,
            "nobody-here",
        );

        let make = MakeDirRequest {
            id: id.clone(),
            path: "own/e".to_owned(),
            user: "root".to_owned(),
        };
        client.make_dir(make.clone()).await.unwrap();
        refused(
            client.make_dir(make).await,
            ErrorCode::AlreadyExists,
            "/root/own/e",
        );
        let entry = stat("/root/own/e", "")
            .await
            .unwrap()
            .into_option()
            .unwrap();
        assert_eq!(entry.owner, "root");

        let rename = MovePathRequest {
            id: id.clone(),
            from: "d/a file".to_owned(),
            to: "d/b".to_owned(),
            ..MovePathRequest::default()
        };
        client.move_path(rename.clone()).await.unwrap();
        refused(
            client.move_path(rename).await,
            ErrorCode::NotFound,
            "a file",
        );
        let list = ListDirRequest {
            id: id.clone(),
            path: "/home/user".to_owned(),
            depth: 2,
            ..ListDirRequest::default()
        };
        let entries = client
            .list_dir(list.clone())
            .await
            .unwrap()
            .into_owned()
            .entries;
        let paths: Vec<_> = entries.iter().map(|entry| entry.path.as_str()).collect();
        assert!(paths.contains(&"/home/user/d/b"), "{paths:?}");
        let request = ListDirRequest {
            path: "/home/user/d/b".to_owned(),
            ..list
        };
        refused(
            client.list_dir(request).await,
            ErrorCode::InvalidArgument,
            "not a directory",
        );

        let remove = RemovePathRequest {
            id: id.clone(),
            path: "d".to_owned(),
            ..RemovePathRequest::default()
        };
        client.remove_path(remove.clone()).await.unwrap();
        client.remove_path(remove).await.unwrap();
        refused(stat("d/b", "").await, ErrorCode::NotFound, "/home/user/d/b");
        let all = RemovePathRequest {
            id: id.clone(),
            path: "/".to_owned(),
            ..RemovePathRequest::default()
        };
        refused(
            client.remove_path(all).await,
            ErrorCode::InvalidArgument,
            "root directory",
        );
        for path in ["", "/tmp/a\0b"] {
            let request = ReadFileRequest {
                id: id.clone(),
                path: path.to_owned(),
                ..ReadFileRequest::default()
            };
            refused(
                client.read_file(request).await,
                ErrorCode::InvalidArgument,
                "path",
            );
        }
    });
}

#[test]
fn a_large_file_goes_up_and_down_in_constant_memory() {
    enter(|agent| async move {
        let client = agent.client();
        // More than the agent's memory may grow.
        let mib = Amount::FileMib.or(32);
        let mut request = small();
        if mib > SMALL_DISK_MIB {
            request.template = "base".to_owned();
        }
        let id = request.id.clone();
        client.create_sandbox(request).await.unwrap();
        let chunks = mib * (1 << 20) / CHUNK;
        let mut chunk = vec![0_u8; CHUNK];
        rand::fill(&mut chunk[..]);
        // Every chunk differs from the others, and none is kept.
        let base = chunk.clone();
        let numbered = move |number: usize| {
            let mut chunk = base.clone();
            chunk[..8].copy_from_slice(&(number as u64).to_le_bytes());
            chunk
        };
        let mut digest = Sha256::new();
        (0..chunks).for_each(|number| digest.update(numbered(number)));
        let wanted = hex(&digest.finalize());

        // What the agent needs at all comes first.
        write(&agent, &id, "/home/user/small", "x").await;
        let before = peak_kib(agent.pid());
        let (file, place) = ("/home/user/large", id.clone());
        let messages = stream::iter((0..chunks).map(move |number| StreamWriteFileRequest {
            id: if number == 0 {
                place.clone()
            } else {
                String::new()
            },
            path: if number == 0 {
                file.to_owned()
            } else {
                String::new()
            },
            data: numbered(number).into(),
            finish_write: number == chunks - 1,
            ..StreamWriteFileRequest::default()
        }));
        let written = client
            .stream_write_file(messages)
            .await
            .unwrap()
            .into_owned();
        assert_eq!(written.size, (chunks * CHUNK) as u64);
        let sum = agent.shell(&id, &format!("sha256sum {file}")).await;
        assert_eq!(sum.split(' ').next(), Some(wanted.as_str()));

        let request = StreamReadFileRequest {
            id: id.clone(),
            path: file.to_owned(),
            ..StreamReadFileRequest::default()
        };
        let mut down = client.stream_read_file(request).await.unwrap();
        let (mut digest, mut length) = (Sha256::new(), 0);
        while let Some(message) = down.message().await.unwrap() {
            let data = message.to_owned_message().data;
            length += data.len();
            digest.update(&data);
        }
        assert_eq!(length, chunks * CHUNK);
        assert_eq!(hex(&digest.finalize()), wanted);
        let after = peak_kib(agent.pid());
        assert!(
            after < before + (16 << 10),
            "{before} KiB became {after} KiB"
        );

        let request = ReadFileRequest {
            id,
            path: file.to_owned(),
            ..ReadFileRequest::default()
        };
        refused(
            client.read_file(request).await,
            ErrorCode::InvalidArgument,
            "use StreamReadFile",
        );
    });
}

#[test]
fn a_full_disk_and_a_broken_upload_leave_the_old_file() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();
        let path = "/home/user/kept";
        write(&agent, &id, path, "as it was").await;
        let before = agent.shell(&id, "ls -A /home/user").await;

        // Filled from inside, which is quick, until there is room for half of what comes.
        agent
            .shell(
                &id,
                "free=$(df -m / | awk 'NR==2 {print $4}'); \
                 dd if=/dev/zero of=/fill bs=1M count=$((free - 4)) 2>/dev/null; sync",
            )
            .await;
        let begin = StreamWriteFileRequest {
            id: id.clone(),
            path: path.to_owned(),
            ..StreamWriteFileRequest::default()
        };
        let chunk = Bytes::from(vec![7_u8; 1 << 20]);
        let rest = (1..=8).map(move |number| StreamWriteFileRequest {
            data: chunk.clone(),
            finish_write: number == 8,
            ..StreamWriteFileRequest::default()
        });
        let messages = stream::iter(std::iter::once(begin.clone()).chain(rest));
        refused(
            client.stream_write_file(messages).await,
            ErrorCode::ResourceExhausted,
            "disk space",
        );
        assert_eq!(&read(&agent, &id, path).await[..], b"as it was");

        // A caller that leaves in the middle.
        agent.shell(&id, "rm /fill").await;
        let (send, mut receive) = tokio::sync::mpsc::channel(1);
        let messages = stream::poll_fn(move |context| receive.poll_recv(context));
        let uploading = tokio::spawn({
            let client = client.clone();
            async move { client.stream_write_file(messages).await.map(drop) }
        });
        for _ in 0..4 {
            let message = StreamWriteFileRequest {
                data: Bytes::from(vec![8_u8; 1 << 20]),
                ..begin.clone()
            };
            send.send(message).await.unwrap();
        }
        uploading.abort();
        uploading.await.unwrap_err();
        drop(send);
        assert_eq!(&read(&agent, &id, path).await[..], b"as it was");

        // One whose messages end before the file does.
        let part = StreamWriteFileRequest {
            data: Bytes::from_static(b"a part"),
            ..begin.clone()
        };
        refused(
            client.stream_write_file(stream::iter([part])).await,
            ErrorCode::InvalidArgument,
            "finish_write",
        );
        assert_eq!(&read(&agent, &id, path).await[..], b"as it was");
        // Neither left anything beside it.
        crate::stage::until("the parts are removed", || async {
            agent
                .shell(&id, "ls -A /home/user 2>/dev/null || true")
                .await
                == before
        })
        .await;
    });
}

#[test]
fn a_watch_tells_what_happens() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let request = WatchDirRequest {
            id: id.clone(),
            path: "/home/user".to_owned(),
            ..WatchDirRequest::default()
        };
        let client = agent.client();
        let mut stream = client.watch_dir(request.clone()).await.unwrap();
        let first = stream.message().await.unwrap().unwrap().to_owned_message();
        assert!(matches!(first.event, Some(Event::Watching(_))), "{first:?}");
        agent
            .shell(&id, "cd /home/user; echo x > f; chmod 600 f; mv f g; rm g")
            .await;
        // In this order; a file may be written in more than one step.
        for wanted in [
            ("f", Kind::KIND_CREATED),
            ("f", Kind::KIND_WRITTEN),
            ("f", Kind::KIND_MODE_CHANGED),
            ("f", Kind::KIND_RENAMED),
            ("g", Kind::KIND_CREATED),
            ("g", Kind::KIND_REMOVED),
        ] {
            loop {
                let message = stream.message().await.unwrap().unwrap().to_owned_message();
                let Some(Event::Change(change)) = message.event else {
                    continue;
                };
                let kind = change.kind.as_known();
                if (change.name.as_str(), kind) == (wanted.0, Some(wanted.1)) {
                    break;
                }
                assert_eq!(
                    kind,
                    Some(Kind::KIND_WRITTEN),
                    "{change:?} before {wanted:?}"
                );
            }
        }
        let request = WatchDirRequest {
            path: "/no/such".to_owned(),
            ..request
        };
        match client.watch_dir(request).await {
            Ok(mut stream) => refused(stream.message().await, ErrorCode::NotFound, "/no/such"),
            Err(error) => refused::<()>(Err(error), ErrorCode::NotFound, "/no/such"),
        }
    });
}

#[test]
fn directories_travel_as_archives_and_parts_of_files_alone() {
    enter(|agent| async move {
        let id = agent.create().await.id;
        let client = agent.client();
        let tree = "mkdir -p /tmp/a/b && head -c 3000000 /dev/urandom >/tmp/a/b/data && \
                    echo hi >/tmp/a/run && chmod 751 /tmp/a/run && ln -s b/data /tmp/a/link";
        agent.shell(&id, tree).await;
        let request = ReadArchiveRequest {
            id: id.clone(),
            path: "/tmp/a".to_owned(),
            user: "root".to_owned(),
        };
        let mut down = client.read_archive(request).await.unwrap();
        let mut archive = Vec::new();
        while let Some(message) = down.message().await.unwrap() {
            archive.extend_from_slice(&message.to_owned_message().data);
        }
        let first = WriteArchiveRequest {
            id: id.clone(),
            path: "/tmp/new/copy".to_owned(),
            user: "root".to_owned(),
            ..WriteArchiveRequest::default()
        };
        let pieces: Vec<_> = archive.chunks(CHUNK).map(Bytes::copy_from_slice).collect();
        let rest = pieces.into_iter().map(|data| WriteArchiveRequest {
            data,
            ..WriteArchiveRequest::default()
        });
        let last = WriteArchiveRequest {
            finish_write: true,
            ..WriteArchiveRequest::default()
        };
        let messages = std::iter::once(first).chain(rest).chain([last]);
        let messages = stream::iter(messages);
        let written = client.write_archive(messages).await.unwrap().into_owned();
        assert_eq!(written.entries, 4);
        let compare = "cmp /tmp/a/b/data /tmp/new/copy/b/data && readlink /tmp/new/copy/link && \
                       stat -c %a /tmp/new/copy/run";
        assert_eq!(agent.shell(&id, compare).await, "b/data\n751");

        let request = StreamReadFileRequest {
            id: id.clone(),
            path: "/tmp/a/b/data".to_owned(),
            offset: 2_999_990,
            length: Some(5),
            ..StreamReadFileRequest::default()
        };
        let mut down = client.stream_read_file(request.clone()).await.unwrap();
        let first = down.message().await.unwrap().unwrap().to_owned_message();
        assert_eq!((first.data.len(), first.total_size), (0, Some(3_000_000)));
        let mut data = Vec::new();
        while let Some(message) = down.message().await.unwrap() {
            data.extend_from_slice(&message.to_owned_message().data);
        }
        let line = "tail -c 10 /tmp/a/b/data | head -c 5 | sha256sum";
        let sum = agent.shell(&id, line).await;
        assert_eq!(sum.split(' ').next(), Some(sha256(&data).as_str()));
        let behind = StreamReadFileRequest {
            offset: 3_000_001,
            ..request
        };
        let error = match client.stream_read_file(behind).await {
            Ok(mut stream) => stream.message().await.err(),
            Err(error) => Some(error),
        };
        assert_eq!(error.unwrap().code, ErrorCode::OutOfRange);
    });
}
