//! Aligned tables for people, JSON for programs.

use std::io::{self, Write};

use clap::ValueEnum;

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
