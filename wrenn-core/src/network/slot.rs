//! One slot as its owner sees it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::config::{
    GATEWAY_ADDRESS, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX, MacAddress, TAP_NAME,
};
use super::counters::{CountError, SlotCounters};
use super::egress::{self, EgressPolicy, SetEgressError};
use super::host::{Host, on_thread, on_thread_then_drop};
use super::lease::LeaseError;
use super::link::{LinkError, Request};
use super::namespace::{self, NamespaceError};
use super::nftables::NftError;
use super::pieces::{Pieces, retire};
use super::plan::SlotNumber;
use super::sys::{self, TapOwner};
use crate::Chain;

/// How often a TAP is given away that somebody still has open, and the pause in between.
const GIVE_TRIES: u32 = 100;
const GIVE_PAUSE: Duration = Duration::from_millis(10);

/// Why a slot could not be made. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum CreateSlotError {
    #[error("cannot lease a network slot")]
    Lease(#[from] LeaseError),
    #[error("cannot make the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot make the slot's links")]
    Link(#[from] LinkError),
    #[error("cannot set the slot's firewall rules")]
    Firewall(#[from] NftError),
    #[error("cannot make TAP {TAP_NAME} with {device}", device = sys::TUN_DEVICE)]
    Tap {
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run a thread to make the slot on")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

impl CreateSlotError {
    /// Whether somebody else has a name that this slot needs.
    pub(super) fn is_taken(&self) -> bool {
        match self {
            Self::Namespace(error) => error.already_there(),
            Self::Link(error) => error.already_there(),
            _ => false,
        }
    }
}

/// Why a slot could not be given back. A reaper goes on trying, and what it can't remove
/// is left to the next sweep.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum RemoveSlotError {
    #[error("cannot remove the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot look at the namespace's name {path}", path = path.display())]
    Look {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot remove the slot's links")]
    Link(#[from] LinkError),
    #[error("cannot remove the slot from the host's firewall")]
    Firewall(#[from] NftError),
    #[error("cannot give the slot number back")]
    Lease(#[from] LeaseError),
    #[error("cannot run a thread to remove the slot on")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

/// Why a TAP could not be given to a user.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum GrantTapError {
    #[error("cannot enter the slot's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot change the owner of TAP {TAP_NAME}")]
    Tap {
        #[source]
        source: std::io::Error,
    },
    #[error("cannot run a thread in the slot's namespace")]
    Thread {
        #[source]
        source: std::io::Error,
    },
}

/// Why a slot could not be given to another owner.
#[derive(Debug, thiserror::Error)]
pub(super) enum RelabelError {
    #[error("cannot write down the slot's owner")]
    Lease(#[from] LeaseError),
    #[error("a worker thread died")]
    Thread,
}

/// A network identity, ready for a VM: start the VMM in [`namespace_path`] with the TAP
/// [`tap_name`], and give the guest [`guest_address`] and [`gateway`].
///
/// [`namespace_path`]: Self::namespace_path
/// [`tap_name`]: Self::tap_name
/// [`guest_address`]: Self::guest_address
/// [`gateway`]: Self::gateway
#[must_use = "dropping a slot gives it back in the background"]
#[derive(Debug)]
pub struct NetworkSlot {
    host: Arc<Host>,
    number: SlotNumber,
    /// There until the slot is given back.
    pieces: Option<Pieces>,
    kept: bool,
}

/// Makes the TAP this user's. A process that is born for another sandbox just when the TAP
/// was made has its descriptor too, until it begins its program a moment later.
fn give_tap(owner: TapOwner) -> io::Result<()> {
    let mut tries = 1..GIVE_TRIES;
    loop {
        match sys::keep_tap(TAP_NAME, Some(owner)) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries.next().is_some() => {
                std::thread::sleep(GIVE_PAUSE);
            }
            given => return given,
        }
    }
}

impl NetworkSlot {
    pub(super) async fn create(host: Arc<Host>, owner: &str) -> Result<Self, CreateSlotError> {
        let owner = owner.to_owned();
        let busy = host.count_busy();
        // If nobody waits any more when the slot is ready, it is dropped on that thread,
        // which gives it back. The count goes behind it, so that it never seems settled.
        let (slot, _busy) = on_thread("wrenn-slot", move || (Self::build(host, &owner), busy))
            .await
            .map_err(|source| CreateSlotError::Thread { source })?;
        slot
    }

    fn build(host: Arc<Host>, owner: &str) -> Result<Self, CreateSlotError> {
        let begun = Instant::now();
        let pieces = Pieces::build(&host, owner)?;
        let number = pieces.slot();
        tracing::debug!(slot = %number, owner, elapsed = ?begun.elapsed(), "network slot made");
        Ok(Self::of(host, pieces))
    }

    /// The slot that consists of these pieces.
    pub(super) const fn of(host: Arc<Host>, pieces: Pieces) -> Self {
        Self {
            host,
            number: pieces.slot(),
            pieces: Some(pieces),
            kept: false,
        }
    }

    /// Sets whether the slot stays when this is dropped, which removes it otherwise.
    pub const fn set_kept(&mut self, kept: bool) {
        self.kept = kept;
    }

    /// Gives the slot to another owner. If that fails, or nobody waits any more, it is
    /// given back.
    pub(super) async fn relabel(mut self, owner: &str) -> Result<Self, RelabelError> {
        let (owner, number) = (owner.to_owned(), self.number);
        let (host, busy) = (Arc::clone(&self.host), self.host.count_busy());
        let (sender, receiver) = oneshot::channel();
        let work = move || {
            let _counted_until_done = busy;
            let written = self
                .pieces
                .as_mut()
                .map_or(Ok(()), |pieces| pieces.relabel(&owner));
            // What nobody takes is dropped here, and gives itself back.
            drop(sender.send(written.map(|()| self)));
            // Only now, and in vain if it was given back: all changes of links wait for one
            // lock of the kernel, and nobody but people who look at the host needs this one.
            let change = Request::set_alias(&number.name(), &owner);
            if let Err(error) = host.with_links(|links| links.execute(vec![change])) {
                let error = Chain(&error).to_string();
                tracing::debug!(slot = %number, error, "the link keeps its old alias");
            }
        };
        drop(tokio::task::spawn_blocking(work));
        match receiver.await {
            Ok(relabelled) => Ok(relabelled?),
            Err(_) => Err(RelabelError::Thread),
        }
    }

    /// The slot's number.
    pub const fn number(&self) -> SlotNumber {
        self.number
    }

    /// The file behind which the slot's network namespace is: open it and `setns`.
    pub fn namespace_path(&self) -> PathBuf {
        namespace::path_of(self.number)
    }

    /// The name of the TAP in the slot's namespace. It is up, persistent, has one queue,
    /// and expects frames with a virtio-net header.
    pub const fn tap_name(&self) -> &'static str {
        TAP_NAME
    }

    /// The MAC address that the guest must have: the host sends frames to no other.
    pub const fn guest_mac(&self) -> MacAddress {
        GUEST_MAC
    }

    /// The address that the guest must have, in a network of this prefix length.
    pub const fn guest_address(&self) -> (Ipv4Addr, u8) {
        (GUEST_ADDRESS, GUEST_PREFIX)
    }

    /// The guest's gateway.
    pub const fn gateway(&self) -> Ipv4Addr {
        GATEWAY_ADDRESS
    }

    /// The address at which the host reaches the guest.
    pub fn reachable_address(&self) -> Ipv4Addr {
        self.host.plan().reachable(self.number)
    }

    /// Lets a user and group open the TAP, so that a VMM needs no privilege for it. To be
    /// called before the VMM opens it.
    ///
    /// # Errors
    /// When the TAP is open already, or the thread that enters the namespace can't start.
    pub async fn grant_tap(&self, user: u32, group: u32) -> Result<(), GrantTapError> {
        let Some(pieces) = &self.pieces else {
            return Ok(());
        };
        let namespace = pieces.namespace();
        on_thread("wrenn-tap", move || {
            namespace::enter(namespace.as_fd())?;
            give_tap(TapOwner { user, group }).map_err(|source| GrantTapError::Tap { source })
        })
        .await
        .map_err(|source| GrantTapError::Thread { source })?
    }

    /// Exchanges what the sandbox may connect to, at once and as a whole: also with a guest
    /// in it, whose connections to what is refused from now on end. A new slot has the
    /// default policy, and an adopted one keeps what it had.
    ///
    /// # Errors
    /// When the kernel refuses; then the old policy stays.
    ///
    /// # Cancel safety
    /// Once begun, the change goes on without the future.
    pub async fn set_egress(&self, policy: &EgressPolicy) -> Result<(), SetEgressError> {
        let Some(pieces) = &self.pieces else {
            return Ok(());
        };
        let (namespace, policy) = (pieces.namespace(), policy.clone());
        on_thread_then_drop("wrenn-egress", move || egress::set(&namespace, &policy))
            .await
            .map_err(|source| SetEgressError::Thread { source })?
    }

    /// What the sandbox has sent and received since its slot was made.
    ///
    /// # Errors
    /// When the slot's link is gone.
    pub async fn counters(&self) -> Result<SlotCounters, CountError> {
        let (host, name) = (Arc::clone(&self.host), self.number.name());
        tokio::task::spawn_blocking(move || SlotCounters::read(&host, &name))
            .await
            .map_err(|_| CountError::Thread)?
    }

    /// Goes away without it: it stays as it is, and a later program adopts it.
    pub fn leave(mut self) {
        // The lease's lock goes with its file, the slot stays.
        drop(self.pieces.take());
    }

    /// Gives the slot back. Processes that are still in its namespace lose their network.
    ///
    /// # Errors
    /// When the kernel refuses a step. A reaper then tries again in the background.
    ///
    /// # Cancel safety
    /// Once begun, the removal goes on without the future.
    pub async fn remove(mut self) -> Result<(), RemoveSlotError> {
        let Some(pieces) = self.pieces.take() else {
            return Ok(());
        };
        let host = Arc::clone(&self.host);
        let busy = host.count_busy();
        on_thread("wrenn-slot", move || {
            let _counted_until_done = busy;
            pieces.tear_down(&host).map_err(|(pieces, error)| {
                retire(Arc::clone(&host), pieces);
                error
            })
        })
        .await
        .map_err(|source| RemoveSlotError::Thread { source })?
    }
}

impl Drop for NetworkSlot {
    fn drop(&mut self) {
        if let Some(pieces) = self.pieces.take().filter(|_| !self.kept) {
            retire(Arc::clone(&self.host), pieces);
        }
    }
}
