//! Figures, and the table of them.

#![expect(clippy::print_stdout, reason = "a benchmark prints")]

use std::time::Duration;

/// How long each of some calls took.
#[derive(Debug, Default, Clone)]
pub(crate) struct Samples(Vec<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// So many percent took no longer.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let index = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(index).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// What one line says.
#[derive(Debug, Clone)]
pub(crate) enum Figure {
    /// Calls, beside what cannot be done without: its name and how long it takes.
    Calls(Samples, String, Duration),
    /// A number, and of what.
    Number(f64, &'static str),
}

/// Lines of a table, each with a name of its own.
#[derive(Debug, Default)]
pub(crate) struct Report(Vec<(String, Figure)>);

fn milliseconds(took: Duration) -> String {
    format!("{:.3}", took.as_secs_f64() * 1000.0)
}

fn ratio(above: Duration, below: Duration) -> String {
    if below.is_zero() {
        return "-".to_owned();
    }
    format!("{:.2}", above.as_secs_f64() / below.as_secs_f64())
}

impl Report {
    pub(crate) fn add(&mut self, name: impl Into<String>, figure: Figure) {
        let name = name.into();
        // Who waits for a long benchmark sees it go on.
        match &figure {
            Figure::Calls(samples, ..) => {
                println!("{name}: {} ms", milliseconds(samples.median()));
            }
            Figure::Number(value, unit) => println!("{name}: {value:.1} {unit}"),
        }
        self.0.push((name, figure));
    }

    fn find(&self, name: &str) -> Option<&Figure> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, figure)| figure)
    }

    /// Prints all of it, beside that of another binary when there is one.
    pub(crate) fn print(&self, base: Option<&Self>) {
        println!("\n| what | p50 ms | p90 | p99 | floor ms | p50 / floor | against base |");
        println!("|---|---|---|---|---|---|---|");
        for (name, figure) in &self.0 {
            let Figure::Calls(samples, of, floor) = figure else { continue };
            let other = match base.and_then(|base| base.find(name)) {
                Some(Figure::Calls(other, ..)) => ratio(samples.median(), other.median()),
                Some(Figure::Number(..)) | None => "-".to_owned(),
            };
            let [p50, p90, p99] = [50, 90, 99].map(|p| milliseconds(samples.percentile(p)));
            println!(
                "| {name} | {p50} | {p90} | {p99} | {} ({of}) | {} | {other} |",
                milliseconds(*floor),
                ratio(samples.median(), *floor),
            );
        }
        println!("\n| what | value | against base |");
        println!("|---|---|---|");
        for (name, figure) in &self.0 {
            let Figure::Number(value, unit) = figure else { continue };
            let other = match base.and_then(|base| base.find(name)) {
                Some(Figure::Number(other, _)) => format!("{:.2}", value / other),
                Some(Figure::Calls(..)) | None => "-".to_owned(),
            };
            println!("| {name} | {value:.1} {unit} | {other} |");
        }
    }
}
