//! The least that a control plane costs: axum, and the server's own statements on its own file.

use std::net::SocketAddr;
use std::path::Path;

use axum::extract::{Path as Segment, Query, State};
use axum::routing::get;
use axum::{Json, Router};
use http::StatusCode;
use serde_json::{Map, Value};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteRow};
use sqlx::{Column as _, Row as _};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

macro_rules! columns {
    () => {
        "id, team_id, host_id, name, template, vcpus, memory_mb, timeout_sec, metadata, network, \
         source, generation, intent, status, status_reason, changed_at, not_found, root_id, \
         phases, created_at, started_at, last_active_at, paused_at, stopped_at"
    };
}

// `SANDBOX_BY_ID` and `SANDBOX_PAGE_DOWN` of the server's store.
const BY_ID: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM sandboxes WHERE team_id = $1 AND id = $2"
);
const PAGE: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM sandboxes WHERE team_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3)) \
     AND ($4 = '' OR $4 LIKE '%,' || status || ',%') \
     AND ($5 = '' OR template = $5) AND ($6 = '' OR name = $6) AND created_at > $7 \
     ORDER BY created_at DESC, id DESC LIMIT $8"
);
/// All but the stopped ones, as the server asks for.
const STATUSES: &str = ",pending,running,pausing,paused,resuming,error,missing,";
/// As many connections as the server reads with.
const READERS: u32 = 8;

pub(crate) struct Floor {
    pub(crate) address: SocketAddr,
    threads: Runtime,
}

#[derive(Clone)]
struct Bare {
    pool: SqlitePool,
    team: String,
}

impl Floor {
    pub(crate) async fn start(database: &Path) -> anyhow::Result<Self> {
        let threads = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()?;
        let options = SqliteConnectOptions::new()
            .filename(database)
            .foreign_keys(true)
            .read_only(true);
        let starting = threads.spawn(async move {
            let pool = SqlitePoolOptions::new()
                .max_connections(READERS)
                .connect_with(options)
                .await?;
            let team = sqlx::query("SELECT id FROM teams")
                .fetch_one(&pool)
                .await?
                .get(0);
            let router = Router::new()
                .route("/v1/sandboxes", get(page))
                .route("/v1/sandboxes/{id}", get(one))
                .with_state(Bare { pool, team });
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let address = listener.local_addr()?;
            tokio::spawn(async move {
                let listener = axum::serve::ListenerExt::tap_io(listener, |stream| {
                    stream.set_nodelay(true).ok();
                });
                axum::serve(listener, router).await
            });
            anyhow::Ok(address)
        });
        let address = starting.await??;
        Ok(Self { address, threads })
    }

    pub(crate) fn end(self) {
        self.threads.shutdown_background();
    }
}

type Answered<T> = Result<Json<T>, StatusCode>;

fn failed(_: sqlx::Error) -> StatusCode {
    StatusCode::INTERNAL_SERVER_ERROR
}

async fn one(State(bare): State<Bare>, Segment(id): Segment<String>) -> Answered<Value> {
    let row = sqlx::query(BY_ID).bind(&bare.team).bind(id);
    let row = row.fetch_all(&bare.pool).await.map_err(failed)?;
    row.first()
        .map(|row| Json(object(row)))
        .ok_or(StatusCode::NOT_FOUND)
}

#[derive(serde::Deserialize)]
struct After {
    created_at: Option<i64>,
    #[serde(default)]
    id: String,
}

async fn page(State(bare): State<Bare>, Query(after): Query<After>) -> Answered<Vec<Value>> {
    let rows = sqlx::query(PAGE)
        .bind(&bare.team)
        .bind(after.created_at.unwrap_or(i64::MAX))
        .bind(after.id)
        .bind(STATUSES)
        .bind("")
        .bind("")
        .bind(-1_i64)
        // One more says whether there is another page.
        .bind(101_i64)
        .fetch_all(&bare.pool)
        .await
        .map_err(failed)?;
    Ok(Json(rows.iter().take(100).map(object).collect()))
}

/// A row as it is: columns are text or numbers.
fn object(row: &SqliteRow) -> Value {
    let mut object = Map::new();
    for column in row.columns() {
        let at = column.ordinal();
        let value = match row.try_get::<Option<String>, _>(at) {
            Ok(text) => text.map_or(Value::Null, Value::String),
            Err(_) => row.get::<i64, _>(at).into(),
        };
        object.insert(column.name().to_owned(), value);
    }
    Value::Object(object)
}
