//! `wrenn doctor`: what this host can run.

use std::process::ExitCode;

use anyhow::Context;
use wrenn_images::Cache;
use wrenn_machine::host::{self, Ability, Finding, HostReport, NeededBy};

use super::machine;
use crate::GlobalArgs;
use crate::progress::Steps;

/// Options of `wrenn doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  wrenn doctor
  wrenn doctor --json | jq .runs_sandboxes

Exits with 0 where sandboxes run, on this host or in the machine, and with 1 elsewhere.")]
pub struct Args {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Tries everything and prints what was found.
///
/// # Errors
/// When the trial itself fails.
#[allow(clippy::print_stdout, reason = "the data that was asked for")]
pub async fn run(global: &GlobalArgs, args: Args) -> anyhow::Result<ExitCode> {
    let cache = Cache::of_user()?;
    let report = host::examine(&global.root, &cache, &machine::programs()?, &Steps::new())
        .await
        .context("cannot find out what this host can run")?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", describe(&report));
    }
    Ok(if report.runs_sandboxes || report.runs_machine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn describe(report: &HostReport) -> String {
    // What only sandboxes on this host need is not worth mending where nothing makes KVM work.
    let is_hopeless = |finding: &Finding| finding.fix.as_deref() == Some(host::NO_FIX);
    let hopeless = report.findings.iter().any(is_hopeless);
    let mut lines: Vec<String> = Vec::new();
    for finding in &report.findings {
        let mark = match finding.ability {
            Ability::Works => "ok     ",
            Ability::Missing => "missing",
            Ability::Unknown => "unknown",
        };
        lines.push(format!("{mark}  {:<17} {}", finding.name, finding.detail));
        if finding.ability != Ability::Works {
            lines.push(format!("         purpose: {}", finding.purpose));
            let pointless =
                hopeless && finding.needed_by == NeededBy::Sandboxes && !is_hopeless(finding);
            if let Some(fix) = finding.fix.as_ref().filter(|_| !pointless) {
                lines.push(format!("         fix: {fix}"));
            }
        }
    }
    lines.push(match (report.runs_sandboxes, report.runs_machine) {
        (true, _) => "Sandboxes run on this host.".to_owned(),
        (false, true) => {
            "Sandboxes run in the machine, which wrenn run starts by itself.".to_owned()
        }
        (false, false) => "Sandboxes do not run here until the above is mended.".to_owned(),
    });
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kvm_fix: &str) -> HostReport {
        let missing = |name, fix: &str| Finding {
            name,
            ability: Ability::Missing,
            needed_by: NeededBy::Sandboxes,
            purpose: "something",
            detail: "not there".to_owned(),
            fix: Some(fix.to_owned()),
        };
        HostReport {
            runs_sandboxes: false,
            runs_machine: true,
            findings: vec![
                missing("kvm", kvm_fix),
                missing("device_mapper", "modprobe dm_mod"),
            ],
        }
    }

    #[test]
    fn fixes_that_change_nothing_are_left_out() {
        let hopeless = describe(&report(host::NO_FIX));
        assert!(hopeless.contains("fix: none on this host"), "{hopeless}");
        assert!(!hopeless.contains("modprobe"), "{hopeless}");
        let mendable = describe(&report("usermod -aG kvm $USER"));
        assert!(mendable.contains("modprobe"), "{mendable}");
    }
}
