//! The jail of a VMM, as the host sees it from outside.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use wrenn_core::guest::Command;
use wrenn_core::sandbox::Sandbox;

use crate::stage::{self, minimal};

/// What a VMM may have open. Descriptors without a file are named by their kind.
const OPEN: &[&str] = &[
    "/dev/kvm",
    "/dev/net/tun",
    "/dev/null",
    "/run/wrenn/vm/initrd.img",
    "/run/wrenn/vm/rootfs.ext4",
    "/run/wrenn/vm/vmlinux",
    "/run/wrenn/vm/vmm.log",
    "anon_inode:",
    "socket:",
];

/// A running VMM in the host's `/proc`.
struct Vmm(PathBuf);

impl Vmm {
    fn of(sandbox: &Sandbox) -> Self {
        Self(PathBuf::from(format!("/proc/{}", sandbox.vm().pid())))
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.0.join(file)).unwrap()
    }

    fn names_in(&self, directory: &str) -> BTreeSet<String> {
        fs::read_dir(self.0.join(directory))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    /// The directory of its cgroup.
    fn cgroup(&self) -> PathBuf {
        let line = self.read("cgroup");
        let inside = line.trim().strip_prefix("0::/").unwrap();
        Path::new("/sys/fs/cgroup").join(inside)
    }
}

/// The words of one field of a `status` file.
fn field<'a>(status: &'a str, name: &str) -> Vec<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().split_whitespace().collect()
}

async fn attempt(sandbox: &Sandbox, line: &str) -> u8 {
    let command = Command::shell(line).user("root");
    sandbox.exec(&command).await.unwrap().status.shell_code()
}

#[test]
fn a_vmm_is_nobody_and_bound_in_every_thread() {
    stage::enter(|host| async move {
        let (first, second) = (minimal(&host).await, minimal(&host).await);
        let mut users = BTreeSet::new();
        for sandbox in [&first, &second] {
            let vmm = Vmm::of(sandbox);
            for thread in vmm.names_in("task") {
                let status = vmm.read(&format!("task/{thread}/status"));
                let user: u32 = field(&status, "Uid:")[0].parse().unwrap();
                assert!(user >= 65_536, "{status}");
                users.insert(user);
                for ids in ["Uid:", "Gid:"] {
                    assert_eq!(
                        field(&status, ids),
                        [user.to_string().as_str(); 4],
                        "{status}"
                    );
                }
                assert!(field(&status, "Groups:").is_empty(), "{status}");
                for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                    assert_eq!(field(&status, set), ["0000000000000000"], "{status}");
                }
                assert_eq!(field(&status, "NoNewPrivs:"), ["1"], "{status}");
                assert_eq!(field(&status, "Seccomp:"), ["2"], "{status}");
            }
            assert_eq!(vmm.read("environ"), "");
        }
        assert_eq!(users.len(), 2, "two sandboxes share a user");
        first.destroy().await.unwrap();
        second.destroy().await.unwrap();
    });
}

#[test]
fn a_vmm_sees_nothing_of_its_host() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let vmm = Vmm::of(&sandbox);
        let names = |of: &[&str]| of.iter().map(|name| (*name).to_owned()).collect();
        let root: BTreeSet<String> = names(&["dev", "run", "vmm"]);
        assert_eq!(vmm.names_in("root"), root);
        // Its disk is a device of its own where the kernel has a device mapper.
        let devices: BTreeSet<String> = names(&["kvm", "net", "rootfs.ext4"]);
        let found = vmm.names_in("root/dev");
        assert!(found.is_subset(&devices), "{found:?}");
        let own: BTreeSet<String> =
            names(&["initrd.img", "rootfs.ext4", "shared", "vmlinux", "vmm.log"]);
        let found = vmm.names_in("root/run/wrenn/vm");
        assert!(found.is_subset(&own), "{found:?}");

        for mount in vmm.read("mountinfo").lines() {
            let place = mount.split(' ').nth(4).unwrap();
            assert!(
                matches!(place, "/" | "/dev" | "/vmm") || place.starts_with("/run/wrenn/vm/"),
                "{mount}"
            );
        }
        let console = sandbox.directory().join("console.log");
        for descriptor in vmm.names_in("fd") {
            let target = fs::read_link(vmm.0.join("fd").join(&descriptor)).unwrap();
            let text = target.to_str().unwrap();
            assert!(
                target == console || OPEN.iter().any(|expected| text.starts_with(expected)),
                "descriptor {descriptor} is {text}"
            );
        }
        for namespace in ["cgroup", "ipc", "mnt", "net", "pid", "uts"] {
            let name = format!("ns/{namespace}");
            let hosts = fs::read_link(Path::new("/proc/self").join(&name)).unwrap();
            assert_ne!(fs::read_link(vmm.0.join(&name)).unwrap(), hosts, "{name}");
        }
        // The host still sees the VMM.
        assert!(vmm.read("smaps_rollup").contains("Rss:"));
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn what_a_sandbox_takes_is_limited_by_its_size() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let group = Vmm::of(&sandbox).cgroup();
        assert!(group.ends_with(Path::new("wrenn").join(sandbox.id().as_str())));
        let limit = |file: &str| fs::read_to_string(group.join(file)).unwrap();
        // One vCPU and 128 MiB.
        assert_eq!(limit("cpu.max").trim(), "150000 100000");
        assert_eq!(
            limit("memory.max").trim(),
            ((128 + 4 + 128) << 20).to_string()
        );
        assert_eq!(limit("pids.max").trim(), "65");
        if group.join("memory.swap.max").exists() {
            assert_eq!(limit("memory.swap.max").trim(), "0");
        }
        assert!(host.enforced().cpu && host.enforced().memory && host.enforced().pids);
        sandbox.destroy().await.unwrap();
        assert!(!group.exists());
    });
}

#[test]
fn bombs_in_a_guest_stay_in_it() {
    stage::enter(|host| async move {
        let sandbox = minimal(&host).await;
        let group = Vmm::of(&sandbox).cgroup();
        let number = |file: &str| -> u64 {
            let text = fs::read_to_string(group.join(file)).unwrap();
            text.trim().parse().unwrap()
        };
        // Many processes, then one that grows until the guest's kernel ends it.
        let forks = "i=0; while [ $i -lt 200 ]; do sleep 1000 & i=$((i+1)); done";
        attempt(&sandbox, &format!("({forks}) >/dev/null 2>&1")).await;
        let grown = attempt(&sandbox, "a=0123456789; while :; do a=$a$a; done").await;
        assert_ne!(grown, 0);

        assert!(number("pids.current") <= number("pids.max"));
        assert!(number("memory.peak") <= number("memory.max"));
        let events = fs::read_to_string(group.join("memory.events")).unwrap();
        assert_eq!(field(&events, "oom_kill"), ["0"], "{events}");
        assert_eq!(attempt(&sandbox, "true").await, 0, "the guest is gone");
        sandbox.destroy().await.unwrap();
    });
}
