use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use super::*;

fn chunk(text: impl Into<Bytes>) -> Chunk {
    Chunk {
        channel: Channel::Stdout,
        bytes: text.into(),
    }
}

fn end() -> End {
    End {
        status: ExitStatus::from_raw(0),
        deadline: false,
    }
}

async fn rest(mut follower: Follower) -> (Vec<u8>, usize) {
    let (mut output, mut ends) = (Vec::new(), 0);
    while let Some(event) = follower.next().await {
        match event {
            Followed::Output(chunk) => output.extend_from_slice(&chunk.bytes),
            Followed::Ended(_) => ends += 1,
        }
    }
    (output, ends)
}

#[tokio::test]
async fn every_follower_gets_everything_and_one_end() {
    let hub = Arc::new(Hub::default());
    let (first, second) = (hub.follow(), hub.follow());
    let publish = async {
        for n in 0..100u8 {
            hub.publish(chunk(vec![n])).await;
        }
        hub.finish(end());
    };
    let ((), first, second) = tokio::join!(publish, rest(first), rest(second));
    let expected: Vec<u8> = (0..100).collect();
    assert_eq!(first, (expected.clone(), 1));
    assert_eq!(second, (expected, 1));
}

#[tokio::test]
async fn a_slow_follower_holds_the_process_back() {
    let hub = Arc::new(Hub::default());
    let mut follower = hub.follow();
    for _ in 0..IN_FLIGHT {
        hub.publish(chunk("x")).await;
    }
    let mut blocked = tokio_test_pending(hub.publish(chunk("last")));
    assert!(blocked.is_pending());
    follower.next().await.unwrap();
    blocked.finish().await;
}

#[tokio::test]
async fn output_that_nobody_follows_waits_for_the_next_follower() {
    let hub = Arc::new(Hub::default());
    let first = hub.follow();
    hub.publish(chunk("never taken, ")).await;
    drop(first);
    hub.publish(chunk("nobody there")).await;
    let second = hub.follow();
    hub.finish(end());
    assert_eq!(
        rest(second).await,
        (b"never taken, nobody there".to_vec(), 1)
    );
    assert_eq!(
        rest(hub.follow()).await,
        (Vec::new(), 1),
        "an ended process still ends"
    );
}

#[tokio::test]
async fn a_follower_that_leaves_while_it_blocks_does_not_lose_the_chunk() {
    let hub = Arc::new(Hub::default());
    let follower = hub.follow();
    for _ in 0..IN_FLIGHT {
        hub.publish(chunk("x")).await;
    }
    let mut blocked = tokio_test_pending(hub.publish(chunk("y")));
    assert!(blocked.is_pending());
    drop(follower);
    blocked.finish().await;
    hub.finish(end());
    let (output, ends) = rest(hub.follow()).await;
    let mut counted = output.clone();
    counted.sort_unstable();
    assert_eq!((counted, ends), (b"xxxxxxxxy".to_vec(), 1));
}

#[tokio::test]
async fn the_backlog_is_bounded_and_keeps_the_newest() {
    let hub = Arc::new(Hub::default());
    for n in 0..20u8 {
        hub.publish(chunk(vec![n; BACKLOG_LIMIT / 10])).await;
    }
    let follower = hub.follow();
    hub.finish(end());
    let (output, _) = rest(follower).await;
    assert!(output.len() <= BACKLOG_LIMIT);
    assert_eq!((output.first(), output.last()), (Some(&11), Some(&19)));
}

/// A future that is polled by hand.
struct ByHand<F>(std::pin::Pin<Box<F>>);

fn tokio_test_pending<F: Future>(future: F) -> ByHand<F> {
    ByHand(Box::pin(future))
}

impl<F: Future> ByHand<F> {
    fn is_pending(&mut self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut context).is_pending()
    }

    async fn finish(self) -> F::Output {
        self.0.await
    }
}
