//! The descriptors that this process may open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::{info, warn};
use wrenn_core::fleet::Limits;

/// Those of one sandbox: its VM's process and socket, cgroup, disk, network namespace, lock and
/// console, and the connections of callers and to its guest.
const PER_SANDBOX: u64 = 64;
/// Those of the agent itself.
const OWN: u64 = 512;

/// Raises the limit to what `limits` need, and logs where it cannot be.
pub(crate) fn raise(limits: &Limits) {
    let needed = OWN + PER_SANDBOX * u64::from(limits.sandboxes);
    let limit = getrlimit(Resource::Nofile);
    let Some(raised) = raised(limit, needed) else {
        return;
    };
    let least = Rlimit {
        current: limit.maximum,
        ..limit
    };
    // Only a privileged process may raise the maximum.
    if setrlimit(Resource::Nofile, raised).is_ok() {
        info!(needed, "raised the limit of open files");
    } else if let Err(error) = setrlimit(Resource::Nofile, least) {
        warn!(needed, %error, "failed to raise the limit of open files");
    } else {
        warn!(
            needed,
            limit = limit.maximum,
            "the limit of open files is too low for as many sandboxes as may run; set \
             LimitNOFILE of the service, or lower --max-sandboxes"
        );
    }
}

/// The limit that `needed` descriptors take; `None` where it is high enough. Nothing is lowered.
fn raised(limit: Rlimit, needed: u64) -> Option<Rlimit> {
    let is_enough = |value: Option<u64>| value.is_none_or(|value| value >= needed);
    if is_enough(limit.current) {
        return None;
    }
    Some(Rlimit {
        current: Some(needed),
        maximum: if is_enough(limit.maximum) {
            limit.maximum
        } else {
            Some(needed)
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_only_raised() {
        let limit = |current, maximum| Rlimit { current, maximum };
        assert_eq!(raised(limit(Some(100), Some(100)), 100), None);
        assert_eq!(raised(limit(None, None), 100), None);
        assert_eq!(
            raised(limit(Some(64), Some(1000)), 100),
            Some(limit(Some(100), Some(1000)))
        );
        assert_eq!(
            raised(limit(Some(64), Some(64)), 100),
            Some(limit(Some(100), Some(100)))
        );
    }
}
