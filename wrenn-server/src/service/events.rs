//! What changed, for those who listen: a ring of the newest events, and a channel.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use time::OffsetDateTime;
use tokio::sync::broadcast;
use wrenn_api::event::{Event, EventKind};
use wrenn_api::id::TeamId;

/// How many events a client may have missed and still get.
const RING: usize = 10_000;
/// How many events a subscriber may be behind before it is told to read the lists again.
const CHANNEL: usize = 1024;

/// An event, and whose it is; of a host, everybody's.
#[derive(Clone, Debug)]
pub(crate) struct TeamEvent {
    pub(crate) team: Option<TeamId>,
    pub(crate) event: Event,
}

impl TeamEvent {
    pub(crate) fn is_for(&self, team: &TeamId) -> bool {
        self.team.as_ref().is_none_or(|owner| owner == team)
    }
}

/// The events of this server.
#[derive(Debug)]
pub(crate) struct Events {
    ring: Mutex<Ring>,
    channel: broadcast::Sender<TeamEvent>,
}

#[derive(Debug, Default)]
struct Ring {
    next: u64,
    events: VecDeque<TeamEvent>,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            ring: Mutex::new(Ring {
                next: 1,
                ..Ring::default()
            }),
            channel: broadcast::Sender::new(CHANNEL),
        }
    }
}

/// An event of a kind with nothing in it.
pub(crate) fn event(kind: EventKind, at: OffsetDateTime) -> Event {
    Event {
        seq: 0,
        kind,
        at,
        sandbox_id: None,
        status: None,
        reason: None,
        template: None,
        host_id: None,
        host_status: None,
    }
}

impl Events {
    /// Gives an event its number and hands it to every subscriber.
    pub(crate) fn publish(&self, team: Option<TeamId>, mut event: Event) {
        let mut ring = self.ring();
        event.seq = ring.next;
        ring.next += 1;
        let event = TeamEvent { team, event };
        if ring.events.len() == RING {
            ring.events.pop_front();
        }
        ring.events.push_back(event.clone());
        // Under the lock, so that subscribers see them in order. Without any it is no failure.
        drop(self.channel.send(event));
    }

    /// Events after `seq`, and those to come. With `None` only those to come. The flag says
    /// that some between are lost.
    pub(crate) fn subscribe(
        &self,
        after: Option<u64>,
    ) -> (Vec<TeamEvent>, bool, broadcast::Receiver<TeamEvent>) {
        let ring = self.ring();
        let receiver = self.channel.subscribe();
        let Some(after) = after else {
            return (Vec::new(), false, receiver);
        };
        let oldest = ring
            .events
            .front()
            .map_or(ring.next, |event| event.event.seq);
        // A number that was never given is of another run of the server.
        let lost = after + 1 < oldest || after >= ring.next;
        let missed = ring
            .events
            .iter()
            .filter(|event| event.event.seq > after)
            .cloned()
            .collect();
        (missed, lost, receiver)
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subscriber_gets_missed_events_once() {
        let events = Events::default();
        for _ in 0..3 {
            events.publish(
                None,
                event(EventKind::HostStatus, OffsetDateTime::UNIX_EPOCH),
            );
        }
        let (missed, lost, _) = events.subscribe(Some(1));
        let numbers: Vec<u64> = missed.iter().map(|event| event.event.seq).collect();
        assert_eq!((numbers, lost), (vec![2, 3], false));
        let (missed, lost, _) = events.subscribe(Some(3));
        assert_eq!((missed.len(), lost), (0, false));
        let (_, lost, _) = events.subscribe(Some(99));
        assert!(lost, "a number of another run");
    }

    #[test]
    fn subscriber_behind_ring_must_resync() {
        let events = Events::default();
        for _ in 0..=RING {
            events.publish(
                None,
                event(EventKind::HostStatus, OffsetDateTime::UNIX_EPOCH),
            );
        }
        let (missed, lost, _) = events.subscribe(Some(0));
        assert_eq!((missed.len(), lost), (RING, true));
    }
}
