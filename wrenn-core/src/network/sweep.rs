//! Finds what is on the host under our names, and removes what has no owner any more.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::path::PathBuf;

use super::host::Host;
use super::lease::{LeaseError, Record};
use super::link::{Link, LinkError, Links};
use super::namespace::{self, NamespaceError};
use super::nftables::{NftError, SetKey};
use super::plan::{NAME_PREFIX, SlotNumber};
use super::policy::{GUESTS, SOURCES, TABLE};
use super::pool::POOL_OWNER;
use super::remains::remove_remains;
use crate::Chain;

/// Why the host could not be searched.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum SweepError {
    #[error("cannot read which slots are leased")]
    Lease(#[from] LeaseError),
    #[error("cannot read the host's namespaces")]
    Namespace(#[from] NamespaceError),
    #[error("cannot list named namespaces in {directory}", directory = namespace::DIRECTORY)]
    Names {
        #[source]
        source: io::Error,
    },
    #[error("cannot read the host's links")]
    Link(#[from] LinkError),
    #[error("cannot read the host's firewall")]
    Firewall(#[from] NftError),
    #[error("cannot run a thread to search on")]
    Thread {
        #[source]
        source: io::Error,
    },
}

/// Everything on the host that belongs to a slot of anybody, in use or left behind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Named network namespaces.
    pub namespaces: Vec<PathBuf>,
    /// Links in the host's network namespace.
    pub links: Vec<String>,
    /// Elements of the sets in the host's firewall table.
    pub elements: Vec<String>,
    /// Slots of this root directory that are leased, or were by an owner that died.
    pub slots: Vec<SlotNumber>,
}

impl Leftovers {
    /// Whether there is nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Lists what there is. The calling thread must be in the host's namespace.
pub(super) fn leftovers(host: &Host) -> Result<Leftovers, SweepError> {
    let mut elements = Vec::new();
    for set in [SOURCES, GUESTS] {
        for key in host.with_firewall(|firewall| firewall.elements(TABLE, &set))? {
            elements.push(match key {
                SetKey::Address(address) | SetKey::EndOfRange(address) => {
                    format!("{}: {address}", set.name)
                }
                SetKey::InterfaceAndAddress(link, address) => {
                    format!("{}: {link} . {address}", set.name)
                }
            });
        }
    }
    Ok(Leftovers {
        namespaces: named_slots()?.into_iter().map(namespace::path_of).collect(),
        links: our_links(&mut Links::open()?)?
            .into_iter()
            .map(|link| link.name)
            .collect(),
        elements,
        slots: host.slots().list()?,
    })
}

/// Removes what dead owners of this root directory left, and returns their slots. A slot
/// whose owner lives is locked and stays untouched, and so does what another root
/// directory made, or what belongs to an owner that is to be kept. Slots that a dead
/// process had made ahead are nobody's.
///
/// The calling thread must be in the host's namespace.
pub(super) fn sweep(
    host: &Host,
    keep: &dyn Fn(&str) -> bool,
) -> Result<Vec<SlotNumber>, SweepError> {
    let kept = |record: &Option<Record>| matches!(record, Some(record) if record.owner != POOL_OWNER && keep(&record.owner));
    let mut links = Links::open()?;
    // Elements first: a slot gets its link before its elements, so an element that has no
    // link in the later list is nobody's.
    let elements = host.with_firewall(|firewall| firewall.elements(TABLE, &SOURCES))?;
    let present = our_links(&mut links)?;
    let linked: HashSet<&str> = present.iter().map(|link| link.name.as_str()).collect();

    let mut candidates: BTreeSet<SlotNumber> = host.slots().list()?.into_iter().collect();
    candidates.extend(
        present
            .iter()
            .filter(|link| host.owns(link))
            .filter_map(|link| SlotNumber::from_name(&link.name)),
    );
    candidates.extend(elements.iter().filter_map(|key| match key {
        SetKey::InterfaceAndAddress(name, _) if !linked.contains(name.as_str()) => {
            SlotNumber::from_name(name)
        }
        _ => None,
    }));

    let mut swept = Vec::new();
    for slot in candidates {
        // Before the lock, so that whoever adopts it meanwhile doesn't find it locked.
        if kept(&host.slots().peek(slot)) {
            continue;
        }
        let Some(mut lease) = host.slots().lease(slot)? else {
            continue;
        };
        let record = lease.record();
        if kept(&record) {
            continue;
        }
        let inode = record.as_ref().map(|record| record.namespace);
        let removed = remove_remains(host, &mut links, slot, inode)
            .map_err(|error| Chain(&error).to_string())
            .and_then(|()| lease.release().map_err(|error| Chain(&error).to_string()));
        let owner = record.map_or_else(|| "unknown".to_owned(), |record| record.owner);
        match removed {
            Ok(()) => {
                tracing::info!(%slot, owner, "swept the network slot of a dead owner");
                swept.push(slot);
            }
            // One slot that can't be removed must not keep a host from starting.
            Err(error) => tracing::warn!(%slot, owner, error, "cannot sweep a network slot"),
        }
    }
    Ok(swept)
}

fn named_slots() -> Result<Vec<SlotNumber>, SweepError> {
    namespace::list().map_err(|source| SweepError::Names { source })
}

fn our_links(links: &mut Links) -> Result<Vec<Link>, LinkError> {
    let mut ours: Vec<Link> = links
        .list()?
        .into_iter()
        .filter(|link| link.name.starts_with(NAME_PREFIX))
        .collect();
    ours.sort_by_key(|link| SlotNumber::from_name(&link.name));
    Ok(ours)
}
