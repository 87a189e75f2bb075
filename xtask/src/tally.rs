//! Counting test results from what the runners print.

use std::fmt;
use std::ops::AddAssign;

/// How many tests passed, failed, and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
}

impl Tally {
    /// The result lines of libtest (`test result: ok. 3 passed; 0 failed; 1 ignored; …`),
    /// of nextest (`Summary [ 0.1s] 4 tests run: 3 passed (1 slow), 1 failed, 0 skipped`)
    /// and of our own suites (`3 passed, 1 failed, 0 skipped`).
    ///
    /// Returns `None` for any other line.
    pub(crate) fn of_line(line: &str) -> Option<Self> {
        // nextest repeats, indented, what the program of a failed test printed itself.
        let counts = if let Some(rest) = line.strip_prefix("test result: ") {
            rest.split_once(". ")?.1
        } else if let Some(rest) = line.trim_start().strip_prefix("Summary [") {
            rest.split_once(" run: ")?.1
        } else {
            is_plain(line).then_some(line)?
        };
        let mut tally = Self::default();
        for part in without_brackets(counts).split([',', ';']) {
            let Some((count, what)) = part.trim().split_once(' ') else {
                continue;
            };
            let Ok(count) = count.parse::<u64>() else {
                continue;
            };
            match what.trim() {
                "passed" => tally.passed += count,
                "failed" | "timed out" | "exec failed" => tally.failed += count,
                "ignored" | "skipped" => tally.skipped += count,
                _ => {}
            }
        }
        Some(tally)
    }

    /// Holds a runner to its exit code. One that failed without a failed test (it
    /// crashed, or never started) counts as a failure of its own.
    pub(crate) fn with_exit(mut self, success: bool) -> Self {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        self
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// Whether a line is `N passed, N failed, N skipped` and nothing else.
fn is_plain(line: &str) -> bool {
    let parts: Vec<&str> = line.split(", ").collect();
    let [passed, failed, skipped] = parts.as_slice() else {
        return false;
    };
    [
        (passed, " passed"),
        (failed, " failed"),
        (skipped, " skipped"),
    ]
    .iter()
    .all(|(part, word)| {
        part.strip_suffix(word)
            .is_some_and(|count| count.parse::<u64>().is_ok())
    })
}

/// nextest adds remarks in round brackets, which hold commas of their own.
fn without_brackets(text: &str) -> String {
    let mut depth = 0_usize;
    text.chars()
        .filter(|character| {
            match character {
                '(' => depth += 1,
                ')' => depth = depth.saturating_sub(1),
                _ => return depth == 0,
            }
            false
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(passed: u64, failed: u64, skipped: u64) -> Option<Tally> {
        Some(Tally {
            passed,
            failed,
            skipped,
        })
    }

    #[test]
    fn libtest_lines() {
        let ok = "test result: ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; \
                  finished in 0.00s";
        assert_eq!(Tally::of_line(ok), tally(5, 0, 1));
        let bad = "test result: FAILED. 4 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(Tally::of_line(bad), tally(4, 2, 0));
    }

    #[test]
    fn nextest_lines() {
        let line = "     Summary [   0.012s] 9 tests run: 5 passed (1 slow, 1 leaky), 2 failed, \
                    1 exec failed, 1 timed out, 3 skipped";
        assert_eq!(Tally::of_line(line), tally(5, 4, 3));
        let one = "     Summary [   0.012s] 1 test run: 1 passed, 0 skipped";
        assert_eq!(Tally::of_line(one), tally(1, 0, 0));
        let cut = "     Summary [   2.3s] 3/9 tests run: 2 passed, 1 failed, 0 skipped";
        assert_eq!(Tally::of_line(cut), tally(2, 1, 0));
    }

    #[test]
    fn our_own_lines() {
        assert_eq!(
            Tally::of_line("12 passed, 1 failed, 3 skipped"),
            tally(12, 1, 3)
        );
    }

    #[test]
    fn other_lines_count_nothing() {
        assert_eq!(Tally::of_line("test run::exit_code ... ok"), None);
        assert_eq!(Tally::of_line("3 passed, 1 failed"), None);
        assert_eq!(Tally::of_line(""), None);
    }

    #[test]
    fn a_crash_without_a_failed_test_is_a_failure() {
        assert_eq!(Some(Tally::default().with_exit(false)), tally(0, 1, 0));
        let failed = Tally {
            passed: 1,
            failed: 2,
            skipped: 0,
        };
        assert_eq!(failed.with_exit(false), failed);
        assert_eq!(failed.to_string(), "1 passed, 2 failed, 0 skipped");
    }
}
