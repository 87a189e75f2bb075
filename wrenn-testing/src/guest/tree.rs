//! The processes of a guest: the daemon, what descends from it, and what carries its marker
//! in the environment. A process that was started in the background descends from nobody of
//! the guest, but has the marker.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The variable that holds the marker of a guest.
pub(crate) const MARKER: &str = "WRENN_FAKE_GUEST";
/// How long killed processes may take to end.
const DEADLINE: Duration = Duration::from_secs(10);

/// One line of the process table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    state: char,
}

impl Process {
    /// Reads `/proc/PID/stat`. The name in it may hold spaces and parentheses.
    fn parse(stat: &str) -> Option<Self> {
        let (pid, rest) = stat.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let mut fields = rest.split(' ');
        Some(Self {
            pid: pid.parse().ok()?,
            state: fields.next()?.chars().next()?,
            parent: fields.next()?.parse().ok()?,
        })
    }

    fn ended(self) -> bool {
        matches!(self.state, 'Z' | 'X')
    }
}

fn table() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).ok())
        .filter_map(|stat| Process::parse(&stat))
        .collect()
}

/// Those of the table that belong to the guest, parents before children.
fn members(table: &[Process], root: i32, marker: &str) -> Vec<Process> {
    let mut children: HashMap<i32, Vec<Process>> = HashMap::new();
    for process in table {
        children.entry(process.parent).or_default().push(*process);
    }
    let marked = table
        .iter()
        .filter(|process| is_marked(process.pid, marker));
    let begin = table.iter().filter(|process| process.pid == root);
    let mut open: Vec<Process> = marked.chain(begin).copied().collect();
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    while let Some(process) = open.pop() {
        if seen.insert(process.pid) {
            found.push(process);
            open.extend(children.get(&process.pid).into_iter().flatten());
        }
    }
    found.retain(|process| !process.ended());
    found
}

fn is_marked(pid: i32, marker: &str) -> bool {
    let Ok(environment) = std::fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    environment
        .split(|byte| *byte == 0)
        .any(|variable| variable == marker.as_bytes())
}

/// The pids of a guest's processes that have not ended.
pub(crate) fn pids(root: i32, marker: &str) -> Vec<i32> {
    let members = members(&table(), root, marker);
    members.into_iter().map(|process| process.pid).collect()
}

/// Stops every process of the guest, and gives those that ran, parents before children.
pub(crate) fn stop(root: i32, marker: &str) -> Vec<i32> {
    let mut stopped = Vec::new();
    // Whatever ran meanwhile may have started more.
    loop {
        let running: Vec<i32> = members(&table(), root, marker)
            .into_iter()
            .filter(|process| !matches!(process.state, 'T' | 't'))
            .map(|process| process.pid)
            .filter(|pid| !stopped.contains(pid))
            .collect();
        if running.is_empty() {
            return stopped;
        }
        for pid in running {
            send(pid, Signal::SIGSTOP);
            stopped.push(pid);
        }
    }
}

/// Continues what [`stop`] stopped. Children first: a parent must not learn that they were
/// stopped.
pub(crate) fn resume(stopped: &[i32]) {
    for pid in stopped.iter().rev() {
        send(*pid, Signal::SIGCONT);
    }
}

/// Kills every process of the guest, the daemon last: until then its orphans can be found.
pub(crate) fn kill_all(root: i32, marker: &str) {
    let since = Instant::now();
    send(root, Signal::SIGSTOP);
    loop {
        let mut living = pids(root, marker);
        living.retain(|pid| *pid != root);
        if living.is_empty() || since.elapsed() > DEADLINE {
            break;
        }
        for pid in living {
            send(pid, Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    send(root, Signal::SIGKILL);
}

/// A process that has ended meanwhile is no failure.
fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_parentheses_is_read() {
        let process = Process::parse("42 (a) b (c) S 7 42 42 0 -1").unwrap();
        assert_eq!((process.pid, process.parent, process.state), (42, 7, 'S'));
        assert_eq!(Process::parse("nonsense"), None);
    }

    #[test]
    fn descendants_are_found_and_ended_ones_are_not() {
        let process = |pid, parent, state| Process { pid, parent, state };
        // No such pids are in use: the greatest possible ones.
        let table = [
            process(4_194_301, 1, 'S'),
            process(4_194_302, 4_194_301, 'S'),
            process(4_194_303, 4_194_302, 'Z'),
            process(4_194_300, 1, 'S'),
        ];
        let found = members(&table, 4_194_301, "NO=1");
        let pids: Vec<i32> = found.iter().map(|process| process.pid).collect();
        assert_eq!(pids, [4_194_301, 4_194_302]);
    }
}
