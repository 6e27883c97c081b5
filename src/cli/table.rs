//! Aligned tables for people, JSON for programs.

use std::ffi::OsStr;
use std::io::{self, IsTerminal as _, Write};

use clap::ValueEnum;
use serde_json::json;

use crate::engine::offline::CopyLine;
use crate::volume::ByteSize;

/// How a listing is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// Aligned columns.
    Table,
    /// One JSON array.
    Json,
}

/// Prints rows under a heading, columns as wide as their widest cell.
pub(super) fn print(heading: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let widths: Vec<usize> = heading
        .iter()
        .enumerate()
        .map(|(column, name)| {
            let cells = rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).chain([name.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let heading: Vec<String> = heading.iter().map(|&name| name.to_owned()).collect();
    let mut out = io::stdout().lock();
    let colours = has_colours(out.is_terminal(), std::env::var_os("NO_COLOR").as_deref());
    for row in std::iter::once(&heading).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| {
            let padded = format!("{cell:width$}");
            if colours { painted(cell, padded) } else { padded }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
}

/// Colours are for a terminal whose user has not said otherwise (no-color.org).
fn has_colours(is_terminal: bool, no_color: Option<&OsStr>) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// A verdict in its colour; anything else as it is.
fn painted(cell: &str, padded: String) -> String {
    let colour = match cell {
        "pass" => 32,
        "warn" => 33,
        "fail" => 31,
        _ => return padded,
    };
    format!("\x1b[{colour}m{padded}\x1b[0m")
}

/// Prints a JSON value.
pub(super) fn print_json(value: &serde_json::Value) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Key, pool and state of what is being copied.
pub(super) fn copy_cells(copy: &CopyLine) -> [String; 3] {
    let (done, total) = (copy.progress.done_bytes, copy.progress.total_bytes);
    let percent = done.saturating_mul(100).checked_div(total).unwrap_or(0).min(100);
    let total = ByteSize::new(total);
    let state = format!("copying {}: {percent} % of {total}", copy.progress.source);
    [copy.key.to_string(), copy.pool.clone(), state]
}

/// The same for programs.
pub(super) fn copy_json(copy: &CopyLine) -> serde_json::Value {
    json!({
        "key": copy.key.as_str(),
        "pool": copy.pool,
        "state": "copying",
        "source": copy.progress.source,
        "doneBytes": copy.progress.done_bytes,
        "totalBytes": copy.progress.total_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals() {
        assert!(has_colours(true, None) && has_colours(true, Some(OsStr::new(""))));
        assert!(!has_colours(false, None) && !has_colours(true, Some(OsStr::new("1"))));
        assert_eq!(painted("fail", "fail  ".to_owned()), "\x1b[31mfail  \x1b[0m");
        assert_eq!(painted("ready", "ready".to_owned()), "ready");
    }
}
