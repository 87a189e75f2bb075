//! Snapshots of a team.

use http::Method;
use wrenn_api::template::{CreateSnapshot, DeletedSnapshot, Template};

use crate::client::Client;
use crate::error::Result;
use crate::sandboxes::Pager;

/// The snapshots of a team.
#[derive(Clone, Debug)]
pub struct Snapshots {
    client: Client,
}

impl Snapshots {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Makes a snapshot of a sandbox that goes on. Takes a name, or [`SnapshotOptions`].
    ///
    /// # Errors
    /// `template_name_taken` or `conflict` when the name is taken; `invalid_state` where the
    /// sandbox's status does not allow it.
    pub async fn create(
        &self,
        sandbox: &str,
        options: impl Into<SnapshotOptions>,
    ) -> Result<Template> {
        let options = options.into();
        let body = CreateSnapshot {
            sandbox_id: sandbox.to_owned(),
            name: options.name,
        };
        let query = options.overwrite.then(|| ("overwrite", "true".to_owned()));
        let call = self
            .client
            .call_with(Method::POST, &["v1", "snapshots"], query.as_slice())?
            .json(&body)?
            .idempotent(None)?;
        self.client.transport.fetch(call).await
    }

    /// Lists snapshots, the newest first.
    #[must_use]
    pub fn list(&self) -> Pager<Template> {
        self.pager(Vec::new())
    }

    /// Lists the snapshots of one sandbox.
    #[must_use]
    pub fn list_of(&self, sandbox: impl Into<String>) -> Pager<Template> {
        self.pager(vec![("sandbox_id", sandbox.into())])
    }

    /// Deletes a snapshot by its name or id. Sandboxes that were made of it keep its data
    /// until they are destroyed; the answer names them.
    ///
    /// # Errors
    /// `not_found` when there is none.
    pub async fn delete(&self, name_or_id: &str) -> Result<Vec<String>> {
        let path = ["v1", "snapshots", name_or_id];
        let call = self.client.call(Method::DELETE, &path)?;
        let deleted: DeletedSnapshot = self.client.transport.fetch(call).await?;
        Ok(deleted.still_needed_by)
    }

    fn pager(&self, query: Vec<(&'static str, String)>) -> Pager<Template> {
        let path = vec!["v1", "snapshots"];
        Pager::new(self.client.clone(), path, query, |template| template)
    }
}

/// How a snapshot is made.
#[derive(Clone, Debug, Default)]
pub struct SnapshotOptions {
    name: Option<String>,
    overwrite: bool,
}

impl From<&str> for SnapshotOptions {
    fn from(name: &str) -> Self {
        Self::new().name(name)
    }
}

impl From<String> for SnapshotOptions {
    fn from(name: String) -> Self {
        Self::new().name(name)
    }
}

impl SnapshotOptions {
    /// Without a name: it goes by its id.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A name of 1 to 63 lower-case letters, digits and dashes.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Takes the name from the snapshot that has it.
    #[must_use]
    pub const fn overwrite(mut self) -> Self {
        self.overwrite = true;
        self
    }
}
