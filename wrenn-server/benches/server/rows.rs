//! What needs the database only: one sandbox, and a list of 10,000.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use serde_json::Value;
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use wrenn_bench::Record;

use crate::client::Connection;
use crate::environment::Environment;
use crate::floor::Floor;
use crate::{median, rounds, timed};

const SANDBOXES: usize = 10_000;
const PAGE: usize = 100;
const CLIENTS: usize = 16;
const SLICE: Duration = Duration::from_millis(300);
const FLOOR: &str = "bare axum, same statement";

pub(crate) async fn measure(environment: &Environment) -> anyhow::Result<Vec<Record>> {
    fill(environment).await?;
    let floor = Floor::start(&environment.database).await?;
    let records = vec![
        get(environment, &floor).await?,
        rate(environment, &floor).await?,
        list(environment, &floor).await?,
    ];
    floor.end();
    records
        .into_iter()
        .collect::<Option<_>>()
        .context("no samples")
}

/// Copies the row of the sandbox that there is.
async fn fill(environment: &Environment) -> anyhow::Result<()> {
    let options = SqliteConnectOptions::new()
        .filename(&environment.database)
        .busy_timeout(Duration::from_secs(10));
    let mut connection = SqliteConnection::connect_with(&options).await?;
    sqlx::query(
        "INSERT INTO sandboxes \
         WITH RECURSIVE numbers (n) AS \
         (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < $2) \
         SELECT 'sb' || printf('%020d', n), team_id, host_id, NULL, template, vcpus, memory_mb, \
         timeout_sec, metadata, network, source, generation, 'paused', 'paused', status_reason, \
         changed_at, not_found, root_id, phases, created_at - n, started_at, last_active_at, \
         created_at, stopped_at FROM sandboxes, numbers WHERE id = $1",
    )
    .bind(environment.sandbox.id().as_str())
    .bind(i64::try_from(SANDBOXES - 1)?)
    .execute(&mut connection)
    .await?;
    connection.close().await?;
    Ok(())
}

async fn get(environment: &Environment, floor: &Floor) -> anyhow::Result<Option<Record>> {
    let path = format!("/v1/sandboxes/{}", environment.sandbox.id());
    let mut ours = Connection::open(environment.address, &environment.key).await?;
    let mut bare = Connection::open(floor.address, "").await?;
    let (mut samples, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(1000) {
        samples.push(timed(ours.send("GET", &path, "")).await?.0);
        floor.push(timed(bare.send("GET", &path, "")).await?.0);
    }
    Ok(Record::of("server.get", "ms", samples).map(|record| record.against(FLOOR, median(floor))))
}

/// Requests per second of several clients at once.
async fn rate(environment: &Environment, floor: &Floor) -> anyhow::Result<Option<Record>> {
    let path = format!("/v1/sandboxes/{}", environment.sandbox.id());
    let mut ours = open(environment.address, &environment.key).await?;
    let mut bare = open(floor.address, "").await?;
    let (mut samples, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(20) {
        samples.push(slice(&mut ours, &path).await?);
        floor.push(slice(&mut bare, &path).await?);
    }
    let record = Record::of("server.get.rate", "1/s", samples);
    Ok(record.map(|record| record.against(FLOOR, median(floor))))
}

async fn open(address: SocketAddr, key: &str) -> anyhow::Result<Vec<Connection>> {
    try_join_all((0..CLIENTS).map(|_| Connection::open(address, key))).await
}

async fn slice(connections: &mut [Connection], path: &str) -> anyhow::Result<f64> {
    let since = Instant::now();
    let clients = connections.iter_mut().map(|connection| async move {
        let mut count = 0_u32;
        while since.elapsed() < SLICE {
            connection.send("GET", path, "").await?;
            count += 1;
        }
        anyhow::Ok(count)
    });
    let count: u32 = try_join_all(clients).await?.into_iter().sum();
    Ok(f64::from(count) / since.elapsed().as_secs_f64())
}

async fn list(environment: &Environment, floor: &Floor) -> anyhow::Result<Option<Record>> {
    let mut ours = Connection::open(environment.address, &environment.key).await?;
    let mut bare = Connection::open(floor.address, "").await?;
    let (mut samples, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..rounds(20) {
        samples.push(timed(walk(&mut ours, next_page)).await?.0);
        floor.push(timed(walk(&mut bare, next_bare_page)).await?.0);
    }
    let record = Record::of("server.list", "ms", samples);
    Ok(record.map(|record| record.against(FLOOR, median(floor))))
}

/// Reads all pages. `next` gives the number of items of one, and the path of the next one.
async fn walk(
    connection: &mut Connection,
    next: impl Fn(&Value) -> Option<(usize, Option<String>)>,
) -> anyhow::Result<()> {
    let mut path = Some(format!("/v1/sandboxes?limit={PAGE}"));
    let mut count = 0;
    while let Some(this) = path {
        let page = serde_json::from_slice(connection.send("GET", &this, "").await?)?;
        let (items, following) = next(&page).context("no page")?;
        count += items;
        path = following;
    }
    ensure!(count == SANDBOXES, "the list has {count} sandboxes");
    Ok(())
}

fn next_page(page: &Value) -> Option<(usize, Option<String>)> {
    let cursor = page["next_cursor"].as_str();
    let next = cursor.map(|cursor| format!("/v1/sandboxes?limit={PAGE}&cursor={cursor}"));
    Some((page["items"].as_array()?.len(), next))
}

fn next_bare_page(page: &Value) -> Option<(usize, Option<String>)> {
    let items = page.as_array()?;
    let next = items.last().filter(|_| items.len() == PAGE).map(|last| {
        let (created_at, id) = (&last["created_at"], last["id"].as_str().unwrap_or_default());
        format!("/v1/sandboxes?created_at={created_at}&id={id}")
    });
    Some((items.len(), next))
}
