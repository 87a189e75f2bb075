//! Rows of snapshots.
//!
//! ```text
//!  creating ─▶ ready ─▶ deleting ─▶ no row
//!      └─▶ discarded ─▶ no row, after a day
//! ```
//!
//! A host may finish a snapshot whose server was killed long after the next server gave it up.
//! The row of one that was discarded stays for as long as that may happen.

use wrenn_api::id::{HostId, SandboxId, TeamId, TemplateId};
use wrenn_api::template::{Template, TemplateKind};

use super::database::{Arg, Row, Tx, args};
use super::{Lease, Micros, Store, StoreError, parse, sql, timestamp, unreadable};

/// A row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SnapshotRecord {
    pub(crate) id: TemplateId,
    pub(crate) team: TeamId,
    pub(crate) host: HostId,
    pub(crate) name: Option<String>,
    pub(crate) source: SandboxId,
    pub(crate) parent: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) disk_bytes: u64,
    pub(crate) created_at: Micros,
}

/// The outcome of publishing a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Published {
    /// It is there for its team. The one that had its name before is to be deleted.
    Ready { replaced: Option<SnapshotRecord> },
    /// It took so long that it was discarded meanwhile.
    Discarded,
}

/// Which snapshots of a team a page holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct SnapshotFilter {
    pub(crate) source: Option<String>,
    pub(crate) name: Option<String>,
    /// The last row of the page before.
    pub(crate) after: Option<(Micros, String)>,
}

impl SnapshotRecord {
    /// The snapshot as the API shows it.
    pub(crate) fn to_api(&self) -> Template {
        Template {
            id: Some(self.id.clone()),
            name: self.name.clone(),
            kind: TemplateKind::Snapshot,
            vcpus: Some(self.vcpus),
            memory_mb: Some(self.memory_mb),
            disk_bytes: Some(self.disk_bytes),
            source_sandbox_id: Some(self.source.clone()),
            parent: Some(self.parent.clone()),
            created_at: Some(timestamp(self.created_at)),
        }
    }
}

fn record(row: &Row) -> Result<SnapshotRecord, StoreError> {
    let id = row.text("id")?;
    let small = |column| u32::try_from(row.int(column)?).map_err(|_| unreadable(&id, column));
    Ok(SnapshotRecord {
        team: parse(&id, "team_id", &row.text("team_id")?)?,
        host: parse(&id, "host_id", &row.text("host_id")?)?,
        name: row.text_or_null("name")?,
        source: parse(&id, "source_sandbox_id", &row.text("source_sandbox_id")?)?,
        parent: row.text("parent")?,
        vcpus: small("vcpus")?,
        memory_mb: small("memory_mb")?,
        disk_bytes: row.unsigned("disk_bytes")?,
        created_at: row.int("created_at")?,
        id: parse(&id, "id", &id)?,
    })
}

/// Inserts a snapshot that is not made yet, and has no name until it is.
pub(super) async fn insert(tx: &mut Tx, snapshot: &SnapshotRecord) -> Result<(), StoreError> {
    let arguments = args![
        snapshot.id.as_str(),
        snapshot.team.as_str(),
        snapshot.host.as_str(),
        None::<String>,
        snapshot.source.as_str(),
        &snapshot.parent,
        snapshot.vcpus,
        snapshot.memory_mb,
        snapshot.disk_bytes,
        "creating",
        snapshot.created_at,
    ];
    tx.write(sql::SNAPSHOT_INSERT, arguments).await.map(drop)
}

impl Store {
    /// A snapshot of a team, by id or name.
    pub(crate) async fn snapshot(
        &self,
        team: &TeamId,
        reference: &str,
    ) -> Result<Option<SnapshotRecord>, StoreError> {
        let by_id = args![team.as_str(), reference];
        let row = match self.database.read_one(sql::SNAPSHOT_BY_ID, by_id).await? {
            Some(row) => Some(row),
            None => {
                let by_name = args![team.as_str(), reference];
                self.database
                    .read_one(sql::SNAPSHOT_BY_NAME, by_name)
                    .await?
            }
        };
        row.as_ref().map(record).transpose()
    }

