//! What a VMM does with snapshots, through the `vm` engine alone: the same for every VMM.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use wrenn_core::SandboxId;
use wrenn_core::guest::{AccessToken, Command, ENVD_PORT, GuestClient, InitRequest};
use wrenn_core::network::{Network, NetworkConfig, NetworkSlot};
use wrenn_core::sandbox::Host;
use wrenn_core::template::Template;
use wrenn_core::vm::{
    Balloon, BootSource, CreateSnapshot, Device, DeviceLimits, Drive, JailFile, JailSpec,
    LaunchSpec, LoadSnapshot, MachineConfig, MemoryBackend, NetworkInterface, NetworkOverride,
    RateLimiter, Resources, SnapshotType, Vm, VmConfig, VmUser, VmUsers, VmmBinary, WrittenBy,
};

use super::pager::Pager;
use crate::stage::{self, MINIMAL, PATIENCE, until};

const MEMORY_MIB: u32 = 128;
const KERNEL_ARGS: &str = "console=ttyS0 quiet loglevel=3 8250.nr_uarts=1 reboot=k panic=-1 \
    pci=off i8042.noaux i8042.nomux i8042.dumbkbd random.trust_cpu=on cryptomgr.notests \
    audit=0 root=/dev/vda rw init=/usr/local/bin/wrenn-envd";
/// Counts in the memory of one process, and keeps the disk busy with it.
const COUNTER: &str = "setsid sh -c 'n=0; while :; do n=$((n+1)); echo $n >/run/count; \
    echo $n >>/var/tmp/count; sync /var/tmp/count; sleep 0.05; done' \
    </dev/null >/dev/null 2>&1 &";

/// A disk, a slot and a directory, in which one VMM after another runs the same guest.
struct Bench {
    id: SandboxId,
    template: Template,
    binary: VmmBinary,
    network: Network,
    slot: NetworkSlot,
    user: VmUser,
    directory: PathBuf,
    wrote: OnceLock<WrittenBy>,
}

