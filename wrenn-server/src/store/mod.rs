//! The truth: one row per sandbox, in SQLite or PostgreSQL.
//!
//! | file | what |
//! |---|---|
//! | `database` | the two databases, and one way to run a statement on either |
//! | `sql` | every statement |
//! | `sandboxes` | rows of sandboxes: what each shall be, and what it was seen to be |
//! | `snapshots` | rows of snapshots |
//! | `hosts` | rows of hosts, leases and orphans |
//! | `access` | teams, API keys and sessions |
//! | `keyed` | idempotency keys, taken in the transaction that writes the rows |
//!
//! Nothing outside of this folder writes SQL. Each write of an outcome names the row's
//! version (`changed_at`) that it was decided upon, so that a late one changes nothing. Each
//! write of the reconciler holds its lease in the same transaction, so that one whose lease was
//! taken changes nothing either.

mod access;
mod database;
mod hosts;
mod keyed;
mod sandboxes;
mod snapshots;
mod sql;

pub use access::NewKey;
pub(crate) use access::{Credential, random_secret};
pub(crate) use hosts::{HostRecord, Lease};
pub(crate) use keyed::{Begun, KeyedRequest, NewRows};
pub(crate) use sandboxes::{Intent, SandboxFilter, SandboxRecord};
pub(crate) use snapshots::{Published, SnapshotFilter, SnapshotRecord};

use std::path::Path;

use database::{Database, args};
use wrenn_api::id::{HostId, TeamId};

/// Microseconds since 1970.
pub(crate) type Micros = i64;

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A statement failed.
    #[error("failed to use the database")]
    Database(#[source] sqlx::Error),
    /// The schema could not be brought up to date.
    #[error("failed to migrate the database")]
    Migrate(#[source] sqlx::migrate::MigrateError),
    /// The name belongs to another row of the team.
    #[error("the name is taken")]
    NameTaken,
    /// Another server works on the host by now.
    #[error("the lease of host {host} was taken by another server")]
    LeaseLost {
        /// The host.
        host: HostId,
    },
    /// A row holds something that this version does not understand.
    #[error("row {id} holds an unreadable {column}")]
    Unreadable {
        /// The row.
        id: String,
        /// The column.
        column: &'static str,
    },
}

impl StoreError {
    /// The error of an insert, where a row may be in the way.
    fn of_insert(self) -> Self {
        match &self {
            Self::Database(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Self::NameTaken
            }
            _ => self,
        }
    }
}

/// The database of the control plane. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens a SQLite file, which is made if need be, and brings its schema up to date.
    ///
    /// # Errors
    /// When it cannot be opened, or was written by a newer version.
    pub async fn open_sqlite(file: &Path) -> Result<Self, StoreError> {
        Self::migrated(Database::open_sqlite(file).await?).await
    }

    /// Connects to PostgreSQL (`postgres://…`), and brings the schema up to date.
    ///
    /// # Errors
    /// When it does not answer, or its schema is of a newer version.
    pub async fn connect_postgres(url: &str) -> Result<Self, StoreError> {
        Self::migrated(Database::connect_postgres(url).await?).await
    }

    async fn migrated(database: Database) -> Result<Self, StoreError> {
        database.migrate().await?;
        Ok(Self { database })
    }

    /// Closes every connection, once what runs on it has ended.
    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Writes for an operation, or, with a lease, for the reconciler: that changes nothing once
    /// the lease is lost.
    async fn write(
        &self,
        lease: Option<&Lease>,
        sql: &'static str,
        args: Vec<database::Arg>,
    ) -> Result<u64, StoreError> {
        let Some(lease) = lease else {
            return self.database.write(sql, args).await;
        };
        let mut tx = self.database.begin().await?;
        lease.hold(&mut tx).await?;
        let changed = tx.write(sql, args).await?;
        tx.commit().await?;
        Ok(changed)
    }

    /// Whether the database takes writes.
    pub(crate) async fn probe(&self, team: &TeamId) -> Result<(), StoreError> {
        self.database
            .write(sql::PROBE, args![team.as_str()])
            .await
            .map(drop)
    }
}

/// A name for one run of a server.
pub(crate) fn random_instance() -> String {
    random_secret(16)
}

/// A time as the API has it.
pub(crate) fn timestamp(micros: Micros) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(micros) * 1000)
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// Reads a value that is stored as text.
fn parse<T: std::str::FromStr>(
    id: &str,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    text.parse().map_err(|_| unreadable(id, column))
}

/// Reads a value that is stored as JSON.
fn parse_json<T: serde::de::DeserializeOwned>(
    id: &str,
    column: &'static str,
    text: &str,
) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|_| unreadable(id, column))
}

fn unreadable(id: &str, column: &'static str) -> StoreError {
    StoreError::Unreadable {
        id: id.to_owned(),
        column,
    }
}

/// JSON for a column. Maps of strings and plain enums always have one.
fn to_json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned())
}

#[cfg(test)]
mod tests;
