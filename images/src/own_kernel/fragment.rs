//! Configuration fragments of Linux, and whether a configuration has what one asks for.
//!
//! ```text
//! # a comment
//! CONFIG_NAME=y              or another value: a number, a "text"
//! # CONFIG_NAME is not set   off
//! ```
//!
//! The kernel's own tools drop what they do not know or cannot have, and say so in passing
//! if at all. Source: Documentation/kbuild/kconfig.rst.

use std::collections::HashMap;

use crate::error::BuildError;

/// What an option that is not set counts as.
const OFF: &str = "n";

/// Options with the values that they must have, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fragment<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Fragment<'a> {
    /// Reads a fragment.
    ///
    /// # Errors
    /// A line is none of the three kinds, or names an option for the second time.
    pub fn parse(text: &'a str) -> Result<Self, BuildError> {
        let mut options: Vec<(&str, &str)> = Vec::new();
        for line in text.lines().map(str::trim_end) {
            match option_of(line) {
                Some((name, _)) if options.iter().any(|(known, _)| *known == name) => {
                    return Err(BuildError::KernelFragment {
                        line: line.to_owned(),
                        reason: "the option stands there twice",
                    });
                }
                Some(option) => options.push(option),
                None if line.is_empty() || line.starts_with('#') => {}
                None => {
                    return Err(BuildError::KernelFragment {
                        line: line.to_owned(),
                        reason: "it is neither CONFIG_NAME=VALUE nor a comment",
                    });
                }
            }
        }
        Ok(Self(options))
    }

    /// The options that are not in the configuration `config` as they are asked for, each
    /// with what it is instead.
    #[must_use]
    pub fn missing_in(&self, config: &str) -> Vec<String> {
        let actual: HashMap<&str, &str> = config.lines().filter_map(option_of).collect();
        self.0
            .iter()
            .filter_map(|(name, wanted)| {
                let is = actual.get(name).copied().unwrap_or(OFF);
                (is != *wanted).then(|| format!("{name}={wanted} (it is {is})"))
            })
            .collect()
    }
}

/// The option that a line sets.
fn option_of(line: &str) -> Option<(&str, &str)> {
    let off = line
        .strip_prefix("# ")
        .and_then(|rest| rest.strip_suffix(" is not set"))
        .map(|name| (name, OFF));
    let (name, value) = off.or_else(|| line.split_once('='))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_option = name.starts_with("CONFIG_") && name.bytes().all(plain) && !value.is_empty();
    is_option.then_some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = "\
# What a guest needs.
CONFIG_VIRTIO_BLK=y
# CONFIG_PCI is not set

CONFIG_NR_CPUS=32
CONFIG_LSM=\"landlock\"
";

    #[test]
    fn a_configuration_that_has_it_all_lacks_nothing() {
        let fragment = Fragment::parse(FRAGMENT).unwrap();
        let config = "#\n# Linux/x86 6.1.192 Kernel Configuration\n#\nCONFIG_LSM=\"landlock\"\n\
            CONFIG_NR_CPUS=32\nCONFIG_VIRTIO_BLK=y\nCONFIG_VIRTIO_BLK_TOO=y\n";
        assert_eq!(fragment.missing_in(config), Vec::<String>::new());
    }

    #[test]
    fn every_option_that_was_not_taken_is_named() {
        let fragment = Fragment::parse(FRAGMENT).unwrap();
        let config = "CONFIG_PCI=y\nCONFIG_NR_CPUS=64\nCONFIG_VIRTIO_BLK=m\n";
        assert_eq!(
            fragment.missing_in(config),
            [
                "CONFIG_VIRTIO_BLK=y (it is m)",
                "CONFIG_PCI=n (it is y)",
                "CONFIG_NR_CPUS=32 (it is 64)",
                "CONFIG_LSM=\"landlock\" (it is n)",
            ]
        );
        let off = fragment.missing_in("# CONFIG_VIRTIO_BLK is not set\n");
        assert!(off.contains(&"CONFIG_VIRTIO_BLK=y (it is n)".to_owned()));
    }

    #[test]
    fn a_slip_of_the_pen_is_refused() {
        for text in [
            "CONFIG_A",
            "CONFIG_A=",
            "VIRTIO_BLK=y",
            "CONFIG_A =y",
            "CONFIG_A=y\nCONFIG_B=y\nCONFIG_A=y",
            "CONFIG_A=y\n# CONFIG_A is not set",
        ] {
            let error = Fragment::parse(text).unwrap_err();
            let last = text.lines().last().unwrap();
            assert!(error.to_string().contains(last), "{error}");
        }
    }

    #[test]
    fn ours_is_sound() {
        let fragment = Fragment::parse(super::super::FRAGMENT).unwrap();
        for needed in ["CONFIG_VIRTIO_BLK", "CONFIG_EXT4_FS", "CONFIG_VMGENID"] {
            assert!(fragment.0.contains(&(needed, "y")), "{needed}");
        }
    }
}
