//! Rows of hosts, leases and orphans.

use wrenn_api::id::HostId;
use wrenn_api::status::HostStatus;

use super::database::{Database, Row, Tx, args};
use super::{Micros, Store, StoreError, parse, sql};

/// A host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostRecord {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) status: HostStatus,
    /// The identity of its root directory, once it was seen.
    pub(crate) root_id: Option<String>,
    pub(crate) last_seen_at: Option<Micros>,
}

/// The right to work on a host in the background, for as long as no other server takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    host: HostId,
    pub(super) epoch: u64,
}

impl Lease {
    /// Fails when the lease was lost; else nobody takes it before the transaction ends.
    pub(super) async fn hold(&self, tx: &mut Tx) -> Result<(), StoreError> {
        let arguments = args![self.host.as_str(), self.epoch];
        match tx.write(sql::LEASE_HOLD, arguments).await? {
            0 => Err(StoreError::LeaseLost {
                host: self.host.clone(),
            }),
            _ => Ok(()),
        }
    }
}

/// A sandbox that a host has and no row describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Orphan {
    pub(crate) sandbox_id: String,
    pub(crate) host_id: HostId,
    pub(crate) template: String,
    pub(crate) first_seen_at: Micros,
    pub(crate) last_seen_at: Micros,
}

fn host(row: &Row) -> Result<HostRecord, StoreError> {
    let id = row.text("id")?;
    Ok(HostRecord {
        name: row.text("name")?,
        status: parse(&id, "status", &row.text("status")?)?,
        root_id: row.text_or_null("root_id")?,
        last_seen_at: row.int_or_null("last_seen_at")?,
        id: parse(&id, "id", &id)?,
    })
}

impl Store {
    /// The host of a name, which is made if there is none.
    pub(crate) async fn host_named(
        &self,
        name: &str,
        now: Micros,
    ) -> Result<HostRecord, StoreError> {
        let mut tx = self.database.begin().await?;
        if let Some(row) = tx.read_one(sql::HOST_BY_NAME, args![name]).await? {
            return host(&row);
        }
        let record = HostRecord {
            id: HostId::random(),
            name: name.to_owned(),
            status: HostStatus::Pending,
            root_id: None,
            last_seen_at: None,
        };
        let arguments = args![record.id.as_str(), name, record.status.as_str(), now];
        tx.write(sql::HOST_INSERT, arguments).await?;
        tx.commit().await?;
        Ok(record)
    }

    pub(crate) async fn hosts(&self) -> Result<Vec<HostRecord>, StoreError> {
        let rows = self.database.read(sql::HOST_LIST, args![]).await?;
        rows.iter().map(host).collect()
    }

    /// Records that a host answered.
    pub(crate) async fn host_seen(
        &self,
        lease: &Lease,
        status: HostStatus,
        root_id: &str,
        now: Micros,
    ) -> Result<(), StoreError> {
        let arguments = args![lease.host.as_str(), status.as_str(), root_id, now];
        self.write(Some(lease), sql::HOST_SEEN, arguments)
            .await
            .map(drop)
    }

    pub(crate) async fn set_host_status(
        &self,
        lease: &Lease,
        status: HostStatus,
    ) -> Result<(), StoreError> {
        let arguments = args![lease.host.as_str(), status.as_str()];
        self.write(Some(lease), sql::HOST_SET_STATUS, arguments)
            .await
            .map(drop)
    }

    /// Takes or renews the lease of a host; `None` where another server holds it.
    pub(crate) async fn take_lease(
        &self,
        host: &HostId,
        holder: &str,
        now: Micros,
        expires_at: Micros,
    ) -> Result<Option<Lease>, StoreError> {
        let mut tx = self.database.begin().await?;
        let arguments = args![host.as_str(), holder, now, expires_at];
        tx.write(sql::LEASE_TAKE, arguments).await?;
        let row = tx
            .read_one(sql::LEASE_OF_HOST, args![host.as_str()])
            .await?;
        let lease = match row {
            Some(row) if row.text("holder")? == holder => Some(Lease {
                host: host.clone(),
                epoch: row.unsigned("epoch")?,
            }),
            _ => None,
        };
        tx.commit().await?;
        Ok(lease)
    }

    /// Fails when the lease was lost: before a host is told to do something.
    pub(crate) async fn check_lease(&self, lease: &Lease) -> Result<(), StoreError> {
        let mut tx = self.database.begin().await?;
        lease.hold(&mut tx).await?;
        tx.commit().await
    }

    pub(crate) async fn release_lease(
        &self,
        host: &HostId,
        holder: &str,
    ) -> Result<(), StoreError> {
        self.database
            .write(sql::LEASE_RELEASE, args![host.as_str(), holder])
            .await
            .map(drop)
    }

    /// Releases what a server that was killed held. Only where no other server can be alive: a
    /// SQLite file has one at a time.
    pub(crate) async fn release_stale_leases(&self) -> Result<(), StoreError> {
        match &self.database {
            Database::Sqlite { .. } => self
                .database
                .write(sql::LEASE_RELEASE_ALL, args![])
                .await
                .map(drop),
            Database::Postgres(_) => Ok(()),
        }
    }

    /// Records orphans of a host, and forgets those that it has no longer.
    pub(crate) async fn record_orphans(
        &self,
        lease: &Lease,
        seen: &[(String, String)],
        now: Micros,
    ) -> Result<(), StoreError> {
        let host = &lease.host;
        let mut tx = self.database.begin().await?;
        lease.hold(&mut tx).await?;
        for (sandbox, template) in seen {
            let arguments = args![sandbox, host.as_str(), template, now];
            tx.write(sql::ORPHAN_SEEN, arguments).await?;
        }
        tx.write(sql::ORPHAN_FORGET, args![host.as_str(), now])
            .await?;
        tx.commit().await
    }

    pub(crate) async fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        let rows = self.database.read(sql::ORPHAN_LIST, args![]).await?;
        rows.iter()
            .map(|row| {
                let sandbox_id = row.text("sandbox_id")?;
                Ok(Orphan {
                    host_id: parse(&sandbox_id, "host_id", &row.text("host_id")?)?,
                    template: row.text("template")?,
                    first_seen_at: row.int("first_seen_at")?,
                    last_seen_at: row.int("last_seen_at")?,
                    sandbox_id,
                })
            })
            .collect()
    }

    pub(crate) async fn remove_orphan(&self, sandbox: &str) -> Result<(), StoreError> {
        self.database
            .write(sql::ORPHAN_REMOVE, args![sandbox])
            .await
            .map(drop)
    }
}
