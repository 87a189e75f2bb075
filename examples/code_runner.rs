//! Runs a snippet of Python in a sandbox that is made for it, with a time-out and limits.
//!
//! Start a server with `wrenn up`, then:
//! `cargo run --example code_runner -- 'print(6 * 7)'`, or give the code on standard input.
//!
//! If there is a snapshot `code-runner`, the sandbox is created from it and has at once what
//! was installed there: `wrenn snapshot create ID code-runner` makes one.

#![allow(clippy::print_stdout, reason = "the example shows the output")]

use std::io::Read as _;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use wrenn_sdk::api::sandbox::Network;
use wrenn_sdk::{Client, CreateOptions};

const SNAPSHOT: &str = "code-runner";
const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let code = match std::env::args().nth(1) {
        Some(code) => code,
        None => {
            let mut code = String::new();
            std::io::stdin().read_to_string(&mut code)?;
            code
        }
    };
    let client = Client::from_env()?;
    let template = match client.templates().get(SNAPSHOT).await {
        // A snapshot has the size that it was taken with.
        Ok(_) => CreateOptions::from_template(SNAPSHOT),
        Err(error) if error.is_not_found() => CreateOptions::new().vcpus(1).memory_mib(256),
        Err(error) => return Err(error.into()),
    };
    let no_network = Network {
        allow_internet: false,
        ..Network::default()
    };
    let options = template.network(no_network);
    let sandbox = client.sandboxes().create(options).await?;

    // The code comes on standard input, so that no quoting can go wrong.
    let ran = sandbox.exec("python3", ["-"]).stdin(code).timeout(TIMEOUT);
    let result = ran.await.context("the code did not run");
    sandbox.destroy().await?;

    let result = result?;
    print!("{}", result.stdout_text());
    eprint!("{}", result.stderr_text());
    if result.timed_out {
        eprintln!("the code took longer than {TIMEOUT:?}");
    }
    Ok(ExitCode::from(u8::try_from(result.exit_code)?))
}
