//! Snapshots of a machine whose vCPUs never run, so that even a KVM that cannot boot an
//! ordinary kernel will do. What a guest notices is tested end to end.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::tests::{Client, fault_of};
use super::*;
use crate::api::http::Method::{Get, Patch, Put};
use crate::boot::elf::tests::elf;
use crate::config::{BalloonConfig, DriveConfig, EntropyConfig, MachineConfigUpdate};
use crate::layout;

const KERNEL_START: u64 = layout::HIGH_MEMORY_START;

/// A started machine with a drive, and the directory that its files are in.
struct Bench {
    client: Client,
    directory: tempfile::TempDir,
}

impl Bench {
    /// `None` if there is no KVM at all.
    fn new() -> Option<Self> {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Resources)) -> Option<Self> {
        crate::sys::kick::prepare().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let mut resources = resources(directory.path());
        change(&mut resources);
        let mut client = Client::new();
        let booted =
            client.with_environment(|_, environment| Machine::boot(&resources, environment));
        let machine = match booted {
            Ok(machine) => machine,
            Err(StartError::Hypervisor(error)) => {
                eprintln!("SKIPPED: no KVM here: {error}");
                return None;
            }
            Err(error) => panic!("{}", chain(&error)),
        };
        client.controller.phase = Phase::Started {
            machine: Box::new(machine),
            paused: true,
        };
        Some(Self { client, directory })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn create(&self, kind: &str) -> String {
        serde_json::json!({
            "snapshot_type": kind,
            "snapshot_path": self.file("state"),
            "mem_file_path": self.file(kind),
        })
        .to_string()
    }

    fn load(&self, backend: &str, path: &str) -> serde_json::Value {
        serde_json::json!({
            "snapshot_path": self.file("state"),
            "mem_backend": {"backend_type": backend, "backend_path": self.file(path)},
        })
    }

    fn generation(&self, memory: &str) -> [u8; 16] {
        let mut id = [0; 16];
        std::fs::File::open(self.file(memory))
            .unwrap()
            .read_exact_at(&mut id, layout::VM_GENERATION_ID_START)
            .unwrap();
        id
    }
}

fn resources(directory: &Path) -> Resources {
    let kernel = directory.join("kernel");
    std::fs::write(
        &kernel,
        elf(KERNEL_START, &[[0x1000, KERNEL_START, 0x3000, 0x4000]]),
    )
    .unwrap();
    let disk = directory.join("disk");
    std::fs::write(&disk, vec![0; 1 << 20]).unwrap();
    let mut resources = Resources::default();
    resources
        .update_machine(&MachineConfigUpdate {
            vcpu_count: Some(2),
            mem_size_mib: Some(16),
            track_dirty_pages: Some(true),
            ..Default::default()
        })
        .unwrap();
    resources
        .set_boot_source(crate::config::BootSourceConfig {
            kernel_image_path: kernel,
            ..Default::default()
        })
        .unwrap();
    let drive: DriveConfig = serde_json::from_value(serde_json::json!({
        "drive_id": "root", "is_root_device": true, "path_on_host": disk,
    }))
    .unwrap();
    resources.set_drive(drive).unwrap();
    resources.set_entropy(EntropyConfig::default()).unwrap();
    resources.set_balloon(BalloonConfig::default()).unwrap();
    resources
}

fn state_of(client: &mut Client) -> String {
    let body = client.send(Get, "/", "").body.unwrap();
    let info: serde_json::Value = serde_json::from_str(&body).unwrap();
    info["state"].as_str().unwrap().to_owned()
}

#[test]
fn snapshot_becomes_the_same_machine_with_another_generation_id() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    assert_eq!(state_of(&mut bench.client), "Paused");
    let create = bench.create("Full");
    assert_eq!(bench.client.status(Put, "/snapshot/create", &create), 204);
    // Pausing what is paused changes nothing.
    assert_eq!(
        bench.client.status(Patch, "/vm", r#"{"state":"Paused"}"#),
        204
    );
    let config = bench.client.config();

    let mut loaded = Client::new();
    let mut load = bench.load("File", "Full");
    load["track_dirty_pages"] = true.into();
    assert_eq!(loaded.status(Put, "/snapshot/load", &load.to_string()), 204);
    assert_eq!(state_of(&mut loaded), "Paused");
    assert_eq!(loaded.config(), config);
    // Nothing has changed since but the id, and what KVM itself keeps in guest memory.
    std::fs::copy(bench.file("Full"), bench.file("Diff")).unwrap();
    let again = bench.create("Diff");
    assert_eq!(loaded.status(Put, "/snapshot/create", &again), 204);
    assert_ne!(bench.generation("Full"), [0; 16]);
    assert_ne!(bench.generation("Full"), bench.generation("Diff"));
    let (mut full, mut diff) = (
        std::fs::read(bench.file("Full")).unwrap(),
        std::fs::read(bench.file("Diff")).unwrap(),
    );
    let id = crate::memory::host_length(layout::VM_GENERATION_ID_START);
    full[id..id + 16].fill(0);
    diff[id..id + 16].fill(0);
    assert!(full == diff);
    let kernel = crate::memory::host_length(KERNEL_START);
    assert!(
        full[kernel + 0x100..kernel + 0x3000]
            .iter()
            .any(|byte| *byte != 0)
    );
}

