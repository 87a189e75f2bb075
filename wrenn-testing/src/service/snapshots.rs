//! What is made of sandboxes: children, and snapshots that have a name.

use std::collections::BTreeSet;
use std::sync::Arc;

use wrenn_proto::buffa::MessageField;
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::*;

use crate::errors::invalid;
use crate::host::{Host, Token, check_id};

const MAX_CHILDREN: usize = 64;

type Answer<T> = Result<T, ConnectError>;

pub(super) async fn fork(
    host: &Arc<Host>,
    request: ForkSandboxRequest,
) -> Answer<ForkSandboxResponse> {
    let parent = host.sandbox(&request.id)?;
    let children = request.children;
    if children.is_empty() || children.len() > MAX_CHILDREN {
        return Err(invalid(format!(
            "1 to {MAX_CHILDREN} children can be made at once; name that many ids"
        )));
    }
    for id in &children {
        check_id(id)?;
    }
    if children.iter().collect::<BTreeSet<_>>().len() < children.len() {
        return Err(invalid("two children have one id"));
    }
    let mut response = ForkSandboxResponse::default();
    for (id, made) in host.fork(&parent, children).await? {
        match made {
            Ok(child) => response.sandboxes.push(child.describe(Token::Shown)),
            Err(error) => {
                let message = error.message.unwrap_or_default();
                response.failed.insert(id, message);
            }
        }
    }
    Ok(response)
}

pub(super) async fn create(
    host: &Arc<Host>,
    request: CreateSnapshotRequest,
) -> Answer<CreateSnapshotResponse> {
    let sandbox = host.sandbox(&request.id)?;
    let snapshot = host.snapshot(&sandbox, request.name).await?;
    Ok(CreateSnapshotResponse {
        snapshot: MessageField::some(snapshot),
    })
}

pub(super) async fn list(
    host: &Arc<Host>,
    _request: ListSnapshotsRequest,
) -> Answer<ListSnapshotsResponse> {
    let state = host.state();
    let snapshots = state.snapshots.values();
    Ok(ListSnapshotsResponse {
        snapshots: snapshots.map(|snapshot| snapshot.describe()).collect(),
    })
}

pub(super) async fn delete(
    host: &Arc<Host>,
    request: DeleteSnapshotRequest,
) -> Answer<DeleteSnapshotResponse> {
    Ok(DeleteSnapshotResponse {
        still_needed_by: host.delete_snapshot(&request.name)?,
    })
}
