//! A process that outlives the test program, to kill guests that it left and to remove their
//! files: a test may be killed, and then nothing else runs.

use std::io::{self, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Waits for a word, or for the end of its input: that comes with the end of the test program
/// at the latest. `$1` is the marker of the host's guests, `$2` their directory.
const SCRIPT: &str = r#"
read -r word && [ "$word" = done ] && exit
for round in 1 2 3; do
  for file in $(grep -ls -- "$1" /proc/[0-9]*/environ); do
    pid=${file#/proc/}; pid=${pid%/environ}
    [ "$pid" = $$ ] || kill -9 "$pid" 2>/dev/null
  done
done
rm -rf -- "$2"
"#;

/// The guard of one host's guests. It is dropped after them.
#[derive(Debug)]
pub(crate) struct Guard {
    child: Child,
    /// Open for as long as the guests may live.
    input: Option<ChildStdin>,
}

impl Guard {
    pub(crate) fn start(marker: &str, directory: &Path) -> io::Result<Self> {
        let mut child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "wrenn-testing-guard", marker])
            .arg(directory)
            .current_dir("/")
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A runner that kills the test's process group must not reach it.
            .process_group(0)
            .spawn()?;
        Ok(Self {
            input: child.stdin.take(),
            child,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut input) = self.input.take() {
            // Without the word it looks for guests, and finds none.
            input.write_all(b"done\n").ok();
        }
        self.child.wait().ok();
    }
}
