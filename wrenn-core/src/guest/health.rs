//! Waiting until the daemon answers.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Request;
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::trace;

use super::GuestClient;

/// Shortest and longest pause between two tries.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(16);
/// When a connection is tried again. A guest whose network is not up yet swallows the first
/// packet, and TCP sends it again only after a second: a new try is quicker.
const CONNECT_AGAIN: Duration = Duration::from_millis(60);
/// How many are tried before all are given up. A guest that is slow, as one is whose memory
/// has to be brought, answers the first: giving that up would only make it more work.
const CONNECT_TRIES: usize = 4;
/// After this long the guest is slow rather than not there, and packets get more time.
const PATIENT_AFTER: Duration = Duration::from_secs(20);
/// How long an answer may take once there is a connection.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// The daemon did not answer in time.
#[derive(Debug, thiserror::Error)]
#[error("the guest's daemon at {address} did not answer within {} s: {last}", .waited.as_secs())]
pub struct UnhealthyError {
    /// Where it should listen.
    pub address: SocketAddr,
    /// How long was waited.
    pub waited: Duration,
    /// What the last try met.
    pub last: String,
}

impl GuestClient {
    /// Waits until the daemon answers: at once, then after 1 ms, doubling.
    ///
    /// # Errors
    /// When it has not answered after `patience`.
    pub async fn wait_healthy(&self, patience: Duration) -> Result<(), UnhealthyError> {
        let start = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let again = if start.elapsed() < PATIENT_AFTER {
                CONNECT_AGAIN
            } else {
                CONNECT_AGAIN * 20
            };
            let asked = tokio::time::timeout_at(start + patience, self.is_healthy(again));
            let last = match asked.await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(last)) => last,
                Err(_) => "the last request was not answered in time".to_owned(),
            };
            if start.elapsed() + pause >= patience {
                return Err(UnhealthyError {
                    address: self.address,
                    waited: patience,
                    last,
                });
            }
            trace!(address = %self.address, last, "the daemon does not answer yet");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One try, on a connection of its own so that no kept one can be stale.
    async fn is_healthy(&self, again: Duration) -> Result<(), String> {
        let stream = connect(self.address, again).await?;
        let ask = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
            let request = Request::get("/health")
                .header(http::header::HOST, self.address.to_string())
                .body(Empty::<Bytes>::new());
            let Ok(request) = request else {
                return Ok(None);
            };
            tokio::select! {
                biased;
                answer = sender.send_request(request) => answer.map(|answer| Some(answer.status())),
                ended = connection => ended.map(|()| None),
            }
        };
        match tokio::time::timeout(ANSWER_DEADLINE, ask).await {
            Ok(Ok(Some(status))) if status.is_success() => Ok(()),
            Ok(Ok(Some(status))) => Err(format!("it answered {status}")),
            Ok(Ok(None)) => Err("the connection closed".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("connected, but no answer".to_owned()),
        }
    }
}

/// The first connection that comes about of a few.
async fn connect(address: SocketAddr, again: Duration) -> Result<TcpStream, String> {
    let mut tries = FuturesUnordered::new();
    for _ in 0..CONNECT_TRIES {
        tries.push(TcpStream::connect(address));
        if let Ok(Some(connected)) = tokio::time::timeout(again, tries.next()).await {
            return connected.map_err(|error| error.to_string());
        }
    }
    Err("no answer to a connection".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn it_waits_until_the_daemon_listens() {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let guest = GuestClient::new(address, None).unwrap();
        let waiting =
            tokio::spawn(async move { guest.wait_healthy(Duration::from_secs(30)).await });

        let listener = TcpListener::bind(address).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 512];
        let n = stream.read(&mut request).await.unwrap();
        assert!(request[..n].starts_with(b"GET /health HTTP/1.1\r\n"));
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn it_gives_up_and_says_what_it_met() {
        let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = reserved.local_addr().unwrap();
        drop(reserved);
        let guest = GuestClient::new(address, None).unwrap();
        let error = guest
            .wait_healthy(Duration::from_millis(20))
            .await
            .unwrap_err();
        assert!(error.last.to_lowercase().contains("refused"), "{error}");
    }
}
