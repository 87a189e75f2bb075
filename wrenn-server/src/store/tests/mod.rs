//! The store on SQLite, and statements and schemas on both databases.

mod postgres;

use std::collections::{BTreeMap, BTreeSet};

use sqlx::{Executor as _, Row as _};
use wrenn_api::id::SandboxId;
use wrenn_api::sandbox::{Network, Source};
use wrenn_api::status::{HostStatus, Status};

use super::*;
use postgres::PostgresServer;

/// A store on a SQLite file that goes with the fixture.
struct Fixture {
    store: Store,
    team: TeamId,
    host: HostRecord,
    _directory: tempfile::TempDir,
}

async fn fixture() -> Fixture {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open_sqlite(&directory.path().join("wrenn.db"))
        .await
        .unwrap();
    let team = store.default_team(1).await.unwrap();
    let host = store.host_named("local", 1).await.unwrap();
    Fixture {
        store,
        team,
        host,
        _directory: directory,
    }
}

impl Fixture {
    fn sandbox(&self, name: Option<&str>, created_at: Micros) -> SandboxRecord {
        SandboxRecord {
            id: SandboxId::random(),
            team: self.team.clone(),
            host: self.host.id.clone(),
            name: name.map(str::to_owned),
            template: "base".to_owned(),
            vcpus: 1,
            memory_mb: 512,
            timeout_sec: 0,
            metadata: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
            network: Network::default(),
            source: Source::Template("base".to_owned()),
            generation: 1,
            intent: Intent::Running,
            status: Status::Running,
            status_reason: None,
            changed_at: created_at,
            not_found: 0,
            root_id: None,
            phases_ms: BTreeMap::new(),
            created_at,
            started_at: None,
            last_active_at: None,
            paused_at: None,
            stopped_at: None,
        }
    }

    fn snapshot(&self, name: Option<&str>) -> SnapshotRecord {
        SnapshotRecord {
            id: wrenn_api::id::TemplateId::random(),
            team: self.team.clone(),
            host: self.host.id.clone(),
            name: name.map(str::to_owned),
            source: SandboxId::random(),
            parent: "base".to_owned(),
            vcpus: 1,
            memory_mb: 128,
            disk_bytes: 7,
            created_at: 1,
        }
    }

