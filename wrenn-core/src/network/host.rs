//! What all slots of a host share, and the threads on which they are made.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

use super::config::{ConnectionLimits, MacAddress, NetworkConfig};
use super::lease::SlotDirectory;
use super::link::{Link, LinkError, Links};
use super::nftables::{Batch, Firewall, NftError, SetKey};
use super::plan::{AddressPlan, SlotNumber};
use super::policy::{self, GUESTS, SOURCES, TABLE};
use super::{OpenNetworkError, namespace};

/// The host as seen by its slots.
#[derive(Debug)]
pub(super) struct Host {
    config: NetworkConfig,
    slots: SlotDirectory,
    /// The network namespace that is "the host".
    namespace: OwnedFd,
    /// A connection to its links for what is asked often and needs no thread in it.
    links: Mutex<Links>,
    /// A connection to its firewall. It stays open because closing one after something was
    /// deleted takes the kernel 20 ms.
    firewall: Mutex<Firewall>,
    /// How many slots are being made or given back right now.
    busy: watch::Sender<usize>,
}

impl Host {
    /// The host is the network namespace of the calling thread.
    pub(super) fn new(
        config: NetworkConfig,
        slots: SlotDirectory,
    ) -> Result<Self, OpenNetworkError> {
        Ok(Self {
            config,
            slots,
            namespace: namespace::current()?,
            links: Mutex::new(Links::open()?),
            firewall: Mutex::new(Firewall::open()?),
            busy: watch::Sender::new(0),
        })
    }

    /// Asks or changes something about the host's links, from any thread that may block.
    pub(super) fn with_links<T>(
        &self,
        work: impl FnOnce(&mut Links) -> Result<T, LinkError>,
    ) -> Result<T, LinkError> {
        // Answers are told apart by their numbers, so a panic of another thread in between
        // has harmed nothing.
        work(&mut self.links.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) const fn plan(&self) -> AddressPlan {
        self.config.plan()
    }

    pub(super) const fn connection_limits(&self) -> ConnectionLimits {
        self.config.connection_limits()
    }

    pub(super) const fn slots(&self) -> &SlotDirectory {
        &self.slots
    }

    pub(super) fn namespace(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }

    /// Asks or changes something about the host's firewall, from any thread that may block.
    pub(super) fn with_firewall<T>(
        &self,
        work: impl FnOnce(&mut Firewall) -> Result<T, NftError>,
    ) -> Result<T, NftError> {
        work(&mut self.firewall.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this root directory made a link: its hardware address says so.
    pub(super) fn owns(&self, link: &Link) -> bool {
        let [a, b, c] = self.slots.identity();
        matches!(link.mac, Some(MacAddress([_, x, y, z, ..])) if [x, y, z] == [a, b, c])
    }

    /// Takes a slot out of the host's table, whatever of it is there.
    pub(super) fn close(&self, slot: SlotNumber) -> Result<(), NftError> {
        self.with_firewall(|firewall| self.close_by(firewall, slot))
    }

    fn close_by(&self, firewall: &mut Firewall, slot: SlotNumber) -> Result<(), NftError> {
        match firewall.commit(&policy::close_slot(&self.plan(), slot)) {
            // Not there, not all there, or there under the addresses of other settings.
            Err(NftError::Refused { source, .. } | NftError::Commit { source })
                if source.kind() == io::ErrorKind::NotFound => {}
            result => return result,
        }
        let name = slot.name();
        let sources: Vec<SetKey> = firewall
            .elements(TABLE, &SOURCES)?
            .into_iter()
            .filter(|key| matches!(key, SetKey::InterfaceAndAddress(link, _) if *link == name))
            .collect();
        let guests: Vec<SetKey> = firewall
            .elements(TABLE, &GUESTS)?
            .into_iter()
            .filter(|guest| {
                sources.iter().any(|source| match (source, guest) {
                    (SetKey::InterfaceAndAddress(_, source), SetKey::Address(guest)) => {
                        source == guest
                    }
                    _ => false,
                })
            })
            .collect();
        let mut batch = Batch::new(TABLE);
        batch.delete_elements(&SOURCES, &sources);
        batch.delete_elements(&GUESTS, &guests);
        firewall.commit(&batch)
    }

    /// Counts a slot as being made or given back until the result is dropped.
    pub(super) fn count_busy(self: &Arc<Self>) -> Busy {
        self.busy.send_modify(|count| *count += 1);
        Busy(Arc::clone(self))
    }

    /// Waits until no slot is being made or given back.
    pub(super) async fn settled(&self) {
        let mut busy = self.busy.subscribe();
        // Waiting fails only when the sender is gone, and that is ours.
        drop(busy.wait_for(|count| *count == 0).await);
    }
}

/// A slot that is being made or given back.
pub(super) struct Busy(Arc<Host>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}

/// Runs blocking work on a thread of its own, which ends with it: such work changes the
/// network namespace of the thread on which it runs. Goes on if nobody waits any more.
pub(super) async fn on_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    on_thread_then_drop(name, || (work(), ())).await
}

/// The same for work that leaves something behind whose end takes its time and is awaited
/// by nobody: it is dropped on the thread, when the result is on its way.
pub(super) async fn on_thread_then_drop<T: Send + 'static, R>(
    name: &str,
    work: impl FnOnce() -> (T, R) + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    let span = tracing::Span::current();
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            let (done, rest) = span.in_scope(work);
            // What nobody takes is dropped here, and gives back what it owns.
            drop(sender.send(done));
            drop(rest);
        })?;
    receiver
        .await
        .map_err(|_| io::Error::other("the thread panicked"))
}