    /// At most `limit` snapshots of a team, the newest first.
    pub(crate) async fn snapshot_page(
        &self,
        team: &TeamId,
        filter: &SnapshotFilter,
        limit: u32,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        let (created_at, id) = match &filter.after {
            Some((created_at, id)) => (*created_at, id.as_str()),
            None => (i64::MAX, ""),
        };
        let arguments = args![
            team.as_str(),
            created_at,
            id,
            filter.source.as_deref().unwrap_or_default(),
            filter.name.as_deref().unwrap_or_default(),
            limit,
        ];
        let rows = self.database.read(sql::SNAPSHOT_PAGE, arguments).await?;
        rows.iter().map(record).collect()
    }

    /// Publishes a snapshot under its name. With `overwrite`, the one that had the name before is
    /// marked for deletion in the same transaction.
    pub(crate) async fn publish_snapshot(
        &self,
        snapshot: &SnapshotRecord,
        overwrite: bool,
    ) -> Result<Published, StoreError> {
        let mut tx = self.database.begin().await?;
        let mut replaced = None;
        if let (true, Some(name)) = (overwrite, &snapshot.name) {
            let by_name = args![snapshot.team.as_str(), name];
            if let Some(row) = tx.read_one(sql::SNAPSHOT_BY_NAME, by_name).await? {
                let old = record(&row)?;
                tx.write(sql::SNAPSHOT_DELETING, args![old.id.as_str()])
                    .await?;
                replaced = Some(old);
            }
        }
        let arguments = args![
            snapshot.id.as_str(),
            snapshot.name.clone(),
            snapshot.vcpus,
            snapshot.memory_mb,
            snapshot.disk_bytes,
        ];
        let published = tx
            .write(sql::SNAPSHOT_READY, arguments)
            .await
            .map_err(StoreError::of_insert)?;
        if published == 0 {
            return Ok(Published::Discarded);
        }
        tx.commit().await?;
        Ok(Published::Ready { replaced })
    }

    /// Hides a snapshot that is going to be deleted, and frees its name.
    pub(crate) async fn begin_delete_snapshot(&self, id: &TemplateId) -> Result<(), StoreError> {
        self.database
            .write(sql::SNAPSHOT_DELETING, args![id.as_str()])
            .await
            .map(drop)
    }

    pub(crate) async fn remove_snapshot(
        &self,
        lease: Option<&Lease>,
        id: &TemplateId,
    ) -> Result<(), StoreError> {
        self.write(lease, sql::SNAPSHOT_REMOVE, args![id.as_str()])
            .await
            .map(drop)
    }

    /// Gives up a snapshot that was not published. False where it was, or has no row.
    pub(crate) async fn discard_snapshot(
        &self,
        lease: Option<&Lease>,
        id: &TemplateId,
    ) -> Result<bool, StoreError> {
        let changed = self.write(lease, sql::SNAPSHOT_DISCARD, args![id.as_str()]);
        Ok(changed.await? > 0)
    }

    /// Snapshots of a host whose creation began before then and has not ended.
    pub(crate) async fn interrupted_snapshots(
        &self,
        host: &HostId,
        before: Micros,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.snapshots_by(sql::SNAPSHOT_INTERRUPTED, args![host.as_str(), before])
            .await
    }

    /// Snapshots of a host that are older than that and whose deletion has not ended.
    pub(crate) async fn undeleted_snapshots(
        &self,
        host: &HostId,
        before: Micros,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.snapshots_by(sql::SNAPSHOT_UNDELETED, args![host.as_str(), before])
            .await
    }

    /// Snapshots that a host may still make, and that are to be deleted then.
    pub(crate) async fn discarded_snapshots(
        &self,
        host: &HostId,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.snapshots_by(sql::SNAPSHOT_DISCARDED, args![host.as_str()])
            .await
    }

    /// Forgets discarded snapshots of a host that are older than `before`.
    pub(crate) async fn expire_discarded_snapshots(
        &self,
        lease: &Lease,
        host: &HostId,
        before: Micros,
    ) -> Result<(), StoreError> {
        let arguments = args![host.as_str(), before];
        self.write(Some(lease), sql::SNAPSHOT_DISCARDED_EXPIRE, arguments)
            .await
            .map(drop)
    }

    async fn snapshots_by(
        &self,
        statement: &'static str,
        arguments: Vec<Arg>,
    ) -> Result<Vec<SnapshotRecord>, StoreError> {
        let rows = self.database.read(statement, arguments).await?;
        rows.iter().map(record).collect()
    }
}
