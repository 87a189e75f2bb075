//! As much of a shell's grammar as examples use: which commands does a line call, with which
//! words?

use std::iter::Peekable;
use std::str::Chars;

/// The value of each variable and substitution: it may be an id.
const VALUE: &str = "sbaaaaaaaaaaaaaaaaaaaa";

/// One command of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Call {
    /// The program and its arguments.
    pub(crate) words: Vec<String>,
    /// The files that its output is written to.
    pub(crate) outputs: Vec<String>,
}

/// The calls of a line, those in substitutions first.
pub(crate) fn calls(line: &str) -> Vec<Call> {
    let mut reader = Reader {
        chars: line.chars().peekable(),
        calls: Vec::new(),
    };
    reader.list(false);
    reader.calls
}

struct Reader<'a> {
    chars: Peekable<Chars<'a>>,
    calls: Vec<Call>,
}

/// A call that is being read.
#[derive(Default)]
struct Open {
    call: Call,
    word: Option<String>,
    /// Where the word goes that comes next.
    redirected: Option<char>,
}

impl Open {
    fn push(&mut self, character: char) {
        self.word.get_or_insert_default().push(character);
    }

    fn push_str(&mut self, text: &str) {
        self.word.get_or_insert_default().push_str(text);
    }

    fn end_word(&mut self) {
        let Some(word) = self.word.take() else { return };
        match self.redirected.take() {
            Some('>') => self.call.outputs.push(word),
            Some(_) => {}
            // Variables of the environment come first.
            None if self.call.words.is_empty() && is_assignment(&word) => {}
            None => self.call.words.push(word),
        }
    }

    fn end_call(&mut self, calls: &mut Vec<Call>) {
        self.end_word();
        let call = std::mem::take(&mut self.call);
        if !call.words.is_empty() || !call.outputs.is_empty() {
            calls.push(call);
        }
    }
}

fn is_assignment(word: &str) -> bool {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    word.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty() && is_name(name))
}

impl Reader<'_> {
    /// Reads to the end, or to a closing parenthesis.
    fn list(&mut self, nested: bool) {
        let mut open = Open::default();
        while let Some(character) = self.chars.next() {
            match character {
                ')' if nested => break,
                '|' | '&' | ';' | '\n' | '(' | ')' => open.end_call(&mut self.calls),
                ' ' | '\t' => {
                    open.end_word();
                    if self.skip_blanks() >= 2 {
                        // Three of them stand before an explanation.
                        while self.chars.next_if(|c| *c != '\n').is_some() {}
                    }
                }
                '<' | '>' => self.redirect(character, &mut open),
                '\'' => {
                    open.push_str("");
                    while let Some(inner) = self.chars.next_if(|c| *c != '\'') {
                        open.push(inner);
                    }
                    self.chars.next();
                }
                '"' => self.quoted(&mut open),
                '\\' => self.escaped(&mut open),
                '$' => self.expansion(&mut open),
                other => open.push(other),
            }
        }
        open.end_call(&mut self.calls);
    }

    fn skip_blanks(&mut self) -> usize {
        let blanks = std::iter::from_fn(|| self.chars.next_if(|c| matches!(c, ' ' | '\t')));
        blanks.count()
    }

    fn redirect(&mut self, direction: char, open: &mut Open) {
        // The number of a stream is no argument.
        if open
            .word
            .as_ref()
            .is_some_and(|word| word.parse::<u32>().is_ok())
        {
            open.word = None;
        }
        open.end_word();
        while self
            .chars
            .next_if(|c| matches!(c, '<' | '>' | '&'))
            .is_some()
        {}
        if self.chars.next_if_eq(&'(').is_some() {
            self.list(true);
            open.push_str(VALUE);
        } else {
            self.skip_blanks();
            open.redirected = Some(direction);
        }
    }

    fn quoted(&mut self, open: &mut Open) {
        open.push_str("");
        while let Some(inner) = self.chars.next() {
            match inner {
                '"' => return,
                '\\' => self.escaped(open),
                '$' => self.expansion(open),
                other => open.push(other),
            }
        }
    }

    fn escaped(&mut self, open: &mut Open) {
        match self.chars.next() {
            // The line goes on.
            Some('\n') => {
                self.skip_blanks();
            }
            Some(other) => open.push(other),
            None => {}
        }
    }

    fn expansion(&mut self, open: &mut Open) {
        if self.chars.next_if_eq(&'(').is_some() {
            self.list(true);
        } else {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            while self.chars.next_if(is_name).is_some() {}
        }
        open.push_str(VALUE);
    }
}

#[test]
fn calls_of_lines_are_found() {
    let words = |line: &str| {
        let calls = calls(line).into_iter().map(|call| call.words.join(" "));
        calls.collect::<Vec<_>>()
    };
    for (line, wanted) in [
        (
            "A=b wrenn run -- sh -c 'a | b'",
            &["wrenn run -- sh -c a | b"][..],
        ),
        ("id=$(wrenn sandbox create)", &["wrenn sandbox create"]),
        (
            "tar c src | wrenn run -i -- tar x && ls",
            &["tar c src", "wrenn run -i -- tar x", "ls"],
        ),
        ("wrenn up      in this terminal; or not", &["wrenn up"]),
        ("wrenn cp a \\\n     b 2>&1 > c", &["wrenn cp a b"]),
        ("wrenn get $id:/a", &["wrenn get sbaaaaaaaaaaaaaaaaaaaa:/a"]),
        (
            "source <(wrenn completions bash)",
            &["wrenn completions bash", "source sbaaaaaaaaaaaaaaaaaaaa"],
        ),
        (
            "wrenn build --start 'nginx -g \"daemon off;\"'",
            &["wrenn build --start nginx -g \"daemon off;\""],
        ),
    ] {
        assert_eq!(words(line), wanted, "{line}");
    }
    assert_eq!(calls("echo a > b")[0].outputs, ["b"]);
}
