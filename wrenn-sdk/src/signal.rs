//! Signals, by their Linux numbers.

use std::fmt;
use std::str::FromStr;

use wrenn_api::error::{InvalidValue, shorten};

/// A signal of the guest. Source: signal(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Signal(u32);

const NAMES: &[(&str, u32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("WINCH", 28),
];
const MAX: u32 = 64;

impl Signal {
    /// The terminal went away.
    pub const HUP: Self = Self(1);
    /// Ctrl-C.
    pub const INT: Self = Self(2);
    /// Ctrl-\.
    pub const QUIT: Self = Self(3);
    /// End at once; cannot be caught.
    pub const KILL: Self = Self(9);
    /// Free for programs.
    pub const USR1: Self = Self(10);
    /// Free for programs.
    pub const USR2: Self = Self(12);
    /// The pipe has no reader.
    pub const PIPE: Self = Self(13);
    /// Please end.
    pub const TERM: Self = Self(15);
    /// Go on.
    pub const CONT: Self = Self(18);
    /// Stop; cannot be caught.
    pub const STOP: Self = Self(19);

    /// A signal by its number.
    ///
    /// # Errors
    /// When it is not 1 to 64.
    pub fn from_number(number: u32) -> Result<Self, InvalidValue> {
        if (1..=MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(invalid(&number.to_string()))
        }
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

fn invalid(value: &str) -> InvalidValue {
    InvalidValue {
        what: "signal",
        value: shorten(value),
        expected: "a name like TERM or SIGTERM, or a number from 1 to 64",
    }
}

impl FromStr for Signal {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        if let Ok(number) = text.parse() {
            return Self::from_number(number);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        NAMES
            .iter()
            .find(|(own, _)| *own == name)
            .map(|(_, number)| Self(*number))
            .ok_or_else(|| invalid(text))
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_parse_by_name_and_number() {
        for text in ["TERM", "term", "SIGTERM", "15"] {
            assert_eq!(text.parse(), Ok(Signal::TERM));
        }
        for text in ["", "0", "65", "SIG", "-1", "TERMINATE"] {
            assert!(text.parse::<Signal>().is_err(), "{text}");
        }
        assert_eq!(Signal::KILL.to_string(), "SIGKILL");
    }
}
