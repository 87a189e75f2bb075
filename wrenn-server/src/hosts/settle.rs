//! What to do when a row and its host differ: a pure function, tested over every triple.
//!
//! | row shall be | host says | step |
//! |---|---|---|
//! | stopped | it is there | destroy it |
//! | stopped | it is not there | record that it is stopped |
//! | running, paused | another status | record the host's status |
//! | paused, and is | it is not there | nothing: it stays paused, its resume says that it is lost |
//! | running, paused | it is not there | ask the host by its id, and count |
//!
//! The row is never newer than the list: the caller leaves out rows that changed since the
//! host was asked, and those that an operation works on.

use wrenn_api::status::Status;

use crate::store::Intent;

/// How often a host must not find a sandbox before it counts as gone.
pub(crate) const NOT_FOUND_LIMIT: u32 = 2;

/// What the host said of the sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Observed {
    /// It is in the list, with this status.
    Listed(Status),
    /// It is not in a list that was whole.
    NotListed,
    /// It was asked for by its id and not found, this often in a row.
    NotFound(u32),
}

/// Whether the host is the one that it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostIdentity {
    /// The same root directory.
    Same,
    /// Another root directory, or one that was emptied: it says nothing about old sandboxes.
    Other,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Nothing,
    /// Record the status that the host says.
    Record(Status),
    /// Ask the host for it by its id.
    Ask,
    /// Record that it is gone.
    RecordStopped,
    /// Destroy it on its host.
    Destroy,
    /// Record that its host does not have it, for now.
    RecordMissing,
    /// Record that its creation did not end.
    RecordFailed,
}

/// Decides what to do about one sandbox.
pub(crate) fn settle(
    intent: Intent,
    status: Status,
    observed: Observed,
    host: HostIdentity,
) -> Step {
    match (intent, observed) {
        // Final: what its host still has of it was asked to go.
        _ if status == Status::Stopped => match observed {
            Observed::Listed(Status::Stopped) | Observed::NotListed | Observed::NotFound(_) => {
                Step::Nothing
            }
            Observed::Listed(_) => Step::Destroy,
        },
        (Intent::Stopped, Observed::Listed(Status::Stopped)) => Step::RecordStopped,
        (Intent::Stopped, Observed::Listed(_)) => Step::Destroy,
        (Intent::Stopped, Observed::NotListed) => Step::Ask,
        (Intent::Stopped, Observed::NotFound(_)) => match host {
            HostIdentity::Same => Step::RecordStopped,
            HostIdentity::Other => Step::Nothing,
        },

        (_, Observed::Listed(Status::Unknown)) => Step::Nothing,
        (_, Observed::Listed(Status::Stopped)) => Step::RecordStopped,
        (_, Observed::Listed(seen)) if seen == status => Step::Nothing,
        (_, Observed::Listed(seen)) => Step::Record(seen),

        // It lies on disk. If the disk has lost it, its resume says so.
        (_, Observed::NotListed | Observed::NotFound(_)) if status == Status::Paused => {
            Step::Nothing
        }
        (_, Observed::NotListed) => Step::Ask,
        (_, Observed::NotFound(_)) if host == HostIdentity::Other => match status {
            Status::Missing => Step::Nothing,
            _ => Step::RecordMissing,
        },
        (_, Observed::NotFound(times)) if times >= NOT_FOUND_LIMIT => match status {
            Status::Pending => Step::RecordFailed,
            _ => Step::RecordStopped,
        },
        (_, Observed::NotFound(_)) => Step::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every_triple() -> impl Iterator<Item = (Intent, Status, Observed, HostIdentity)> {
        let observed: Vec<_> = Status::ALL
            .iter()
            .map(|status| Observed::Listed(*status))
            .chain([Observed::NotListed])
            .chain((1..=3).map(Observed::NotFound))
            .collect();
        Intent::ALL.into_iter().flat_map(move |intent| {
            let observed = observed.clone();
            Status::ALL.iter().flat_map(move |status| {
                observed.clone().into_iter().flat_map(move |observed| {
                    [HostIdentity::Same, HostIdentity::Other]
                        .map(|host| (intent, *status, observed, host))
                })
            })
        })
    }

    #[test]
    fn only_doomed_sandboxes_are_destroyed() {
        for (intent, status, observed, host) in every_triple() {
            if settle(intent, status, observed, host) == Step::Destroy {
                assert!(
                    intent == Intent::Stopped || status == Status::Stopped,
                    "{intent:?} {status} {observed:?} {host:?}"
                );
            }
        }
    }

    #[test]
    fn one_listing_stops_no_sandbox() {
        for (intent, status, observed, host) in every_triple() {
            let step = settle(intent, status, observed, host);
            if step == Step::RecordStopped && intent != Intent::Stopped {
                let known = match observed {
                    Observed::NotFound(times) => {
                        times >= NOT_FOUND_LIMIT && host == HostIdentity::Same
                    }
                    Observed::Listed(seen) => seen == Status::Stopped,
                    Observed::NotListed => false,
                };
                assert!(known, "{intent:?} {status} {observed:?} {host:?}");
            }
        }
    }

    #[test]
    fn paused_sandbox_that_is_absent_stays_paused() {
        for (intent, status, observed, host) in every_triple() {
            let absent = matches!(observed, Observed::NotListed | Observed::NotFound(_));
            if status == Status::Paused && absent && intent != Intent::Stopped {
                assert_eq!(settle(intent, status, observed, host), Step::Nothing);
            }
        }
    }

    #[test]
    fn no_status_is_a_dead_end() {
        for (intent, status, observed, host) in every_triple() {
            let Observed::Listed(seen) = observed else {
                continue;
            };
            let step = settle(intent, status, observed, host);
            let agrees = match step {
                Step::Nothing => seen == status || status == Status::Stopped,
                Step::Record(recorded) => recorded == seen,
                Step::RecordStopped => seen == Status::Stopped,
                Step::Destroy => true,
                Step::Ask | Step::RecordMissing | Step::RecordFailed => false,
            };
            assert!(
                agrees,
                "{intent:?} {status} {observed:?} {host:?}: {step:?}"
            );
        }
    }
}
