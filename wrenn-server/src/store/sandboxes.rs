//! Rows of sandboxes: what each shall be, and what it was seen to be.

use std::collections::BTreeMap;

use wrenn_api::id::{HostId, SandboxId, TeamId};
use wrenn_api::sandbox::{Network, Ports, Sandbox, Source};
use wrenn_api::status::{OnEnd, Status};

use super::database::{Arg, Row, Tx, args};
use super::{
    Lease, Micros, Store, StoreError, parse, parse_json, sql, timestamp, to_json, unreadable,
};

/// What a sandbox shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    Running,
    Paused,
    Stopped,
}

impl Intent {
    pub(crate) const ALL: [Self; 3] = [Self::Running, Self::Paused, Self::Stopped];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl std::str::FromStr for Intent {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|intent| intent.as_str() == text)
            .ok_or(())
    }
}

/// A row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SandboxRecord {
    pub(crate) id: SandboxId,
    pub(crate) team: TeamId,
    pub(crate) host: HostId,
    pub(crate) name: Option<String>,
    pub(crate) template: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mb: u32,
    pub(crate) timeout_sec: u64,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) network: Network,
    pub(crate) source: Source,
    pub(crate) generation: u64,
    pub(crate) intent: Intent,
    pub(crate) status: Status,
    pub(crate) status_reason: Option<String>,
    /// The row's version: grows with each change of intent or status.
    pub(crate) changed_at: Micros,
    pub(crate) not_found: u32,
    /// The root directory of its host in which it was last seen, or shall be made.
    pub(crate) root_id: Option<String>,
    pub(crate) phases_ms: BTreeMap<String, f64>,
    pub(crate) created_at: Micros,
    pub(crate) started_at: Option<Micros>,
    pub(crate) last_active_at: Option<Micros>,
    pub(crate) paused_at: Option<Micros>,
    pub(crate) stopped_at: Option<Micros>,
}

/// Which sandboxes of a team a page holds.
#[derive(Clone, Debug, Default)]
pub(crate) struct SandboxFilter {
    pub(crate) statuses: Vec<Status>,
    pub(crate) template: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) started_after: Option<Micros>,
    pub(crate) ascending: bool,
    /// The last row of the page before.
    pub(crate) after: Option<(Micros, String)>,
}

impl SandboxRecord {
    /// The sandbox as the API shows it.
    pub(crate) fn to_api(&self) -> Sandbox {
        Sandbox {
            id: self.id.clone(),
            name: self.name.clone(),
            status: self.status,
            status_reason: self.status_reason.clone(),
            template: self.template.clone(),
            vcpus: self.vcpus,
            memory_mb: self.memory_mb,
            timeout_sec: self.timeout_sec,
            idle_ms: None,
            end_at: None,
            on_end: OnEnd::Pause,
            metadata: self.metadata.clone(),
            network: self.network.clone(),
            ports: Ports::default(),
            host_id: Some(self.host.clone()),
            generation: self.generation,
            source: self.source.clone(),
            created_at: timestamp(self.created_at),
            started_at: self.started_at.map(timestamp),
            last_active_at: self.last_active_at.map(timestamp),
            paused_at: self.paused_at.map(timestamp),
            phases_ms: self.phases_ms.clone(),
        }
    }

    /// The status for operations: a sandbox that shall be destroyed, as soon as its host is
    /// back, is stopped already for everything else.
    pub(crate) fn usable_status(&self) -> Status {
        match self.intent {
            Intent::Stopped => Status::Stopped,
            Intent::Running | Intent::Paused => self.status,
        }
    }

    fn arguments(&self) -> Vec<Arg> {
        args![
            self.id.as_str(),
            self.team.as_str(),
            self.host.as_str(),
            self.name.clone(),
            &self.template,
            self.vcpus,
            self.memory_mb,
            self.timeout_sec,
            to_json(&self.metadata),
            to_json(&self.network),
            to_json(&self.source),
            self.generation,
            self.intent.as_str(),
            self.status.as_str(),
            self.status_reason.clone(),
            self.changed_at,
            self.not_found,
            self.root_id.clone(),
            to_json(&self.phases_ms),
            self.created_at,
            self.started_at,
            self.last_active_at,
            self.paused_at,
            self.stopped_at,
        ]
    }
}

fn small(row: &Row, id: &str, column: &'static str) -> Result<u32, StoreError> {
    u32::try_from(row.int(column)?).map_err(|_| unreadable(id, column))
}

