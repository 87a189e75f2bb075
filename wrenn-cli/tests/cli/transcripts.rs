//! Sessions as the documentation shows them. `TRYCMD=overwrite` writes what was printed.

use crate::wrenn::Wrenn;

#[tokio::test(flavor = "multi_thread")]
async fn sessions_print_what_they_show() {
    let wrenn = Wrenn::start().await;
    let (url, key) = (wrenn.server.url(), wrenn.server.api_key().to_owned());
    let config = wrenn.path("config").to_string_lossy().into_owned();
    tokio::task::spawn_blocking(move || {
        trycmd::TestCases::new()
            .env("WRENN_API_URL", url)
            .env("WRENN_API_KEY", key)
            .env("WRENN_CONFIG_DIR", config)
            .case("tests/cli/transcripts/*.md");
    })
    .await
    .unwrap();
}