    async fn insert(&self, sandbox: &SandboxRecord) -> Result<Begun, StoreError> {
        let rows = NewRows::Sandboxes(std::slice::from_ref(sandbox));
        self.store.begin_request(rows, None, "me", 1).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_statement_is_valid_on_both_databases() {
    let server = PostgresServer::start();
    let postgres = Store::connect_postgres(&server.url()).await.unwrap();
    let fixture = fixture().await;
    let (Database::Sqlite { writer, .. }, Database::Postgres(pool)) =
        (&fixture.store.database, &postgres.database)
    else {
        panic!("one of each");
    };
    for (name, text) in sql::ALL {
        let prepared = writer.prepare(sqlx::SqlSafeStr::into_sql_str(*text)).await;
        prepared.unwrap_or_else(|error| panic!("{name} on SQLite: {error}"));
        let prepared = pool.prepare(sqlx::SqlSafeStr::into_sql_str(*text)).await;
        prepared.unwrap_or_else(|error| panic!("{name} on PostgreSQL: {error}"));
    }
    assert_eq!(
        sqlite_columns(writer).await,
        postgres_columns(pool).await,
        "migrations of the same number make the same columns"
    );
    postgres.close().await;
}

/// Table, column, type, and whether it may be null.
type Columns = BTreeSet<(String, String, String, bool)>;

async fn sqlite_columns(pool: &sqlx::SqlitePool) -> Columns {
    let rows = sqlx::query(
        "SELECT t.name AS t, c.name AS c, lower(c.type) AS k, c.\"notnull\" AS n \
         FROM sqlite_master t, pragma_table_info(t.name) c \
         WHERE t.type = 'table' AND t.name NOT LIKE '\\_sqlx%' ESCAPE '\\' \
         AND t.name NOT LIKE 'sqlite%'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    rows.iter()
        .map(|row| {
            (
                row.get("t"),
                row.get("c"),
                row.get("k"),
                row.get::<i64, _>("n") == 0,
            )
        })
        .collect()
}

async fn postgres_columns(pool: &sqlx::PgPool) -> Columns {
    let rows = sqlx::query(
        "SELECT table_name::text AS t, column_name::text AS c, data_type::text AS k, \
         is_nullable::text AS n FROM information_schema.columns \
         WHERE table_schema = 'public' AND table_name NOT LIKE '\\_sqlx%'",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    rows.iter()
        .map(|row| {
            (
                row.get("t"),
                row.get("c"),
                row.get("k"),
                row.get::<String, _>("n") == "YES",
            )
        })
        .collect()
}

#[tokio::test]
async fn row_is_read_as_it_was_written() {
    let fixture = fixture().await;
    let sandbox = fixture.sandbox(Some("web"), 5);
    fixture.insert(&sandbox).await.unwrap();
    for reference in [sandbox.id.as_str(), "web"] {
        let read = fixture
            .store
            .sandbox(&fixture.team, reference)
            .await
            .unwrap();
        assert_eq!(read.as_ref(), Some(&sandbox));
    }
    let other = TeamId::random();
    assert_eq!(fixture.store.sandbox(&other, "web").await.unwrap(), None);
}

#[tokio::test]
async fn name_is_free_again_once_its_sandbox_is_stopped() {
    let fixture = fixture().await;
    let first = fixture.sandbox(Some("web"), 1);
    fixture.insert(&first).await.unwrap();
    let second = fixture.sandbox(Some("web"), 2);
    assert!(matches!(
        fixture.insert(&second).await,
        Err(StoreError::NameTaken)
    ));
    fixture
        .store
        .set_stopped(None, &first.id, None, 3)
        .await
        .unwrap();
    fixture.insert(&second).await.unwrap();
}

#[tokio::test]
async fn late_outcome_changes_nothing() {
    let fixture = fixture().await;
    let sandbox = fixture.sandbox(None, 1);
    fixture.insert(&sandbox).await.unwrap();
    let begun = fixture
        .store
        .begin_operation(&sandbox, Intent::Paused, Status::Pausing, 1)
        .await
        .unwrap()
        .unwrap();
    assert!(
        begun.changed_at > sandbox.changed_at,
        "a version of its own"
    );
    let mut late = sandbox.clone();
    late.status = Status::Error;
    assert!(
        !fixture
            .store
            .replace(None, &sandbox, &late, 9)
            .await
            .unwrap()
    );
    assert!(
        fixture
            .store
            .begin_destroy(&sandbox.id, None, 9)
            .await
            .unwrap()
    );
    let mut paused = begun.clone();
    paused.status = Status::Paused;
    assert!(
        !fixture
            .store
            .replace(None, &begun, &paused, 10)
            .await
            .unwrap(),
        "nothing but its destruction happens to it"
    );
}

#[tokio::test]
async fn pages_are_complete_and_without_repetition() {
    let fixture = fixture().await;
    let mut ids = BTreeSet::new();
    for index in 0..25 {
        // Some are of the same microsecond.
        let sandbox = fixture.sandbox(None, 100 + index / 4);
        ids.insert(sandbox.id.to_string());
        fixture.insert(&sandbox).await.unwrap();
    }
    for ascending in [false, true] {
        let mut filter = SandboxFilter {
            ascending,
            ..SandboxFilter::default()
        };
        let mut seen = Vec::new();
        loop {
            let page = fixture
                .store
                .sandbox_page(&fixture.team, &filter, 4)
                .await
                .unwrap();
            let Some(last) = page.last() else { break };
            filter.after = Some((last.created_at, last.id.to_string()));
            seen.extend(page.iter().map(|row| row.id.to_string()));
        }
        assert_eq!(seen.len(), 25);
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), ids);
    }
}

#[tokio::test]
async fn idempotency_key_is_bound_to_team_route_and_body() {
    let fixture = fixture().await;
    let request = KeyedRequest {
        team: fixture.team.clone(),
        route: "POST /v1/sandboxes".to_owned(),
        key: "k".to_owned(),
        body_hash: "h".to_owned(),
    };
    let begin = async |request: &KeyedRequest, owner: &str| {
        let sandbox = fixture.sandbox(None, 1);
        let rows = NewRows::Sandboxes(std::slice::from_ref(&sandbox));
        let begun = fixture
            .store
            .begin_request(rows, Some(request), owner, 1)
            .await;
        (begun.unwrap(), sandbox)
    };
    let (begun, first) = begin(&request, "me").await;
    assert_eq!(begun, Begun::New);
    assert_eq!(begin(&request, "me").await.0, Begun::InProgress);
    let other_body = KeyedRequest {
        body_hash: "x".to_owned(),
        ..request.clone()
    };
    assert_eq!(begin(&other_body, "me").await.0, Begun::Mismatch);
    let other_route = KeyedRequest {
        route: "POST /v1/snapshots".to_owned(),
        ..request.clone()
    };
    assert_eq!(begin(&other_route, "me").await.0, Begun::New);
    assert_eq!(
        begin(&request, "the next server").await.0,
        Begun::Adopted(vec![first.id.to_string()])
    );
    fixture
        .store
        .finish_request(&request, 201, "{}")
        .await
        .unwrap();
    let replay = Begun::Replay {
        status: 201,
        body: "{}".to_owned(),
    };
    assert_eq!(begin(&request, "me").await.0, replay);
    fixture.store.forget_request(&request).await.unwrap();
    assert_eq!(begin(&request, "me").await.0, Begun::New);
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_writers_meet_no_busy_database() {
    let fixture = std::sync::Arc::new(fixture().await);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let fixture = std::sync::Arc::clone(&fixture);
        tasks.spawn(async move {
            for at in 0..10 {
                let sandbox = fixture.sandbox(None, at);
                fixture.insert(&sandbox).await.unwrap();
                let read = fixture.store.sandbox_by_id(sandbox.id.as_str()).await;
                assert!(read.unwrap().is_some(), "a reader sees what was committed");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

#[tokio::test]
async fn lease_epoch_grows_with_each_holder() {
    let fixture = fixture().await;
    let host = &fixture.host.id;
    let take = async |holder: &str, now, until| {
        fixture
            .store
            .take_lease(host, holder, now, until)
            .await
            .unwrap()
            .map(|lease| lease.epoch)
    };
    assert_eq!(take("a", 0, 10).await, Some(1));
    assert_eq!(take("a", 5, 15).await, Some(1), "renewed");
    assert_eq!(take("b", 10, 20).await, None, "held by another");
    assert_eq!(take("b", 16, 26).await, Some(2), "expired");
    assert_eq!(take("a", 17, 27).await, None);
    fixture.store.release_lease(host, "b").await.unwrap();
    assert_eq!(take("a", 18, 28).await, Some(3));
}

/// Every row of a table: its id, and what the reconciler writes.
async fn rows(store: &Store, table: &'static str) -> Vec<(String, String)> {
    let text = match table {
        "sandboxes" => {
            "SELECT id, status || intent || changed_at || not_found AS row FROM sandboxes"
        }
        "hosts" => "SELECT id, status || coalesce(root_id, '') AS row FROM hosts",
        _ => "SELECT sandbox_id AS id, host_id AS row FROM orphans",
    };
    let rows = store.database.read(text, args![]).await.unwrap();
    rows.iter()
        .map(|row| (row.text("id").unwrap(), row.text("row").unwrap()))
        .collect()
}

async fn assert_lost_lease_changes_nothing(store: Store) {
    let team = store.default_team(1).await.unwrap();
    let host = store.host_named("local", 1).await.unwrap();
    let fixture = Fixture {
        store,
        team,
        host,
        _directory: tempfile::tempdir().unwrap(),
    };
    let store = &fixture.store;
    let sandbox = fixture.sandbox(None, 1);
    fixture.insert(&sandbox).await.unwrap();
    let host = &fixture.host.id;
    let lease = store.take_lease(host, "a", 0, 10).await.unwrap().unwrap();
    let mut tables = Vec::new();
    for table in ["sandboxes", "hosts", "orphans"] {
        tables.push((table, rows(store, table).await));
    }
    let next = store.take_lease(host, "b", 11, 20).await.unwrap().unwrap();

    let mut paused = sandbox.clone();
    paused.status = Status::Paused;
    let id = &sandbox.id;
    let orphan = [("sb1".to_owned(), "base".to_owned())];
    let lost = [
        store.check_lease(&lease).await,
        store
            .replace(Some(&lease), &sandbox, &paused, 12)
            .await
            .map(drop),
        store
            .set_stopped(Some(&lease), id, None, 12)
            .await
            .map(drop),
        store.set_vanished(&lease, id, "gone", 12).await.map(drop),
        store.set_missing(&lease, id, "away", 12).await.map(drop),
        store.count_not_found(&lease, id).await,
        store.set_found(&lease, id, "root").await,
        store
            .host_seen(&lease, HostStatus::Online, "root", 12)
            .await,
        store.set_host_status(&lease, HostStatus::Unreachable).await,
        store.record_orphans(&lease, &orphan, 12).await,
    ];
    for outcome in lost {
        assert!(matches!(outcome, Err(StoreError::LeaseLost { .. })));
    }
    for (table, before) in tables {
        assert_eq!(rows(store, table).await, before, "{table}");
    }
    let replaced = store.replace(Some(&next), &sandbox, &paused, 12).await;
    assert!(replaced.unwrap(), "the next holder writes");
}

#[tokio::test]
async fn lost_lease_changes_no_row_on_sqlite() {
    let fixture = fixture().await;
    assert_lost_lease_changes_nothing(fixture.store.clone()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lease_changes_no_row_on_postgres() {
    let server = PostgresServer::start();
    let store = Store::connect_postgres(&server.url()).await.unwrap();
    assert_lost_lease_changes_nothing(store.clone()).await;
    store.close().await;
}

/// A write under a lease and the taking of that lease come one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn lease_is_not_taken_amid_a_write() {
    let server = PostgresServer::start();
    let store = Store::connect_postgres(&server.url()).await.unwrap();
    let host = store.host_named("local", 1).await.unwrap().id;
    let lease = store.take_lease(&host, "a", 0, 10).await.unwrap().unwrap();
    let mut tx = store.database.begin().await.unwrap();
    lease.hold(&mut tx).await.unwrap();
    let taking = tokio::spawn({
        let (store, host) = (store.clone(), host.clone());
        async move { store.take_lease(&host, "b", 11, 20).await }
    });
    let Database::Postgres(pool) = &store.database else {
        panic!("a PostgreSQL store");
    };
    let waiting = "SELECT count(*) AS n FROM pg_locks WHERE NOT granted";
    while sqlx::query(waiting)
        .fetch_one(pool)
        .await
        .unwrap()
        .get::<i64, _>("n")
        == 0
    {
        assert!(!taking.is_finished(), "it waits for the write");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    tx.commit().await.unwrap();
    assert!(taking.await.unwrap().unwrap().is_some());
    store.close().await;
}

#[tokio::test]
async fn keys_are_stored_as_digests() {
    let fixture = fixture().await;
    let key = fixture
        .store
        .create_key(&fixture.team, "test", 1)
        .await
        .unwrap();
    assert_eq!(key.secret.len(), 44);
    let found = fixture.store.key(&key.secret).await.unwrap().unwrap();
    assert_eq!(found.team, fixture.team);
    assert_eq!(fixture.store.key("wrn_0").await.unwrap(), None);
    let Database::Sqlite { writer, .. } = &fixture.store.database else {
        panic!("a SQLite store");
    };
    let row = sqlx::query("SELECT * FROM api_keys")
        .fetch_one(writer)
        .await
        .unwrap();
    for column in ["prefix", "key_hash"] {
        assert!(!row.get::<String, _>(column).contains(&key.secret[12..]));
    }
}

#[tokio::test]
async fn snapshot_takes_the_name_of_the_one_that_it_overwrites() {
    let fixture = fixture().await;
    let (first, second) = (
        fixture.snapshot(Some("warm")),
        fixture.snapshot(Some("warm")),
    );
    for row in [&first, &second] {
        let rows = NewRows::Snapshot(row);
        fixture
            .store
            .begin_request(rows, None, "me", 1)
            .await
            .unwrap();
        assert_eq!(
            fixture
                .store
                .snapshot(&fixture.team, row.id.as_str())
                .await
                .unwrap(),
            None,
            "not there before it is published"
        );
    }
    fixture.store.publish_snapshot(&first, false).await.unwrap();
    let taken = fixture.store.publish_snapshot(&second, false).await;
    assert!(matches!(taken, Err(StoreError::NameTaken)));
    let replaced = fixture.store.publish_snapshot(&second, true).await.unwrap();
    let Published::Ready { replaced } = replaced else {
        panic!("it was not discarded");
    };
    assert_eq!(replaced.unwrap().id, first.id);
    let named = fixture.store.snapshot(&fixture.team, "warm").await.unwrap();
    assert_eq!(named.unwrap().id, second.id);
    let rest = fixture
        .store
        .undeleted_snapshots(&fixture.host.id, 2)
        .await
        .unwrap();
    assert_eq!(rest.len(), 1, "the old one is still to be deleted");
}

#[tokio::test]
async fn discarded_snapshot_is_not_published() {
    let fixture = fixture().await;
    let store = &fixture.store;
    let host = &fixture.host.id;
    let snapshot = fixture.snapshot(None);
    let rows = NewRows::Snapshot(&snapshot);
    store.begin_request(rows, None, "me", 1).await.unwrap();
    let young = store.interrupted_snapshots(host, 1).await.unwrap();
    assert_eq!(young.len(), 0);
    let old = store.interrupted_snapshots(host, 2).await.unwrap();
    assert_eq!(old.len(), 1);
    assert!(store.discard_snapshot(None, &snapshot.id).await.unwrap());
    let published = store.publish_snapshot(&snapshot, false).await.unwrap();
    assert_eq!(published, Published::Discarded);
    let read = store.snapshot(&fixture.team, snapshot.id.as_str()).await;
    assert_eq!(read.unwrap(), None);
    assert_eq!(store.discarded_snapshots(host).await.unwrap().len(), 1);
    let lease = store.take_lease(host, "me", 0, 10).await.unwrap().unwrap();
    store
        .expire_discarded_snapshots(&lease, host, 2)
        .await
        .unwrap();
    assert_eq!(store.discarded_snapshots(host).await.unwrap().len(), 0);
}
