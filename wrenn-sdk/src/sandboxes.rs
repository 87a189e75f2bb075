//! Sandboxes of a team: create, list, get.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use futures::stream::{self, BoxStream, StreamExt as _};
use http::Method;
use wrenn_api::page::Page;
use wrenn_api::sandbox::{CreateSandbox, Network};
use wrenn_api::status::Status;

use crate::client::Client;
use crate::error::Result;
use crate::process::whole_seconds;
use crate::sandbox::Sandbox;

/// The sandboxes of a team.
#[derive(Clone, Debug)]
pub struct Sandboxes {
    client: Client,
}

impl Sandboxes {
    pub(crate) const fn new(client: Client) -> Self {
        Self { client }
    }

    /// Creates a sandbox and waits until it runs. Takes the name of a template or snapshot,
    /// or [`CreateOptions`].
    ///
    /// # Errors
    /// When there is no such template, no room, or the name is taken.
    ///
    /// # Cancel safety
    /// The sandbox may come to be after the future was dropped. With a
    /// [`name`](CreateOptions::name) it can be found, and with an
    /// [`idempotency_key`](CreateOptions::idempotency_key) the call can be made again.
    pub async fn create(&self, options: impl Into<CreateOptions>) -> Result<Sandbox> {
        let options = options.into();
        let call = self
            .client
            .call(Method::POST, &["v1", "sandboxes"])?
            .json(&options.body)?
            .idempotent(options.idempotency_key.as_deref())?;
        let info = self.client.transport.fetch(call).await?;
        Ok(Sandbox::new(self.client.clone(), info))
    }

    /// Lists sandboxes, the newest first.
    #[must_use]
    pub fn list(&self, options: ListOptions) -> Pager<Sandbox> {
        let client = self.client.clone();
        Pager::new(
            self.client.clone(),
            vec!["v1", "sandboxes"],
            options.query(),
            move |info| Sandbox::new(client.clone(), info),
        )
    }

    /// Finds a sandbox by its id or name.
    ///
    /// # Errors
    /// `not_found` when there is none.
    pub async fn get(&self, id_or_name: &str) -> Result<Sandbox> {
        let call = self
            .client
            .call(Method::GET, &["v1", "sandboxes", id_or_name])?;
        let info = self.client.transport.fetch(call).await?;
        Ok(Sandbox::new(self.client.clone(), info))
    }
}

/// Options of a new sandbox.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    body: CreateSandbox,
    idempotency_key: Option<String>,
}

impl From<&str> for CreateOptions {
    fn from(template: &str) -> Self {
        Self::from_template(template)
    }
}

impl From<String> for CreateOptions {
    fn from(template: String) -> Self {
        Self::from_template(template)
    }
}

impl From<CreateSandbox> for CreateOptions {
    fn from(body: CreateSandbox) -> Self {
        Self {
            body,
            idempotency_key: None,
        }
    }
}

impl CreateOptions {
    /// A sandbox of the template `base`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A sandbox of a template or snapshot.
    #[must_use]
    pub fn from_template(template: impl Into<String>) -> Self {
        Self::new().template(template)
    }

    /// The template or snapshot, by name or id.
    #[must_use]
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.body.template = template.into();
        self
    }

    /// A name of 1 to 63 lower-case letters, digits and dashes, to be used in place of the
    /// id.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.body.name = Some(name.into());
        self
    }

    /// Virtual processors; the template's, or 1.
    #[must_use]
    pub fn vcpus(mut self, vcpus: u32) -> Self {
        self.body.vcpus = Some(vcpus);
        self
    }

    /// Memory in MiB; the template's, or 512.
    #[must_use]
    pub fn memory_mib(mut self, memory: u32) -> Self {
        self.body.memory_mb = Some(memory);
        self
    }

    /// How long it may be idle before it is paused, rounded up to seconds; for ever unless
    /// set.
    #[must_use]
    pub fn idle_timeout(mut self, timeout: Duration) -> Self {
        self.body.timeout_sec = whole_seconds(timeout);
        self
    }

    /// Adds a variable to the environment of each command.
    #[must_use]
    pub fn env(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.body.env.insert(name.into(), value.into());
        self
    }

    /// Adds variables to the environment of each command.
    #[must_use]
    pub fn envs(mut self, variables: BTreeMap<String, String>) -> Self {
        self.body.env.extend(variables);
        self
    }

    /// Adds a name and a value to find it by.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.body.metadata.insert(name.into(), value.into());
        self
    }

    /// Which addresses it reaches.
    #[must_use]
    pub fn network(mut self, network: Network) -> Self {
        self.body.network = network;
        self
    }

    /// Returns as soon as the server has its row, with the status `pending`.
    #[must_use]
    pub fn without_waiting(mut self) -> Self {
        self.body.wait = false;
        self
    }

    /// A key of the caller's, for a create that outlives its program: two calls with one key
    /// make one sandbox. Each call has a key of its own unless set.
    #[must_use]
    pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
        self.idempotency_key = Some(key.into());
        self
    }
}

