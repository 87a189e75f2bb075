//! Memory that a guest's programs have given back.

use wrenn_core::snapshot::Inspection;

use super::cycle::{build_of, destroy, no_build_is_left, pause, resume};
use crate::agent::stage::{TestAgent, enter, small};
use crate::stage::{record, until};

/// What a program holds for a while, in MiB.
const HELD_MIB: u64 = 96;
/// Something in memory that stays.
const COMPANY: &str = "dd if=/dev/urandom of=/run/stays bs=64k count=64 2>/dev/null; \
    setsid sleep 100000 </dev/null >/dev/null 2>&1 & sha256sum /run/stays";

/// Anonymous memory of its VMM, in MiB.
fn resident(id: &str) -> u64 {
    let vmm = record(id)["vmm"]["pid"].as_i64().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{vmm}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() >> 10
}

/// Has a program of the guest fill memory and give it back, until the host has it.
async fn hold_and_give_back(agent: &TestAgent, id: &str) {
    let hold = format!(
        "dd if=/dev/urandom of=/run/held bs=64k count={}",
        HELD_MIB * 16
    );
    agent.shell(id, &format!("{hold} 2>/dev/null")).await;
    let held = resident(id);
    assert!(held >= HELD_MIB, "{held} MiB");
    agent.shell(id, "rm /run/held").await;
    until("the host has back what the guest has freed", || async {
        resident(id) + HELD_MIB * 3 / 4 < held
    })
    .await;
}

/// It takes no room on the host any more and is in no snapshot, whatever memory comes from: at
/// first from nothing, then from a file that is mapped, then from a pager.
#[test]
fn what_a_program_has_freed_is_neither_kept_nor_written_down() {
    enter(|agent| async move {
        let mut request = small();
        request.resources.get_or_insert_default().memory_mib = 256;
        let created = agent.client().create_sandbox(request).await.unwrap();
        let created = created.into_owned().sandbox.into_option().unwrap();
        let id = created.id.as_str();
        let sum = agent.shell(id, COMPANY).await;
        for pauses in 0..3 {
            hold_and_give_back(&agent, id).await;
            let used = agent
                .shell(
                    id,
                    "awk '/MemTotal/ {t=$2} /MemFree/ {print (t-$2)/1024}' /proc/meminfo",
                )
                .await;
            let used = used.parse::<f64>().unwrap();
            pause(&agent, id).await.unwrap();
            let inspection = Inspection::of(&build_of(id)).unwrap();
            assert_eq!(inspection.generation, pauses);
            let all = (inspection.memory_bytes - inspection.zero_bytes) >> 20;
            let own = inspection.chain[0].allocated_bytes >> 20;
            eprintln!("pause {pauses}: {used} MiB in use, {all} in the snapshot, {own} new");
            let much = HELD_MIB / 2;
            assert!(
                (all as f64) < used + much as f64,
                "{all} MiB, {used} in use"
            );
            assert!(pauses == 0 || own < much, "{own} MiB");
            resume(&agent, id).await.unwrap();
            assert_eq!(agent.shell(id, "sha256sum /run/stays").await, sum);
        }
        destroy(&agent, id).await;
        no_build_is_left().await;
    });
}
