//! How long each step took.

use std::time::Duration;

use super::kind::Kind;
use crate::cli::Failure;
use crate::cli::table;

/// Columns are right-aligned to this many characters, as numbers should be.
const WIDTH: usize = 10;

/// A table of steps and kinds, and notes on what concerns all volumes.
#[derive(Debug)]
pub(super) struct Report {
    kinds: Vec<Kind>,
    rows: Vec<Row>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Row {
    step: &'static str,
    times: Vec<(Kind, Duration)>,
}

/// Milliseconds with one digit behind the point.
pub(super) fn milliseconds(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1000.0)
}

impl Report {
    pub(super) fn new(kinds: &[Kind]) -> Self {
        Self { kinds: kinds.to_vec(), rows: Vec::new(), notes: Vec::new() }
    }

    /// Begins the row of a step.
    pub(super) fn begin(&mut self, step: &'static str) {
        self.rows.push(Row { step, times: Vec::new() });
    }

    /// Adds a time to the row that was begun last; a step that did not apply adds none.
    pub(super) fn add(&mut self, kind: Kind, time: Duration) {
        if let Some(row) = self.rows.last_mut() {
            row.times.push((kind, time));
        }
    }

    /// Adds a line below the table.
    pub(super) fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    pub(super) fn notes(&self) -> &[String] {
        &self.notes
    }

    fn cells(&self, row: &Row) -> Vec<String> {
        let time = |kind: &Kind| row.times.iter().find(|(of, _)| of == kind);
        let cell = |kind: &Kind| time(kind).map_or("-".to_owned(), |(_, time)| milliseconds(*time));
        let cells = self.kinds.iter().map(cell);
        std::iter::once(row.step.to_owned())
            .chain(cells.map(|cell| format!("{cell:>WIDTH$}")))
            .collect()
    }

    /// Prints the table on standard output.
    pub(super) fn print(&self) -> Result<(), Failure> {
        let heading: Vec<String> = std::iter::once("milliseconds".to_owned())
            .chain(self.kinds.iter().map(|kind| format!("{:>WIDTH$}", kind.heading())))
            .collect();
        let heading: Vec<&str> = heading.iter().map(String::as_str).collect();
        let rows: Vec<_> = self.rows.iter().map(|row| self.cells(row)).collect();
        Ok(table::print(&heading, &rows)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_did_not_apply_is_a_dash() {
        let mut report = Report::new(&[Kind::Hostpath, Kind::Xfs]);
        report.begin("grow");
        report.add(Kind::Xfs, Duration::from_micros(12_340));
        let cells = report.cells(report.rows.first().unwrap());
        assert_eq!(cells, ["grow", "         -", "      12.3"]);
    }
}
