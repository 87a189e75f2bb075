//! What this host is, has and has promised.

use std::sync::Arc;

use wrenn_core::Chain;
use wrenn_core::template::{self, Template};
use wrenn_proto::connectrpc::ConnectError;
use wrenn_proto::hostagent::list_templates_response::Template as TemplateMessage;
use wrenn_proto::hostagent::{
    GetHostRequest, GetHostResponse, ListTemplatesRequest, ListTemplatesResponse,
};

use super::State;
use crate::errors::internal;
use crate::usage;

pub(super) async fn get(
    state: &Arc<State>,
    _request: GetHostRequest,
) -> Result<GetHostResponse, ConnectError> {
    let root = state.fleet.root().clone();
    let (templates, free_disk_mib) =
        blocking(move || (template::names(&root), usage::free_mib(root.path()))).await?;
    let (reserved, limits) = state.fleet.reserved();
    Ok(GetHostResponse {
        root_id: state.root_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sandboxes: reserved.sandboxes,
        max_sandboxes: limits.sandboxes,
        vcpus: reserved.vcpus,
        max_vcpus: limits.vcpus,
        memory_mib: reserved.memory_mib,
        max_memory_mib: limits.memory_mib,
        free_disk_mib,
        templates,
    })
}

pub(super) async fn templates(
    state: &Arc<State>,
    _request: ListTemplatesRequest,
) -> Result<ListTemplatesResponse, ConnectError> {
    let root = state.fleet.root().clone();
    let opened = blocking(move || {
        let open = |name: String| match Template::open(&root, &name) {
            Ok(template) => Some(template.manifest),
            Err(error) => {
                tracing::warn!(template = name, error = %Chain(&error), "cannot be used");
                None
            }
        };
        template::names(&root)
            .into_iter()
            .filter_map(open)
            .collect::<Vec<_>>()
    })
    .await?;
    let templates = opened.into_iter().map(|manifest| TemplateMessage {
        name: manifest.name,
        size_mib: manifest.size_mib,
        kernel: manifest.kernel,
        rootfs_sha256: manifest.rootfs_sha256,
    });
    Ok(ListTemplatesResponse {
        templates: templates.collect(),
    })
}

/// Looks at files where waiting for a disk holds up nobody.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ConnectError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| internal("look at files", &error))
}
