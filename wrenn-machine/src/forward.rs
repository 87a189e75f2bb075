//! Ports of the machine on the host's loopback.
//!
//! ```text
//! program on the host ──▶ 127.0.0.1:41207 ══ QEMU ══▶ 10.0.2.15:7410  program in the machine
//!                         ephemeral, in machine.json
//! ```
//!
//! The record in the state directory belongs to one QEMU process, as its forwards do. So what
//! it holds is there, and every process finds the same address.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};

use crate::command_line::{DAEMON_PORT, NETWORK};
use crate::error::{MachineError, RULE_REFUSED};
use crate::qmp::Qmp;
use crate::state::{StateDirectory, locked};

/// Another program may take a free port before QEMU does.
pub(crate) const PORT_TRIES: u32 = 3;

/// A port that is free now. Somebody may take it before QEMU does, which then says so.
pub(crate) fn free_port() -> Result<u16, MachineError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(MachineError::NoFreePort)
}

/// Forwards a port of the host's loopback to port `guest_port` of the machine whose QEMU is
/// `process`, unless that is done already.
pub(crate) async fn forward(
    state: &StateDirectory,
    process: i32,
    guest_port: u16,
) -> Result<SocketAddr, MachineError> {
    let lock = locked(state).await?;
    let name = || state.name().clone();
    let Some((mut record, _process)) = state.running()? else {
        return Err(MachineError::NotRunning { name: name() });
    };
    if record.process.pid != process {
        return Err(MachineError::Restarted { name: name() });
    }
    let known = match guest_port {
        DAEMON_PORT => Some(record.port),
        other => record.forwards.get(&other).copied(),
    };
    let host_port = match known {
        Some(host_port) => host_port,
        None => {
            let mut qmp = Qmp::connect(state.dir(), "qmp.sock").await?;
            let host_port = add(&mut qmp, guest_port).await?;
            record.forwards.insert(guest_port, host_port);
            if let Err(error) = state.write_record(&lock, &record) {
                // The record's error is the one to tell.
                remove(&mut qmp, host_port).await;
                return Err(error);
            }
            host_port
        }
    };
    Ok((Ipv4Addr::LOCALHOST, host_port).into())
}

/// Adds a rule for a port that is free, and returns that port.
async fn add(qmp: &mut Qmp, guest_port: u16) -> Result<u16, MachineError> {
    let mut tries = 0;
    loop {
        tries += 1;
        let host_port = free_port()?;
        let rule = format!("hostfwd_add {NETWORK} tcp:127.0.0.1:{host_port}-:{guest_port}");
        let answer = qmp.monitor(&rule).await?;
        if answer.is_empty() {
            return Ok(host_port);
        }
        let port_taken = answer.contains(RULE_REFUSED);
        if !port_taken || tries == PORT_TRIES {
            return Err(MachineError::Forward { guest_port, answer });
        }
    }
}

