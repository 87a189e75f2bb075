//! Steps of a longer piece of work, shown with their times.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Shows a step's name, does it, and shows how long it took.
///
/// Goes to standard error: standard output belongs to results.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    eprintln!("── {name}");
    let start = Instant::now();
    let outcome = work().with_context(|| format!("{name} failed"))?;
    eprintln!("── {name}: {}", seconds(start.elapsed()));
    Ok(outcome)
}

/// A duration as people say it: `0.4 s`, `3 min 07 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole < 60 {
        format!("{:.1} s", duration.as_secs_f64())
    } else {
        format!("{} min {:02} s", whole / 60, whole % 60)
    }
}

/// Writes a result to standard output.
#[allow(
    clippy::print_stdout,
    reason = "standard output is where results belong"
)]
pub(crate) fn say(result: impl std::fmt::Display) {
    println!("{result}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_well() {
        assert_eq!(seconds(Duration::from_millis(420)), "0.4 s");
        assert_eq!(seconds(Duration::from_secs(187)), "3 min 07 s");
    }

    #[test]
    fn a_failure_names_its_step() {
        let error = step("Packing", || -> Result<()> { anyhow::bail!("no paper") }).unwrap_err();
        assert_eq!(format!("{error:#}"), "Packing failed: no paper");
    }
}
