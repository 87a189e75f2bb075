//! One server.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use http::{HeaderValue, Method};
use reqwest::Url;
use wrenn_api::error::{InvalidValue, shorten};
use wrenn_api::page::Page;
use wrenn_api::server::{Orphan, ServerInfo};

use crate::credentials::Credentials;
use crate::error::{Error, Result};
use crate::events::Events;
use crate::sandboxes::Sandboxes;
use crate::snapshots::Snapshots;
use crate::templates::Templates;
use crate::tls;
use crate::transport::{Call, Transport, is_loopback};

/// Where `wrenn up` listens.
pub const DEFAULT_URL: &str = "http://127.0.0.1:7400";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A server and a key. Cheap to clone; all clones share their connections.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
}

impl Client {
    /// A client for the server of `WRENN_API_URL` with the key of `WRENN_API_KEY`. A value
    /// that is not set comes from the file that `wrenn up` writes ([`credentials`](crate::credentials)),
    /// then from [`DEFAULT_URL`]. The file's key goes to the file's server only. Without any
    /// key the client can still ask for [`server_info`](Self::server_info).
    ///
    /// # Errors
    /// When a value or the file cannot be used.
    pub fn from_env() -> Result<Self> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let url = variable("WRENN_API_URL");
        let key = variable("WRENN_API_KEY");
        Self::from_parts(url, key, Credentials::load)
    }

    fn from_parts(
        url: Option<String>,
        key: Option<String>,
        load: impl FnOnce() -> Result<Option<Credentials>>,
    ) -> Result<Self> {
        let mut builder = Self::builder();
        // With both set, a damaged file does no harm.
        let saved = if url.is_some() && key.is_some() {
            None
        } else {
            load()?
        };
        let url = url.or_else(|| saved.as_ref().map(|saved| saved.api_url.clone()));
        let url = url.unwrap_or_else(|| DEFAULT_URL.to_owned());
        let key = key.or_else(|| {
            saved
                .filter(|saved| same_server(&saved.api_url, &url))
                .map(|saved| saved.api_key)
        });
        builder = builder.url(url);
        if let Some(key) = key {
            builder = builder.key(key);
        }
        builder.build()
    }

    /// A client with values of the caller's.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder {
            url: DEFAULT_URL.to_owned(),
            key: None,
            request_timeout: None,
            user_agent: concat!("wrenn-sdk/", env!("CARGO_PKG_VERSION")).to_owned(),
        }
    }

    /// The server's address.
    #[must_use]
    pub fn url(&self) -> &str {
        self.transport.base.as_str()
    }

    /// Whether requests are sent with a key.
    #[must_use]
    pub fn has_key(&self) -> bool {
        self.transport.key.is_some()
    }

    /// Sandboxes: create, list, get.
    #[must_use]
    pub fn sandboxes(&self) -> Sandboxes {
        Sandboxes::new(self.clone())
    }

    /// Snapshots: create, list, delete.
    #[must_use]
    pub fn snapshots(&self) -> Snapshots {
        Snapshots::new(self.clone())
    }

    /// Templates: list, get.
    #[must_use]
    pub fn templates(&self) -> Templates {
        Templates::new(self.clone())
    }

    /// Lifecycle events of the team, as they happen.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(self.clone())
    }

    /// Version, mode and limits of the server. Needs no key.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn server_info(&self) -> Result<ServerInfo> {
        let call = self.call(Method::GET, &["v1", "server"])?;
        self.transport.fetch(call).await
    }

    /// Sandboxes that hosts have and the database of the server does not know.
    ///
    /// # Errors
    /// When the server refuses or cannot be reached.
    pub async fn orphans(&self) -> Result<Vec<Orphan>> {
        let call = self.call(Method::GET, &["v1", "admin", "orphans"])?;
        let page: Page<Orphan> = self.transport.fetch(call).await?;
        Ok(page.items)
    }

    /// Destroys an orphan, data included.
    ///
    /// # Errors
    /// When it is none, or the server or its host cannot be reached.
    pub async fn destroy_orphan(&self, id: &str) -> Result<()> {
        let call = self.call(Method::DELETE, &["v1", "admin", "orphans", id])?;
        self.transport.send(call).await.map(drop)
    }

    pub(crate) fn call(&self, method: Method, segments: &[&str]) -> Result<Call> {
        Ok(Call::new(method, self.transport.url(segments)?))
    }

    pub(crate) fn call_with(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, String)],
    ) -> Result<Call> {
        let mut url = self.transport.url(segments)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(Call::new(method, url))
    }
}

fn same_server(one: &str, other: &str) -> bool {
    match (Url::parse(one), Url::parse(other)) {
        (Ok(one), Ok(other)) => one.origin() == other.origin(),
        _ => false,
    }
}

/// Makes a [`Client`].
#[derive(Clone)]
pub struct ClientBuilder {
    url: String,
    key: Option<String>,
    request_timeout: Option<Duration>,
    user_agent: String,
}

