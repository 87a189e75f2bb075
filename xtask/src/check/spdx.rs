//! Licence expressions, as manifests hold them: `MIT OR Apache-2.0`, `(MIT OR X) AND Y`.
//!
//! ```text
//! either := both ( ("OR" | "/") both )*
//! both   := one ( "AND" one )*
//! one    := "(" either ")" | LICENCE [ "WITH" EXCEPTION ]
//! ```

use std::iter::Peekable;
use std::vec::IntoIter;

/// Whether someone who takes only the licences in `allowed` may use what bears this
/// expression. An expression that cannot be read is not satisfied.
pub(super) fn satisfied(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<String> = spaced.split_whitespace().map(str::to_owned).collect();
    let mut words = words.into_iter().peekable();
    let outcome = either(&mut words, allowed);
    outcome == Some(true) && words.next().is_none()
}

type Words = Peekable<IntoIter<String>>;

fn either(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let mut satisfied = both(words, allowed)?;
    while words.next_if(|word| word == "OR").is_some() {
        satisfied |= both(words, allowed)?;
    }
    Some(satisfied)
}

fn both(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let mut satisfied = one(words, allowed)?;
    while words.next_if(|word| word == "AND").is_some() {
        satisfied &= one(words, allowed)?;
    }
    Some(satisfied)
}

fn one(words: &mut Words, allowed: &[String]) -> Option<bool> {
    let mut licence = words.next()?;
    if licence == "(" {
        let satisfied = either(words, allowed)?;
        return (words.next()? == ")").then_some(satisfied);
    }
    if words.next_if(|word| word == "WITH").is_some() {
        licence = format!("{licence} WITH {}", words.next()?);
    }
    Some(allowed.contains(&licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn satisfied_by_permissive(expression: &str) -> bool {
        let allowed = [
            "MIT",
            "Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "Unicode-3.0",
        ];
        satisfied(expression, &allowed.map(str::to_owned))
    }

    #[test]
    fn one_allowed_choice_is_enough() {
        assert!(satisfied_by_permissive("MIT"));
        assert!(satisfied_by_permissive("GPL-3.0-only OR MIT"));
        assert!(satisfied_by_permissive("Unlicense/MIT"));
        assert!(satisfied_by_permissive(
            "GPL-2.0 OR Apache-2.0 WITH LLVM-exception"
        ));
        assert!(!satisfied_by_permissive("GPL-3.0-only"));
    }

    #[test]
    fn every_part_of_a_conjunction_counts() {
        assert!(satisfied_by_permissive(
            "(MIT OR Apache-2.0) AND Unicode-3.0"
        ));
        assert!(!satisfied_by_permissive("MIT AND GPL-3.0-only"));
        assert!(!satisfied_by_permissive("(MIT OR Apache-2.0) AND OpenSSL"));
        assert!(satisfied_by_permissive("GPL-3.0-only AND OpenSSL OR MIT"));
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for expression in [
            "", "MIT OR", "(MIT", "MIT)", "MIT MIT", "AND MIT", "MIT WITH",
        ] {
            assert!(!satisfied_by_permissive(expression), "{expression:?}");
        }
    }
}
