//! The guest kernel of our own, which boots with no initramfs. `cargo xtask kernel` builds it,
//! and `cargo xtask e2e --kernel ID kernel::` runs these.

use std::time::{SystemTime, UNIX_EPOCH};

use wrenn_core::guest::Command;
use wrenn_core::sandbox::{Host, Sandbox, SandboxConfig};

use crate::stage;

/// Clocks are read on both sides of a command, which under emulation is slow.
const CLOCK_SLACK_SECS: u64 = 5;

fn config() -> SandboxConfig {
    let kernel = std::env::var("WRENN_E2E_KERNEL")
        .expect("WRENN_E2E_KERNEL names no kernel: cargo xtask e2e --kernel ID");
    SandboxConfig {
        kernel: Some(kernel),
        ..stage::small()
    }
}

async fn booted(host: &Host) -> Sandbox {
    host.create(config()).await.unwrap()
}

/// What a shell command of root in the guest prints; it must succeed.
async fn shell(sandbox: &Sandbox, script: &str) -> String {
    let command = Command::new("sh").args(["-c", script]).user("root");
    let output = sandbox.exec(&command).await.unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.shell_code(), 0, "{script}: {stderr}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs a kernel that takes minutes to compile: cargo xtask e2e --kernel ID"]
fn it_boots_with_no_initramfs_to_a_whole_guest() {
    stage::enter(|host| async move {
        let sandbox = booted(&host).await;
        assert_eq!(shell(&sandbox, "echo hello").await, "hello");
        assert!(shell(&sandbox, "uname -r").await.ends_with("-wrenn"));

        let mounts = shell(&sandbox, "cat /proc/mounts").await;
        for mount in [
            "/ ext4",
            "/proc proc",
            "/sys sysfs",
            "/dev devtmpfs",
            "/dev/pts devpts",
            "/run tmpfs",
            "/sys/fs/cgroup cgroup2",
        ] {
            assert!(mounts.contains(&format!(" {mount} ")), "{mount}: {mounts}");
        }

        let address = shell(&sandbox, "ip addr show eth0").await;
        assert!(address.contains("169.254.0.21/30"), "{address}");
        assert!(address.contains(",UP"), "{address}");

        let seconds = shell(&sandbox, "date +%s").await.parse::<u64>().unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(seconds.abs_diff(now.as_secs()) <= CLOCK_SLACK_SECS);
        sandbox.destroy().await.unwrap();
    });
}

#[test]
#[ignore = "needs a kernel that takes minutes to compile: cargo xtask e2e --kernel ID"]
fn each_boot_has_an_identity_of_its_own() {
    stage::enter(|host| async move {
        let (one, two) = (booted(&host).await, booted(&host).await);
        for file in [
            "/proc/sys/kernel/random/boot_id",
            "/proc/sys/kernel/random/uuid",
        ] {
            let read = format!("cat {file}");
            assert_ne!(shell(&one, &read).await, shell(&two, &read).await, "{file}");
        }
        one.destroy().await.unwrap();
        two.destroy().await.unwrap();
    });
}

#[test]
#[ignore = "needs a kernel that takes minutes to compile: cargo xtask e2e --kernel ID"]
fn containers_find_what_they_need() {
    stage::enter(|host| async move {
        let sandbox = booted(&host).await;
        let controllers = shell(&sandbox, "cat /sys/fs/cgroup/cgroup.controllers").await;
        for controller in ["cpuset", "cpu", "io", "memory", "pids"] {
            let mut present = controllers.split_whitespace();
            assert!(present.any(|name| name == controller), "{controllers}");
        }
        let filesystems = shell(&sandbox, "cat /proc/filesystems").await;
        for name in ["overlay", "fuse", "squashfs", "tmpfs"] {
            assert!(
                filesystems.lines().any(|line| line.ends_with(name)),
                "{name}"
            );
        }
        let namespaces = shell(&sandbox, "ls /proc/self/ns").await;
        for name in ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"] {
            assert!(namespaces.lines().any(|line| line == name), "{name}");
        }
        shell(
            &sandbox,
            "cd /tmp && mkdir low up work top && echo below > low/file && \
             mount -t overlay overlay -o lowerdir=low,upperdir=up,workdir=work top && \
             grep -q below top/file && umount top && test -c /dev/net/tun && test -c /dev/fuse",
        )
        .await;
        sandbox.destroy().await.unwrap();
    });
}

#[test]
fn a_kernel_that_is_not_there_is_named_with_those_that_are() {
    stage::enter(|host| async move {
        let config = SandboxConfig {
            kernel: Some("no-such-kernel".to_owned()),
            ..stage::small()
        };
        let error = host.create(config).await.unwrap_err().to_string();
        assert!(error.contains("'no-such-kernel'"), "{error}");
        assert!(error.contains("debian-"), "{error}");
    });
}