// The key does not belong into logs.
impl std::fmt::Debug for ClientBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientBuilder")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

impl ClientBuilder {
    /// The server; [`DEFAULT_URL`] unless set. A path is kept and goes before `/v1`.
    #[must_use]
    pub fn url(mut self, url: impl Into<String>) -> Self {
        self.url = url.into();
        self
    }

    /// The API key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// How long one attempt of a request may take, its body included. None unless set: a
    /// create or a resume is as slow as its host, and a download as large as its file.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = Some(timeout);
        self
    }

    /// How the client calls itself in the server's log.
    #[must_use]
    pub fn user_agent(mut self, user_agent: impl Into<String>) -> Self {
        self.user_agent = user_agent.into();
        self
    }

    /// Makes the client. No request is sent yet.
    ///
    /// # Errors
    /// When the address or the key cannot be used.
    pub fn build(self) -> Result<Client> {
        let base = server_url(&self.url)?;
        let key = self.key.as_deref().map(key_header).transpose()?;
        let secure = base.scheme() == "https";
        let mut http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(secure, &[b"h2", b"http/1.1"])?)
            // A redirect would take the key elsewhere.
            .redirect(reqwest::redirect::Policy::none())
            .user_agent(self.user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_keepalive(KEEPALIVE);
        if is_loopback(&base) {
            http = http.no_proxy();
        }
        if let Some(timeout) = self.request_timeout {
            http = http.timeout(timeout);
        }
        let transport = Transport {
            http: http.build().map_err(|error| Error::Tls(error.into()))?,
            base,
            key,
            tls: Arc::new(tls::client_config(secure, &[b"http/1.1"])?),
            seen: AtomicBool::new(false),
        };
        Ok(Client {
            transport: Arc::new(transport),
        })
    }
}

fn server_url(text: &str) -> Result<Url> {
    let invalid = || InvalidValue {
        what: "server address",
        value: shorten(text),
        expected: "one like http://127.0.0.1:7400 or https://wrenn.example.com",
    };
    let url = Url::parse(text).map_err(|_| invalid())?;
    let usable = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.username().is_empty()
        && url.query().is_none();
    if usable {
        Ok(url)
    } else {
        Err(invalid().into())
    }
}

fn key_header(key: &str) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(key.trim()).map_err(|_| InvalidValue {
        what: "API key",
        // Not shown, as it may be a key with a typing error.
        value: "…".to_owned(),
        expected: "wrn_ and 40 hexadecimal digits",
    })?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Result<Option<Credentials>> {
        Ok(Some(Credentials {
            api_url: "http://127.0.0.1:7500".to_owned(),
            api_key: "wrn_file".to_owned(),
        }))
    }

    fn parts(url: Option<&str>, key: Option<&str>) -> (String, Option<String>) {
        let client =
            Client::from_parts(url.map(str::to_owned), key.map(str::to_owned), saved).unwrap();
        let key = client.transport.key.clone();
        (
            client.url().to_owned(),
            key.map(|key| key.to_str().unwrap().to_owned()),
        )
    }

    #[test]
    fn saved_key_goes_to_its_own_server_only() {
        let file = || Some("wrn_file".to_owned());
        assert_eq!(parts(None, None), ("http://127.0.0.1:7500/".into(), file()));
        let same = parts(Some("http://127.0.0.1:7500"), None);
        assert_eq!(same.1, file());
        assert_eq!(parts(Some("http://127.0.0.1:7501"), None).1, None);
        assert_eq!(parts(Some("https://evil.example.com"), None).1, None);
        let own = parts(None, Some("wrn_own"));
        assert_eq!(
            own,
            ("http://127.0.0.1:7500/".into(), Some("wrn_own".into()))
        );
    }

    #[test]
    fn unusable_addresses_are_refused() {
        for url in [
            "",
            "127.0.0.1:7400",
            "ftp://host",
            "http://",
            "http://user@host",
            "http://host/?a=b",
        ] {
            let error = Client::builder().url(url).build().unwrap_err().to_string();
            assert!(error.contains("server address"), "{url}: {error}");
        }
    }

    #[test]
    fn key_is_in_no_debug_output() {
        let builder = Client::builder().key("wrn_canary");
        let debug = format!("{builder:?} {:?}", builder.clone().build().unwrap());
        assert!(!debug.contains("canary"), "{debug}");
    }

    #[test]
    fn segments_that_would_change_the_route_are_refused() {
        let client = Client::builder().build().unwrap();
        for id in ["", ".", ".."] {
            assert!(client.call(Method::GET, &["v1", "sandboxes", id]).is_err());
        }
        let url = client.transport.url(&["v1", "a/b?c#d"]).unwrap();
        assert_eq!(url.as_str(), "http://127.0.0.1:7400/v1/a%2Fb%3Fc%23d");
    }
}
