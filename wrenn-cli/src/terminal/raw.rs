//! This program's own terminal.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use wrenn_sdk::TerminalSize;

/// Where no terminal says how large it is.
const DEFAULT_SIZE: TerminalSize = TerminalSize { cols: 80, rows: 24 };

/// Whether standard input is a terminal.
#[must_use]
pub fn is_terminal() -> bool {
    io::stdin().is_terminal()
}

/// The size of our terminal, or 80 by 24.
#[must_use]
pub fn terminal_size() -> TerminalSize {
    let size = tcgetwinsize(io::stdin()).or_else(|_| tcgetwinsize(io::stdout()));
    match size {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => TerminalSize {
            cols: size.ws_col,
            rows: size.ws_row,
        },
        _ => DEFAULT_SIZE,
    }
}

/// Our terminal as a plain pipe: every key goes to the command, Ctrl-C too. Dropping it
/// puts the terminal back as it was.
pub(super) struct RawMode {
    before: Termios,
}

impl RawMode {
    pub(super) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Flush, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Nothing can be done about a terminal that went away.
        let _restored = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}
