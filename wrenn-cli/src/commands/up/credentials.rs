//! The API key of who runs `wrenn up`: made once, shown once, kept where the client finds it.

use std::path::PathBuf;

use anyhow::Context;
use wrenn_sdk::credentials::{self, Credentials};
use wrenn_server::ServerHandle;

const KEY_NAME: &str = "wrenn up";

/// What became of the key.
#[derive(Debug)]
pub(super) enum Key {
    /// The file has one that works.
    Kept,
    /// One was made and saved.
    Saved { secret: String, file: PathBuf },
    /// One was made; the file belongs to another server, or there is no home.
    Shown { secret: String, why: String },
}

/// Makes a key unless the file of this user has one that works.
pub(super) async fn ensure(server: &ServerHandle) -> anyhow::Result<Key> {
    let api_url = format!("http://{}", server.address());
    let saved = Credentials::load().context("cannot read the saved API key")?;
    if let Some(saved) = &saved
        && server.is_valid_key(&saved.api_key).await
    {
        if saved.api_url != api_url {
            let moved = Credentials {
                api_url,
                api_key: saved.api_key.clone(),
            };
            save(&moved)?;
        }
        return Ok(Key::Kept);
    }
    let key = server.create_api_key(KEY_NAME).await?;
    let secret = key.secret;
    match &saved {
        Some(saved) if !is_loopback(&saved.api_url) => Ok(Key::Shown {
            why: format!("the saved key is for {}", saved.api_url),
            secret,
        }),
        _ => {
            let credentials = Credentials {
                api_url,
                api_key: secret.clone(),
            };
            match save(&credentials)? {
                Some(file) => Ok(Key::Saved { secret, file }),
                None => Ok(Key::Shown {
                    why: "there is no home directory".to_owned(),
                    secret,
                }),
            }
        }
    }
}

fn save(credentials: &Credentials) -> anyhow::Result<Option<PathBuf>> {
    let Some(file) = credentials::path() else {
        return Ok(None);
    };
    credentials
        .save_to(&file)
        .with_context(|| format!("cannot save the API key in {}", file.display()))?;
    Ok(Some(file))
}

fn is_loopback(url: &str) -> bool {
    let host = url.split("//").nth(1).unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|loopback| host.starts_with(loopback))
}

/// Tells the user where the key is. In the background it would end up in a log: there the
/// file is named alone.
pub(super) fn report(key: &Key, background: bool) {
    match key {
        Key::Kept => {}
        Key::Saved { file, .. } if background => {
            drop_eprintln!("wrenn: a new API key is in {}", file.display());
        }
        Key::Shown { why, .. } if background => drop_eprintln!(
            "wrenn: a new API key is not shown here, and not saved, since {why}; \
             run wrenn up without --detach once to get one"
        ),
        Key::Saved { secret, file } => drop_eprintln!(
            "  API key     {secret}\n              (shown once; wrenn finds it in {})",
            file.display()
        ),
        Key::Shown { secret, why } => drop_eprintln!(
            "  API key     {secret}\n              (shown once and not saved, since {why}; \
             set WRENN_API_KEY and WRENN_API_URL)"
        ),
    }
}
