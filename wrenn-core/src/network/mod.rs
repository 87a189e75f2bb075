//! Network slots: what a sandbox sees of the world, and what it doesn't.
//!
//! ```text
//!  host namespace                          namespace wrenn-7
//! ┌────────────────────────────┐          ┌──────────────────────────────────────────┐
//! │ table inet wrenn           │          │ table inet wrenn                         │
//! │  pinning  link+source in   │          │  pinning  tap0: from 169.254.0.21 only   │
//! │           set `sources`    │          │           uplink: to 10.11.0.7 only      │
//! │  input    replies only     │          │  inward   10.11.0.7 → 169.254.0.21       │
//! │  forward  not to `closed`, │          │  input    nothing                        │
//! │           not to a slot    │          │  forward  not to `closed`, only to `open`│
//! │  outward  set `guests` →   │          │  outward  to uplink: from 10.11.0.7      │
//! │           host's address   │          │           to tap0: from 169.254.0.22     │
//! │                            │          │                                          │
//! │ eth0      wrenn-7 ─────────┼── veth ──┼─ uplink                 tap0 ────────────┼─ guest's eth0
//! │        10.12.0.14/31       │          │ 10.12.0.15/31     169.254.0.22/30        │  169.254.0.21/30
//! │ route 10.11.0.7 → .15      │          │ default → .14                            │  default → .22
//! └────────────────────────────┘          └──────────────────────────────────────────┘
//! ```
//!
//! Every guest has the same address, MAC address and gateway, so a snapshot resumes in
//! any slot of any host. What differs is on the host's side and follows from the slot's
//! number (see [`AddressPlan`]).
//!
//! **Policy.** A sandbox reaches the public internet and nothing else: not the host, not
//! another sandbox, no private, link-local, metadata, loopback, multicast or reserved
//! address, and nothing over IPv6. It can send from its own address only. The host
//! reaches a guest at the slot's reachable address; nobody else does, even if the host
//! routes for them. Who tries what is closed gets an ICMP "administratively prohibited".
//! All of this stands before the VM's first instruction.
//!
//! On top of that each sandbox has an [`EgressPolicy`], which can change while it runs, and
//! [`ConnectionLimits`]: all sandboxes share the host's table of connections (conntrack). The
//! host forgets a slot's connections when the slot is released.
//!
//! **Many processes.** Slots are leased by file locks below the root directory, so that
//! independent processes share a host without a daemon. What a dead process left is
//! found by name and checked for identity (the inode of the namespace, an address pattern
//! of the link). When the next [`Network`] opens it is swept, unless its owner is kept:
//! then whoever took over from the dead process [adopts](Network::adopt) it.
//!
//! **Ahead of need.** A [`SlotPool`] holds slots that were made before anybody asked.
//!
//! **No programs.** Links go by rtnetlink, rules by nf_tables netlink. The async layer
//! of the `rtnetlink` crate is left out for the messages below it: a slot is made on a
//! thread that changes its namespace, and whole lists of changes go in one datagram.

mod adopt;
mod config;
mod conntrack;
mod counters;
mod egress;
mod host;
mod lease;
mod link;
mod namespace;
mod netlink;
mod nftables;
mod pieces;
mod plan;
mod policy;
mod pool;
mod ranges;
mod remains;
mod slot;
mod sweep;
mod sys;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use ipnet::Ipv4Net;

pub use adopt::AdoptSlotError;
pub use config::{
    ConfigError, ConnectionLimits, GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC,
    GUEST_PREFIX, MacAddress, NetworkConfig, TAP_NAME,
};
pub use counters::{CountError, SlotCounters, Traffic};
pub use egress::{
    EgressDefault, EgressPolicy, EgressPolicyError, MAX_EGRESS_ENTRIES, SetEgressError,
};
pub use lease::LeaseError;
pub use link::LinkError;
pub use namespace::NamespaceError;
pub use nftables::NftError;
pub use plan::{AddressPlan, MAX_SLOTS, SlotNumber};
pub use pool::{POOL_OWNER, PoolConfig, SlotPool};
pub use slot::{CreateSlotError, GrantTapError, NetworkSlot, RemoveSlotError};
pub use sweep::{Leftovers, SweepError};

use host::{Host, on_thread};
use lease::SlotDirectory;
use link::Links;
use pieces::Pieces;
use plan::NAME_PREFIX;

