//! Messages of the agent as JSON for programs of today.
//!
//! The JSON of protobuf writes 64-bit numbers as strings, and times as they were measured. Here
//! numbers are numbers, milliseconds are rounded, and phases stand in the order in which they
//! happened. Names and their order are the protocol's.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The steps of a creation or a resume, in their order.
const PHASES: [&str; 6] = ["disk", "slot", "vmm", "healthy", "init", "total"];
const PHASES_FIELD: &str = "phasesMs";
/// Ends of the names of fields that count something. All 64-bit fields have one.
const UNITS: [&str; 4] = ["Sec", "Ms", "Mib", "Bytes"];
/// Fields whose keys and values are a caller's or a guest's.
const FREE_TEXT: [&str; 3] = ["metadata", "env", "failed"];

/// Where a phase stands among the others. One of a newer agent stands before the sum.
pub(super) fn position(phase: &str) -> usize {
    const UNKNOWN: usize = PHASES.len() - 1;
    match PHASES.iter().position(|known| *known == phase) {
        Some(position) if position == UNKNOWN => PHASES.len(),
        Some(position) => position,
        None => UNKNOWN,
    }
}

/// The message for a program.
pub(super) fn plain(
    message: &impl wrenn_proto::connectrpc::JsonSerialize,
) -> Result<Json, serde_json::Error> {
    let protobuf: Json = serde_json::from_str(&serde_json::to_string(message)?)?;
    Ok(protobuf.plain(""))
}

/// JSON whose objects keep the order of their members.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Json {
    Array(Vec<Json>),
    Object(IndexMap<String, Json>),
    Scalar(Value),
}

impl Json {
    fn plain(self, field: &str) -> Self {
        match self {
            Self::Array(items) => {
                Self::Array(items.into_iter().map(|item| item.plain(field)).collect())
            }
            Self::Object(members) if FREE_TEXT.contains(&field) => Self::Object(members),
            Self::Object(mut members) => {
                if field == PHASES_FIELD {
                    members.sort_by_cached_key(|phase, _| position(phase));
                    let rounded = members
                        .into_iter()
                        .map(|(phase, took)| (phase, took.round(1)));
                    return Self::Object(rounded.collect());
                }
                let members = members.into_iter().map(|(name, value)| {
                    let value = value.plain(&name);
                    (name, value)
                });
                Self::Object(members.collect())
            }
            Self::Scalar(Value::String(text)) if UNITS.iter().any(|unit| field.ends_with(unit)) => {
                let number = text.parse::<u64>().map(Value::from);
                Self::Scalar(number.unwrap_or(Value::String(text)))
            }
            scalar => scalar.round(3),
        }
    }

    /// A number of floating point with so many digits after its point; all else as it is.
    fn round(self, digits: i32) -> Self {
        match self {
            Self::Scalar(Value::Number(number)) if number.is_f64() => {
                let scale = 10_f64.powi(digits);
                let rounded = number.as_f64().map(|exact| (exact * scale).round() / scale);
                Self::Scalar(rounded.map_or(Value::Number(number), Value::from))
            }
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use wrenn_proto::hostagent::{
        GetHostResponse, GetMetricsResponse, ListSandboxesResponse, ListSnapshotsResponse, Sandbox,
        Snapshot,
    };

    use super::*;

    fn text(message: &impl wrenn_proto::connectrpc::JsonSerialize) -> String {
        serde_json::to_string(&plain(message).unwrap()).unwrap()
    }

    #[test]
    fn numbers_are_numbers_and_rounded() {
        let phases = [
            ("total", 1_240.040_886_999_999_9),
            ("init", 0.26),
            ("disk", 12.0),
            ("newer", 1.0),
            ("vmm", 7.949_999),
        ];
        let sandbox = Sandbox {
            id: "sb1".to_owned(),
            timeout_sec: 600,
            idle_ms: u64::MAX,
            metadata: [("limitBytes".to_owned(), "007".to_owned())]
                .into_iter()
                .collect(),
            phases_ms: phases
                .into_iter()
                .map(|(phase, ms)| (phase.to_owned(), ms))
                .collect(),
            ..Sandbox::default()
        };
        let list = ListSandboxesResponse {
            sandboxes: vec![sandbox],
            ..ListSandboxesResponse::default()
        };
        assert_eq!(
            text(&list),
            "{\"sandboxes\":[{\"id\":\"sb1\",\"timeoutSec\":600,\"idleMs\":18446744073709551615,\
             \"metadata\":{\"limitBytes\":\"007\"},\"phasesMs\":{\"disk\":12.0,\"vmm\":7.9,\
             \"init\":0.3,\"newer\":1.0,\"total\":1240.0}}]}"
        );
        let metrics = GetMetricsResponse {
            cpu_seconds: 0.123_456_789,
            memory_bytes: 1 << 40,
            ..GetMetricsResponse::default()
        };
        assert_eq!(
            text(&metrics),
            "{\"cpuSeconds\":0.123,\"memoryBytes\":1099511627776}"
        );
        let host = GetHostResponse {
            memory_mib: 1,
            max_memory_mib: 2,
            free_disk_mib: 3,
            ..GetHostResponse::default()
        };
        assert_eq!(
            text(&host),
            "{\"memoryMib\":1,\"maxMemoryMib\":2,\"freeDiskMib\":3}"
        );
        let snapshots = ListSnapshotsResponse {
            snapshots: vec![Snapshot {
                name: "5".to_owned(),
                disk_bytes: 5,
                ..Snapshot::default()
            }],
        };
        assert_eq!(
            text(&snapshots),
            "{\"snapshots\":[{\"name\":\"5\",\"diskBytes\":5}]}"
        );
    }
}
