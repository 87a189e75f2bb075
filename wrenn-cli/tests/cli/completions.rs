//! Completion: the words that a server knows, in the shell that asks for them.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::wrenn::{Ran, Wrenn, program, run};

/// Asks as the script of a shell does: for the last of the words.
fn asking(mut command: Command, words: &[&str]) -> Command {
    command
        .env("WRENN_COMPLETE", "bash")
        .env("_CLAP_IFS", "\n")
        .env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string())
        .arg("--")
        .args(words);
    command
}

/// The candidates that are no options.
fn values(ran: &Ran) -> Vec<&str> {
    let lines = ran.stdout.lines();
    lines.filter(|word| !word.starts_with('-')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_ids_are_completed() {
    let wrenn = Wrenn::start().await;
    let id = wrenn.ok(&["sandbox", "create", "--name", "web"]).await;
    let id = id.trim_end();
    wrenn.ok(&["snapshot", "create", "web", "warm"]).await;
    let end = format!("{id}:");
    for (words, wanted) in [
        (&["sandbox", "exec", ""][..], &["web", id][..]),
        (&["sandbox", "exec", "w"], &["web"]),
        (&["sandbox", "destroy", "web", "sb"], &[id]),
        (&["sandbox", "cp", "w"], &["web:"]),
        (&["sandbox", "cp", "sb"], &[end.as_str()]),
        (&["snapshot", "create", ""], &["web", id]),
        (&["snapshot", "delete", ""], &["warm"]),
        (&["snapshot", "list", "--sandbox", "we"], &["web"]),
        (&["sandbox", "create", "--template", "wa"], &["warm"]),
        (&["sandbox", "list", "--template", "ba"], &["base"]),
        #[cfg(feature = "host")]
        (&["snapshot", "inspect", "wa"], &["warm"]),
    ] {
        let words = [&["wrenn"], words].concat();
        let ran = run(asking(wrenn.command(&[]), &words)).await;
        assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
        assert_eq!(values(&ran), wanted, "{words:?}");
        assert_eq!(ran.stderr, "", "{words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_paths_are_ends_of_copies() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    std::fs::create_dir(wrenn.path("website")).unwrap();
    let words = ["wrenn", "sandbox", "cp", "we"];
    let ran = run(asking(wrenn.command(&[]), &words)).await;
    assert_eq!(values(&ran), ["web:", "website/"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn absent_server_completes_nothing_silently() {
    let directory = tempfile::tempdir().unwrap();
    // It takes connections and says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for address in [closed, mute.local_addr().unwrap()] {
        for words in [
            ["wrenn", "sandbox", "exec", ""],
            ["wrenn", "snapshot", "delete", ""],
            ["wrenn", "sandbox", "cp", ""],
        ] {
            let mut command = program(directory.path());
            command
                .env("WRENN_API_URL", format!("http://{address}"))
                .env(
                    "WRENN_API_KEY",
                    "wrn_0000000000000000000000000000000000000000",
                );
            let asked = Instant::now();
            let ran = run(asking(command, &words)).await;
            assert!(asked.elapsed() < Duration::from_secs(10), "{words:?}");
            assert_eq!(ran.code, Some(0), "{words:?}: {ran:?}");
            let found = values(&ran);
            assert!(found.iter().all(|word| *word == "."), "{words:?}: {ran:?}");
            assert_eq!(ran.stderr, "", "{words:?}");
        }
    }
    // Without a key there is no question to ask.
    let command = program(directory.path());
    let ran = run(asking(command, &["wrenn", "sandbox", "exec", ""])).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_by_its_script() {
    let wrenn = Wrenn::start().await;
    wrenn.create("web").await;
    let script = "\
        source <($0 completions bash)
        complete -p wrenn
        COMP_WORDS=(wrenn sandbox exec w) COMP_CWORD=3 COMP_TYPE=9
        _clap_complete_wrenn wrenn w exec
        echo \"${COMPREPLY[*]}\"";
    let (url, key) = (wrenn.server.url(), wrenn.server.api_key().to_owned());
    let mut bash = Command::new("bash");
    bash.args(["-ec", script, env!("CARGO_BIN_EXE_wrenn")])
        .env("HOME", wrenn.path(""))
        .env("WRENN_API_URL", url)
        .env("WRENN_API_KEY", key);
    let ran = run(bash).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let mut lines = ran.stdout.lines();
    let registered = lines.next().unwrap();
    assert!(
        registered.ends_with("-F _clap_complete_wrenn wrenn"),
        "{ran:?}"
    );
    assert_eq!(lines.next(), Some("web"), "{ran:?}");
    assert_eq!(ran.stderr, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shell_has_a_script() {
    let directory = tempfile::tempdir().unwrap();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let mut command = program(directory.path());
        command.args(["completions", shell]);
        let ran = run(command).await;
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(ran.stdout.contains("WRENN_COMPLETE"), "{shell}: {ran:?}");
    }
}
