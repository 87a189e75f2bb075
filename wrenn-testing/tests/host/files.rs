use bytes::Bytes;
use wrenn_proto::connectrpc::ErrorCode;
use wrenn_proto::hostagent::__buffa::oneof::watch_dir_response::Event;
use wrenn_proto::hostagent::*;
use wrenn_testing::FakeHost;

use crate::client::*;

#[tokio::test]
async fn file_is_written_read_and_listed() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    write(&client, 1, "notes/a.txt", b"hello").await;
    assert_eq!(
        &read(&client, 1, "notes/a.txt").await.unwrap()[..],
        b"hello"
    );
    assert_eq!(
        &read(&client, 1, "~/notes/a.txt").await.unwrap()[..],
        b"hello"
    );
    assert_eq!(output(&client, 1, "cat notes/a.txt").await, "hello");
    let home = host.home(&id(1)).unwrap();
    assert_eq!(std::fs::read(home.join("notes/a.txt")).unwrap(), b"hello");

    let request = ListDirRequest {
        id: id(1),
        path: "notes".to_owned(),
        ..Default::default()
    };
    let listed = client.list_dir(request).await.unwrap().into_owned().entries;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].name.as_str(), listed[0].size), ("a.txt", 5));
    assert_eq!(listed[0].kind.as_known(), Some(FileKind::FILE_KIND_FILE));

    let request = MovePathRequest {
        id: id(1),
        from: "notes/a.txt".to_owned(),
        to: "notes/b.txt".to_owned(),
        ..Default::default()
    };
    client.move_path(request).await.unwrap();
    let error = read(&client, 1, "notes/a.txt").await.unwrap_err();
    assert_error(&error, ErrorCode::NotFound, Reason::REASON_PATH_NOT_FOUND);
    let stat = |path: &str| StatRequest {
        id: id(1),
        path: path.to_owned(),
        ..Default::default()
    };
    let entry = client.stat(stat("notes/b.txt")).await.unwrap().into_owned();
    assert!(entry.entry.modified_at.starts_with("20"));
    let request = RemovePathRequest {
        id: id(1),
        path: "notes".to_owned(),
        ..Default::default()
    };
    client.remove_path(request).await.unwrap();
    let error = client.stat(stat("notes/b.txt")).await.unwrap_err();
    assert_error(&error, ErrorCode::NotFound, Reason::REASON_PATH_NOT_FOUND);
    let request = MakeDirRequest {
        id: id(1),
        path: "a/b".to_owned(),
        ..Default::default()
    };
    client.make_dir(request.clone()).await.unwrap();
    let error = client.make_dir(request).await.unwrap_err();
    assert_error(&error, ErrorCode::AlreadyExists, Reason::REASON_EXISTS);
}

#[tokio::test]
async fn large_file_streams_both_ways() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let chunk = Bytes::from(vec![7_u8; 1 << 20]);
    let mut messages = vec![StreamWriteFileRequest {
        id: id(1),
        path: "large".to_owned(),
        ..Default::default()
    }];
    messages.extend((0..20).map(|_| StreamWriteFileRequest {
        data: chunk.clone(),
        ..Default::default()
    }));
    // Without its last message it may have been broken off.
    let broken = client
        .stream_write_file(futures::stream::iter(messages.clone()))
        .await;
    assert_eq!(broken.unwrap_err().code, ErrorCode::InvalidArgument);
    let error = read(&client, 1, "large").await.unwrap_err();
    assert_error(&error, ErrorCode::NotFound, Reason::REASON_PATH_NOT_FOUND);

    messages.push(StreamWriteFileRequest {
        finish_write: true,
        ..Default::default()
    });
    let written = client
        .stream_write_file(futures::stream::iter(messages))
        .await;
    assert_eq!(written.unwrap().into_owned().size, 20 << 20);

    let error = read(&client, 1, "large").await.unwrap_err();
    assert_error(&error, ErrorCode::InvalidArgument, Reason::REASON_TOO_LARGE);

    let (total, data) = stream_read(&client, 0, None).await.unwrap();
    assert_eq!((total, data), (Some(20 << 20), 20 << 20));
    let (total, data) = stream_read(&client, (20 << 20) - 5, None).await.unwrap();
    assert_eq!((total, data), (Some(20 << 20), 5));
    let (total, data) = stream_read(&client, 3, Some(4)).await.unwrap();
    assert_eq!((total, data), (Some(20 << 20), 4));
    let (total, data) = stream_read(&client, 3, Some(0)).await.unwrap();
    assert_eq!((total, data), (Some(20 << 20), 0));
    let (total, data) = stream_read(&client, 20 << 20, None).await.unwrap();
    assert_eq!((total, data), (Some(20 << 20), 0));
    let error = stream_read(&client, (20 << 20) + 1, None)
        .await
        .unwrap_err();
    assert_eq!(error.code, ErrorCode::OutOfRange);
}

