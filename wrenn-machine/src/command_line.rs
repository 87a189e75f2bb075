//! QEMU's command line.

use std::ffi::OsString;
use std::path::Path;

use wrenn_images::Recipe;

use crate::accelerator::Accelerator;
use crate::artifacts::Artifacts;
use crate::config::{Hardware, MachineName, MachineNetwork};

/// The program.
pub(crate) const QEMU: &str = "qemu-system-x86_64";
/// Port of the daemon inside.
pub(crate) const DAEMON_PORT: u16 = 49983;
/// The one network, by which the control socket knows it.
pub(crate) const NETWORK: &str = "net0";

/// Kernel parameters in all machines. `panic` and `reboot` make a crash end QEMU at once.
const KERNEL_PARAMETERS: &str = "console=ttyS0 quiet loglevel=4 panic=-1 reboot=t \
    random.trust_cpu=on audit=0 nowatchdog cryptomgr.notests=1 8250.nr_uarts=1";
/// Emulated processors leak nothing to each other, and each mitigation costs time there.
const WHEN_EMULATED: &str = "mitigations=off tsc=reliable no_timer_check";

/// Everything that decides how a machine is started, but for its port.
#[derive(Debug, Clone)]
pub(crate) struct CommandLine<'a> {
    pub(crate) name: &'a MachineName,
    pub(crate) hardware: Hardware,
    pub(crate) accelerator: Accelerator,
    pub(crate) artifacts: &'a Artifacts,
    /// Holds the sockets, the token, the console's log and the data disk.
    pub(crate) state: &'a Path,
}

impl CommandLine<'_> {
    /// The arguments for a machine whose daemon is reached at the host's loopback `port`.
    pub(crate) fn arguments(&self, port: u16) -> Vec<OsString> {
        let Self {
            hardware,
            artifacts,
            ..
        } = self;
        let state = |name: &str| comma_safe(&self.state.join(name));
        let mut line = Line(Vec::new());
        line.pair("-name", format!("wrenn-machine-{}", self.name));
        line.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        line.pair("-display", "none");
        line.pair("-M", "q35,smm=off,vmport=off,hpet=off");
        line.flags(self.accelerator.arguments());
        line.pair("-smp", hardware.cpus.to_string());
        line.pair("-m", hardware.memory_mib.to_string());
        line.pair("-kernel", artifacts.kernel.as_os_str());
        line.pair("-initrd", artifacts.initramfs.as_os_str());
        line.pair("-append", self.kernel_parameters());
        line.pair(
            "-chardev",
            format!("file,id=console,path={}", state("console.log")),
        );
        line.pair("-serial", "chardev:console");
        line.pair(
            "-qmp",
            format!("unix:{},server=on,wait=off", state("qmp.sock")),
        );
        line.pair("-pidfile", self.state.join("qemu.pid"));
        line.disk("images", &comma_safe(&artifacts.images), "readonly=on");
        // Fast, and safe when QEMU is killed, since the host's page cache then still has all
        // writes. Only a crash of the host can damage the disk, and it can be made again.
        line.disk(
            "data",
            &state("data.img"),
            "cache=unsafe,discard=unmap,detect-zeroes=unmap",
        );
        let restrict = match hardware.network {
            MachineNetwork::Closed => "on",
            MachineNetwork::Open => "off",
        };
        line.pair(
            "-netdev",
            format!(
                "user,id={NETWORK},ipv6=off,restrict={restrict},\
                 hostfwd=tcp:127.0.0.1:{port}-:{DAEMON_PORT}"
            ),
        );
        line.pair(
            "-device",
            format!("virtio-net-pci,netdev={NETWORK},romfile="),
        );
        line.pair("-device", "virtio-rng-pci");
        line.pair(
            "-fw_cfg",
            format!("name=opt/wrenn/token,file={}", state("token")),
        );
        // `wrenn-machine-init` has the other end.
        line.pair(
            "-fw_cfg",
            format!("name=opt/wrenn/network,string={}", hardware.network),
        );
        // User code runs in there: what breaks out of the machine should find little.
        line.pair(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        );
        line.0
    }

    /// The hash of all that a restart would change. The cache names files by their contents,
    /// so their paths stand for what is in them.
    pub(crate) fn recipe(&self) -> String {
        let arguments = self.arguments(0);
        let texts: Vec<_> = arguments
            .iter()
            .map(|argument| argument.to_string_lossy())
            .collect();
        Recipe::new("machine", 1)
            .inputs("argument", texts.iter().map(|text| &**text))
            .key()
    }

    fn kernel_parameters(&self) -> String {
        match self.accelerator {
            Accelerator::Kvm => KERNEL_PARAMETERS.to_owned(),
            Accelerator::Emulation => format!("{KERNEL_PARAMETERS} {WHEN_EMULATED}"),
        }
    }
}

