//! The files of a sandbox.

mod directories;
mod download;
mod upload;

use std::future::IntoFuture;
use std::path::PathBuf;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::Method;
use reqwest::Url;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use wrenn_api::file::{FileEntry, FileList, FilePath, ListFiles, MoveFile};
use wrenn_api::id::SandboxId;

use crate::client::Client;
use crate::error::Result;
use crate::transport::{Call, whole};
use crate::watch::Watcher;
pub use directories::{DownloadDir, DownloadedDir, UploadDir, UploadedDir};
pub use download::{Download, Downloaded};
pub use upload::{Upload, Uploaded, Write};

/// The files of a sandbox.
///
/// A path that is not absolute begins in the home of the [`user`](Self::user).
#[derive(Clone, Debug)]
pub struct Files {
    client: Client,
    sandbox: SandboxId,
    user: String,
}

impl Files {
    pub(crate) const fn new(client: Client, sandbox: SandboxId) -> Self {
        Self {
            client,
            sandbox,
            user: String::new(),
        }
    }

    /// The same files, used as this user of the guest; the template's default one unless
    /// set.
    #[must_use]
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = user.into();
        self
    }

    /// The contents of a file, up to 16 MiB. [`download`](Self::download) and
    /// [`read_to`](Self::read_to) take larger ones.
    ///
    /// # Errors
    /// `not_found`; `too_large`; `guest_permission_denied`.
    pub async fn read(&self, path: impl Into<String>) -> Result<Bytes> {
        let call = self.post("read", &self.path(path))?.reads();
        let response = self.client.transport.send(call).await?;
        whole("POST …/files/read", response).await
    }

    /// The contents of a file as text; what is not UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// Like [`read`](Self::read).
    pub async fn read_text(&self, path: impl Into<String>) -> Result<String> {
        let bytes = self.read(path).await?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Writes a file, of any size, when awaited. Missing directories are made; the old file
    /// stays until the new one is whole.
    ///
    /// ```no_run
    /// # async fn example(sandbox: wrenn_sdk::Sandbox) -> wrenn_sdk::Result<()> {
    /// sandbox.files().write("bin/hello", "#!/bin/sh\necho hello\n").mode(0o755).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn write(&self, path: impl Into<String>, contents: impl Into<Bytes>) -> Write {
        Write::new(self.clone(), path.into(), contents.into())
    }

    /// Copies a local file into the sandbox when awaited, with its mode. An upload whose
    /// connection broke has to be started again.
    pub fn upload(&self, local: impl Into<PathBuf>, path: impl Into<String>) -> Upload {
        Upload::file(self.clone(), local.into(), path.into())
    }

    /// Copies what a reader gives into a file of the sandbox when awaited.
    pub fn write_from<R>(&self, path: impl Into<String>, reader: R) -> Upload
    where
        R: AsyncRead + Send + Sync + 'static,
    {
        Upload::reader(self.clone(), Box::pin(reader), path.into())
    }

    /// Copies a file of the sandbox to a local file when awaited, with its mode. The local
    /// file is atomically replaced. A download goes on after its connection broke.
    pub fn download(&self, path: impl Into<String>, local: impl Into<PathBuf>) -> Download {
        Download::new(self.clone(), path.into(), local.into())
    }

    /// Copies a file of the sandbox into a writer, and returns its size.
    ///
    /// # Errors
    /// `not_found`; when the writer fails; when the connection breaks and cannot be replaced, or
    /// the file changed meanwhile, after part of the file was written.
    pub async fn read_to<W>(&self, path: impl Into<String>, writer: &mut W) -> Result<u64>
    where
        W: AsyncWrite + Unpin + ?Sized,
    {
        let path = path.into();
        download::stream_to(self, &path, writer, &crate::progress::Observer::default()).await
    }

    /// Copies what is in a local directory into a directory of the sandbox when awaited.
    pub fn upload_dir(&self, local: impl Into<PathBuf>, path: impl Into<String>) -> UploadDir {
        UploadDir::new(self.clone(), local.into(), path.into())
    }

    /// Copies what is in a directory of the sandbox into a local directory when awaited.
    /// Whatever the sandbox sends, nothing is written outside of it; symbolic links are made as
    /// they are.
    pub fn download_dir(&self, path: impl Into<String>, local: impl Into<PathBuf>) -> DownloadDir {
        DownloadDir::new(self.clone(), path.into(), local.into())
    }

    /// Lists a directory when awaited.
    pub fn list(&self, path: impl Into<String>) -> List {
        List {
            body: ListFiles {
                path: path.into(),
                user: self.user.clone(),
                depth: 1,
            },
            files: self.clone(),
        }
    }

    /// The entry at a path: kind, size, mode, owner.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn stat(&self, path: impl Into<String>) -> Result<FileEntry> {
        let call = self.post("stat", &self.path(path))?.reads();
        self.client.transport.fetch(call).await
    }

    /// Whether there is something at a path.
    ///
    /// # Errors
    /// When that cannot be found out.
    pub async fn exists(&self, path: impl Into<String>) -> Result<bool> {
        match self.stat(path).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a directory, and those above it that are missing.
    ///
    /// # Errors
    /// `conflict` when something else is there.
    pub async fn make_dir(&self, path: impl Into<String>) -> Result<()> {
        self.act("mkdir", &self.path(path)).await
    }

    /// Renames a file or directory.
    ///
    /// # Errors
    /// `not_found`; `conflict`.
    pub async fn rename(&self, from: impl Into<String>, to: impl Into<String>) -> Result<()> {
        let body = MoveFile {
            from: from.into(),
            to: to.into(),
            user: self.user.clone(),
        };
        self.act("move", &body).await
    }

    /// Removes a file, or a directory with all that is in it. A missing path is no error.
    ///
    /// # Errors
    /// `guest_permission_denied`.
    pub async fn remove(&self, path: impl Into<String>) -> Result<()> {
        self.act("remove", &self.path(path)).await
    }

    /// Watches a directory. No change after the return is missed.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn watch(&self, path: impl Into<String>) -> Result<Watcher> {
        self.watch_with(path.into(), false).await
    }

    /// Watches a directory and those below it.
    ///
    /// # Errors
    /// `not_found`.
    pub async fn watch_recursive(&self, path: impl Into<String>) -> Result<Watcher> {
        self.watch_with(path.into(), true).await
    }

    async fn watch_with(&self, path: String, recursive: bool) -> Result<Watcher> {
        let mut url = self.url("watch", &path, &[])?;
        if recursive {
            url.query_pairs_mut().append_pair("recursive", "true");
        }
        Watcher::open(&self.client, &url).await
    }

    fn path(&self, path: impl Into<String>) -> FilePath {
        FilePath {
            path: path.into(),
            user: self.user.clone(),
        }
    }

    fn post(&self, route: &str, body: &impl Serialize) -> Result<Call> {
        let path = ["v1", "sandboxes", self.sandbox.as_str(), "files", route];
        self.client.call(Method::POST, &path)?.json(body)
    }

    async fn act(&self, route: &str, body: &impl Serialize) -> Result<()> {
        let call = self.post(route, body)?;
        self.client.transport.send(call).await.map(drop)
    }

    /// The address of a route that takes path and user in its query.
    fn url(&self, route: &str, path: &str, more: &[(&str, String)]) -> Result<Url> {
        let segments = ["v1", "sandboxes", self.sandbox.as_str(), "files"];
        let route: Vec<&str> = route.split('/').collect();
        let mut url = self
            .client
            .transport
            .url(&[&segments[..], &route].concat())?;
        let mut query = url.query_pairs_mut();
        query.append_pair("path", path);
        if !self.user.is_empty() {
            query.append_pair("user", &self.user);
        }
        query.extend_pairs(more);
        drop(query);
        Ok(url)
    }
}

/// Lists a directory when it is awaited.
#[derive(Clone, Debug)]
#[must_use = "nothing is listed until it is awaited"]
pub struct List {
    files: Files,
    body: ListFiles,
}

impl List {
    /// How many levels, 1 to 16; one unless set.
    pub const fn depth(mut self, levels: u32) -> Self {
        self.body.depth = levels;
        self
    }
}

impl IntoFuture for List {
    type Output = Result<Vec<FileEntry>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let call = self.files.post("list", &self.body)?.reads();
            let list: FileList = self.files.client.transport.fetch(call).await?;
            Ok(list.items)
        })
    }
}