async fn remove(qmp: &mut Qmp, host_port: u16) {
    let rule = format!("hostfwd_remove {NETWORK} tcp:127.0.0.1:{host_port}");
    if let Err(error) = qmp.monitor(&rule).await {
        tracing::warn!(%error, host_port, "failed to remove a forward");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use serde_json::{Value, json};
    use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;
    use wrenn_core::process::ProcessIdentity;

    use super::*;
    use crate::accelerator::Accelerator;
    use crate::config::{MachineConfig, MachineName};
    use crate::state::Record;

    const DAEMON_HOST_PORT: u16 = 4711;

    fn this_process() -> i32 {
        std::process::id().cast_signed()
    }

    /// The state directory of a running machine, whose process is this one.
    async fn running_machine(home: &Path) -> StateDirectory {
        let state = StateDirectory::new(home, &MachineName::default());
        let lock = locked(&state).await.unwrap();
        let record = Record {
            version: 1,
            process: ProcessIdentity::of(this_process()).unwrap(),
            recipe: "r".into(),
            accelerator: Accelerator::Emulation,
            hardware: MachineConfig::default().hardware(None, Accelerator::Emulation),
            port: DAEMON_HOST_PORT,
            forwards: BTreeMap::new(),
        };
        state.write_record(&lock, &record).unwrap();
        state
    }

    /// A QEMU that gives these answers to monitor commands, and returns the commands.
    fn monitor(state: &StateDirectory, answers: &[&str]) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(state.dir().join("qmp.sock")).unwrap();
        let mut answers: Vec<String> = answers.iter().map(|one| (*one).to_owned()).collect();
        answers.reverse();
        tokio::spawn(async move {
            let mut commands = Vec::new();
            let (stream, _) = listener.accept().await.unwrap();
            let mut stream = BufReader::new(stream);
            let greeting = b"{\"QMP\": {}}\n";
            stream.get_mut().write_all(greeting).await.unwrap();
            loop {
                let mut line = String::new();
                if stream.read_line(&mut line).await.unwrap() == 0 {
                    return commands;
                }
                let request: Value = serde_json::from_str(&line).unwrap();
                let result = match request["arguments"]["command-line"].as_str() {
                    None => json!({}),
                    Some(command) => {
                        commands.push(command.to_owned());
                        json!(answers.pop().unwrap())
                    }
                };
                let answer = format!("{}\n", json!({ "return": result }));
                stream.get_mut().write_all(answer.as_bytes()).await.unwrap();
            }
        })
    }

    #[tokio::test]
    async fn forward_asked_again_is_the_same() {
        let home = tempfile::tempdir().unwrap();
        let state = running_machine(home.path()).await;
        let monitor = monitor(&state, &["\r\n"]);
        let first = forward(&state, this_process(), 7410).await.unwrap();
        assert!(first.ip().is_loopback());
        // As another process does, which knows the name alone.
        let other = StateDirectory::new(home.path(), &MachineName::default());
        let again = forward(&other, this_process(), 7410).await.unwrap();
        assert_eq!(again, first);
        let rule = format!("hostfwd_add net0 tcp:{first}-:7410");
        assert_eq!(monitor.await.unwrap(), [rule]);
    }

    #[tokio::test]
    async fn taken_host_port_is_exchanged() {
        let home = tempfile::tempdir().unwrap();
        let state = running_machine(home.path()).await;
        let refused = "Could not set up host forwarding rule 'tcp:…'";
        let monitor = monitor(&state, &[refused, ""]);
        forward(&state, this_process(), 80).await.unwrap();
        assert_eq!(monitor.await.unwrap().len(), 2);
    }

    #[tokio::test]
    async fn refused_forward_is_not_recorded() {
        let home = tempfile::tempdir().unwrap();
        let state = running_machine(home.path()).await;
        let monitor = monitor(&state, &["invalid host forwarding rule"]);
        let error = forward(&state, this_process(), 0).await.unwrap_err();
        assert!(error.to_string().contains("port 0"), "{error}");
        assert_eq!(monitor.await.unwrap().len(), 1);
        let (record, _) = state.running().unwrap().unwrap();
        assert_eq!(record.forwards, BTreeMap::new());
    }

    #[tokio::test]
    async fn daemon_port_is_forwarded_already() {
        let home = tempfile::tempdir().unwrap();
        let state = running_machine(home.path()).await;
        let address = forward(&state, this_process(), DAEMON_PORT).await.unwrap();
        assert_eq!(address.port(), DAEMON_HOST_PORT);
    }

    #[tokio::test]
    async fn restarted_machine_is_told_apart() {
        let home = tempfile::tempdir().unwrap();
        let state = running_machine(home.path()).await;
        let error = forward(&state, this_process() + 1, 80).await.unwrap_err();
        assert!(matches!(error, MachineError::Restarted { .. }), "{error}");
        let lock = locked(&state).await.unwrap();
        state.clear(&lock).unwrap();
        drop(lock);
        let error = forward(&state, this_process(), 80).await.unwrap_err();
        assert!(matches!(error, MachineError::NotRunning { .. }), "{error}");
    }
}
