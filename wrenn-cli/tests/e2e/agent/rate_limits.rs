//! Sandboxes whose drive and network interface are limited. Only lower bounds of times hold on a
//! slow machine.

use std::time::{Duration, Instant};

use bytes::Bytes;
use wrenn_proto::hostagent::{
    PauseSandboxRequest, ReadFileRequest, ResumeSandboxRequest, WriteFileRequest,
};

use super::files::sha256;
use super::stage::{TestAgent, enter_with};

const DRIVE_MIB_PER_SECOND: u32 = 4;
const NETWORK_MIB_PER_SECOND: u32 = 2;
const WRITTEN_MIB: u32 = 16;
const SENT_MIB: u32 = 8;
/// The most that passes beside the tokens: one request or packet.
const REQUEST_MIB: u32 = 1;

/// The least time that this much takes, once a full bucket is spent.
fn least(mib: u32, mib_per_second: u32) -> Duration {
    let throttled = f64::from(mib - mib_per_second - REQUEST_MIB);
    Duration::from_secs_f64(throttled / f64::from(mib_per_second))
}

async fn timed<T>(operation: &str, least: Duration, work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let outcome = work.await;
    let took = begun.elapsed();
    eprintln!("to {operation} took {took:?} where {least:?} is the least");
    assert!(took >= least, "to {operation} took {took:?}");
    outcome
}

async fn send(agent: &TestAgent, id: &str, data: &Bytes) {
    let request = WriteFileRequest {
        id: id.to_owned(),
        path: "/home/user/sent".to_owned(),
        data: data.clone(),
        ..WriteFileRequest::default()
    };
    let least = least(SENT_MIB, NETWORK_MIB_PER_SECOND);
    let answer = timed("send", least, agent.client().write_file(request)).await;
    assert_eq!(answer.unwrap().into_owned().size, data.len() as u64);
}

async fn receive(agent: &TestAgent, id: &str) -> Bytes {
    let request = ReadFileRequest {
        id: id.to_owned(),
        path: "/home/user/sent".to_owned(),
        ..ReadFileRequest::default()
    };
    let least = least(SENT_MIB, NETWORK_MIB_PER_SECOND);
    let answer = timed("receive", least, agent.client().read_file(request)).await;
    answer.unwrap().into_owned().data
}

#[test]
fn limited_drive_and_network_keep_data_whole() {
    let drive = DRIVE_MIB_PER_SECOND.to_string();
    let network = NETWORK_MIB_PER_SECOND.to_string();
    let options = [
        "--drive-mib-per-second",
        &drive,
        "--network-mib-per-second",
        &network,
    ];
    enter_with(&options, |agent| async move {
        let id = agent.create().await.id;
        let source = format!(
            "dd if=/dev/urandom of=/run/source bs=1M count={WRITTEN_MIB} 2>/dev/null; \
             sha256sum </run/source"
        );
        let sum = agent.shell(&id, &source).await;
        let least = least(WRITTEN_MIB, DRIVE_MIB_PER_SECOND);
        let copy = "dd if=/run/source of=/copy bs=1M conv=fsync 2>/dev/null";
        timed("write", least, agent.shell(&id, copy)).await;
        let read = "echo 3 >/proc/sys/vm/drop_caches; sha256sum </copy";
        assert_eq!(timed("read", least, agent.shell(&id, read)).await, sum);

        let mut data = vec![0; (SENT_MIB as usize) << 20];
        rand::fill(&mut data[..]);
        let data = Bytes::from(data);
        send(&agent, &id, &data).await;
        let sum = agent.shell(&id, "sha256sum </home/user/sent").await;
        assert_eq!(sum.split(' ').next(), Some(sha256(&data).as_str()));
        assert!(receive(&agent, &id).await == data);

        // A loaded machine is limited too.
        let request = PauseSandboxRequest { id: id.clone() };
        agent.client().pause_sandbox(request).await.unwrap();
        let request = ResumeSandboxRequest {
            id: id.clone(),
            timeout_sec: None,
        };
        agent.client().resume_sandbox(request).await.unwrap();
        assert!(receive(&agent, &id).await == data);
        let read = "echo 3 >/proc/sys/vm/drop_caches; sha256sum /copy /run/source";
        let sums = timed("read", least, agent.shell(&id, read)).await;
        let sums: Vec<_> = sums
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!((sums.len(), sums.first()), (2, sums.last()));
    });
}
