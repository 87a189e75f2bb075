//! The guest's name, and that it resolves: `sudo` and others look it up, and would wait
//! for a name server that may not be reachable.

use std::fs;
use std::io;

const HOSTS: &str = "/etc/hosts";

/// Sets the host name and its line in `/etc/hosts`.
pub fn set(name: &str) -> io::Result<()> {
    rustix::system::sethostname(name.as_bytes())?;
    let old = fs::read_to_string(HOSTS).unwrap_or_default();
    let new = with_name(&old, name);
    if new == old {
        Ok(())
    } else {
        fs::write(HOSTS, new)
    }
}

/// The file with the name on the address that Debian uses for it.
fn with_name(hosts: &str, name: &str) -> String {
    let own = |line: &&str| line.split_ascii_whitespace().next() == Some("127.0.1.1");
    let mut lines: Vec<&str> = hosts.lines().filter(|line| !own(line)).collect();
    let has_localhost = lines.iter().any(|line| {
        line.split_ascii_whitespace()
            .any(|word| word == "localhost")
    });
    if !has_localhost {
        lines.insert(0, "127.0.0.1 localhost");
    }
    let line = format!("127.0.1.1 {name}");
    lines.push(&line);
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn puts_the_name_in_once() {
        let hosts = with_name("", "one");
        assert_eq!(hosts, "127.0.0.1 localhost\n127.0.1.1 one\n");
        let hosts = with_name(&hosts, "two");
        assert_eq!(hosts, "127.0.0.1 localhost\n127.0.1.1 two\n");
        let own = "::1 localhost\n10.0.0.1 db\n";
        assert_eq!(
            with_name(own, "x"),
            "::1 localhost\n10.0.0.1 db\n127.0.1.1 x\n"
        );
    }
}
