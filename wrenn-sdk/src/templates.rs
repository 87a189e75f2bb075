//! Templates: what sandboxes are created from.

use http::Method;
use wrenn_api::template::{Template, TemplateKind};

use crate::client::Client;
use crate::error::Result;
use crate::sandboxes::Pager;

/// The templates that a team can use: images, and its snapshots.
#[derive(Clone, Debug)]
pub struct Templates {
    client: Client,
}

impl Templates {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Lists all of them.
    #[must_use]
    pub fn list(&self) -> Pager<Template> {
        self.pager(Vec::new())
    }

    /// Lists those of one kind.
    #[must_use]
    pub fn list_kind(&self, kind: TemplateKind) -> Pager<Template> {
        self.pager(vec![("type", kind.to_string())])
    }

    /// Finds one by its name or id.
    ///
    /// # Errors
    /// `not_found` when there is none.
    pub async fn get(&self, name_or_id: &str) -> Result<Template> {
        let path = ["v1", "templates", name_or_id];
        let call = self.client.call(Method::GET, &path)?;
        self.client.transport.fetch(call).await
    }

    fn pager(&self, query: Vec<(&'static str, String)>) -> Pager<Template> {
        let path = vec!["v1", "templates"];
        Pager::new(self.client.clone(), path, query, |template| template)
    }
}
