//! What Prometheus hears of this host, at `GET /metrics`.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use wrenn_core::fleet::{Fleet, FleetEvent};
use wrenn_core::sandbox::{PauseTimings, State, Timings};

/// The type of what [`Metrics::render`] gives.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Label = [(&'static str, &'static str); 1];
type Labels = [(&'static str, &'static str); 2];

/// Cheap to clone; all clones count the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    sandboxes: Family<Label, Gauge>,
    creations: Family<Label, Counter>,
    phases: Family<Label, Histogram, fn() -> Histogram>,
    /// Pauses and resumes.
    turns: Family<Labels, Counter>,
    turn_phases: Family<Labels, Histogram, fn() -> Histogram>,
    broken: Counter,
    destroyed: Counter,
    taken_over: Counter,
    execs: Counter,
    streams: Gauge,
    reserved: Family<Label, Gauge<f64, AtomicU64>>,
    limits: Family<Label, Gauge<f64, AtomicU64>>,
}

/// One open stream, until this is dropped.
#[derive(Debug)]
pub(crate) struct OpenStream(Metrics);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.0.streams.dec();
    }
}

/// A millisecond up to more than a minute.
fn phase_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("wrenn_agent");
        let sandboxes = Family::<Label, Gauge>::default();
        registry.register("sandboxes", "Sandboxes, by state", sandboxes.clone());
        let creations = Family::<Label, Counter>::default();
        registry.register(
            "creations",
            "Creations that have ended, by outcome",
            creations.clone(),
        );
        let phases = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        registry.register_with_unit(
            "creation_phase",
            "How long a step of a creation took",
            Unit::Seconds,
            phases.clone(),
        );
        let turns = Family::<Labels, Counter>::default();
        registry.register(
            "turns",
            "Pauses and resumes that have ended, by outcome",
            turns.clone(),
        );
        let turn_phases = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        registry.register_with_unit(
            "turn_phase",
            "How long a step of a pause or resume took",
            Unit::Seconds,
            turn_phases.clone(),
        );
        let broken = Counter::default();
        registry.register("broken", "Sandboxes whose VM ended", broken.clone());
        let destroyed = Counter::default();
        registry.register("destroyed", "Sandboxes destroyed", destroyed.clone());
        let taken_over = Counter::default();
        registry.register(
            "taken_over",
            "Sandboxes of the agent before",
            taken_over.clone(),
        );
        let execs = Counter::default();
        registry.register("execs", "Commands started", execs.clone());
        let streams = Gauge::default();
        registry.register("open_streams", "Streams that are open", streams.clone());
        let reserved = Family::<Label, Gauge<f64, AtomicU64>>::default();
        registry.register("reserved", "What sandboxes were promised", reserved.clone());
        let limits = Family::<Label, Gauge<f64, AtomicU64>>::default();
        registry.register("limit", "What sandboxes may be promised", limits.clone());
        // Counted from nothing, so that the first failure is an increase.
        for outcome in ["succeeded", "failed", "abandoned"] {
            let _from_nothing = creations.get_or_create(&[("outcome", outcome)]);
        }
        for turn in ["pause", "resume"] {
            for outcome in ["succeeded", "failed"] {
                let labels = [("turn", turn), ("outcome", outcome)];
                let _from_nothing = turns.get_or_create(&labels);
            }
        }
        Self(Arc::new(Inner {
            registry,
            sandboxes,
            creations,
            phases,
            turns,
            turn_phases,
            broken,
            destroyed,
            taken_over,
            execs,
            streams,
            reserved,
            limits,
        }))
    }

    /// Counts what happens in a fleet, until the end.
    pub(crate) async fn follow(
        self,
        mut events: broadcast::Receiver<FleetEvent>,
        shutdown: CancellationToken,
    ) {
        loop {
            let event = tokio::select! {
                event = events.recv() => event,
                () = shutdown.cancelled() => return,
            };
            match event {
                Ok(event) => self.count(&event),
                Err(RecvError::Lagged(missed)) => warn!(missed, "events were not counted"),
                Err(RecvError::Closed) => return,
            }
        }
    }

    fn count(&self, event: &FleetEvent) {
        match event {
            FleetEvent::Created(_, timings) => {
                self.ended("succeeded");
                self.observe(timings);
            }
            FleetEvent::NotCreated(_) => self.ended("failed"),
            FleetEvent::Abandoned(_) => self.ended("abandoned"),
            FleetEvent::Paused(_, timings) => {
                self.turned("pause", "succeeded", &pause_phases(timings));
            }
            FleetEvent::NotPaused(_) => self.turned("pause", "failed", &[]),
            FleetEvent::Frozen(_, timings) => {
                self.turned("snapshot", "succeeded", &pause_phases(timings));
            }
            FleetEvent::NotFrozen(_) => self.turned("snapshot", "failed", &[]),
            FleetEvent::Resumed(_, timings) => {
                self.turned("resume", "succeeded", &phases(timings));
            }
            FleetEvent::NotResumed(_) => self.turned("resume", "failed", &[]),
            FleetEvent::TakenOver(_) => {
                self.0.taken_over.inc();
            }
            FleetEvent::Broke(_) => {
                self.0.broken.inc();
            }
            FleetEvent::Destroyed(_) => {
                self.0.destroyed.inc();
            }
            _ => {}
        }
    }

    fn turned(
        &self,
        turn: &'static str,
        outcome: &'static str,
        phases: &[(&'static str, Duration)],
    ) {
        let labels = [("turn", turn), ("outcome", outcome)];
        self.0.turns.get_or_create(&labels).inc();
        for (phase, took) in phases {
            let labels = [("turn", turn), ("phase", *phase)];
            let histogram = self.0.turn_phases.get_or_create(&labels);
            histogram.observe(took.as_secs_f64());
        }
    }

    fn ended(&self, outcome: &'static str) {
        self.0
            .creations
            .get_or_create(&[("outcome", outcome)])
            .inc();
    }

    fn observe(&self, timings: &Timings) {
        for (phase, took) in phases(timings) {
            self.0
                .phases
                .get_or_create(&[("phase", phase)])
                .observe(took.as_secs_f64());
        }
    }

    pub(crate) fn command_started(&self) {
        self.0.execs.inc();
    }

    pub(crate) fn stream_opened(&self) -> OpenStream {
        self.0.streams.inc();
        OpenStream(self.clone())
    }

    /// Everything, in the text format of OpenMetrics.
    pub(crate) fn render(&self, fleet: &Fleet) -> Result<String, std::fmt::Error> {
        let sandboxes = fleet.list();
        for state in State::ALL {
            let count = sandboxes
                .iter()
                .filter(|sandbox| sandbox.status().state == state)
                .count();
            self.0
                .sandboxes
                .get_or_create(&[("state", state.as_str())])
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        let (reserved, limits) = fleet.reserved();
        for (family, sandboxes, vcpus, memory_mib) in [
            (
                &self.0.reserved,
                reserved.sandboxes,
                reserved.vcpus,
                reserved.memory_mib,
            ),
            (
                &self.0.limits,
                limits.sandboxes,
                limits.vcpus,
                limits.memory_mib,
            ),
        ] {
            for (resource, value) in [
                ("sandboxes", f64::from(sandboxes)),
                ("vcpus", f64::from(vcpus)),
                ("memory_bytes", bytes_of(memory_mib)),
            ] {
                family.get_or_create(&[("resource", resource)]).set(value);
            }
        }
        let mut text = String::new();
        encode(&mut text, &self.0.registry)?;
        Ok(text)
    }
}

/// Each step of a creation by name.
pub(crate) fn phases(timings: &Timings) -> [(&'static str, Duration); 6] {
    [
        ("disk", timings.disk),
        ("slot", timings.slot),
        ("vmm", timings.vmm),
        ("healthy", timings.healthy),
        ("init", timings.init),
        ("total", timings.total),
    ]
}

/// Each step of a pause by name.
fn pause_phases(timings: &PauseTimings) -> [(&'static str, Duration); 6] {
    [
        ("sync", timings.capture.sync),
        ("memory", timings.capture.memory),
        ("disk", timings.capture.disk),
        ("publish", timings.capture.publish),
        ("release", timings.release),
        ("total", timings.total),
    ]
}

#[allow(
    clippy::cast_precision_loss,
    reason = "no host has more memory than a double counts in MiB"
)]
fn bytes_of(mib: u64) -> f64 {
    mib as f64 * 1_048_576.0
}

#[cfg(test)]
mod tests {
    use wrenn_core::fleet::Limits;
    use wrenn_core::{RootDirectory, SandboxId};

    use super::*;

    #[test]
    fn what_happened_is_in_the_text() {
        let metrics = Metrics::new();
        metrics.count(&FleetEvent::Created(
            SandboxId::random(),
            Timings {
                total: Duration::from_millis(30),
                ..Timings::default()
            },
        ));
        metrics.count(&FleetEvent::NotCreated(SandboxId::random()));
        let paused = FleetEvent::Paused(SandboxId::random(), PauseTimings::default());
        metrics.count(&paused);
        metrics.count(&FleetEvent::NotResumed(SandboxId::random()));
        metrics.command_started();
        let open = metrics.stream_opened();
        drop(metrics.stream_opened());
        let limits = Limits {
            sandboxes: 3,
            vcpus: 4,
            memory_mib: 1024,
            disk_reserve_mib: 0,
        };
        let fleet = Fleet::without_host(RootDirectory::new("/"), limits);
        let text = metrics.render(&fleet).unwrap();
        for line in [
            "wrenn_agent_sandboxes{state=\"running\"} 0",
            "wrenn_agent_creations_total{outcome=\"succeeded\"} 1",
            "wrenn_agent_creations_total{outcome=\"failed\"} 1",
            "wrenn_agent_creations_total{outcome=\"abandoned\"} 0",
            "wrenn_agent_creation_phase_seconds_count{phase=\"total\"} 1",
            "wrenn_agent_turns_total{turn=\"pause\",outcome=\"succeeded\"} 1",
            "wrenn_agent_turns_total{turn=\"resume\",outcome=\"failed\"} 1",
            "wrenn_agent_turn_phase_seconds_count{turn=\"pause\",phase=\"sync\"} 1",
            "wrenn_agent_execs_total 1",
            "wrenn_agent_open_streams 1",
            "wrenn_agent_limit{resource=\"memory_bytes\"} 1073741824.0",
            "wrenn_agent_reserved{resource=\"vcpus\"} 0.0",
        ] {
            assert!(text.lines().any(|given| given == line), "{line}\n{text}");
        }
        drop(open);
        assert!(metrics.render(&fleet).unwrap().contains("open_streams 0"));
    }
}
