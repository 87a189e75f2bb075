//! The kernel's command line, Documentation/admin-guide/kernel-parameters.rst.

use std::fs;
use std::io;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine(Vec<(String, Option<String>)>);

impl CommandLine {
    /// The one that this kernel was booted with.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/cmdline")?))
    }

    /// Words are separated by spaces; quotes hold a value with spaces together. What
    /// follows `--` is for init, and we take no arguments.
    pub fn parse(text: &str) -> Self {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quoted = false;
        for character in text.trim_end().chars().chain([' ']) {
            match character {
                '"' => quoted = !quoted,
                ' ' | '\t' | '\n' if !quoted => {
                    if !word.is_empty() {
                        words.push(std::mem::take(&mut word));
                    }
                }
                other => word.push(other),
            }
        }
        let words = words.into_iter().take_while(|word| word != "--");
        Self(
            words
                .map(|word| match word.split_once('=') {
                    Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                    None => (word, None),
                })
                .collect(),
        )
    }

    /// The last value of a parameter: later words overrule earlier ones.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .rev()
            .find(|(word, _)| word == name)?
            .1
            .as_deref()
    }

    /// The last of several words that exclude each other.
    pub fn last_of<'a>(&self, names: &[&'a str]) -> Option<&'a str> {
        self.0.iter().rev().find_map(|(word, value)| {
            names
                .iter()
                .find(|name| value.is_none() && *name == word)
                .copied()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_words_as_the_kernel_does() {
        let line = CommandLine::parse(
            "console=ttyS0 ro root=/dev/vda rw quiet a=\"b c\" root=/dev/vdb wrenn.ip=none -- root=x\n",
        );
        assert_eq!(line.value("root"), Some("/dev/vdb"));
        assert_eq!(line.value("a"), Some("b c"));
        assert_eq!(line.value("quiet"), None);
        assert_eq!(line.last_of(&["ro", "rw"]), Some("rw"));
        assert_eq!(CommandLine::parse("").last_of(&["ro"]), None);
    }
}
