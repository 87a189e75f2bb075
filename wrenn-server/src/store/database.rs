//! The two databases, and one way to run a statement on either.
//!
//! A statement is a `&'static str` of [`super::sql`] with `$1`, `$2`, …, which SQLite and
//! PostgreSQL both take. Arguments and columns are text or 64-bit integers.
//!
//! ```text
//!            ┌ Sqlite    one writer connection, BEGIN IMMEDIATE; readers beside it (WAL)
//!  Database ─┤
//!            └ Postgres  one pool
//! ```

use std::path::Path;
use std::time::Duration;

use sqlx::postgres::{PgArguments, PgPool, PgPoolOptions, PgRow};
use sqlx::query::Query;
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteSynchronous,
};
use sqlx::{Postgres, Row as _, Sqlite, Transaction};

use super::StoreError;

/// How long a statement waits for a connection, and SQLite's writer for the file's lock.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);
const SQLITE_READERS: u32 = 8;
const POSTGRES_CONNECTIONS: u32 = 16;

/// A database that is open. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) enum Database {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
    },
    Postgres(PgPool),
}

/// An argument of a statement.
#[derive(Clone, Debug)]
pub(super) enum Arg {
    Text(Option<String>),
    Int(Option<i64>),
}

impl From<&str> for Arg {
    fn from(text: &str) -> Self {
        Self::Text(Some(text.to_owned()))
    }
}

impl From<String> for Arg {
    fn from(text: String) -> Self {
        Self::Text(Some(text))
    }
}

impl From<&String> for Arg {
    fn from(text: &String) -> Self {
        Self::Text(Some(text.clone()))
    }
}

impl From<Option<String>> for Arg {
    fn from(text: Option<String>) -> Self {
        Self::Text(text)
    }
}

impl From<Option<&str>> for Arg {
    fn from(text: Option<&str>) -> Self {
        Self::Text(text.map(str::to_owned))
    }
}

impl From<i64> for Arg {
    fn from(int: i64) -> Self {
        Self::Int(Some(int))
    }
}

impl From<u32> for Arg {
    fn from(int: u32) -> Self {
        Self::Int(Some(int.into()))
    }
}

impl From<u64> for Arg {
    fn from(int: u64) -> Self {
        // Larger values are refused at the door; none is stored wrapped.
        Self::Int(Some(i64::try_from(int).unwrap_or(i64::MAX)))
    }
}

impl From<Option<i64>> for Arg {
    fn from(int: Option<i64>) -> Self {
        Self::Int(int)
    }
}

/// `args![a, b]` is a `Vec<Arg>`.
macro_rules! args {
    ($($value:expr),* $(,)?) => { vec![$($crate::store::database::Arg::from($value)),*] };
}
pub(super) use args;

/// A row of an answer.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

macro_rules! column {
    ($row:expr, $name:expr, $kind:ty) => {
        match $row {
            Row::Sqlite(row) => row.try_get::<$kind, _>($name),
            Row::Postgres(row) => row.try_get::<$kind, _>($name),
        }
        .map_err(StoreError::Database)
    };
}

impl Row {
    pub(super) fn text(&self, column: &str) -> Result<String, StoreError> {
        column!(self, column, String)
    }

    pub(super) fn text_or_null(&self, column: &str) -> Result<Option<String>, StoreError> {
        column!(self, column, Option<String>)
    }

    pub(super) fn int(&self, column: &str) -> Result<i64, StoreError> {
        column!(self, column, i64)
    }

    pub(super) fn int_or_null(&self, column: &str) -> Result<Option<i64>, StoreError> {
        column!(self, column, Option<i64>)
    }

    /// A count or size, which is never negative.
    pub(super) fn unsigned(&self, column: &str) -> Result<u64, StoreError> {
        Ok(u64::try_from(self.int(column)?).unwrap_or(0))
    }
}

