//! The greeting: every call into a guest from the start of its VM until commands can run in it,
//! under one deadline.
//!
//! ```text
//!  /health ─▶ /init, again until the clock is right ─▶ thaw, or the start command
//!  └──────────────────────── one deadline ────────────────────────────────────┘
//! ```
//!
//! A guest whose root has replaced the daemon can answer the first call and let all others
//! hang. So the deadline holds for all calls together, and the greeting also ends when the VM
//! ends or the operation is cancelled, as by a destroy.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::guest::{GuestClient, GuestError, UnhealthyError};
use crate::vm::ExitReason;

/// Why a guest was not greeted.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// Its daemon did not answer at all.
    #[error("the guest does not answer")]
    Unhealthy(#[from] UnhealthyError),
    /// Its daemon answered the first call only.
    #[error("the guest was not set up within {} s", .0.as_secs())]
    Deadline(Duration),
    /// Its daemon refused a call.
    #[error("cannot set up the guest")]
    Refused(#[from] GuestError),
    /// Its VM ended.
    #[error("the VM ended before the guest was set up ({0})")]
    Ended(ExitReason),
    /// The operation was cancelled.
    #[error("the sandbox was destroyed before its guest was set up")]
    Cancelled,
}

/// A greeting that has begun.
pub(crate) struct Greeting<'a> {
    deadline: Duration,
    ends: Instant,
    cancelled: &'a CancellationToken,
}

impl<'a> Greeting<'a> {
    pub(crate) fn begin(deadline: Duration, cancelled: &'a CancellationToken) -> Self {
        Self {
            deadline,
            ends: Instant::now() + deadline,
            cancelled,
        }
    }

    /// Waits until the daemon answers.
    pub(super) async fn healthy(
        &self,
        guest: &GuestClient,
        ended: impl Future<Output = ExitReason>,
    ) -> Result<(), GreetError> {
        let healthy = async { Ok(guest.wait_healthy(self.deadline).await?) };
        self.unless_cut(healthy, ended).await
    }

    /// Makes the calls that follow.
    pub(crate) async fn set_up<T>(
        &self,
        calls: impl Future<Output = Result<T, GuestError>>,
        ended: impl Future<Output = ExitReason>,
    ) -> Result<T, GreetError> {
        let calls = async {
            let made = timeout_at(self.ends, calls).await;
            Ok(made.map_err(|_| GreetError::Deadline(self.deadline))??)
        };
        self.unless_cut(calls, ended).await
    }

    async fn unless_cut<T>(
        &self,
        calls: impl Future<Output = Result<T, GreetError>>,
        ended: impl Future<Output = ExitReason>,
    ) -> Result<T, GreetError> {
        tokio::select! {
            biased;
            () = self.cancelled.cancelled() => Err(GreetError::Cancelled),
            // A VM that ends breaks the connection too; its end says more.
            reason = ended => Err(GreetError::Ended(reason)),
            made = calls => made,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::guest::InitRequest;

    /// A guest whose port answers `/health`, and lets all other calls hang.
    async fn hostile_guest() -> GuestClient {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut hanging = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).await.unwrap();
                if request[..read].starts_with(b"GET /health ") {
                    let healthy = b"HTTP/1.1 204 No Content\r\n\r\n";
                    stream.write_all(healthy).await.unwrap();
                }
                hanging.push(stream);
            }
        });
        GuestClient::new(address, None).unwrap()
    }

    /// Greets a hostile guest as a resume does.
    async fn greet(
        deadline: Duration,
        cancelled: &CancellationToken,
        ended: impl Future<Output = ExitReason>,
    ) -> GreetError {
        let mut guest = hostile_guest().await;
        let greeting = Greeting::begin(deadline, cancelled);
        greeting.healthy(&guest, pending()).await.unwrap();
        let calls = async {
            guest.init(&InitRequest::default()).await?;
            guest.thaw().await
        };
        greeting.set_up(calls, ended).await.unwrap_err()
    }

    #[tokio::test(start_paused = true)]
    async fn hanging_guest_misses_the_deadline() {
        let cancelled = CancellationToken::new();
        let greeted = greet(Duration::from_secs(60), &cancelled, pending()).await;
        assert!(matches!(greeted, GreetError::Deadline(_)), "{greeted}");
        assert_eq!(greeted.to_string(), "the guest was not set up within 60 s");
    }

    #[tokio::test]
    async fn destroy_cancels_a_greeting() {
        let cancelled = CancellationToken::new();
        let cancelling = async {
            tokio::task::yield_now().await;
            cancelled.cancel();
            pending::<ExitReason>().await
        };
        let greeted = greet(Duration::from_secs(3600), &cancelled, cancelling).await;
        assert!(matches!(greeted, GreetError::Cancelled), "{greeted}");
    }

    #[tokio::test]
    async fn end_of_the_vm_ends_a_greeting() {
        let cancelled = CancellationToken::new();
        let ended = async { ExitReason::Code(0) };
        let greeted = greet(Duration::from_secs(3600), &cancelled, ended).await;
        assert!(matches!(greeted, GreetError::Ended(_)), "{greeted}");
    }
}