/// Which sandboxes to list.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    status: Vec<Status>,
    template: Option<String>,
    name: Option<String>,
    metadata: BTreeMap<String, String>,
    page_size: Option<u32>,
}

impl ListOptions {
    /// All that are not stopped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Those with this status; may be called for several.
    #[must_use]
    pub fn status(mut self, status: Status) -> Self {
        self.status.push(status);
        self
    }

    /// Those of this template.
    #[must_use]
    pub fn template(mut self, template: impl Into<String>) -> Self {
        self.template = Some(template.into());
        self
    }

    /// The one with this name.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Those with this metadata; may be called for several pairs, which all must be there.
    #[must_use]
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(name.into(), value.into());
        self
    }

    /// How many items the server sends at once, 1 to 100.
    #[must_use]
    pub fn page_size(mut self, items: u32) -> Self {
        self.page_size = Some(items);
        self
    }

    fn query(self) -> Vec<(&'static str, String)> {
        let mut query = Vec::new();
        if !self.status.is_empty() {
            let all: Vec<&str> = self.status.iter().map(|status| status.as_str()).collect();
            query.push(("status", all.join(",")));
        }
        query.extend(self.template.map(|template| ("template", template)));
        query.extend(self.name.map(|name| ("name", name)));
        let pairs = self.metadata.into_iter();
        query.extend(pairs.map(|(name, value)| ("metadata", format!("{name}={value}"))));
        query.extend(self.page_size.map(|items| ("limit", items.to_string())));
        query
    }
}

type Convert<T> = Box<dyn FnMut(serde_json::Value) -> serde_json::Result<T> + Send + Sync>;

/// A list that comes in pages. A page is asked for when its first item is.
pub struct Pager<T> {
    client: Client,
    path: Vec<&'static str>,
    query: Vec<(&'static str, String)>,
    convert: Convert<T>,
    ready: VecDeque<T>,
    /// The next page's cursor; nothing after the last page.
    next: Option<Option<String>>,
}

impl<T> std::fmt::Debug for Pager<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pager")
            .field("path", &self.path)
            .field("query", &self.query)
            .finish_non_exhaustive()
    }
}

impl<T: Send + 'static> Pager<T> {
    pub(crate) fn new<I: serde::de::DeserializeOwned>(
        client: Client,
        path: Vec<&'static str>,
        query: Vec<(&'static str, String)>,
        mut convert: impl FnMut(I) -> T + Send + Sync + 'static,
    ) -> Self {
        Self {
            client,
            path,
            query,
            convert: Box::new(move |value| serde_json::from_value(value).map(&mut convert)),
            ready: VecDeque::new(),
            next: Some(None),
        }
    }

    /// The next item; nothing at the end.
    ///
    /// # Errors
    /// When a page cannot be read. The next call tries the same page again.
    ///
    /// # Cancel safety
    /// Safe: no item is lost when the future is dropped.
    pub async fn next(&mut self) -> Result<Option<T>> {
        while self.ready.is_empty() && self.next.is_some() {
            let page = self.fetch_page().await?;
            self.ready.extend(page);
        }
        Ok(self.ready.pop_front())
    }

    /// The items of the next page that has any; none at the end.
    ///
    /// # Errors
    /// Like [`next`](Self::next).
    pub async fn next_page(&mut self) -> Result<Vec<T>> {
        while self.ready.is_empty() && self.next.is_some() {
            let page = self.fetch_page().await?;
            self.ready.extend(page);
        }
        Ok(self.ready.drain(..).collect())
    }

    /// All items that are left.
    ///
    /// # Errors
    /// Like [`next`](Self::next).
    pub async fn all(mut self) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while let Some(item) = self.next().await? {
            items.push(item);
        }
        Ok(items)
    }

    /// The items as a stream, which ends with the first error.
    pub fn into_stream(self) -> BoxStream<'static, Result<T>> {
        stream::try_unfold(self, |mut pager| async move {
            Ok(pager.next().await?.map(|item| (item, pager)))
        })
        .boxed()
    }

    async fn fetch_page(&mut self) -> Result<Vec<T>> {
        let mut query = self.query.clone();
        if let Some(Some(cursor)) = &self.next {
            query.push(("cursor", cursor.clone()));
        }
        let call = self.client.call_with(Method::GET, &self.path, &query)?;
        let page: Page<serde_json::Value> = self.client.transport.fetch(call).await?;
        let items = page
            .items
            .into_iter()
            .map(&mut self.convert)
            .collect::<serde_json::Result<_>>()
            .map_err(|error| crate::Error::Protocol {
                request: format!("GET /{}", self.path.join("/")),
                problem: error.to_string(),
                request_id: None,
            })?;
        self.next = page.next_cursor.map(Some);
        Ok(items)
    }
}
