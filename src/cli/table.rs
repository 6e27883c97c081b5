//! Aligned tables for people, JSON for programs.

use std::io::{self, Write};

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
    for row in std::iter::once(&heading).chain(rows) {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        writeln!(out, "{}", line.trim_end())?;
    }
    out.flush()
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
