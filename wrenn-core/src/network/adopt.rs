//! Taking over the slot of a VM that outlived the process which started it.
//!
//! A slot is a namespace with a name, links, and rules; none of them ends with the process
//! that made them, only the lock on the slot's number does. Whoever adopts the slot takes
//! the lock and looks at everything that a VM needs of it:
//!
//! | thing | must be |
//! |---|---|
//! | record | there, of the owner that is asked for |
//! | namespace | there under its name, with the inode of the record, `uplink` and `tap0` in it |
//! | the slot's table | there; its rules are written again, its egress policy stays |
//! | link on the host | there, made by this root directory, the way to the slot's address |
//! | elements of the host's table | put back if somebody flushed the table |

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::TAP_NAME;
use super::host::Host;
use super::lease::{LeaseError, SlotLease, Taken};
use super::link::{LinkError, Links, UPLINK_NAME};
use super::namespace::{self, NamespaceError, Pinned};
use super::nftables::{Firewall, NftError};
use super::pieces::Pieces;
use super::plan::SlotNumber;
use super::policy;

/// Why a slot could not be taken over. It stays as it was, for another try or for a sweep.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum AdoptSlotError {
    #[error("there is no slot {slot}: it was given back or swept")]
    NoSuchSlot { slot: SlotNumber },
    #[error("the owner of slot {slot} still lives; stop that process first")]
    InUse { slot: SlotNumber },
    #[error("nothing legible is written down about slot {slot}; it can only be swept")]
    NoRecord { slot: SlotNumber },
    #[error("slot {slot} belongs to {found}, not to {wanted}")]
    ForeignOwner {
        slot: SlotNumber,
        wanted: String,
        found: String,
    },
    #[error("cannot take the slot's number")]
    Lease(#[from] LeaseError),
    #[error(
        "the network namespace of slot {slot} is not at {path} any more; end what runs in it and sweep",
        path = path.display()
    )]
    NamespaceGone { slot: SlotNumber, path: PathBuf },
    #[error("cannot look at the namespace's name {path}", path = path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot enter a network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("link {name} of slot {slot} is not on this host any more")]
    LinkGone { slot: SlotNumber, name: String },
    #[error("the host's way to {address} is not by link {name}; were its networks changed?")]
    Misrouted { address: Ipv4Addr, name: String },
    #[error("slot {slot} has no firewall rules any more; end what runs in it and sweep")]
    RulesGone { slot: SlotNumber },
    #[error("cannot look at the slot's links")]
    Link(#[from] LinkError),
    #[error("cannot put the slot's firewall rules right")]
    Firewall(#[from] NftError),
    #[error("cannot run a thread to adopt the slot on")]
    Thread {
        #[source]
        source: io::Error,
    },
}

impl AdoptSlotError {
    /// Whether the slot is gone for certain, or another's.
    pub(crate) const fn is_gone(&self) -> bool {
        match self {
            Self::NoSuchSlot { .. }
            | Self::NoRecord { .. }
            | Self::ForeignOwner { .. }
            | Self::NamespaceGone { .. }
            | Self::LinkGone { .. }
            | Self::RulesGone { .. } => true,
            Self::InUse { .. }
            | Self::Lease(_)
            | Self::Look { .. }
            | Self::Namespace(_)
            | Self::Misrouted { .. }
            | Self::Link(_)
            | Self::Firewall(_)
            | Self::Thread { .. } => false,
        }
    }
}

impl Pieces {
    /// Takes a slot over. Runs on a thread of its own, which ends up in the host's
    /// namespace.
    pub(super) fn adopt(
        host: &Host,
        slot: SlotNumber,
        owner: &str,
    ) -> Result<Self, AdoptSlotError> {
        let (lease, inode) = lease(host, slot, owner)?;
        let namespace = open(slot, inode)?;
        check_inside(host, slot, &namespace)?;
        check_host(host, slot)?;
        Ok(Self::new(lease, Arc::new(namespace), inode))
    }
}

fn lease(host: &Host, slot: SlotNumber, owner: &str) -> Result<(SlotLease, u64), AdoptSlotError> {
    // Looked at first: what is another's, not even its lock is touched.
    let foreign = |found: &str| AdoptSlotError::ForeignOwner {
        slot,
        wanted: owner.to_owned(),
        found: found.to_owned(),
    };
    if let Some(record) = host
        .slots()
        .peek(slot)
        .filter(|record| record.owner != owner)
    {
        return Err(foreign(&record.owner));
    }
    let mut lease = match host.slots().take_over(slot)? {
        Taken::Over(lease) => lease,
        Taken::InUse => return Err(AdoptSlotError::InUse { slot }),
        Taken::Nobodys => return Err(AdoptSlotError::NoSuchSlot { slot }),
    };
    match lease.record() {
        None => Err(AdoptSlotError::NoRecord { slot }),
        Some(record) if record.owner != owner => Err(foreign(&record.owner)),
        Some(record) => Ok((lease, record.namespace)),
    }
}

fn open(slot: SlotNumber, inode: u64) -> Result<OwnedFd, AdoptSlotError> {
    let path = namespace::path_of(slot);
    let looked = |path: &Path, source| AdoptSlotError::Look {
        path: path.to_owned(),
        source,
    };
    let pinned = namespace::pinned(&path).map_err(|source| looked(&path, source))?;
    if pinned == Pinned::Namespace(inode) {
        let namespace = File::open(&path).map_err(|source| looked(&path, source))?;
        let namespace = OwnedFd::from(namespace);
        // The name may have been given to another one between the two looks.
        if namespace::inode(&namespace)? == inode {
            return Ok(namespace);
        }
    }
    Err(AdoptSlotError::NamespaceGone { slot, path })
}

fn check_inside(host: &Host, slot: SlotNumber, namespace: &OwnedFd) -> Result<(), AdoptSlotError> {
    namespace::enter(namespace)?;
    let mut links = Links::open()?;
    for name in [UPLINK_NAME, TAP_NAME] {
        links.index_of(name)?;
    }
    let mut firewall = Firewall::open()?;
    // Its egress policy would be gone with its table, and nobody here knows it.
    if firewall
        .elements(policy::TABLE, &policy::CLOSED)?
        .is_empty()
    {
        return Err(AdoptSlotError::RulesGone { slot });
    }
    let rules = policy::slot_table(host.plan().reachable(slot), host.connection_limits());
    firewall.commit(&rules)?;
    Ok(())
}

fn check_host(host: &Host, slot: SlotNumber) -> Result<(), AdoptSlotError> {
    namespace::enter(host.namespace())?;
    let mut links = Links::open()?;
    let name = slot.name();
    let Some(link) = links.find(&name)?.filter(|link| host.owns(link)) else {
        return Err(AdoptSlotError::LinkGone { slot, name });
    };
    let plan = host.plan();
    let address = plan.reachable(slot);
    if links.output_to(address)? != Some(link.index) {
        return Err(AdoptSlotError::Misrouted { address, name });
    }
    let open = policy::open_slot_again(&plan, slot);
    host.with_firewall(|firewall| match firewall.commit(&open) {
        Err(NftError::Refused { source, .. } | NftError::Commit { source })
            if source.kind() == io::ErrorKind::NotFound =>
        {
            firewall.commit(&policy::host_table())?;
            firewall.commit(&open)
        }
        result => result,
    })?;
    Ok(())
}
