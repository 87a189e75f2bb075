//! The `Range` header, RFC 9110 section 14.

/// What to send of a file of a known length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selection {
    /// All of it: there was no range, or none that we take (several at once, other
    /// units, nonsense), and then the RFC says to ignore it.
    Whole,
    /// From `start`, `length` bytes, of which there is at least one.
    Part { start: u64, length: u64 },
    /// Well formed, but nothing of the file lies in it.
    Unsatisfiable,
}

impl Selection {
    /// Reads `bytes=first-last`, `bytes=first-` or `bytes=-suffix`.
    pub fn parse(header: &str, length: u64) -> Self {
        let Some((unit, range)) = header.split_once('=') else {
            return Self::Whole;
        };
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return Self::Whole;
        }
        let Some((first, last)) = range.trim().split_once('-') else {
            return Self::Whole;
        };
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => {
                Self::between(first, last.saturating_add(1).min(length))
            }
            (Some(first), None) if last.is_empty() => Self::between(first, length),
            (None, Some(suffix)) if first.is_empty() => {
                Self::between(length - suffix.min(length), length)
            }
            _ => Self::Whole,
        }
    }

    fn between(start: u64, end: u64) -> Self {
        match end.checked_sub(start) {
            None | Some(0) => Self::Unsatisfiable,
            Some(length) => Self::Part { start, length },
        }
    }
}

/// Digits only: `parse` would take a sign as well. What exceeds 64 bits lies behind the
/// end of any file.
fn number(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(start: u64, length: u64) -> Selection {
        Selection::Part { start, length }
    }

    #[test]
    fn reads_the_three_forms() {
        for (header, selection) in [
            ("bytes=0-0", part(0, 1)),
            ("bytes=2-5", part(2, 4)),
            ("bytes=5-99", part(5, 5)),
            ("bytes=5-", part(5, 5)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            (" Bytes = 1-2 ", part(1, 2)),
            ("bytes=10-", Selection::Unsatisfiable),
            ("bytes=10-20", Selection::Unsatisfiable),
            ("bytes=-0", Selection::Unsatisfiable),
            ("bytes=99999999999999999999-", Selection::Unsatisfiable),
            ("bytes=0-99999999999999999999", part(0, 10)),
            ("bytes=5-2", Selection::Whole),
            ("bytes=0-1,4-5", Selection::Whole),
            ("bytes=+1-2", Selection::Whole),
            ("bytes=-", Selection::Whole),
            ("lines=1-2", Selection::Whole),
            ("", Selection::Whole),
        ] {
            assert_eq!(Selection::parse(header, 10), selection, "{header}");
        }
        assert_eq!(Selection::parse("bytes=0-", 0), Selection::Unsatisfiable);
        assert_eq!(Selection::parse("bytes=-5", 0), Selection::Unsatisfiable);
    }

    proptest! {
        #[test]
        fn never_leaves_the_file(header in "(bytes=)?[0-9,= -]{0,50}", length in any::<u64>()) {
            if let Selection::Part { start, length: count } = Selection::parse(&header, length) {
                prop_assert!(count > 0);
                prop_assert!(start.checked_add(count).is_some_and(|end| end <= length));
            }
        }

        #[test]
        fn survives_anything(header in "\\PC*", length in any::<u64>()) {
            let _ = Selection::parse(&header, length);
        }

        #[test]
        fn finds_what_was_asked_for(first in 0u64..1000, count in 1u64..1000, more in 0u64..1000) {
            let header = format!("bytes={first}-{}", first + count - 1);
            prop_assert_eq!(Selection::parse(&header, first + count + more), part(first, count));
        }
    }
}
