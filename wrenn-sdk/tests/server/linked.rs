//! A sandbox whose connections can be cut.

use std::sync::Arc;

use wrenn_sdk::{Client, Sandbox};
use wrenn_testing::{Link, TestServer};

/// A server, a link to it, and a sandbox that is used over the link.
pub(crate) struct Linked {
    pub(crate) server: TestServer,
    pub(crate) link: Arc<Link>,
    pub(crate) sandbox: Sandbox,
}

impl Linked {
    pub(crate) async fn start() -> Self {
        let server = TestServer::start().await.unwrap();
        let link = Link::to(server.address()).unwrap();
        let client = Client::builder().url(link.url()).key(server.api_key());
        let sandboxes = client.build().unwrap().sandboxes();
        let sandbox = sandboxes.create("base").await.unwrap();
        Self {
            server,
            link: Arc::new(link),
            sandbox,
        }
    }
}
