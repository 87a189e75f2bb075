//! Tells at the start of the agent that the host's KVM boots no guest, which would otherwise show
//! at the first creation.

use std::fs::File;
use std::io;
use std::path::Path;

const DEVICE: &str = "/dev/kvm";
/// The kernel's modules, those that are built in among them.
const MODULES: &str = "/sys/module";
/// KVM on the processor's own virtualization.
const NATIVE: [&str; 2] = ["kvm_intel", "kvm_amd"];
/// KVM without it, for guests whose kernel was made for it.
const PARAVIRTUAL: &str = "kvm_pvm";

/// Why no ordinary guest boots here.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KvmProblem {
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    #[error("KVM is paravirtual here (kvm_pvm), and boots no ordinary guest kernel")]
    Paravirtual,
}

/// Looks at this host. A KVM that passes may still fail; only a guest tells for certain.
pub(crate) fn check() -> Result<(), KvmProblem> {
    check_in(Path::new(DEVICE), Path::new(MODULES))
}

fn check_in(device: &Path, modules: &Path) -> Result<(), KvmProblem> {
    File::options()
        .read(true)
        .write(true)
        .open(device)
        .map_err(KvmProblem::Open)?;
    let has = |module: &str| modules.join(module).exists();
    if has(PARAVIRTUAL) && !NATIVE.into_iter().any(has) {
        return Err(KvmProblem::Paravirtual);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn host(modules: &[&str]) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        fs::write(host.path().join("kvm-device"), "").unwrap();
        for module in modules {
            fs::create_dir_all(host.path().join("modules").join(module)).unwrap();
        }
        host
    }

    fn check_host(host: &tempfile::TempDir) -> Result<(), KvmProblem> {
        check_in(
            &host.path().join("kvm-device"),
            &host.path().join("modules"),
        )
    }

    #[test]
    fn paravirtual_kvm_alone_is_a_problem() {
        let alone = check_host(&host(&["kvm", "kvm_pvm"]));
        assert!(matches!(alone, Err(KvmProblem::Paravirtual)), "{alone:?}");
        for good in [&["kvm", "kvm_intel"][..], &["kvm_pvm", "kvm_amd"], &["kvm"]] {
            assert!(check_host(&host(good)).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn missing_device_is_a_problem() {
        let host = tempfile::tempdir().unwrap();
        let missing = check_host(&host);
        assert!(matches!(missing, Err(KvmProblem::Open(_))), "{missing:?}");
    }
}