fn sqlite_query(sql: &'static str, args: Vec<Arg>) -> Query<'static, Sqlite, SqliteArguments> {
    args.into_iter()
        .fold(sqlx::query(sql), |query, arg| match arg {
            Arg::Text(text) => query.bind(text),
            Arg::Int(int) => query.bind(int),
        })
}

fn postgres_query(sql: &'static str, args: Vec<Arg>) -> Query<'static, Postgres, PgArguments> {
    args.into_iter()
        .fold(sqlx::query(sql), |query, arg| match arg {
            Arg::Text(text) => query.bind(text),
            Arg::Int(int) => query.bind(int),
        })
}

impl Database {
    /// Opens a SQLite file, which is made if need be.
    pub(super) async fn open_sqlite(file: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            // With WAL a power cut loses no commit that was synced at a checkpoint only; FULL
            // syncs each commit, since a row is a promise.
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(ACQUIRE_TIMEOUT);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options.clone())
            .await
            .map_err(StoreError::Database)?;
        let readers = SqlitePoolOptions::new()
            .max_connections(SQLITE_READERS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_lazy_with(options.read_only(true));
        Ok(Self::Sqlite { writer, readers })
    }

    /// Connects to PostgreSQL.
    pub(super) async fn connect_postgres(url: &str) -> Result<Self, StoreError> {
        let pool = PgPoolOptions::new()
            .max_connections(POSTGRES_CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect(url)
            .await
            .map_err(StoreError::Database)?;
        Ok(Self::Postgres(pool))
    }

    /// Brings the schema up to date.
    pub(super) async fn migrate(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite { writer, .. } => sqlx::migrate!("migrations/sqlite").run(writer).await,
            Self::Postgres(pool) => sqlx::migrate!("migrations/postgres").run(pool).await,
        }
        .map_err(StoreError::Migrate)
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { writer, readers } => {
                readers.close().await;
                writer.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }

    /// Begins a transaction that writes.
    pub(super) async fn begin(&self) -> Result<Tx, StoreError> {
        Ok(match self {
            Self::Sqlite { writer, .. } => Tx::Sqlite(
                // A deferred transaction that turns writer fails at once when another writes.
                writer
                    .begin_with("BEGIN IMMEDIATE")
                    .await
                    .map_err(StoreError::Database)?,
            ),
            Self::Postgres(pool) => Tx::Postgres(pool.begin().await.map_err(StoreError::Database)?),
        })
    }

    /// Rows of a statement that only reads.
    pub(super) async fn read(
        &self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<Vec<Row>, StoreError> {
        let rows = match self {
            Self::Sqlite { readers, .. } => sqlite_query(sql, args)
                .fetch_all(readers)
                .await
                .map(|rows| rows.into_iter().map(Row::Sqlite).collect()),
            Self::Postgres(pool) => postgres_query(sql, args)
                .fetch_all(pool)
                .await
                .map(|rows| rows.into_iter().map(Row::Postgres).collect()),
        };
        rows.map_err(StoreError::Database)
    }

    /// The first row of a statement that only reads.
    pub(super) async fn read_one(
        &self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<Option<Row>, StoreError> {
        Ok(self.read(sql, args).await?.into_iter().next())
    }

    /// Runs one statement that writes, and says how many rows it changed.
    pub(super) async fn write(&self, sql: &'static str, args: Vec<Arg>) -> Result<u64, StoreError> {
        let changed = match self {
            Self::Sqlite { writer, .. } => sqlite_query(sql, args)
                .execute(writer)
                .await
                .map(|done| done.rows_affected()),
            Self::Postgres(pool) => postgres_query(sql, args)
                .execute(pool)
                .await
                .map(|done| done.rows_affected()),
        };
        changed.map_err(StoreError::Database)
    }
}

/// A transaction that writes. Rolled back when it is dropped.
pub(super) enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

impl Tx {
    pub(super) async fn read_one(
        &mut self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<Option<Row>, StoreError> {
        let row = match self {
            Self::Sqlite(tx) => sqlite_query(sql, args)
                .fetch_optional(&mut **tx)
                .await
                .map(|row| row.map(Row::Sqlite)),
            Self::Postgres(tx) => postgres_query(sql, args)
                .fetch_optional(&mut **tx)
                .await
                .map(|row| row.map(Row::Postgres)),
        };
        row.map_err(StoreError::Database)
    }

    pub(super) async fn write(
        &mut self,
        sql: &'static str,
        args: Vec<Arg>,
    ) -> Result<u64, StoreError> {
        let changed = match self {
            Self::Sqlite(tx) => sqlite_query(sql, args)
                .execute(&mut **tx)
                .await
                .map(|done| done.rows_affected()),
            Self::Postgres(tx) => postgres_query(sql, args)
                .execute(&mut **tx)
                .await
                .map(|done| done.rows_affected()),
        };
        changed.map_err(StoreError::Database)
    }

    pub(super) async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
        .map_err(StoreError::Database)
    }
}
