//! Bytes per second, through server and SDK, and straight to the agent.

use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use wrenn_bench::Record;
use wrenn_proto::hostagent::__buffa::oneof::{exec_stream_request, process_event};
use wrenn_proto::hostagent::{
    Command, ExecStart, ExecStreamRequest, StreamReadFileRequest, StreamWriteFileRequest,
};
use wrenn_sdk::ProcessEvent;

use crate::environment::Environment;
use crate::{median, rounds, timed};

const SIZE_MIB: usize = 128;
const SIZE: usize = SIZE_MIB << 20;
/// What the SDK sends at a time.
const CHUNK: usize = 256 << 10;
const FLOOR: &str = "the agent itself";

pub(crate) async fn measure(environment: &Environment) -> anyhow::Result<Vec<Record>> {
    let figures = ["server.stream", "server.upload", "server.download"];
    let mut samples = [const { (Vec::new(), Vec::new()) }; 3];
    for _ in 0..rounds(8) {
        let [stream, upload, download] = &mut samples;
        stream.0.push(speed(stream_by_server(environment)).await?);
        stream.1.push(speed(stream_by_agent(environment)).await?);
        upload.0.push(speed(upload_by_server(environment)).await?);
        upload.1.push(speed(upload_by_agent(environment)).await?);
        download
            .0
            .push(speed(download_by_server(environment)).await?);
        download
            .1
            .push(speed(download_by_agent(environment)).await?);
    }
    let records = figures
        .into_iter()
        .zip(samples)
        .map(|(name, (ours, floor))| {
            Record::of(name, "MiB/s", ours).map(|record| record.against(FLOOR, median(floor)))
        });
    records.collect::<Option<_>>().context("no samples")
}

/// MiB per second of a transfer, which says how many bytes it moved.
async fn speed(transfer: impl Future<Output = anyhow::Result<usize>>) -> anyhow::Result<f64> {
    let (elapsed, bytes) = timed(transfer).await?;
    ensure!(bytes == SIZE, "{bytes} bytes were transferred");
    Ok(SIZE_MIB as f64 / (elapsed / 1e3))
}

async fn stream_by_server(environment: &Environment) -> anyhow::Result<usize> {
    let size = SIZE.to_string();
    let head = ["-c", &size, "/dev/zero"];
    let mut process = environment.sandbox.spawn("head", head).await?;
    let mut received = 0;
    while let Some(event) = process.next().await? {
        if let ProcessEvent::Stdout(bytes) = event {
            received += bytes.len();
        }
    }
    Ok(received)
}

async fn stream_by_agent(environment: &Environment) -> anyhow::Result<usize> {
    let start = ExecStart {
        id: environment.sandbox.id().to_string(),
        command: Some(Command {
            program: "head".to_owned(),
            args: vec!["-c".to_owned(), SIZE.to_string(), "/dev/zero".to_owned()],
            ..Command::default()
        })
        .into(),
    };
    let stream = environment.agent.exec_stream().await?;
    let (mut send, mut receive) = stream.into_split();
    send.send(ExecStreamRequest {
        message: Some(exec_stream_request::Message::from(start)),
    })
    .await?;
    let mut received = 0;
    while let Some(message) = receive.message().await? {
        match message.to_owned_message().event {
            Some(process_event::Event::Stdout(bytes)) => received += bytes.len(),
            Some(process_event::Event::Exit(_)) => break,
            _ => {}
        }
    }
    Ok(received)
}

async fn upload_by_server(environment: &Environment) -> anyhow::Result<usize> {
    let files = environment.sandbox.files();
    let uploaded = files.write_from("large", Zeros { left: SIZE }).await?;
    Ok(usize::try_from(uploaded.bytes)?)
}

async fn upload_by_agent(environment: &Environment) -> anyhow::Result<usize> {
    let first = StreamWriteFileRequest {
        id: environment.sandbox.id().to_string(),
        path: "large".to_owned(),
        ..StreamWriteFileRequest::default()
    };
    // A reader and a new buffer for each chunk, as the SDK has them.
    let rest = (0..SIZE / CHUNK).map(|_| StreamWriteFileRequest {
        data: Bytes::from(vec![7; CHUNK]),
        ..StreamWriteFileRequest::default()
    });
    let last = StreamWriteFileRequest {
        finish_write: true,
        ..StreamWriteFileRequest::default()
    };
    let messages = futures::stream::iter([first].into_iter().chain(rest).chain([last]));
    let written = environment.agent.stream_write_file(messages).await?;
    Ok(usize::try_from(written.into_owned().size)?)
}

async fn download_by_server(environment: &Environment) -> anyhow::Result<usize> {
    let files = environment.sandbox.files();
    let size = files.read_to("large", &mut tokio::io::sink()).await?;
    Ok(usize::try_from(size)?)
}

async fn download_by_agent(environment: &Environment) -> anyhow::Result<usize> {
    let request = StreamReadFileRequest {
        id: environment.sandbox.id().to_string(),
        path: "large".to_owned(),
        ..StreamReadFileRequest::default()
    };
    let mut chunks = environment.agent.stream_read_file(request).await?;
    let mut received = 0;
    while let Some(message) = chunks.message().await? {
        received += message.to_owned_message().data.len();
    }
    Ok(received)
}

/// So many bytes.
struct Zeros {
    left: usize,
}

impl AsyncRead for Zeros {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let count = self.left.min(buffer.remaining());
        buffer.initialize_unfilled_to(count).fill(7);
        buffer.advance(count);
        self.get_mut().left -= count;
        Poll::Ready(Ok(()))
    }
}
