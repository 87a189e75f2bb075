//! One measured figure and the figure it is compared with.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One measured figure. Its JSON form is a contract with readers outside of the project.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Dotted name, the benchmark first: `boot.healthy`.
    pub name: String,
    /// Unit of all figures in the record: `ms`, `µs`, `MiB`, `MiB/s`.
    pub unit: String,
    /// How many samples the percentiles come from.
    pub samples: usize,
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
    /// What the figure is compared with, measured in the same run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// Our median divided by the baseline's. Below one is less than the baseline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
}

/// The figure that a [`Record`] is compared with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// What was measured: `firecracker 1.16.1`, `tcp round trip + fork + exec`.
    pub name: String,
    /// Its median, in the record's unit.
    pub p50: f64,
}

impl Record {
    /// Makes a record of samples in any order.
    ///
    /// Returns `None` without samples, as there is no honest figure to report then.
    pub fn of(
        name: impl Into<String>,
        unit: impl Into<String>,
        mut samples: Vec<f64>,
    ) -> Option<Self> {
        samples.sort_by(f64::total_cmp);
        Some(Self {
            name: name.into(),
            unit: unit.into(),
            samples: samples.len(),
            p50: percentile(&samples, 50)?,
            p95: percentile(&samples, 95)?,
            p99: percentile(&samples, 99)?,
            baseline: None,
            ratio: None,
        })
    }

    /// Makes a record of durations, in milliseconds.
    pub fn of_durations(
        name: impl Into<String>,
        samples: impl IntoIterator<Item = Duration>,
    ) -> Option<Self> {
        let milliseconds = samples.into_iter().map(|d| d.as_secs_f64() * 1e3);
        Self::of(name, "ms", milliseconds.collect())
    }

    /// Sets a baseline beside the figure. The ratio stays away where the baseline is zero.
    #[must_use]
    pub fn against(mut self, name: impl Into<String>, p50: f64) -> Self {
        self.ratio = (p50 > 0.0).then(|| self.p50 / p50);
        self.baseline = Some(Baseline {
            name: name.into(),
            p50,
        });
        self
    }
}

/// The nearest-rank percentile of sorted samples: always a value that was measured.
fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.checked_sub(1)?).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values_whatever_the_order() {
        let samples = (1..=200).rev().map(f64::from).collect();
        let record = Record::of("boot.healthy", "ms", samples).unwrap();
        assert_eq!(record.samples, 200);
        assert_eq!((record.p50, record.p95, record.p99), (100.0, 190.0, 198.0));
    }

    #[test]
    fn one_sample_is_every_percentile_and_none_is_no_record() {
        let record = Record::of("x", "ms", vec![7.5]).unwrap();
        assert_eq!((record.p50, record.p95, record.p99), (7.5, 7.5, 7.5));
        assert_eq!(Record::of("x", "ms", Vec::new()), None);
    }

    #[test]
    fn json_is_the_contract() {
        let durations = [Duration::from_millis(3), Duration::from_micros(1500)];
        let record = Record::of_durations("exec.roundtrip", durations).unwrap();
        assert_eq!(
            serde_json::to_value(&record).unwrap(),
            serde_json::json!({
                "name": "exec.roundtrip", "unit": "ms", "samples": 2,
                "p50": 1.5, "p95": 3.0, "p99": 3.0,
            })
        );
        let compared = record.against("tcp", 0.5);
        let json = serde_json::to_value(&compared).unwrap();
        assert_eq!(
            json["baseline"],
            serde_json::json!({"name": "tcp", "p50": 0.5})
        );
        assert_eq!(json["ratio"], 3.0);
        assert_eq!(serde_json::from_value::<Record>(json).unwrap(), compared);
    }

    #[test]
    fn a_zero_baseline_has_no_ratio() {
        let record = Record::of("x", "ms", vec![1.0])
            .unwrap()
            .against("none", 0.0);
        assert_eq!(record.ratio, None);
        assert!(record.baseline.is_some());
    }
}
