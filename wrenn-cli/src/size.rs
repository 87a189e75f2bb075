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

/// Writes a number of bytes as people read it: `512 B`, `1.5 MiB`.
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    let shown = UNITS.iter().zip(1_u32..6).rev().find_map(|(unit, power)| {
        let size = 1024_u64.pow(power);
        let tenths = u128::from(bytes) * 10 / u128::from(size);
        (bytes >= size).then(|| format!("{}.{} {unit}", tenths / 10, tenths % 10))
    });
    shown.unwrap_or_else(|| format!("{bytes} B"))
}

#[cfg(test)]
mod tests {
    use super::{parse_mib, show};

    #[test]
    fn bytes_are_shown_in_their_unit() {
        let shown = [0, 1023, 1024, 1536 << 10, 4 << 30, u64::MAX].map(show);
        let wanted = [
            "0 B",
            "1023 B",
            "1.0 KiB",
            "1.5 MiB",
            "4.0 GiB",
            "16383.9 PiB",
        ];
        assert_eq!(shown, wanted);
    }

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
