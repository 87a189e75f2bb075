//! Text of servers and guests, made safe for a terminal.
//!
//! A name, a value of metadata or a line of a console may hold codes that move the cursor,
//! change the clipboard (OSC 52) or turn text around. Such characters are shown and not sent:
//! `\u{1b}`. JSON is safe as it is, but for characters that it does not have to escape.

use std::fmt::Write as _;
use std::io::{self, Write};

/// Text for one line: with no line break either.
pub(crate) fn line(text: &str) -> String {
    escaped(text, false)
}

/// Text of several lines: line breaks and tabs stay.
pub(crate) fn text(text: &str) -> String {
    escaped(text, true)
}

/// JSON whose strings hold no character that a terminal obeys.
pub(crate) fn json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for character in json.chars() {
        // Those below a space are escaped already, or are the line breaks of the layout.
        if character >= ' ' && is_dangerous(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                // A string takes whatever is written to it.
                let _written = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(character);
        }
    }
    safe
}

fn escaped(text: &str, keep_lines: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' | '\t' if keep_lines => safe.push(character),
            character if is_dangerous(character) => safe.extend(character.escape_default()),
            character => safe.push(character),
        }
    }
    safe
}

/// Control codes, and the characters that turn text around or are not to be seen.
fn is_dangerous(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A writer that escapes the text that goes through it, also where a character or a line
/// break is cut in two.
pub(crate) struct Escaping<W> {
    inner: W,
    rest: Vec<u8>,
}

impl<W: Write> Escaping<W> {
    pub(crate) const fn new(inner: W) -> Self {
        Self {
            inner,
            rest: Vec::new(),
        }
    }

    /// Writes what waits for the end of a character.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let rest = std::mem::take(&mut self.rest);
        self.inner
            .write_all(text(&String::from_utf8_lossy(&rest)).as_bytes())?;
        self.inner.flush()
    }
}

impl<W: Write> Write for Escaping<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.rest.extend_from_slice(bytes);
        let complete = match std::str::from_utf8(&self.rest) {
            Ok(_) => self.rest.len(),
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            // Bytes that are no UTF-8 become a replacement character.
            Err(_) => last_boundary(&self.rest),
        };
        // A console ends its lines with both.
        let complete = complete - usize::from(self.rest[..complete].ends_with(b"\r"));
        let waiting = self.rest.split_off(complete);
        let complete = std::mem::replace(&mut self.rest, waiting);
        let plain = String::from_utf8_lossy(&complete).replace("\r\n", "\n");
        self.inner.write_all(text(&plain).as_bytes())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Where a character may begin that is not whole yet.
fn last_boundary(bytes: &[u8]) -> usize {
    const LONGEST: usize = 4;
    let tail = bytes.len().saturating_sub(LONGEST - 1);
    for at in tail..bytes.len() {
        if let Err(error) = std::str::from_utf8(&bytes[at..])
            && error.valid_up_to() == 0
            && error.error_len().is_none()
        {
            return at;
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_codes_are_shown() {
        for (raw, shown) in [
            ("\u{1b}]52;c;cm0gLXJm\u{7}", "\\u{1b}]52;c;cm0gLXJm\\u{7}"),
            ("a\u{9b}2Jb", "a\\u{9b}2Jb"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("Grüße, 世界 🦀", "Grüße, 世界 🦀"),
        ] {
            assert_eq!(line(raw), shown);
        }
        assert_eq!(text("a\n\tb\u{1b}[2J"), "a\n\tb\\u{1b}[2J");
    }

    #[test]
    fn json_stays_json_without_codes() {
        let value = serde_json::json!({ "name": "\u{1b}[2J\u{9b}\u{7f}\u{202e}ü" });
        let safe = json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(
            !safe.chars().any(|c| c != '\n' && is_dangerous(c)),
            "{safe}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            value
        );
    }

    #[test]
    fn stream_is_escaped_wherever_it_is_cut() {
        let raw = "Grüße\r\n\u{1b}[31mrot\u{9b}\r\n".as_bytes();
        let mut whole = raw.to_vec();
        whole.extend_from_slice(b"\xff\xfe!\xc3");
        for size in 1..=whole.len() {
            let mut out = Vec::new();
            let mut escaping = Escaping::new(&mut out);
            for chunk in whole.chunks(size) {
                escaping.write_all(chunk).unwrap();
            }
            escaping.finish().unwrap();
            assert_eq!(
                String::from_utf8(out).unwrap(),
                "Grüße\n\\u{1b}[31mrot\\u{9b}\n\u{fffd}\u{fffd}!\u{fffd}",
                "cut at {size}"
            );
        }
    }
}
