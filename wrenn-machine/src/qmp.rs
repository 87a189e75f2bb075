//! QEMU's control socket: JSON lines, each answered in turn, with events in between.
//!
//! ```text
//! QEMU ─▶ {"QMP": …}                       greeting
//!      ◀─ {"execute": "qmp_capabilities"}
//! QEMU ─▶ {"return": {}}                   ready
//!      ◀─ {"execute": …, "arguments": …}
//! QEMU ─▶ {"event": …}                     any number, skipped
//! QEMU ─▶ {"return": …} or {"error": {"class", "desc"}}
//! ```

use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// QEMU answers from its main loop; under emulation on a busy host that can take a while.
const PATIENCE: Duration = Duration::from_secs(20);

/// A command could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("cannot connect to {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    #[error("QEMU closed the connection")]
    Closed,
    #[error("no answer within {PATIENCE:?}")]
    Slow,
    #[error("an answer is no JSON")]
    BadAnswer(#[source] serde_json::Error),
    #[error("QEMU refused {command}: {reason}")]
    Refused { command: String, reason: String },
}

/// A connection that is past its greeting.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

/// One line from QEMU that ends the wait for an answer.
#[derive(Debug, PartialEq)]
enum Answer {
    Return(Value),
    Error(String),
}

impl Qmp {
    /// Connects to `socket` in the directory `dir`.
    pub(crate) async fn connect(dir: &Path, socket: &str) -> Result<Self, QmpError> {
        let path = dir.join(socket);
        let failed = |source| QmpError::Connect {
            path: path.clone(),
            source,
        };
        // The name of a socket may have 108 bytes, and a home directory can be longer. The
        // way through an open directory is always short.
        let opened = std::fs::File::open(dir).map_err(failed)?;
        let short = format!("/proc/self/fd/{}/{socket}", opened.as_raw_fd());
        let stream = UnixStream::connect(short).await.map_err(failed)?;
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        // The greeting has nothing that we need.
        qmp.line().await?;
        qmp.execute("qmp_capabilities", None).await?;
        Ok(qmp)
    }

    /// Runs a command and returns its result.
    pub(crate) async fn execute(
        &mut self,
        command: &str,
        arguments: Option<Value>,
    ) -> Result<Value, QmpError> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let mut text = request.to_string();
        text.push('\n');
        self.stream
            .get_mut()
            .write_all(text.as_bytes())
            .await
            .map_err(QmpError::Broken)?;
        loop {
            let line = self.line().await?;
            match answer_in(&line)? {
                Some(Answer::Return(value)) => return Ok(value),
                Some(Answer::Error(reason)) => {
                    return Err(QmpError::Refused {
                        command: command.to_owned(),
                        reason,
                    });
                }
                None => {}
            }
        }
    }

    /// Runs a command of the human monitor. Its answer is text, and empty when all is well.
    pub(crate) async fn monitor(&mut self, line: &str) -> Result<String, QmpError> {
        let arguments = json!({ "command-line": line });
        let answer = self
            .execute("human-monitor-command", Some(arguments))
            .await?;
        Ok(answer.as_str().unwrap_or_default().trim().to_owned())
    }

    async fn line(&mut self) -> Result<String, QmpError> {
        let mut line = String::new();
        let read = timeout(PATIENCE, self.stream.read_line(&mut line)).await;
        match read
            .map_err(|_| QmpError::Slow)?
            .map_err(QmpError::Broken)?
        {
            0 => Err(QmpError::Closed),
            _ => Ok(line),
        }
    }
}

/// The answer in a line, or nothing if it is an event.
fn answer_in(line: &str) -> Result<Option<Answer>, QmpError> {
    let mut value: Value = serde_json::from_str(line).map_err(QmpError::BadAnswer)?;
    if let Some(error) = value.get("error") {
        let reason = error["desc"].as_str().unwrap_or("no reason given");
        return Ok(Some(Answer::Error(reason.to_owned())));
    }
    Ok(value
        .get_mut("return")
        .map(|result| Answer::Return(result.take())))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[test]
    fn answers_are_told_from_events() {
        let answer = |line| answer_in(line).unwrap();
        assert_eq!(answer(r#"{"return": {}}"#), Some(Answer::Return(json!({}))));
        assert_eq!(
            answer(r#"{"return": "text\r\n"}"#),
            Some(Answer::Return(json!("text\r\n")))
        );
        assert_eq!(
            answer(r#"{"error": {"class": "GenericError", "desc": "no such net"}}"#),
            Some(Answer::Error("no such net".into()))
        );
        assert_eq!(
            answer(r#"{"event": "POWERDOWN", "timestamp": {"seconds": 1}}"#),
            None
        );
        assert!(answer_in("qemu: what?").is_err());
    }

    #[tokio::test]
    async fn a_conversation() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("qmp.sock")).unwrap();
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let mut asked = Vec::new();
            stream
                .get_mut()
                .write_all(b"{\"QMP\": {}}\n")
                .await
                .unwrap();
            for reply in [
                "{\"return\": {}}\n",
                "{\"event\": \"X\"}\n{\"return\": \"\\r\\n\"}\n",
                "{\"error\": {\"desc\": \"no\"}}\n",
            ] {
                let mut line = String::new();
                stream.read_line(&mut line).await.unwrap();
                asked.push(serde_json::from_str::<Value>(&line).unwrap());
                stream.get_mut().write_all(reply.as_bytes()).await.unwrap();
            }
            asked
        });
        let mut qmp = Qmp::connect(dir.path(), "qmp.sock").await.unwrap();
        assert_eq!(qmp.monitor("hostfwd_add x").await.unwrap(), "");
        let error = qmp.execute("quit", None).await.unwrap_err();
        assert_eq!(error.to_string(), "QEMU refused quit: no");
        assert!(matches!(
            qmp.execute("quit", None).await,
            Err(QmpError::Closed | QmpError::Broken(_))
        ));
        let asked = server.await.unwrap();
        assert_eq!(asked[1]["arguments"]["command-line"], "hostfwd_add x");
    }
}
