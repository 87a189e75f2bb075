//! What this host can run, each ability tried and not just looked for.

mod probes;
mod sys;

use std::path::Path;

use serde::Serialize;
use wrenn_images::{Cache, Progress, command, host_packages};

use crate::accelerator::{KvmVerdict, probe_kvm};
use crate::command_line::QEMU;
use crate::config::Programs;
use crate::error::MachineError;
use crate::state;

/// The fix of what cannot be mended on this host.
pub const NO_FIX: &str = "none on this host; sandboxes run in the machine";

/// The state of one ability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ability {
    /// It was tried and works.
    Works,
    /// It does not work.
    Missing,
    /// It could not be tried.
    Unknown,
}

/// Who needs an ability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NeededBy {
    /// Sandboxes that run on this host itself.
    Sandboxes,
    /// The machine, in which sandboxes run where the host cannot.
    Machine,
    /// Both.
    Everything,
}

/// What was found out about one ability.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Short name, the same for ever.
    pub name: &'static str,
    pub ability: Ability,
    pub needed_by: NeededBy,
    /// What it is used for.
    pub purpose: &'static str,
    /// What was seen.
    pub detail: String,
    /// How to mend it, where it does not work.
    pub fix: Option<String>,
}

/// All findings, and what follows from them.
#[derive(Debug, Clone, Serialize)]
pub struct HostReport {
    /// Sandboxes can run on this host itself.
    pub runs_sandboxes: bool,
    /// The machine can run here.
    pub runs_machine: bool,
    pub findings: Vec<Finding>,
}

/// Tries everything. `root` is where sandboxes would lie.
///
/// # Errors
/// What the KVM probe boots cannot be built, or the user has no home directory.
pub async fn examine(
    root: &Path,
    cache: &Cache,
    programs: &Programs,
    progress: &dyn Progress,
) -> Result<HostReport, MachineError> {
    let qemu = host_packages::FOR_MACHINE;
    let kvm = if host_packages::missing(qemu).next().is_some() {
        None
    } else {
        Some(probe_kvm(cache, &programs.init, &state::home()?, progress).await?)
    };
    let mut findings = vec![kvm_finding(kvm.as_ref())];
    findings.extend(probes::all(root));
    findings.extend([
        packages_finding(
            "image_packages",
            host_packages::FOR_IMAGES,
            NeededBy::Everything,
        ),
        packages_finding(
            "machine_packages",
            host_packages::FOR_MACHINE,
            NeededBy::Machine,
        ),
    ]);
    Ok(HostReport::of(findings))
}

impl HostReport {
    fn of(findings: Vec<Finding>) -> Self {
        let all_work = |who: NeededBy| {
            findings
                .iter()
                .filter(|finding| [who, NeededBy::Everything].contains(&finding.needed_by))
                .all(|finding| finding.ability == Ability::Works)
        };
        Self {
            runs_sandboxes: all_work(NeededBy::Sandboxes),
            runs_machine: all_work(NeededBy::Machine),
            findings,
        }
    }
}

/// Whether sandboxes can run on this host itself, with as few steps as possible: for every
/// start of the program, where [`examine`] is for people.
///
/// # Errors
/// What the KVM probe boots cannot be built, or the user has no home directory.
pub async fn runs_sandboxes(
    root: &Path,
    cache: &Cache,
    programs: &Programs,
    progress: &dyn Progress,
) -> Result<bool, MachineError> {
    let quick = HostReport::of(probes::all(root));
    if !quick.runs_sandboxes {
        return Ok(false);
    }
    if command::find(QEMU).is_none() {
        // Nothing to try it with, and no machine to turn to: the sandbox itself will tell.
        return Ok(true);
    }
    let verdict = probe_kvm(cache, &programs.init, &state::home()?, progress).await?;
    Ok(verdict == KvmVerdict::Boots)
}

