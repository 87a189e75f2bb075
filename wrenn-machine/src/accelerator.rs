//! How QEMU runs the machine, and the probe that decides it.
//!
//! A KVM may answer every question about its abilities and still be unable to run an
//! ordinary kernel. So the probe boots one, with a program that says so on the console.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::process::Command;
use tokio::time::timeout;
use wrenn_images::command::Program;
use wrenn_images::progress::Event;
use wrenn_images::{Cache, Progress};

use crate::artifacts;
use crate::command_line::QEMU;
use crate::error::{AtPath, MachineError};
use wrenn_core::process::boot_id;

/// What the probe's program says; `wrenn-machine-init` has the other end.
const MARKER: &str = "wrenn-machine: probe: kernel runs";
/// A kernel that runs says so within a second or two.
const PROBE_LIMIT: Duration = Duration::from_secs(30);
const DEVICE: &str = "/dev/kvm";
/// More would not make a machine for one person's sandboxes faster.
const MAX_CPUS: usize = 8;

/// The ways to run a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// Emulation, which runs everywhere and is 10 to 30 times slower.
    Emulation,
}

/// What is known about the host's KVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum KvmVerdict {
    /// A kernel booted.
    Boots,
    /// There is no such device.
    NoDevice,
    /// The device may not be opened by this user.
    NoPermission,
    /// It is there, but an ordinary kernel does not run on it.
    DoesNotBoot { reason: String },
}

/// The verdict of one boot of the host, which holds until the next.
#[derive(Serialize, Deserialize)]
struct Remembered {
    boot_id: String,
    kvm: KvmVerdict,
}

impl Accelerator {
    /// QEMU's arguments for it.
    pub(crate) fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Kvm => &["-accel", "kvm", "-cpu", "host"],
            // A processor that claims fast string moves gets them from the kernel and from
            // every program, and QEMU emulates those byte by byte: without, copying memory
            // is five times as fast.
            Self::Emulation => &[
                "-accel",
                "tcg,thread=multi,tb-size=1024",
                "-cpu",
                "max,-erms",
            ],
        }
    }

    /// How many processors a machine gets unless told.
    ///
    /// One where it is emulated: with two, QEMU now and then hands an interrupt to the
    /// machine's kernel while that is between two guests, which ends a guest or the machine.
    #[must_use]
    pub fn default_cpus(self) -> usize {
        match self {
            Self::Kvm => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MAX_CPUS),
            Self::Emulation => 1,
        }
    }

    /// How much longer things take than on hardware.
    #[must_use]
    pub fn slowness(self) -> u32 {
        match self {
            Self::Kvm => 1,
            Self::Emulation => 15,
        }
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(match self {
            Self::Kvm => "KVM",
            Self::Emulation => "emulation",
        })
    }
}

impl KvmVerdict {
    /// The accelerator to use.
    #[must_use]
    pub fn accelerator(&self) -> Accelerator {
        if *self == Self::Boots {
            Accelerator::Kvm
        } else {
            Accelerator::Emulation
        }
    }
}

/// Finds out whether the host's KVM runs an ordinary kernel. The answer is kept in the
/// directory `state` until the host boots again.
///
/// # Errors
/// What the probe boots cannot be built.
pub async fn probe_kvm(
    cache: &Cache,
    init: &Path,
    state: &Path,
    progress: &dyn Progress,
) -> Result<KvmVerdict, MachineError> {
    // These may change without a boot, and cost nothing to find out.
    match fs::File::options().read(true).write(true).open(DEVICE) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Ok(KvmVerdict::NoPermission);
        }
        Err(_) => return Ok(KvmVerdict::NoDevice),
        Ok(_) => {}
    }
    let memory = state.join("kvm.json");
    let boot_id = boot_id().at("read", Path::new("/proc/sys/kernel/random/boot_id"))?;
    let remembered = fs::read(&memory)
        .ok()
        .and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(Remembered { boot_id: then, kvm }) = remembered
        && then == boot_id
    {
        return Ok(kvm);
    }
    let (kernel, initramfs) = artifacts::build_probe(cache, init, progress)?;
    // A kernel that hangs is given up after a while, in which people want to know what goes on.
    let step = "trying whether KVM boots a kernel";
    let since = Instant::now();
    progress.report(Event::Started { step });
    let kvm = boot_under_kvm(&kernel, &initramfs).await;
    progress.report(match &kvm {
        Ok(_) => Event::Finished {
            step,
            elapsed: since.elapsed(),
        },
        Err(_) => Event::Failed { step },
    });
    let kvm = kvm?;
    fs::create_dir_all(state).at("create", state)?;
    let text = serde_json::to_vec(&Remembered {
        boot_id,
        kvm: kvm.clone(),
    })
    .map_err(|source| MachineError::BadState {
        path: memory.clone(),
        source,
    })?;
    fs::write(&memory, text).at("write", &memory)?;
    Ok(kvm)
}

async fn boot_under_kvm(kernel: &Path, initramfs: &Path) -> Result<KvmVerdict, MachineError> {
    let command = Program::new(QEMU)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
        ])
        .args(["-M", "q35"])
        .args(Accelerator::Kvm.arguments())
        .args(["-m", "256", "-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 quiet panic=-1 reboot=t -- probe"])
        .into_command();
    let mut qemu = Command::from(command)
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| MachineError::Process {
            action: "start",
            source,
        })?;
    let (Some(console), Some(mut errors)) = (qemu.stdout.take(), qemu.stderr.take()) else {
        return Ok(KvmVerdict::DoesNotBoot {
            reason: "QEMU has no output".into(),
        });
    };
    let marked = timeout(PROBE_LIMIT, async {
        let mut lines = BufReader::new(console).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line.contains(MARKER) {
                return true;
            }
        }
        false
    })
    .await;
    let verdict = match marked {
        Ok(true) => KvmVerdict::Boots,
        Ok(false) => {
            let mut said = Vec::new();
            // Bounded: the process has closed its output, so it is ending.
            let read = timeout(PROBE_LIMIT, errors.read_to_end(&mut said)).await;
            let text = String::from_utf8_lossy(&said);
            let first = text.lines().next().filter(|_| read.is_ok());
            KvmVerdict::DoesNotBoot {
                reason: first.unwrap_or("QEMU ended").to_owned(),
            }
        }
        Err(_) => KvmVerdict::DoesNotBoot {
            reason: format!("the kernel said nothing within {PROBE_LIMIT:?}"),
        },
    };
    qemu.kill().await.map_err(|source| MachineError::Process {
        action: "stop",
        source,
    })?;
    Ok(verdict)
}
