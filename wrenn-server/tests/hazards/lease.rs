//! A server whose lease of a host was taken by another one.

use std::path::Path;

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _, SqliteConnection};
use wrenn_testing::proto::State;
use wrenn_testing::{Rpc, TestServer};

use crate::api::*;

async fn open(file: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(file);
    options.connect().await.unwrap()
}

/// The reconciler is suspended while its host answers, and continues when another server works on
/// that host.
#[tokio::test]
async fn reconciler_without_its_lease_changes_nothing() {
    let mut server = TestServer::start().await.unwrap();
    let (seen, doomed) = (create(&server).await, create(&server).await);
    let list = server.host().hold(Rpc::ListSandboxes);
    list.reached().await;
    server
        .host()
        .pretend(&seen, State::STATE_ERROR, "a late list");
    let file = server.database_file().unwrap();
    let mut database = open(&file).await;
    let statements = [
        "UPDATE leases SET holder = 'another server', epoch = epoch + 1, expires_at = 1 << 60"
            .to_owned(),
        // Old enough for the list, and the other server is to destroy it.
        format!("UPDATE sandboxes SET intent = 'stopped' WHERE id = '{doomed}'"),
    ];
    for statement in statements {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&mut database)
            .await
            .unwrap();
    }
    let before = sandboxes(&mut database).await;
    list.release();
    // A round ends before its server does.
    server.stop().await;
    assert_eq!(sandboxes(&mut database).await, before);
    assert_eq!(server.host().calls(Rpc::DestroySandbox), 0);
    database.close().await.unwrap();
}

async fn sandboxes(database: &mut SqliteConnection) -> Vec<(String, String, i64)> {
    let statement = "SELECT id, status, changed_at FROM sandboxes ORDER BY id";
    let rows = sqlx::query(statement).fetch_all(database).await.unwrap();
    let row = |row: sqlx::sqlite::SqliteRow| (row.get(0), row.get(1), row.get(2));
    rows.into_iter().map(row).collect()
}
