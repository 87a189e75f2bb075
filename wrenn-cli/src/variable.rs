//! Names and values as people write them.

/// Reads `NAME=VALUE`; a name alone takes the value that this program has.
pub(crate) fn parse(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        None if !text.is_empty() => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("{text} is not set here; write {text}=VALUE")),
        },
        _ => Err("a variable is written NAME=VALUE, or NAME for the value here".to_owned()),
    }
}

/// Reads `NAME=VALUE`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it is written NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_alone_takes_value_of_caller() {
        assert_eq!(parse("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert_eq!(parse("A="), Ok(("A".to_owned(), String::new())));
        let path = std::env::var("PATH").unwrap();
        assert_eq!(parse("PATH"), Ok(("PATH".to_owned(), path)));
        assert!(parse("=b").is_err() && parse("").is_err());
        let unset = parse("WRENN_SURELY_UNSET").unwrap_err();
        assert!(unset.contains("write WRENN_SURELY_UNSET=VALUE"), "{unset}");
    }
}
