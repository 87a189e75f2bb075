//! The hash that names a product: everything that decides what the product contains.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha2::{Digest, Sha256};

/// The inputs of one product. Two recipes with the same inputs in the same order have the
/// same key; a product is never looked up by anything else.
#[derive(Debug, Clone)]
pub struct Recipe {
    kind: &'static str,
    digest: Sha256,
}

impl Recipe {
    /// Starts the recipe of a product of this `kind`. `version` is raised whenever the code
    /// that builds it changes what comes out.
    #[must_use]
    pub fn new(kind: &'static str, version: u32) -> Self {
        let recipe = Self {
            kind,
            digest: Sha256::new(),
        };
        recipe
            .input("kind", kind)
            .input("version", &version.to_string())
    }

    /// Adds an input. Name and value are hashed with their lengths, so that no two lists of
    /// inputs run together into the same bytes.
    #[must_use]
    pub fn input(mut self, name: &str, value: &str) -> Self {
        for part in [name, value] {
            self.digest.update((part.len() as u64).to_le_bytes());
            self.digest.update(part);
        }
        self
    }

    /// Adds a list of inputs, whose order counts.
    #[must_use]
    pub fn inputs<'a>(self, name: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        values
            .into_iter()
            .fold(self, |recipe, value| recipe.input(name, value))
    }

    /// Adds the contents of a file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn file(self, name: &str, path: &Path) -> io::Result<Self> {
        let digest = sha256_of_file(path)?;
        Ok(self.input(name, &digest))
    }

    /// What sort of product this is; names its folder in the cache.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// The product's key: 20 hexadecimal digits.
    #[must_use]
    pub fn key(&self) -> String {
        let mut key = hex(&self.digest.clone().finalize());
        key.truncate(20);
        key
    }
}

/// SHA-256 of a file's contents, in lower-case hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = file.read(&mut buffer)?;
        if length == 0 {
            return Ok(hex(&digest.finalize()));
        }
        digest.update(&buffer[..length]);
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            // Writing to a String cannot fail.
            write!(text, "{byte:02x}").ok();
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_depends_on_every_input_and_its_place() {
        let base = || Recipe::new("kernel", 1);
        let keys = [
            base().key(),
            base().input("a", "b").key(),
            base().input("ab", "").key(),
            base().inputs("module", ["x", "y"]).key(),
            base().inputs("module", ["y", "x"]).key(),
            Recipe::new("kernel", 2).key(),
            Recipe::new("rootfs", 1).key(),
        ];
        let distinct: std::collections::HashSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "{keys:?}");
        assert_eq!(base().input("a", "b").key(), base().input("a", "b").key());
    }

    #[test]
    fn file_input_follows_contents_not_name() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("two"));
        std::fs::write(&one, "same").unwrap();
        std::fs::write(&two, "same").unwrap();
        let key = |path: &Path| Recipe::new("x", 1).file("envd", path).unwrap().key();
        assert_eq!(key(&one), key(&two));
        std::fs::write(&two, "other").unwrap();
        assert_ne!(key(&one), key(&two));
    }

    #[test]
    fn sha256_of_a_file_is_the_known_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(
            sha256_of_file(&path).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
