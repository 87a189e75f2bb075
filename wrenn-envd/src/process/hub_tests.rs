use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use proptest::prelude::*;

use super::super::RECONNECT_GRACE;
use super::*;

const STDOUT: Channel = Channel::Stdout;

fn hub() -> Arc<Hub> {
    Hub::new(&Budget::new(RING_LIMIT), RECONNECT_GRACE)
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

/// Publishes as much as a follower may be behind.
async fn fill(hub: &Hub) {
    for _ in 0..WINDOW / CHUNK as u64 {
        hub.publish(STDOUT, &[b'x'; CHUNK]).await;
    }
}

#[tokio::test]
async fn every_follower_gets_everything_and_one_end() {
    let hub = hub();
    let (first, second) = (hub.follow(None), hub.follow(None));
    let publish = async {
        for n in 0..100u8 {
            hub.publish(STDOUT, &[n]).await;
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
    let hub = hub();
    let mut follower = hub.follow(None);
    fill(&hub).await;
    let mut blocked = ByHand::new(hub.publish(STDOUT, b"last"));
    assert!(blocked.is_pending());
    follower.next().await.unwrap();
    blocked.finish().await;
}

#[tokio::test]
async fn output_that_nobody_follows_waits_for_the_next_follower() {
    let hub = hub();
    let first = hub.follow(None);
    hub.publish(STDOUT, b"never taken, ").await;
    drop(first);
    hub.publish(STDOUT, b"nobody there").await;
    let second = hub.follow(None);
    hub.finish(end());
    assert_eq!(
        rest(second).await,
        (b"never taken, nobody there".to_vec(), 1)
    );
    assert_eq!(
        rest(hub.follow(None)).await,
        (Vec::new(), 1),
        "an ended process still ends"
    );
    let again = hub.follow(Some(Offsets::default()));
    assert_eq!(rest(again).await.0.len(), 25, "and has its output");
}

#[tokio::test]
async fn process_waits_for_lost_client_to_return() {
    let hub = hub();
    let mut follower = hub.follow(None);
    fill(&hub).await;
    let Some(Followed::Output(first)) = follower.next().await else {
        panic!("there is output");
    };
    drop(follower);
    hub.publish(STDOUT, &[b'y'; CHUNK]).await;
    let mut blocked = ByHand::new(hub.publish(STDOUT, b"last"));
    assert!(blocked.is_pending());
    // The first chunk never reached the client.
    let again = hub.follow(Some(Offsets::default()));
    assert!(blocked.is_pending());
    let publish = async {
        blocked.finish().await;
        hub.finish(end());
    };
    let ((), (output, ends)) = tokio::join!(publish, rest(again));
    assert_eq!(output.len() as u64, WINDOW + CHUNK as u64 + 4);
    assert_eq!((&output[..CHUNK], ends), (&first.bytes[..], 1));
}

#[tokio::test]
async fn a_follower_that_leaves_while_it_blocks_lets_the_process_go_on() {
    let grace = Duration::from_millis(50);
    let hub = Hub::new(&Budget::new(RING_LIMIT), grace);
    let follower = hub.follow(None);
    fill(&hub).await;
    let mut blocked = ByHand::new(hub.publish(STDOUT, b"y"));
    assert!(blocked.is_pending());
    drop(follower);
    blocked.finish().await;
    hub.finish(end());
    let (output, ends) = rest(hub.follow(None)).await;
    assert_eq!((output.len() as u64, ends), (WINDOW + 1, 1));
    assert_eq!(output.last(), Some(&b'y'));
}

#[tokio::test]
async fn hub_is_abandoned_without_last_follower() {
    let hub = Hub::new(&Budget::new(RING_LIMIT), Duration::ZERO);
    let (first, second) = (hub.follow(None), hub.follow(None));
    let mut abandoned = ByHand::new(hub.abandoned());
    assert!(abandoned.is_pending());
    drop(first);
    assert!(abandoned.is_pending());
    drop(second);
    abandoned.finish().await;
}

#[tokio::test]
async fn follower_that_returns_keeps_hub() {
    let grace = Duration::from_millis(20);
    let hub = Hub::new(&Budget::new(RING_LIMIT), grace);
    drop(hub.follow(None));
    let again = hub.follow(None);
    let mut abandoned = ByHand::new(hub.abandoned());
    assert!(abandoned.is_pending());
    tokio::time::sleep(2 * grace).await;
    assert!(abandoned.is_pending());
    drop(again);
    abandoned.finish().await;
}

#[tokio::test]
async fn the_ring_is_bounded_and_its_gap_is_shown() {
    let hub = hub();
    for n in 0..200u8 {
        hub.publish(STDOUT, &[n; CHUNK]).await;
    }
    let mut follower = hub.follow(Some(Offsets {
        stdout: 5,
        ..Offsets::default()
    }));
    let Some(Followed::Output(first)) = follower.next().await else {
        panic!("there is output");
    };
    let kept = 200 * CHUNK as u64 - first.offset;
    assert!(
        kept <= RING_LIMIT as u64 && kept > RING_LIMIT as u64 * 9 / 10,
        "{kept}"
    );
    assert_eq!(u64::from(first.bytes[0]), first.offset / CHUNK as u64);
    hub.finish(end());
    let (output, _) = rest(follower).await;
    assert_eq!((output.len() + first.bytes.len()) as u64, kept);
}

#[tokio::test]
async fn a_client_goes_on_from_what_it_has_of_each_channel() {
    let hub = hub();
    for (channel, bytes) in [
        (Channel::Stdout, "out1"),
        (Channel::Stderr, "err1"),
        (Channel::Stdout, "out2"),
        (Channel::Stderr, "err2"),
    ] {
        hub.publish(channel, bytes.as_bytes()).await;
    }
    hub.finish(end());
    let mut follower = hub.follow(Some(Offsets {
        stdout: 6,
        stderr: 1,
        pty: 99,
    }));
    let mut chunks = Vec::new();
    while let Some(Followed::Output(chunk)) = follower.next().await {
        let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
        chunks.push((chunk.channel, chunk.offset, text));
    }
    assert_eq!(
        chunks,
        [
            (Channel::Stderr, 1, "rr1".to_owned()),
            (Channel::Stdout, 6, "t2".to_owned()),
            (Channel::Stderr, 4, "err2".to_owned()),
        ]
    );
}

#[tokio::test]
async fn rings_share_their_budget() {
    let budget = Budget::new(1024 * 1024);
    let hubs: Vec<_> = (0..8).map(|_| Hub::new(&budget, RECONNECT_GRACE)).collect();
    for hub in &hubs {
        for _ in 0..64 {
            hub.publish(STDOUT, &[b'x'; CHUNK]).await;
        }
        assert!(budget.used() <= 1024 * 1024, "{}", budget.used());
    }
    for hub in &hubs {
        let follower = hub.follow(Some(Offsets::default()));
        hub.finish(end());
        let (kept, _) = rest(follower).await;
        assert!(kept.len() >= 1024 * 1024 / 16, "{}", kept.len());
    }
    drop(hubs);
    assert_eq!(budget.used(), 0, "what is forgotten is freed");
}

#[tokio::test]
async fn untaken_output_is_not_reclaimed() {
    let budget = Budget::new(1);
    let hub = Hub::new(&budget, RECONNECT_GRACE);
    let follower = hub.follow(None);
    fill(&hub).await;
    hub.finish(end());
    assert_eq!(rest(follower).await.0.len() as u64, WINDOW);
}

/// The bytes that a client received of one channel.
#[derive(Debug, Default)]
struct Received(Vec<u8>);

impl Received {
    fn take(&mut self, chunk: &Chunk) {
        assert_eq!(
            chunk.offset,
            self.0.len() as u64,
            "nothing lost, nothing twice"
        );
        self.0.extend_from_slice(&chunk.bytes);
    }
}

/// A client that takes so many events of a connection, of which so many got through.
#[derive(Debug, Clone, Copy)]
struct Connection {
    taken: usize,
    lost: usize,
}

/// Follows over several connections, each of which breaks, and a last one. Says what came on
/// both channels, and how many ends.
async fn reconnect(hub: &Arc<Hub>, connections: &[Connection]) -> (Vec<u8>, Vec<u8>, usize) {
    let (mut stdout, mut stderr, mut ends) = (Received::default(), Received::default(), 0);
    let last = Connection {
        taken: usize::MAX,
        lost: 0,
    };
    for connection in connections.iter().chain([&last]) {
        let mut follower = hub.follow(Some(Offsets {
            stdout: stdout.0.len() as u64,
            stderr: stderr.0.len() as u64,
            pty: 0,
        }));
        let mut events = Vec::new();
        while events.len() < connection.taken {
            match follower.next().await {
                Some(event) => events.push(event),
                None => break,
            }
        }
        let got = events.len().saturating_sub(connection.lost);
        for event in &events[..got] {
            match event {
                Followed::Output(chunk) if chunk.channel == STDOUT => stdout.take(chunk),
                Followed::Output(chunk) => stderr.take(chunk),
                Followed::Ended(_) => ends += 1,
            }
        }
        if ends > 0 {
            break;
        }
    }
    (stdout.0, stderr.0, ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Hazards 1 and 2 over broken connections: whatever was on its way when one broke comes
    /// again, in order, once; and so does the end.
    #[test]
    fn a_client_that_reconnects_sees_the_stream_once(
        writes in prop::collection::vec((any::<bool>(), 1usize..40_000), 1..60),
        connections in prop::collection::vec((0usize..30, 0usize..30), 0..12),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let connections: Vec<_> = connections
            .into_iter()
            .map(|(taken, lost)| Connection { taken, lost })
            .collect();
        let hub = hub();
        let mut written = [Vec::new(), Vec::new()];
        let publish = async {
            for (stdout, length) in &writes {
                let (channel, all) = match stdout {
                    true => (Channel::Stdout, &mut written[0]),
                    false => (Channel::Stderr, &mut written[1]),
                };
                let bytes: Vec<u8> = (0..*length)
                    .map(|n| u8::try_from((all.len() + n) % 251).unwrap())
                    .collect();
                all.extend_from_slice(&bytes);
                for piece in bytes.chunks(CHUNK) {
                    hub.publish(channel, piece).await;
                    tokio::task::yield_now().await;
                }
            }
            hub.finish(end());
        };
        let (stdout, stderr, ends) = runtime.block_on(async {
            let ((), seen) = tokio::join!(publish, reconnect(&hub, &connections));
            seen
        });
        prop_assert_eq!(ends, 1);
        prop_assert!(stdout == written[0] && stderr == written[1]);
    }
}

/// A future that is polled by hand.
struct ByHand<F>(std::pin::Pin<Box<F>>);

impl<F: Future> ByHand<F> {
    fn new(future: F) -> Self {
        Self(Box::pin(future))
    }

    fn is_pending(&mut self) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.0.as_mut().poll(&mut context).is_pending()
    }

    async fn finish(self) -> F::Output {
        self.0.await
    }
}
