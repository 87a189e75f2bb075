//! What somebody left under the names of a slot, and whether it may be removed.
//!
//! Names follow from slot numbers and are shared by all root directories of a host, so a
//! name alone proves nothing. Who has leased a number may remove
//!
//! | thing | if |
//! |---|---|
//! | link | its hardware address carries the mark of this root directory |
//! | elements of the host's sets | there is no link of that name with another mark |
//! | named namespace | its link is ours, or its inode is what the owner wrote down |
//! | name without a namespace | there is no link of that name with another mark |

use super::conntrack;
use super::host::Host;
use super::lease::SlotLease;
use super::link::{Links, Request};
use super::namespace::{self, Pinned};
use super::plan::SlotNumber;
use super::slot::{CreateSlotError, RemoveSlotError};
use crate::Chain;

/// Hands back a slot that was just leased if its names are free. Another root directory on
/// this host may use them, or a dead owner whose lease is lost.
pub(super) fn usable(
    links: &mut Links,
    lease: SlotLease,
) -> Result<Option<SlotLease>, CreateSlotError> {
    let slot = lease.slot();
    let free = links.find(&slot.name())?.is_none()
        && matches!(
            namespace::pinned(&namespace::path_of(slot)),
            Ok(Pinned::Nothing)
        );
    if free {
        return Ok(Some(lease));
    }
    lease.release()?;
    Ok(None)
}

/// Removes what there is of a slot whose number the caller has leased. Idempotent. Looks
/// at the identity of each thing first: names are shared by all root directories of a
/// host, and another one may have taken this number after its owner died.
///
/// `inode` is that of the namespace which the owner wrote down, if it did.
pub(super) fn remove_remains(
    host: &Host,
    links: &mut Links,
    slot: SlotNumber,
    inode: Option<u64>,
) -> Result<(), RemoveSlotError> {
    let link = links.find(&slot.name())?;
    let ours = link.as_ref().is_some_and(|link| host.owns(link));
    let foreign = link.is_some() && !ours;
    if !foreign {
        host.close(slot)?;
        // Replies to connections of this guest would reach the next one that has the slot.
        let address = host.plan().reachable(slot);
        if let Err(error) = conntrack::forget(address) {
            tracing::warn!(%slot, %address, error = %Chain(&error), "connections are left to end by themselves");
        }
    }
    if let Some(link) = link.filter(|_| ours)
        && let Err(error) = links.execute(vec![Request::delete_link(&link)])
    {
        // Its namespace may have ended meanwhile and taken the pair along.
        if links.find(&link.name)?.is_some() {
            return Err(error.into());
        }
    }
    let path = namespace::path_of(slot);
    let named = namespace::pinned(&path).map_err(|source| RemoveSlotError::Look {
        path: path.clone(),
        source,
    })?;
    let ours = match named {
        Pinned::Nothing => false,
        Pinned::Empty => !foreign,
        Pinned::Namespace(found) => ours || inode == Some(found),
    };
    if ours {
        namespace::unpin(&path)?;
    }
    Ok(())
}
