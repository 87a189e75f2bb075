//! `wrenn agent cp`: files of any size, in constant memory.

use std::path::PathBuf;
use std::pin::Pin;

use anyhow::Context;
use futures::StreamExt as _;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use wrenn_core::SandboxId;
use wrenn_proto::hostagent::{StreamReadFileRequest, StreamWriteFileRequest};

use super::client::AgentClient;
use crate::commands::UsageError;

const CHUNK_BYTES: usize = 256 << 10;
/// Chunks on their way up.
const IN_FLIGHT: usize = 4;

/// Options of `wrenn agent cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn agent cp ./data.tar sb…:/tmp/data.tar
  wrenn agent cp sb…:/etc/os-release -
  tar c src | wrenn agent cp - sb…:src.tar")]
pub(super) struct Args {
    /// User of the guest whose file it is.
    #[arg(long, short, value_name = "USER", default_value = "")]
    user: String,
    /// A file here, `-` for standard input, or ID:PATH.
    from: String,
    /// A file here, `-` for standard output, or ID:PATH.
    to: String,
}

/// One end of a copy.
enum End {
    Here(PathBuf),
    Streams,
    Sandbox { id: String, path: String },
}

fn end(text: &str) -> End {
    match text.split_once(':') {
        // A file's name may hold a colon; what stands before it is an id or is not.
        Some((id, path)) if id.parse::<SandboxId>().is_ok() => End::Sandbox {
            id: id.to_owned(),
            path: path.to_owned(),
        },
        _ if text == "-" => End::Streams,
        _ => End::Here(text.into()),
    }
}

pub(super) async fn run(agent: &AgentClient, args: Args) -> anyhow::Result<()> {
    match (end(&args.from), end(&args.to)) {
        (End::Sandbox { id, path }, to) => {
            let user = args.user;
            let request = StreamReadFileRequest {
                id,
                path,
                user,
                ..StreamReadFileRequest::default()
            };
            download(agent, request, to).await
        }
        (from, End::Sandbox { id, path }) => {
            let source: Pin<Box<dyn AsyncRead + Send>> = match from {
                End::Here(file) => {
                    let opened = tokio::fs::File::open(&file).await;
                    Box::pin(opened.with_context(|| format!("cannot open {}", file.display()))?)
                }
                _ => Box::pin(tokio::io::stdin()),
            };
            let begin = StreamWriteFileRequest {
                id,
                path,
                user: args.user,
                ..StreamWriteFileRequest::default()
            };
            upload(agent, begin, source).await
        }
        _ => Err(UsageError("one of the two must be ID:PATH, a file in a sandbox".into()).into()),
    }
}

async fn upload(
    agent: &AgentClient,
    begin: StreamWriteFileRequest,
    source: Pin<Box<dyn AsyncRead + Send>>,
) -> anyhow::Result<()> {
    let (chunks, mut ready) = mpsc::channel(IN_FLIGHT);
    let messages = futures::stream::poll_fn(move |context| ready.poll_recv(context));
    let call = agent.rpc.stream_write_file(messages);
    let mut call = std::pin::pin!(call);
    let mut reading = std::pin::pin!(read(source, begin, chunks));
    tokio::select! {
        answer = &mut call => agent.check(answer).map(drop),
        read = &mut reading => {
            read.context("cannot read what is to be copied")?;
            agent.check(call.await).map(drop)
        }
    }
}

async fn read(
    mut source: Pin<Box<dyn AsyncRead + Send>>,
    mut message: StreamWriteFileRequest,
    chunks: mpsc::Sender<StreamWriteFileRequest>,
) -> std::io::Result<()> {
    loop {
        let mut buffer = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        let length = source.read_buf(&mut buffer).await?;
        message.data = buffer.freeze();
        // A source that fails has no last message, and leaves the old file.
        message.finish_write = length == 0;
        if chunks.send(std::mem::take(&mut message)).await.is_err() || length == 0 {
            // Without a receiver the agent has answered; its answer says why.
            return Ok(());
        }
    }
}

async fn download(
    agent: &AgentClient,
    request: StreamReadFileRequest,
    to: End,
) -> anyhow::Result<()> {
    let name = request
        .path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_owned();
    let opened = agent.rpc.stream_read_file(request).await;
    let mut chunks = std::pin::pin!(futures::stream::try_unfold(
        agent.check(opened)?,
        |mut stream| async move {
            let message = agent.check(stream.message().await)?;
            Ok::<_, anyhow::Error>(message.map(|m| (m.to_owned_message().data, stream)))
        }
    ));
    // The first chunk comes before the file is made: nothing is overwritten by an error.
    let first = chunks.next().await.transpose()?;
    let mut sink: Pin<Box<dyn AsyncWrite>> = match to {
        End::Here(mut file) => {
            if file.is_dir() {
                file.push(name);
            }
            let made = tokio::fs::File::create(&file).await;
            Box::pin(made.with_context(|| format!("cannot write {}", file.display()))?)
        }
        _ => Box::pin(tokio::io::stdout()),
    };
    let mut next = first;
    while let Some(chunk) = next {
        sink.write_all(&chunk)
            .await
            .context("cannot write the copy")?;
        next = chunks.next().await.transpose()?;
    }
    sink.flush().await.context("cannot write the copy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_id_makes_a_sandbox_of_a_name() {
        let inside = end("sbaaaaaaaaaaaaaaaaaaaa:/tmp/a:b");
        assert!(matches!(inside, End::Sandbox { path, .. } if path == "/tmp/a:b"));
        assert!(matches!(end("C:/tmp"), End::Here(_)));
        assert!(matches!(end("-"), End::Streams));
    }
}