async fn stream_read(
    client: &Client,
    offset: u64,
    length: Option<u64>,
) -> Result<(Option<u64>, usize), wrenn_proto::connectrpc::ConnectError> {
    let request = StreamReadFileRequest {
        id: id(1),
        path: "large".to_owned(),
        offset,
        length,
        ..Default::default()
    };
    let mut stream = client.stream_read_file(request).await?;
    let (mut total, mut read) = (None, 0);
    while let Some(message) = stream.message().await? {
        let message = message.to_owned_message();
        total = total.or(message.total_size);
        read += message.data.len();
    }
    Ok((total, read))
}

#[tokio::test]
async fn mode_of_a_write_is_kept() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let request = WriteFileRequest {
        id: id(1),
        path: "script".to_owned(),
        data: Bytes::from_static(b"#!/bin/sh\necho ran\n"),
        mode: Some(0o750),
        ..Default::default()
    };
    client.write_file(request.clone()).await.unwrap();
    assert_eq!(
        output(&client, 1, "stat -c %a script; ./script").await,
        "750\nran"
    );
    let wrong = WriteFileRequest {
        mode: Some(0o100_644),
        ..request
    };
    let error = client.write_file(wrong).await.unwrap_err();
    assert_error(&error, ErrorCode::InvalidArgument, Reason::REASON_INVALID);
}

#[tokio::test]
async fn directory_travels_as_an_archive() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    create(&client, 2).await;
    output(
        &client,
        1,
        "mkdir -p d/e; printf a > d/e/a; ln -s e/a d/link; chmod 751 d/e/a",
    )
    .await;
    let read = |path: &str| ReadArchiveRequest {
        id: id(1),
        path: path.to_owned(),
        ..Default::default()
    };
    let mut stream = client.read_archive(read("d")).await.unwrap();
    let mut messages = vec![WriteArchiveRequest {
        id: id(2),
        path: "copy".to_owned(),
        ..Default::default()
    }];
    while let Some(message) = stream.message().await.unwrap() {
        messages.push(WriteArchiveRequest {
            data: message.to_owned_message().data,
            ..Default::default()
        });
    }
    messages.push(WriteArchiveRequest {
        finish_write: true,
        ..Default::default()
    });
    let written = client.write_archive(futures::stream::iter(messages)).await;
    assert!(written.unwrap().into_owned().entries >= 3);
    let seen = output(&client, 2, "cat copy/link; stat -c ' %a' copy/e/a").await;
    assert_eq!(seen, "a 751");
    let error = match client.read_archive(read("nothing")).await {
        Ok(mut stream) => stream.message().await.unwrap_err(),
        Err(error) => error,
    };
    assert_error(&error, ErrorCode::NotFound, Reason::REASON_PATH_NOT_FOUND);
}

#[tokio::test]
async fn watch_tells_changes() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    let request = WatchDirRequest {
        id: id(1),
        path: String::new(),
        ..Default::default()
    };
    let mut stream = client.watch_dir(request).await.unwrap();
    let first = stream.message().await.unwrap().unwrap().to_owned_message();
    assert!(matches!(first.event, Some(Event::Watching(_))));
    write(&client, 1, "new", b"x").await;
    loop {
        let message = stream.message().await.unwrap().unwrap();
        if let Some(Event::Change(change)) = message.to_owned_message().event
            && change.name == "new"
        {
            break;
        }
    }
}

#[tokio::test]
async fn sandboxes_do_not_share_files() {
    let host = FakeHost::start().await.unwrap();
    let client = client(&host);
    create(&client, 1).await;
    create(&client, 2).await;
    write(&client, 1, "mine", b"1").await;
    let error = read(&client, 2, "mine").await.unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    if host.has_mount_namespaces() {
        // What lies outside of the home, too.
        output(&client, 1, "echo 1 > /tmp/of-one").await;
        assert_eq!(output(&client, 2, "ls /tmp").await, "");
        assert!(!std::path::Path::new("/tmp/of-one").exists());
        assert_eq!(
            output(&client, 1, "id -un; echo ~").await,
            "user\n/home/user"
        );
        let refused = exec(&client, 1, "touch /etc/x || echo no").await.unwrap();
        assert_eq!(&refused.stdout[..], b"no\n");
    }
}
