//! Where there is no server, no key, or a server that goes away.

use std::net::TcpListener;

use wrenn_sdk::credentials::Credentials;

use crate::wrenn::{Wrenn, program, run};

#[tokio::test(flavor = "multi_thread")]
async fn absent_server_is_named_with_its_remedy() {
    let directory = tempfile::tempdir().unwrap();
    let port = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().port()
    };
    for words in [
        &["sandbox", "list"][..],
        &["snapshot", "list"],
        &["template", "list"],
    ] {
        let mut command = program(directory.path());
        let url = format!("http://127.0.0.1:{port}");
        command.args(words).env("WRENN_API_URL", &url);
        let ran = run(command).await;
        assert_eq!(ran.code, Some(1));
        let wanted = format!("wrenn: no server answers at {url}; `wrenn up` starts one");
        assert!(ran.stderr.starts_with(&wanted), "{ran:?}");
    }
    let mut command = program(directory.path());
    command
        .args(["sandbox", "list"])
        .env("WRENN_API_URL", "localhost");
    let ran = run(command).await;
    assert!(
        ran.stderr.contains("one like http://127.0.0.1:7400"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_come_from_environment_or_file() {
    let wrenn = Wrenn::start().await;
    let without = |file: &str| {
        let mut command = wrenn.command(&["sandbox", "list", "-q"]);
        command
            .env_remove("WRENN_API_KEY")
            .env("WRENN_CONFIG_DIR", wrenn.path(file));
        command
    };
    let ran = run(without("empty")).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("set WRENN_API_KEY"), "{ran:?}");

    let mut wrong = wrenn.command(&["sandbox", "list"]);
    wrong.env(
        "WRENN_API_KEY",
        "wrn_0000000000000000000000000000000000000000",
    );
    let ran = run(wrong).await;
    assert!(
        ran.stderr.contains("is it the key of this server?"),
        "{ran:?}"
    );
    assert_eq!(ran.stderr.lines().count(), 1);

    let saved = Credentials {
        api_url: wrenn.server.url(),
        api_key: wrenn.server.api_key().to_owned(),
    };
    saved
        .save_to(&wrenn.path("saved/credentials.json"))
        .unwrap();
    let ran = run(without("saved")).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let mut command = without("saved");
    command.env_remove("WRENN_API_URL");
    assert_eq!(run(command).await.code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_status_says_what_to_do() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    wrenn.ok(&["sandbox", "pause", "web"]).await;
    let ran = wrenn.run(&["sandbox", "exec", "web", "--", "true"]).await;
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.stderr
            .contains("is paused; `wrenn sandbox resume` lets it go on"),
        "{ran:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn misspelt_words_suggest_the_near_one() {
    let wrenn = Wrenn::start().await;
    for (words, near) in [
        (&["sandbx"][..], "sandbox"),
        (&["sandbox", "creat"], "create"),
        (&["sandbox", "list", "--wach"], "--watch"),
    ] {
        let ran = wrenn.run(words).await;
        assert_eq!(ran.code, Some(2));
        assert!(ran.stderr.contains(near), "{ran:?}");
    }
}

#[cfg(feature = "host")]
#[test]
fn closed_output_ends_program_quietly() {
    let directory = tempfile::tempdir().unwrap();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    // It prints a line and fails, since no machine runs.
    let status = || {
        let mut command = program(directory.path());
        command.args(["machine", "status"]);
        command
    };
    assert_eq!(status().output().unwrap().stdout, b"stopped\n");
    let output = status().stdout(closed()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");

    let mut wrong = program(directory.path());
    wrong.args(["machine", "exec", "true"]).stderr(closed());
    assert_eq!(wrong.output().unwrap().status.code(), Some(1));
}
