//! One thing done to several sandboxes.

use std::process::ExitCode;

use serde::Serialize;
use wrenn_sdk::{Client, ListOptions, Sandbox};

use crate::explain::of_sdk;
use crate::{escape, output};

/// Does the same to each of the sandboxes. One that fails does not stop the others.
pub(super) async fn each<T, F>(
    client: &Client,
    ids: &[String],
    json: bool,
    mut act: F,
) -> anyhow::Result<ExitCode>
where
    T: Serialize,
    F: AsyncFnMut(&mut Sandbox) -> wrenn_sdk::Result<T>,
{
    let mut done = Vec::new();
    let mut failed = None;
    for id in ids {
        let outcome = async {
            let mut sandbox = client.sandboxes().get(id).await?;
            act(&mut sandbox).await
        };
        match outcome.await {
            Ok(value) => done.push(value),
            // The only one is reported as any other error.
            Err(error) if ids.len() == 1 => return Err(error.into()),
            // Without a server there is none for the others either.
            Err(error) if error.is_connect() || error.is_unauthorized() => {
                return Err(error.into());
            }
            Err(error) => {
                drop_eprintln!(
                    "wrenn: {}: {}",
                    escape::line(id),
                    escape::line(&of_sdk(&error))
                );
                failed = Some(error);
            }
        }
    }
    if json {
        match done.as_slice() {
            [one] if ids.len() == 1 => output::json(one)?,
            all => output::json(&all)?,
        }
    }
    Ok(if failed.is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The ids that were given, or those of all sandboxes that fit.
pub(super) async fn ids(
    client: &Client,
    given: Vec<String>,
    all: Option<ListOptions>,
) -> anyhow::Result<Vec<String>> {
    let Some(options) = all else {
        return Ok(given);
    };
    let sandboxes = client.sandboxes().list(options).all().await?;
    let ids = sandboxes.iter().map(|sandbox| sandbox.id().to_string());
    Ok(ids.collect())
}
