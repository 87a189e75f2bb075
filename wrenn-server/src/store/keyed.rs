//! Idempotency keys, taken in the transaction that writes the rows which a request makes.
//!
//! ```text
//!  key unknown ─────────────────▶ rows and key are written ─▶ the request runs
//!  key known, other body ───────▶ mismatch
//!  key known, answer stored ────▶ replay
//!  key known, its server works ─▶ in progress
//!  key known, its server ended ─▶ adopted: the request goes on with the ids that it had
//! ```

use wrenn_api::id::TeamId;

use super::database::args;
use super::sandboxes::{self, SandboxRecord};
use super::snapshots::{self, SnapshotRecord};
use super::{Micros, Store, StoreError, parse_json, sql, to_json};

/// A request with an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyedRequest {
    pub(crate) team: TeamId,
    /// Method and path.
    pub(crate) route: String,
    pub(crate) key: String,
    pub(crate) body_hash: String,
}

/// Rows that a request makes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum NewRows<'a> {
    Sandboxes(&'a [SandboxRecord]),
    Snapshot(&'a SnapshotRecord),
}

/// What became of a request's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Its rows are written.
    New,
    /// It was answered before.
    Replay { status: u16, body: String },
    /// It runs, on another connection.
    InProgress,
    /// The key was used with another body.
    Mismatch,
    /// A server that has ended began it, with these ids.
    Adopted(Vec<String>),
}

impl Store {
    /// Writes the rows of a request, and its key, in one transaction.
    ///
    /// `owner` is this server's instance. No other one works on the same SQLite file, so a key
    /// of another owner belongs to one that has ended.
    pub(crate) async fn begin_request(
        &self,
        rows: NewRows<'_>,
        request: Option<&KeyedRequest>,
        owner: &str,
        now: Micros,
    ) -> Result<Begun, StoreError> {
        let mut tx = self.database.begin().await?;
        if let Some(request) = request {
            let by_key = args![request.team.as_str(), &request.route, &request.key];
            if let Some(row) = tx.read_one(sql::KEYED_REQUEST, by_key).await? {
                if row.text("body_hash")? != request.body_hash {
                    return Ok(Begun::Mismatch);
                }
                if let Some(status) = row.int_or_null("response_status")? {
                    return Ok(Begun::Replay {
                        status: u16::try_from(status).unwrap_or(200),
                        body: row.text_or_null("response_body")?.unwrap_or_default(),
                    });
                }
                if row.text("owner")? == owner {
                    return Ok(Begun::InProgress);
                }
                let ids = parse_json(&request.key, "resources", &row.text("resources")?)?;
                let adopt = args![request.team.as_str(), &request.route, &request.key, owner];
                tx.write(sql::KEYED_REQUEST_ADOPT, adopt).await?;
                tx.commit().await?;
                return Ok(Begun::Adopted(ids));
            }
        }
        let ids: Vec<String> = match rows {
            NewRows::Sandboxes(sandboxes) => {
                for sandbox in sandboxes {
                    sandboxes::insert(&mut tx, sandbox).await?;
                }
                sandboxes.iter().map(|row| row.id.to_string()).collect()
            }
            NewRows::Snapshot(snapshot) => {
                snapshots::insert(&mut tx, snapshot).await?;
                vec![snapshot.id.to_string()]
            }
        };
        if let Some(request) = request {
            let arguments = args![
                request.team.as_str(),
                &request.route,
                &request.key,
                &request.body_hash,
                to_json(&ids),
                owner,
                now,
            ];
            tx.write(sql::KEYED_REQUEST_INSERT, arguments).await?;
        }
        tx.commit().await?;
        Ok(Begun::New)
    }

    /// Keeps the answer of a request for those who repeat it.
    pub(crate) async fn finish_request(
        &self,
        request: &KeyedRequest,
        status: u16,
        body: &str,
    ) -> Result<(), StoreError> {
        let arguments = args![
            request.team.as_str(),
            &request.route,
            &request.key,
            i64::from(status),
            body,
        ];
        self.database
            .write(sql::KEYED_REQUEST_DONE, arguments)
            .await
            .map(drop)
    }

    /// Frees the key of a request that failed: it may be tried again.
    pub(crate) async fn forget_request(&self, request: &KeyedRequest) -> Result<(), StoreError> {
        let arguments = args![request.team.as_str(), &request.route, &request.key];
        self.database
            .write(sql::KEYED_REQUEST_FORGET, arguments)
            .await
            .map(drop)
    }

    /// Forgets keys that are older than `before`.
    pub(crate) async fn expire_requests(&self, before: Micros) -> Result<(), StoreError> {
        self.database
            .write(sql::KEYED_REQUEST_EXPIRE, args![before])
            .await
            .map(drop)
    }
}