fn kvm_finding(verdict: Option<&KvmVerdict>) -> Finding {
    let (ability, detail, fix) = match verdict {
        None => (
            Ability::Unknown,
            "not tried, since QEMU is not installed".to_owned(),
            Some("apt-get install qemu-system-x86".to_owned()),
        ),
        Some(KvmVerdict::Boots) => (Ability::Works, "a kernel boots under KVM".to_owned(), None),
        Some(KvmVerdict::NoDevice) => (
            Ability::Missing,
            "there is no /dev/kvm".to_owned(),
            Some(
                "turn virtualisation on in the firmware, or nested virtualisation in the cloud; \
                 until then sandboxes run in the machine"
                    .to_owned(),
            ),
        ),
        Some(KvmVerdict::NoPermission) => (
            Ability::Missing,
            "/dev/kvm may not be opened by this user".to_owned(),
            Some("run as root, or: usermod -aG kvm $USER, and log in again".to_owned()),
        ),
        Some(KvmVerdict::DoesNotBoot { reason }) => (
            Ability::Missing,
            format!("/dev/kvm is there, but no kernel boots under it: {reason}"),
            Some(NO_FIX.to_owned()),
        ),
    };
    Finding {
        name: "kvm",
        ability,
        needed_by: NeededBy::Sandboxes,
        purpose: "runs microVMs at full speed",
        detail,
        fix,
    }
}

fn packages_finding(
    name: &'static str,
    packages: &'static [host_packages::HostPackage],
    needed_by: NeededBy,
) -> Finding {
    let names = |list: Vec<&host_packages::HostPackage>| {
        list.iter()
            .map(|package| package.name)
            .collect::<Vec<_>>()
            .join(" ")
    };
    let missing: Vec<_> = host_packages::missing(packages).collect();
    let ability = if missing.is_empty() {
        Ability::Works
    } else {
        Ability::Missing
    };
    let purpose = match needed_by {
        NeededBy::Machine => "programs that run the machine",
        _ => "programs that build guest images",
    };
    let (detail, fix) = if missing.is_empty() {
        (
            format!("{} installed", names(packages.iter().collect())),
            None,
        )
    } else {
        let missing = names(missing);
        (
            format!("{missing} not installed"),
            Some(format!("apt-get install {missing}")),
        )
    };
    Finding {
        name,
        ability,
        needed_by,
        purpose,
        detail,
        fix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(ability: Ability, needed_by: NeededBy) -> Finding {
        Finding {
            name: "x",
            ability,
            needed_by,
            purpose: "",
            detail: String::new(),
            fix: None,
        }
    }

    #[test]
    fn a_host_runs_what_it_has_everything_for() {
        let works = |by| finding(Ability::Works, by);
        let report = HostReport::of(vec![
            finding(Ability::Missing, NeededBy::Sandboxes),
            works(NeededBy::Machine),
            works(NeededBy::Everything),
        ]);
        assert!(!report.runs_sandboxes && report.runs_machine);
        let report = HostReport::of(vec![
            works(NeededBy::Sandboxes),
            finding(Ability::Unknown, NeededBy::Everything),
        ]);
        assert!(
            !report.runs_sandboxes && !report.runs_machine,
            "unknown is not enough"
        );
    }

    #[test]
    fn whatever_does_not_work_has_a_fix() {
        let verdicts = [
            None,
            Some(KvmVerdict::Boots),
            Some(KvmVerdict::NoDevice),
            Some(KvmVerdict::NoPermission),
            Some(KvmVerdict::DoesNotBoot { reason: "x".into() }),
        ];
        for verdict in verdicts {
            let finding = kvm_finding(verdict.as_ref());
            assert_eq!(
                finding.ability == Ability::Works,
                finding.fix.is_none(),
                "{finding:?}"
            );
        }
        for finding in probes::all(Path::new("/")) {
            assert_eq!(
                finding.ability == Ability::Works,
                finding.fix.is_none(),
                "{finding:?}"
            );
        }
    }
}
