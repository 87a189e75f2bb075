//! Output of sub-commands: tables for people, JSON for programs.

use std::io::{self, Write as _};

use comfy_table::{CellAlignment, Table};
use serde::Serialize;

use crate::broken_pipe::is_reader_gone;
use crate::escape;

/// Prints one line of data. It is escaped.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    print(&format!("{}\n", escape::line(text)))
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)?;
    print(&format!("{}\n", escape::json(&text)))
}

/// Prints text as it is.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    print_while_read(text).map(drop)
}

/// Prints text as it is. False when the reader has read enough, as `head` does.
pub(crate) fn print_while_read(text: &str) -> anyhow::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if is_reader_gone(&error, &stdout) => Ok(false),
        written => {
            written?;
            Ok(true)
        }
    }
}

/// An aligned table without borders, with a line of headings. Cells are escaped; numbers
/// stand at the right of their columns.
pub(crate) fn table<const N: usize>(
    head: [&str; N],
    numbers: &[usize],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(head);
    for row in rows {
        table.add_row(row.map(|cell| escape::line(&cell)));
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index + 1 == N { 0 } else { 2 }));
        if numbers.contains(&index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    lines(&table)
}

/// Names and values, one pair a line. Values are escaped.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, String)>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, value) in pairs {
        table.add_row([name.to_owned(), escape::line(&value)]);
    }
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, if index == 0 { 2 } else { 0 }));
    }
    lines(&table)
}

fn lines(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How long ago a time is: `12s`, `3m`, `5h`, `2d`.
pub(crate) fn age(at: wrenn_sdk::api::time::OffsetDateTime) -> String {
    let seconds = (wrenn_sdk::api::time::OffsetDateTime::now_utc() - at).whole_seconds();
    let seconds = seconds.max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_escaped() {
        let rows = [
            ["sb1".to_owned(), "\u{1b}[2J".to_owned(), "5".to_owned()],
            ["sb22".to_owned(), "ok".to_owned(), "1000".to_owned()],
        ];
        assert_eq!(
            table(["ID", "NAME", "MEMORY"], &[2], rows),
            "ID    NAME       MEMORY\n\
             sb1   \\u{1b}[2J       5\n\
             sb22  ok           1000\n"
        );
        assert_eq!(
            pairs([("id", "sb1".to_owned()), ("template", "base".to_owned())]),
            "id        sb1\ntemplate  base\n"
        );
    }
}