struct Line(Vec<OsString>);

impl Line {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: impl Into<OsString>) {
        self.0.extend([option.into(), value.into()]);
    }

    fn disk(&mut self, id: &str, file: &str, options: &str) {
        self.pair(
            "-drive",
            format!("if=none,id={id},format=raw,file={file},{options}"),
        );
        self.pair(
            "-device",
            format!("virtio-blk-pci,drive={id},serial=wrenn-{id}"),
        );
    }
}

/// QEMU splits its options at commas; a doubled one stands for itself.
fn comma_safe(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::MachineConfig;

    struct Parts {
        name: MachineName,
        config: MachineConfig,
        artifacts: Artifacts,
    }

    fn parts() -> Parts {
        Parts {
            name: MachineName::default(),
            config: MachineConfig::default(),
            artifacts: Artifacts {
                kernel: "/cache/k/vmlinuz".into(),
                initramfs: "/cache/i/initrd.img".into(),
                images: "/cache/a,b/images.ext4".into(),
            },
        }
    }

    fn line<'a>(parts: &'a Parts, state: &'a Path, accelerator: Accelerator) -> CommandLine<'a> {
        let Parts {
            name,
            config,
            artifacts,
        } = parts;
        CommandLine {
            name,
            hardware: config.hardware(None, accelerator),
            accelerator,
            artifacts,
            state,
        }
    }

    fn text(line: &CommandLine<'_>, port: u16) -> String {
        let arguments = line.arguments(port);
        arguments
            .iter()
            .map(|one| one.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn the_network_is_closed_but_for_the_daemon_on_loopback() {
        let parts = parts();
        let state = PathBuf::from("/state");
        let text = text(&line(&parts, &state, Accelerator::Emulation), 4711);
        assert!(
            text.contains(
                "-netdev user,id=net0,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:4711-:49983"
            ),
            "{text}"
        );
        assert_eq!(text.matches("-netdev").count(), 1);
        assert!(
            text.contains("-nodefaults"),
            "no network card that nobody asked for"
        );
    }

    #[test]
    fn network_is_open_only_where_configured() {
        let mut parts = parts();
        let state = PathBuf::from("/state");
        let closed = text(&line(&parts, &state, Accelerator::Kvm), 4711);
        assert!(closed.contains("opt/wrenn/network,string=closed"));
        parts.config.network = Some(MachineNetwork::Open);
        let open = text(&line(&parts, &state, Accelerator::Kvm), 4711);
        assert!(
            open.contains("restrict=off,hostfwd=tcp:127.0.0.1:4711-:49983"),
            "{open}"
        );
        assert!(open.contains("opt/wrenn/network,string=open"), "{open}");
        assert!(!open.contains("restrict=on"), "{open}");
    }

    #[test]
    fn image_disk_is_read_only_and_commas_in_paths_are_kept() {
        let parts = parts();
        let state = PathBuf::from("/srv/a,b");
        let text = text(&line(&parts, &state, Accelerator::Kvm), 1);
        assert!(
            text.contains("file=/cache/a,,b/images.ext4,readonly=on"),
            "{text}"
        );
        assert!(text.contains("path=/srv/a,,b/console.log"), "{text}");
        assert!(text.contains("-accel kvm -cpu host"), "{text}");
    }

    #[test]
    fn emulation_has_one_processor_unless_more_are_asked_for() {
        let mut parts = parts();
        let state = PathBuf::from("/state");
        let emulated = text(&line(&parts, &state, Accelerator::Emulation), 1);
        assert!(emulated.contains("-smp 1 "), "{emulated}");
        parts.config.cpus = Some(3);
        let asked = text(&line(&parts, &state, Accelerator::Emulation), 1);
        assert!(asked.contains("-smp 3 "), "{asked}");
    }

    #[test]
    fn recipe_changes_with_what_a_restart_would_change() {
        let state = PathBuf::from("/state");
        let key = |change: fn(&mut Parts), accelerator| {
            let mut parts = parts();
            change(&mut parts);
            line(&parts, &state, accelerator).recipe()
        };
        let emulated = Accelerator::Emulation;
        let plain = key(|_| {}, emulated);
        assert_eq!(plain, key(|_| {}, emulated));
        assert_ne!(plain, key(|_| {}, Accelerator::Kvm));
        assert_ne!(
            plain,
            key(|parts| parts.config.memory_mib = Some(2048), emulated)
        );
        assert_ne!(
            plain,
            key(
                |parts| parts.config.network = Some(MachineNetwork::Open),
                emulated
            )
        );
        assert_ne!(
            plain,
            key(
                |parts| parts.artifacts.initramfs = "/other".into(),
                emulated
            )
        );
    }
}
