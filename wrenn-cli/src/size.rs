//! Sizes as people write them.

/// Reads a size of memory: `512M`, `2G`, `512MiB`, or a plain number of MiB.
pub(crate) fn parse_mib(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits
        .parse()
        .map_err(|_| "a size is written like 512M, 2G or 512 (MiB)".to_owned())?;
    let unit = text[digits.len()..].to_ascii_lowercase();
    let mib = match unit.as_str() {
        "" | "m" | "mb" | "mib" => Some(number),
        "g" | "gb" | "gib" => number.checked_mul(1024),
        "t" | "tb" | "tib" => number.checked_mul(1024 * 1024),
        "k" | "kb" | "kib" => Some(number / 1024),
        _ => return Err(format!("'{unit}' is no unit; use K, M, G or T")),
    };
    mib.ok_or_else(|| format!("{text} is more than can be counted"))
}

#[cfg(test)]
mod tests {
    use super::parse_mib;

    #[test]
    fn units_are_binary() {
        assert_eq!(parse_mib("512M"), Ok(512));
        assert_eq!(parse_mib("2g"), Ok(2048));
        assert_eq!(parse_mib("300"), Ok(300));
        assert_eq!(parse_mib("1048576K"), Ok(1024));
        assert!(parse_mib("512X").is_err());
        assert!(parse_mib("").is_err());
        assert!(parse_mib("-1").is_err());
        assert!(parse_mib("18446744073709551615T").is_err());
    }
}