impl Bench {
    async fn new(host: &Host) -> Self {
        let id = SandboxId::random();
        let template = Template::open(host.root(), MINIMAL).unwrap();
        let network = Network::open(NetworkConfig::default(), host.root().path(), |_| true)
            .await
            .unwrap();
        let slot = network.create_slot(id.as_str()).await.unwrap();
        let user = VmUsers::default().of_slot(slot.number().get());
        slot.grant_tap(user.get(), user.get()).await.unwrap();
        let directory = host.root().path().join(format!("snapshot-{id}"));
        std::fs::create_dir(&directory).unwrap();
        std::fs::create_dir(directory.join("pager")).unwrap();
        let disk = directory.join("rootfs.ext4");
        std::fs::copy(&template.rootfs, &disk).unwrap();
        // The image that it is a copy of may not be written.
        std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o600)).unwrap();
        Self {
            id,
            template,
            binary: VmmBinary::find(Some(host.vmm()), None).unwrap(),
            network,
            slot,
            user,
            directory,
            wrote: OnceLock::new(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn kernel(&self) -> JailFile {
        JailFile::read_only(&self.template.kernel, "vmlinux")
    }

    fn initrd(&self) -> Option<JailFile> {
        let initrd = self.template.initrd.as_ref()?;
        Some(JailFile::read_only(initrd, "initrd.img"))
    }

    /// A file of a snapshot, as a VMM is shown it.
    fn shown(&self, file: &str) -> JailFile {
        JailFile::read_only(self.file(file), file)
    }

    fn pager(&self) -> JailFile {
        JailFile::writable(self.file("pager"), "pager")
    }

    fn spec(&self, shown: Vec<JailFile>, further: Option<Device>) -> LaunchSpec {
        let mut files = vec![JailFile::writable(self.file("rootfs.ext4"), "rootfs.ext4")];
        files.extend(shown);
        let mut devices = vec![Device::Kvm, Device::NetTun];
        devices.extend(further);
        LaunchSpec {
            binary: self.binary.clone(),
            id: self.id.clone(),
            directory: self.directory.clone(),
            network_namespace: Some(self.slot.namespace_path()),
            jail: JailSpec {
                user: self.user,
                files,
                devices,
            },
            cgroup: None,
            dies_with_parent: false,
        }
    }

    /// What a VMM that loads this snapshot is shown of it.
    fn spec_of(&self, name: &str) -> LaunchSpec {
        let files = ["state", "memory"].map(|part| self.shown(&format!("{name}.{part}")));
        self.spec(files.to_vec(), None)
    }

    async fn boot(&self) -> Guest {
        let (address, prefix) = self.slot.guest_address();
        let config = VmConfig {
            machine: MachineConfig {
                track_dirty_pages: true,
                ..MachineConfig::from(Resources::new(1, MEMORY_MIB.into()).unwrap())
            },
            boot_source: BootSource {
                kernel_image_path: self.kernel().inside(),
                boot_args: format!(
                    "{KERNEL_ARGS} wrenn.hostname={} wrenn.ip={address}/{prefix} wrenn.gateway={}",
                    self.id,
                    self.slot.gateway(),
                ),
                initrd_path: self.initrd().map(|file| file.inside()),
            },
            drives: vec![Drive::root(
                &LaunchSpec::stable_disk_path(),
                DeviceLimits::default(),
            )],
            network_interfaces: vec![NetworkInterface {
                iface_id: "eth0".to_owned(),
                guest_mac: self.slot.guest_mac().to_string(),
                host_dev_name: self.slot.tap_name().to_owned(),
                rx_rate_limiter: RateLimiter::default(),
                tx_rate_limiter: RateLimiter::default(),
            }],
            entropy: true,
            balloon: Some(Balloon::REPORTING),
        };
        let mut files = vec![self.kernel()];
        files.extend(self.initrd());
        let vm = Vm::boot(self.spec(files, None), &config).await.unwrap();
        let info = vm.api().info().await.unwrap();
        self.wrote.get_or_init(|| WrittenBy {
            vmm: info.app_name,
            version: info.vmm_version,
        });
        self.greet(vm, None).await
    }

    fn load(&self, name: &str, mem_backend: MemoryBackend) -> LoadSnapshot {
        LoadSnapshot {
            snapshot_path: self.shown(&format!("{name}.state")).inside(),
            mem_backend,
            track_dirty_pages: true,
            resume_vm: true,
            network_overrides: vec![NetworkOverride {
                iface_id: "eth0".to_owned(),
                host_dev_name: self.slot.tap_name().to_owned(),
            }],
        }
    }

    async fn restore_from_file(&self, name: &str, token: &AccessToken) -> Guest {
        let load = self.load(name, self.memory_of(name));
        let wrote = self.wrote.get().unwrap();
        let vm = Vm::restore(self.spec_of(name), &load, DeviceLimits::default(), wrote)
            .await
            .unwrap();
        let log = std::fs::read_to_string(self.file("vmm.log")).unwrap();
        assert!(!log.contains("cannot be restored"), "{log}");
        self.greet(vm, Some(token.clone())).await
    }

    fn memory_of(&self, name: &str) -> MemoryBackend {
        MemoryBackend::File(self.shown(&format!("{name}.memory")).inside())
    }

    /// The same, with its pages from whoever listens in the pager's directory.
    async fn restore_by_faults(&self, name: &str, token: &AccessToken) -> Guest {
        let backend = MemoryBackend::Uffd(self.pager().inside().join("pager.sock"));
        let files = vec![self.shown(&format!("{name}.state")), self.pager()];
        let spec = self.spec(files, Some(Device::Userfaultfd));
        let wrote = self.wrote.get().unwrap();
        let vm = Vm::restore(
            spec,
            &self.load(name, backend),
            DeviceLimits::default(),
            wrote,
        )
        .await
        .unwrap();
        self.greet(vm, Some(token.clone())).await
    }

    async fn greet(&self, vm: Vm, token: Option<AccessToken>) -> Guest {
        let address = (self.slot.reachable_address(), ENVD_PORT).into();
        let mut client = GuestClient::new(address, token).unwrap();
        client.wait_healthy(PATIENCE).await.unwrap();
        let token = AccessToken::random();
        client
            .init(&InitRequest {
                timestamp: Some(humantime::format_rfc3339_nanos(SystemTime::now()).to_string()),
                access_token: Some(token.reveal().to_owned()),
                ..InitRequest::default()
            })
            .await
            .unwrap();
        Guest { vm, client, token }
    }

    async fn snapshot(&self, guest: &Guest, kind: SnapshotType, name: &str) {
        let [state, memory] = ["state", "memory"].map(|part| format!("{name}.{part}"));
        let request = CreateSnapshot {
            snapshot_type: kind,
            snapshot_path: LaunchSpec::shared_path(&state),
            mem_file_path: LaunchSpec::shared_path(&memory),
        };
        guest
            .vm
            .api()
            .create_snapshot(&request, MEMORY_MIB)
            .await
            .unwrap();
        // Out of the VMM's reach, and readable for the next one, whoever that is.
        let shared = LaunchSpec::shared_in(&self.directory);
        for file in [&state, &memory] {
            std::fs::rename(shared.join(file), self.file(file)).unwrap();
            let readable = std::fs::Permissions::from_mode(0o444);
            std::fs::set_permissions(self.file(file), readable).unwrap();
        }
        let memory = std::fs::metadata(self.file(&memory)).unwrap();
        assert_eq!(memory.len(), u64::from(MEMORY_MIB) << 20);
    }

    /// Lays a copy of one snapshot's memory where the VMM is going to write another's.
    fn lay_under(&self, base: &str, name: &str) {
        let shared = LaunchSpec::shared_in(&self.directory);
        let copy = shared.join(format!("{name}.memory"));
        std::fs::copy(self.file(&format!("{base}.memory")), &copy).unwrap();
        let writable = std::fs::Permissions::from_mode(0o600);
        std::fs::set_permissions(&copy, writable).unwrap();
        chown(&copy, Some(self.user.get()), Some(self.user.get())).unwrap();
    }

    async fn tear_down(self) {
        self.slot.remove().await.unwrap();
        self.network.settled().await;
        std::fs::remove_dir_all(self.directory).unwrap();
    }
}

struct Guest {
    vm: Vm,
    client: GuestClient,
    token: AccessToken,
}

impl Guest {
    async fn shell(&self, line: &str) -> String {
        let command = Command::shell(line).user("root");
        let output = self.client.output(&command).await.unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.shell_code(), 0, "{line}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    async fn count(&self) -> u64 {
        // The file is empty for a moment each time.
        self.shell("until grep . /run/count; do :; done")
            .await
            .parse()
            .unwrap()
    }

    /// The counter is past `before` and moves.
    async fn counts_on_from(&self, before: u64) -> u64 {
        let now = self.count().await;
        assert!(now >= before, "{now} is before {before}");
        until("the counter moves", || async { self.count().await > now }).await;
        now
    }

    async fn knows_the_time(&self) {
        let seconds: u64 = self.shell("date +%s").await.parse().unwrap();
        let guest = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let difference = SystemTime::now()
            .duration_since(guest)
            .unwrap_or_else(|error| error.duration());
        assert!(difference < Duration::from_secs(10), "{difference:?}");
    }

    async fn has_a_sound_disk(&self) {
        let complaints =
            "dmesg | grep -iE 'I/O error|EXT4-fs (error|warning)|blocked for more' || :";
        assert_eq!(self.shell(complaints).await, "");
        // Every line is there, in order: nothing was lost and nothing repeated.
        let gaps = "awk '$1 != NR { print NR; exit }' /var/tmp/count";
        assert_eq!(self.shell(gaps).await, "");
    }

    async fn state(&self) -> String {
        self.vm.api().info().await.unwrap().state
    }
}

#[test]
fn full_and_diff_snapshots_go_on_from_a_file_and_from_a_page_fault_server() {
    stage::enter(|host| async move {
        let bench = Bench::new(&host).await;
        let first = bench.boot().await;
        first.shell(COUNTER).await;
        first.counts_on_from(0).await;

        // A command that is under way takes no notice.
        let (under_way, ()) = tokio::join!(first.shell("sleep 1; echo done"), async {
            first.vm.api().pause().await.unwrap();
            assert_eq!(first.state().await, "Paused");
            bench.snapshot(&first, SnapshotType::Full, "full").await;
            first.vm.api().resume().await.unwrap();
            assert_eq!(first.state().await, "Running");
        });
        assert_eq!(under_way, "done");
        let before = first.counts_on_from(0).await;

        // The difference alone is small; merged into the full one, it is all.
        first.vm.api().pause().await.unwrap();
        bench.snapshot(&first, SnapshotType::Diff, "alone").await;
        let alone = std::fs::metadata(bench.file("alone.memory")).unwrap();
        assert!(alone.blocks() * 512 < alone.len() / 2, "{}", alone.blocks());
        first.vm.api().resume().await.unwrap();
        merge(&bench.file("alone.memory"), &bench.file("full.memory"));
        let before = first.counts_on_from(before).await;
        first.vm.api().pause().await.unwrap();
        bench.lay_under("full", "second");
        bench.snapshot(&first, SnapshotType::Diff, "second").await;
        let token = first.token.clone();
        first.vm.kill().await;

        let second = bench.restore_from_file("second", &token).await;
        let before = second.counts_on_from(before).await;
        second.knows_the_time().await;
        second.has_a_sound_disk().await;
        second.vm.api().pause().await.unwrap();
        bench.snapshot(&second, SnapshotType::Full, "third").await;
        let token = second.token.clone();
        second.vm.kill().await;

        let socket = bench.file("pager/pager.sock");
        let pager = Pager::start(&socket, &bench.file("third.memory"));
        chown(&socket, Some(bench.user.get()), Some(bench.user.get())).unwrap();
        let third = bench.restore_by_faults("third", &token).await;
        let before = third.counts_on_from(before).await;
        third.knows_the_time().await;
        third.has_a_sound_disk().await;
        third.vm.api().pause().await.unwrap();
        bench.lay_under("third", "fourth");
        bench.snapshot(&third, SnapshotType::Diff, "fourth").await;
        let token = third.token.clone();
        third.vm.kill().await;
        let served = pager.ended();
        let pages = u64::from(MEMORY_MIB) << 8;
        assert!((1..pages).contains(&served), "{served} of {pages} pages");

        let fourth = bench.restore_from_file("fourth", &token).await;
        fourth.counts_on_from(before).await;
        fourth.has_a_sound_disk().await;
        fourth.vm.kill().await;
        bench.tear_down().await;
    });
}

/// Puts what `difference` holds into `base`.
fn merge(difference: &std::path::Path, base: &std::path::Path) {
    use std::os::unix::fs::FileExt;

    use rustix::fs::{SeekFrom, seek};

    let from = std::fs::File::open(difference).unwrap();
    let to = std::fs::File::options().write(true).open(base).unwrap();
    let mut end = 0;
    while let Ok(start) = seek(&from, SeekFrom::Data(end)) {
        end = seek(&from, SeekFrom::Hole(start)).unwrap();
        let mut piece = vec![0; usize::try_from(end - start).unwrap()];
        from.read_exact_at(&mut piece, start).unwrap();
        to.write_all_at(&piece, start).unwrap();
    }
}

#[test]
fn requests_out_of_turn_are_refused_and_a_damaged_file_too() {
    stage::enter(|host| async move {
        let bench = Bench::new(&host).await;
        let guest = bench.boot().await;
        let api = guest.vm.api();
        let create = CreateSnapshot {
            snapshot_type: SnapshotType::Full,
            snapshot_path: LaunchSpec::shared_path("full.state"),
            mem_file_path: LaunchSpec::shared_path("full.memory"),
        };
        let running = api.create_snapshot(&create, MEMORY_MIB).await.unwrap_err();
        assert!(running.to_string().contains("400"), "{running}");
        api.pause().await.unwrap();
        api.pause().await.unwrap();
        bench.snapshot(&guest, SnapshotType::Full, "full").await;
        let load = bench.load("full", bench.memory_of("full"));
        let started = api.load_snapshot(&load).await.unwrap_err();
        assert!(started.to_string().contains("400"), "{started}");
        api.resume().await.unwrap();
        assert_eq!(guest.shell("echo alive").await, "alive");
        guest.vm.kill().await;

        let whole = std::fs::read(bench.file("full.state")).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0x10;
        for damaged in [&flipped[..], &whole[..whole.len() / 2], b""] {
            std::fs::write(bench.file("full.state"), damaged).unwrap();
            let wrote = bench.wrote.get().unwrap();
            let restored =
                Vm::restore(bench.spec_of("full"), &load, DeviceLimits::default(), wrote).await;
            let error = restored.unwrap_err();
            assert!(error.to_string().contains("VMM"), "{error}");
        }
        let other = WrittenBy {
            vmm: "another".to_owned(),
            version: "0.1".to_owned(),
        };
        let restored = Vm::restore(
            bench.spec_of("full"),
            &load,
            DeviceLimits::default(),
            &other,
        )
        .await;
        let error = restored.unwrap_err().to_string();
        assert!(error.contains("another 0.1 wrote the snapshot"), "{error}");
        bench.tear_down().await;
    });
}