fn record(row: &Row) -> Result<SandboxRecord, StoreError> {
    let id = row.text("id")?;
    Ok(SandboxRecord {
        team: parse(&id, "team_id", &row.text("team_id")?)?,
        host: parse(&id, "host_id", &row.text("host_id")?)?,
        name: row.text_or_null("name")?,
        template: row.text("template")?,
        vcpus: small(row, &id, "vcpus")?,
        memory_mb: small(row, &id, "memory_mb")?,
        timeout_sec: row.unsigned("timeout_sec")?,
        metadata: parse_json(&id, "metadata", &row.text("metadata")?)?,
        network: parse_json(&id, "network", &row.text("network")?)?,
        source: parse_json(&id, "source", &row.text("source")?)?,
        generation: row.unsigned("generation")?,
        intent: parse(&id, "intent", &row.text("intent")?)?,
        status: parse(&id, "status", &row.text("status")?)?,
        status_reason: row.text_or_null("status_reason")?,
        changed_at: row.int("changed_at")?,
        not_found: small(row, &id, "not_found")?,
        root_id: row.text_or_null("root_id")?,
        phases_ms: parse_json(&id, "phases", &row.text("phases")?)?,
        created_at: row.int("created_at")?,
        started_at: row.int_or_null("started_at")?,
        last_active_at: row.int_or_null("last_active_at")?,
        paused_at: row.int_or_null("paused_at")?,
        stopped_at: row.int_or_null("stopped_at")?,
        id: parse(&id, "id", &id)?,
    })
}

pub(super) async fn insert(tx: &mut Tx, sandbox: &SandboxRecord) -> Result<(), StoreError> {
    tx.write(sql::SANDBOX_INSERT, sandbox.arguments())
        .await
        .map(drop)
        .map_err(StoreError::of_insert)
}

impl Store {
    /// A sandbox of a team, by id or by the name of one that is not stopped.
    pub(crate) async fn sandbox(
        &self,
        team: &TeamId,
        reference: &str,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        let by_id = args![team.as_str(), reference];
        let row = match self.database.read_one(sql::SANDBOX_BY_ID, by_id).await? {
            Some(row) => Some(row),
            None => {
                let by_name = args![team.as_str(), reference];
                self.database
                    .read_one(sql::SANDBOX_BY_NAME, by_name)
                    .await?
            }
        };
        row.as_ref().map(record).transpose()
    }

    /// A sandbox by its id, whatever its team.
    pub(crate) async fn sandbox_by_id(
        &self,
        id: &str,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        let row = self
            .database
            .read_one(sql::SANDBOX_KNOWN, args![id])
            .await?;
        row.as_ref().map(record).transpose()
    }

    /// The sandboxes of a host that are not stopped.
    pub(crate) async fn sandboxes_of_host(
        &self,
        host: &HostId,
    ) -> Result<Vec<SandboxRecord>, StoreError> {
        let rows = self
            .database
            .read(sql::SANDBOX_OF_HOST, args![host.as_str()])
            .await?;
        rows.iter().map(record).collect()
    }

    /// At most `limit` sandboxes of a team, in the order of their age.
    pub(crate) async fn sandbox_page(
        &self,
        team: &TeamId,
        filter: &SandboxFilter,
        limit: u32,
    ) -> Result<Vec<SandboxRecord>, StoreError> {
        let (statement, first) = if filter.ascending {
            (sql::SANDBOX_PAGE_UP, (0, ""))
        } else {
            (sql::SANDBOX_PAGE_DOWN, (i64::MAX, ""))
        };
        let (created_at, id) = match &filter.after {
            Some((created_at, id)) => (*created_at, id.as_str()),
            None => first,
        };
        let statuses = match filter.statuses.as_slice() {
            [] => String::new(),
            statuses => statuses.iter().fold(",".to_owned(), |mut list, status| {
                list.push_str(status.as_str());
                list.push(',');
                list
            }),
        };
        let arguments = args![
            team.as_str(),
            created_at,
            id,
            statuses,
            filter.template.as_deref().unwrap_or_default(),
            filter.name.as_deref().unwrap_or_default(),
            filter.started_after.unwrap_or(-1),
            limit,
        ];
        let rows = self.database.read(statement, arguments).await?;
        rows.iter().map(record).collect()
    }

