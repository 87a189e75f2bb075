//! What is made of sandboxes: snapshots that have a name, and children.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::future::join_all;
use wrenn_core::RootDirectory;
use wrenn_core::sandbox::{NamedSnapshot, RecordError, check_free};
use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::*;

use super::host::blocking;
use super::sandboxes::{Token, describe, size};
use super::{State as Agent, input};
use crate::errors::{answer, invalid};

/// Children of one fork: each takes its share of the host at the same time.
const MAX_CHILDREN: usize = 64;

pub(super) async fn fork(
    agent: &Arc<Agent>,
    request: ForkSandboxRequest,
) -> Result<ForkSandboxResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    if request.children.is_empty() || request.children.len() > MAX_CHILDREN {
        return Err(invalid(format!(
            "1 to {MAX_CHILDREN} children can be made at once; name that many ids"
        )));
    }
    let ids = request.children.iter().map(|id| input::sandbox_id(id));
    let ids = ids.collect::<Result<Vec<_>, _>>()?;
    if ids.iter().collect::<BTreeSet<_>>().len() < ids.len() {
        return Err(invalid("two children have one id"));
    }
    let frozen = sandbox.freeze().await.map_err(|error| answer(&error))?;
    let children = ids.into_iter().map(|id| {
        let config = frozen.child(id.clone());
        let (fleet, frozen) = (&agent.fleet, &frozen);
        async move { (id, fleet.create_from(frozen, config).await) }
    });
    let mut response = ForkSandboxResponse::default();
    for (id, created) in join_all(children).await {
        match created {
            Ok(child) => response.sandboxes.push(describe(&child, Token::Shown)),
            Err(error) => {
                let said = answer(&error).message.unwrap_or_default();
                response.failed.insert(id.to_string(), said);
            }
        }
    }
    Ok(response)
}

pub(super) async fn create(
    agent: &Arc<Agent>,
    request: CreateSnapshotRequest,
) -> Result<CreateSnapshotResponse, ConnectError> {
    let sandbox = agent.sandbox(&request.id)?;
    let (root, name) = (agent.fleet.root().clone(), request.name);
    // Nobody is stopped for a name that cannot be had.
    let (searched, wanted) = (root.clone(), name.clone());
    blocking(move || check_free(&searched, &wanted))
        .await?
        .map_err(|error| answer(&error))?;
    let frozen = sandbox.freeze().await.map_err(|error| answer(&error))?;
    let named = blocking(move || {
        let named = frozen.name(&root, &name);
        named.map(|named| describe_snapshot(&named, &root))
    });
    let snapshot = named.await?.map_err(|error| answer(&error))?;
    Ok(CreateSnapshotResponse {
        snapshot: MessageField::some(snapshot),
    })
}

pub(super) async fn list(
    agent: &Arc<Agent>,
    _request: ListSnapshotsRequest,
) -> Result<ListSnapshotsResponse, ConnectError> {
    let root = agent.fleet.root().clone();
    let listed = blocking(move || {
        let all = NamedSnapshot::list(&root)?;
        Ok(all
            .iter()
            .map(|named| describe_snapshot(named, &root))
            .collect())
    });
    let listed: Result<_, RecordError> = listed.await?;
    Ok(ListSnapshotsResponse {
        snapshots: listed.map_err(|error| answer(&error))?,
    })
}

pub(super) async fn delete(
    agent: &Arc<Agent>,
    request: DeleteSnapshotRequest,
) -> Result<DeleteSnapshotResponse, ConnectError> {
    let (root, name) = (agent.fleet.root().clone(), request.name);
    let deleted = blocking(move || NamedSnapshot::delete(&root, &name)).await?;
    let users = deleted.map_err(|error| answer(&error))?;
    agent.fleet.collect_builds().await;
    Ok(DeleteSnapshotResponse {
        still_needed_by: users.iter().map(ToString::to_string).collect(),
    })
}

fn describe_snapshot(named: &NamedSnapshot, root: &RootDirectory) -> Snapshot {
    Snapshot {
        name: named.name().to_owned(),
        source: named.source().to_string(),
        template: named.template().to_owned(),
        resources: MessageField::some(size(named.resources())),
        created_at: named.created_at().to_owned(),
        build_id: named.build().to_string(),
        // One whose build is gone is found out by who wants to use it.
        disk_bytes: named.disk_bytes(root).unwrap_or_default(),
    }
}