#[test]
fn difference_needs_tracking_and_holds_only_what_changed() {
    use std::os::unix::fs::MetadataExt;

    let Some(mut bench) = Bench::new() else {
        return;
    };
    for kind in ["Full", "Diff"] {
        let create = bench.create(kind);
        assert_eq!(bench.client.status(Put, "/snapshot/create", &create), 204);
    }
    let blocks = std::fs::metadata(bench.file("Diff")).unwrap().blocks();
    assert!(blocks * 512 < 64 << 10, "{blocks} blocks");

    let mut untracked = Client::new();
    let load = bench.load("File", "Full").to_string();
    assert_eq!(untracked.status(Put, "/snapshot/load", &load), 204);
    let fault = fault_of(&mut untracked, "/snapshot/create", &bench.create("Diff"));
    assert!(fault.contains("dirty page tracking disabled"), "{fault}");
    let full = bench.create("Full");
    assert_eq!(untracked.status(Put, "/snapshot/create", &full), 204);
}

#[test]
fn running_machine_is_not_saved() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    if let Phase::Started { paused, .. } = &mut bench.client.controller.phase {
        *paused = false;
    }
    let create = bench.create("Full");
    assert_eq!(
        fault_of(&mut bench.client, "/snapshot/create", &create),
        "Create snapshot error: Cannot save the microVM state: Operation not allowed: \
         save/restore unavailable while running"
    );
    assert!(!bench.file("state").exists());
}

#[test]
fn load_that_fails_says_why_and_leaves_room_for_another() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let create = bench.create("Full");
    assert_eq!(bench.client.status(Put, "/snapshot/create", &create), 204);
    let load = bench.load("File", "Full");
    assert_eq!(
        fault_of(&mut bench.client, "/snapshot/load", &load.to_string()),
        "The requested operation is not supported after starting the microVM."
    );

    let mut client = Client::new();
    let mut failing = |load: &serde_json::Value, reason: &str| {
        let fault = fault_of(&mut client, "/snapshot/load", &load.to_string());
        assert!(fault.starts_with("Load snapshot error:"), "{fault}");
        assert!(fault.contains(reason), "{fault}");
        assert_eq!(state_of(&mut client), "Not started");
    };
    failing(
        &bench.load("File", "kernel"),
        "bytes where the guest has 16777216",
    );
    failing(&bench.load("File", "nothing"), "nothing");
    failing(&bench.load("Uffd", "nothing"), "page");
    let mut other_tap = load.clone();
    other_tap["network_overrides"] =
        serde_json::json!([{"iface_id": "eth9", "host_dev_name": "tap9"}]);
    failing(&other_tap, "Unknown Network Device");
    std::fs::rename(bench.file("disk"), bench.file("elsewhere")).unwrap();
    failing(&load, "cannot open drive root");
    std::fs::rename(bench.file("elsewhere"), bench.file("disk")).unwrap();
    assert_eq!(client.status(Put, "/snapshot/load", &load.to_string()), 204);
}

#[test]
fn started_machines_limits_are_changed() {
    let network = crate::machine::NetworkInterface {
        config: serde_json::from_str(r#"{"iface_id": "eth0", "host_dev_name": "tap0"}"#).unwrap(),
        tap: crate::sys::tap::Tap::from_socket(
            std::os::unix::net::UnixDatagram::unbound().unwrap(),
        ),
    };
    let Some(mut bench) = Bench::with(|resources| resources.networks.push(network)) else {
        return;
    };
    let limits = serde_json::json!({
        "bandwidth": null, "ops": {"size": 7, "one_time_burst": 8, "refill_time": 9},
    });
    let update = serde_json::json!({"drive_id": "root", "rate_limiter": limits}).to_string();
    assert_eq!(bench.client.status(Patch, "/drives/root", &update), 204);
    let update = serde_json::json!({"iface_id": "eth0", "rx_rate_limiter": limits}).to_string();
    let path = "/network-interfaces/eth0";
    assert_eq!(bench.client.status(Patch, path, &update), 204);
    let config = bench.client.config();
    assert_eq!(config["drives"][0]["rate_limiter"], limits);
    let interface = &config["network-interfaces"][0];
    assert_eq!(interface["rx_rate_limiter"], limits);
    assert!(interface["tx_rate_limiter"].is_null());

    let update = update.replace("rx_rate", "tx_rate");
    assert_eq!(bench.client.status(Patch, path, &update), 204);
    let interface = &bench.client.config()["network-interfaces"][0];
    assert_eq!(interface["rx_rate_limiter"], limits);
    assert_eq!(interface["tx_rate_limiter"], limits);
    let unknown = r#"{"iface_id": "eth1", "rx_rate_limiter": {}}"#;
    assert_eq!(
        bench
            .client
            .status(Patch, "/network-interfaces/eth1", unknown),
        400
    );
}

#[test]
fn snapshot_keeps_the_limits() {
    let Some(mut bench) = Bench::new() else {
        return;
    };
    let update = r#"{"drive_id": "root",
        "rate_limiter": {"ops": {"size": 7, "refill_time": 9}}}"#;
    assert_eq!(bench.client.status(Patch, "/drives/root", update), 204);
    let create = bench.create("Full");
    assert_eq!(bench.client.status(Put, "/snapshot/create", &create), 204);
    let mut loaded = Client::new();
    let load = bench.load("File", "Full").to_string();
    assert_eq!(loaded.status(Put, "/snapshot/load", &load), 204);
    let drive = &loaded.config()["drives"][0];
    assert_eq!(drive["rate_limiter"]["ops"]["size"], 7);
}