    /// Begins an operation: the sandbox shall be `intent`, and is `status` until it is. Gives
    /// the row as it is then; `None` where its status has changed since it was read, or it is
    /// being destroyed.
    pub(crate) async fn begin_operation(
        &self,
        sandbox: &SandboxRecord,
        intent: Intent,
        status: Status,
        now: Micros,
    ) -> Result<Option<SandboxRecord>, StoreError> {
        let changed_at = now.max(sandbox.changed_at + 1);
        let arguments = args![
            sandbox.id.as_str(),
            intent.as_str(),
            status.as_str(),
            changed_at,
            sandbox.status.as_str(),
        ];
        let changed = self
            .database
            .write(sql::SANDBOX_SET_INTENT, arguments)
            .await?;
        Ok((changed > 0).then(|| SandboxRecord {
            intent,
            status,
            changed_at,
            ..sandbox.clone()
        }))
    }

    /// Records that a sandbox shall be destroyed. From here on nothing else is done to it.
    pub(crate) async fn begin_destroy(
        &self,
        id: &SandboxId,
        reason: Option<&str>,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let arguments = args![id.as_str(), reason, now];
        let changed = self
            .database
            .write(sql::SANDBOX_STOP_INTENT, arguments)
            .await?;
        Ok(changed > 0)
    }

    /// Replaces the row `seen` by `next`, unless it has changed since it was read or is being
    /// destroyed. Says whether it did.
    pub(crate) async fn replace(
        &self,
        lease: Option<&Lease>,
        seen: &SandboxRecord,
        next: &SandboxRecord,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let arguments = args![
            seen.id.as_str(),
            seen.status.as_str(),
            next.status.as_str(),
            next.intent.as_str(),
            next.status_reason.clone(),
            now.max(seen.changed_at + 1),
            to_json(&next.phases_ms),
            next.started_at,
            next.paused_at,
            next.vcpus,
            next.memory_mb,
            seen.changed_at,
        ];
        let changed = self.write(lease, sql::SANDBOX_OBSERVE, arguments).await?;
        Ok(changed > 0)
    }

    /// Records that the host of a sandbox did not find it.
    pub(crate) async fn count_not_found(
        &self,
        lease: &Lease,
        id: &SandboxId,
    ) -> Result<(), StoreError> {
        self.write(Some(lease), sql::SANDBOX_NOT_FOUND, args![id.as_str()])
            .await
            .map(drop)
    }

    /// Records that the host of a sandbox has it, and in which root directory.
    pub(crate) async fn set_found(
        &self,
        lease: &Lease,
        id: &SandboxId,
        root_id: &str,
    ) -> Result<(), StoreError> {
        self.write(Some(lease), sql::SANDBOX_FOUND, args![id.as_str(), root_id])
            .await
            .map(drop)
    }

    /// Records that a sandbox is gone. Says whether it was not before.
    pub(crate) async fn set_stopped(
        &self,
        lease: Option<&Lease>,
        id: &SandboxId,
        reason: Option<&str>,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let arguments = args![id.as_str(), reason, now];
        let changed = self.write(lease, sql::SANDBOX_STOPPED, arguments).await?;
        Ok(changed > 0)
    }

    /// Records that the host of a sandbox does not have it any longer. What it shall be stays:
    /// should its host list it again, it is an orphan. Says whether it was not stopped before.
    pub(crate) async fn set_vanished(
        &self,
        lease: &Lease,
        id: &SandboxId,
        reason: &str,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let arguments = args![id.as_str(), reason, now];
        let changed = self
            .write(Some(lease), sql::SANDBOX_VANISHED, arguments)
            .await?;
        Ok(changed > 0)
    }

    /// Records that the host of a sandbox does not answer. Says whether its status changed.
    pub(crate) async fn set_missing(
        &self,
        lease: &Lease,
        id: &SandboxId,
        reason: &str,
        now: Micros,
    ) -> Result<bool, StoreError> {
        let arguments = args![id.as_str(), reason, now];
        let changed = self
            .write(Some(lease), sql::SANDBOX_MISSING, arguments)
            .await?;
        Ok(changed > 0)
    }

    /// Records a ping.
    pub(crate) async fn set_active(
        &self,
        id: &SandboxId,
        timeout_sec: u64,
        now: Micros,
    ) -> Result<(), StoreError> {
        self.database
            .write(sql::SANDBOX_ACTIVE, args![id.as_str(), now, timeout_sec])
            .await
            .map(drop)
    }

    /// Writes what a user may change.
    pub(crate) async fn update_sandbox(&self, sandbox: &SandboxRecord) -> Result<(), StoreError> {
        let arguments = args![
            sandbox.id.as_str(),
            sandbox.name.clone(),
            to_json(&sandbox.metadata),
            sandbox.timeout_sec,
            to_json(&sandbox.network),
        ];
        self.database
            .write(sql::SANDBOX_UPDATE, arguments)
            .await
            .map(drop)
            .map_err(StoreError::of_insert)
    }
}