/// Why a host's network could not be prepared.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the text of each variant says what it is")]
pub enum OpenNetworkError {
    #[error("cannot prepare the slots' directory")]
    Lease(#[from] LeaseError),
    #[error("cannot prepare the host's network namespace")]
    Namespace(#[from] NamespaceError),
    #[error("cannot read the host's routes")]
    Link(#[from] LinkError),
    #[error("cannot set the host's firewall table")]
    Firewall(#[from] NftError),
    #[error("cannot sweep what dead processes left")]
    Sweep(#[from] SweepError),
    #[error("{ours} overlaps the host's route to {route} by {link}; configure another network")]
    Overlap {
        ours: Ipv4Net,
        route: Ipv4Net,
        link: String,
    },
    #[error("cannot run a thread to prepare the network on")]
    Thread {
        #[source]
        source: io::Error,
    },
}

/// The network of a host: makes slots, and finds what is left of old ones.
///
/// "The host" is the network namespace of the thread that opened it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Network {
    host: Arc<Host>,
}

impl Network {
    /// Prepares the host: checks that its routes leave our networks alone, turns on IPv4
    /// forwarding, sets the host's firewall table, and [sweeps](Self::sweep) what dead
    /// processes left, but for the slots of owners that `keep` names: a caller whose VMs
    /// outlive it keeps and [adopts](Self::adopt) them. Several processes may do this at
    /// the same time, and with slots in use.
    ///
    /// # Errors
    /// When not root, when the kernel lacks nf_tables, or when a network of the
    /// configuration is in use on this host.
    pub async fn open(
        config: NetworkConfig,
        root: &Path,
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Self, OpenNetworkError> {
        let host = Arc::new(Host::new(config, SlotDirectory::open(root)?)?);
        on_thread("wrenn-network", move || {
            namespace::enter(host.namespace())?;
            check_overlap(&config)?;
            namespace::prepare_directory()?;
            // Rules before forwarding, so that there is no moment of one without the other.
            host.with_firewall(|firewall| firewall.commit(&policy::host_table()))?;
            if !namespace::is_set("ipv4/ip_forward", "1") {
                namespace::set("ipv4/ip_forward", "1", false)?;
            }
            sweep::sweep(&host, &keep)?;
            Ok(Self { host })
        })
        .await
        .map_err(|source| OpenNetworkError::Thread { source })?
    }

    /// Makes a slot. `owner` is written down beside it for whoever looks at the host: the
    /// id of the sandbox.
    ///
    /// # Errors
    /// When all slots are in use or the kernel refuses a step; nothing is left behind.
    ///
    /// # Cancel safety
    /// A slot whose future was dropped is given back as soon as it is made.
    pub async fn create_slot(&self, owner: &str) -> Result<NetworkSlot, CreateSlotError> {
        NetworkSlot::create(Arc::clone(&self.host), owner).await
    }

    /// Takes over the slot of a VM that outlived the process which started it, from an owner
    /// of this name. What comes back is the same as from [`create_slot`](Self::create_slot);
    /// its egress policy is what it was. Packets flow all the while.
    ///
    /// # Errors
    /// When the slot is somebody else's, or lacks something that a VM needs of it. It stays
    /// as it is.
    ///
    /// # Cancel safety
    /// The slot of a running VM stays as it is if the future is dropped.
    pub async fn adopt(
        &self,
        slot: SlotNumber,
        owner: &str,
    ) -> Result<NetworkSlot, AdoptSlotError> {
        let (host, owner) = (Arc::clone(&self.host), owner.to_owned());
        // Bare pieces come from the thread: unlike a slot they are not given back when
        // nobody waits for them any more, only the lock is.
        let pieces = on_thread("wrenn-adopt", move || Pieces::adopt(&host, slot, &owner))
            .await
            .map_err(|source| AdoptSlotError::Thread { source })??;
        Ok(NetworkSlot::of(Arc::clone(&self.host), pieces))
    }

    /// Removes what dead owners left, but for those that `keep` names, and returns their
    /// slots. Slots of a [`SlotPool`] are never kept.
    ///
    /// # Errors
    /// When the host can't be searched. A slot that can't be removed is logged.
    pub async fn sweep(
        &self,
        keep: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<Vec<SlotNumber>, SweepError> {
        self.search(move |host| sweep::sweep(host, &keep)).await
    }

    /// Lists everything that is there under our names.
    ///
    /// # Errors
    /// When the host can't be searched.
    pub async fn leftovers(&self) -> Result<Leftovers, SweepError> {
        self.search(sweep::leftovers).await
    }

    /// Waits until no slot is being made or given back, also those whose future was dropped.
    /// To be called before a process ends; what is on its way by then is left to the next
    /// sweep.
    pub async fn settled(&self) {
        self.host.settled().await;
    }

    /// Which addresses belong to which slot.
    pub fn plan(&self) -> AddressPlan {
        self.host.plan()
    }

    async fn search<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Host) -> Result<T, SweepError> + Send + 'static,
    ) -> Result<T, SweepError> {
        let host = Arc::clone(&self.host);
        on_thread("wrenn-sweep", move || {
            namespace::enter(host.namespace())?;
            work(&host)
        })
        .await
        .map_err(|source| SweepError::Thread { source })?
    }
}

/// Refuses networks to which the host has a way already, other than by slots.
fn check_overlap(config: &NetworkConfig) -> Result<(), OpenNetworkError> {
    let mut connection = Links::open()?;
    let links = connection.list()?;
    let plan = config.plan();
    for route in connection.routes()? {
        let link = links.iter().find(|link| Some(link.index) == route.output);
        let link = link.map_or("no link", |link| link.name.as_str());
        if link.starts_with(NAME_PREFIX) {
            continue;
        }
        for ours in [plan.reachable_network(), plan.links_network()] {
            if config::overlap(ours, route.destination) {
                let (route, link) = (route.destination, link.to_owned());
                return Err(OpenNetworkError::Overlap { ours, route, link });
            }
        }
    }
    Ok(())
}
