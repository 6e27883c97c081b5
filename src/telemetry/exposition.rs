//! The text of a scrape: every metric of the table, in its order, as OpenMetrics.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::counters;
use super::metrics::{ALL, Metric, Type};

/// The values of labels, in the order of the table. Metrics of one thing share them.
pub type Labels = Arc<[String]>;

/// The labels with these values.
#[must_use]
pub fn labels(values: &[&str]) -> Labels {
    values.iter().map(|&value| value.to_owned()).collect()
}

/// What is true at the moment of a scrape, gathered by those who know it.
#[derive(Debug, Default)]
pub struct Figures {
    samples: BTreeMap<&'static str, Vec<(Labels, u64)>>,
}

impl Figures {
    /// Adds the value of one series, if there is one.
    pub fn set(&mut self, metric: &'static Metric, labels: &Labels, value: impl Into<Option<u64>>) {
        let Some(value) = value.into() else { return };
        self.samples.entry(metric.name).or_default().push((Arc::clone(labels), value));
    }

    /// The text of the scrape, with what is counted.
    ///
    /// # Errors
    /// A value has no text; a bug.
    pub fn into_text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }

    fn encode_samples(&self, metric: &Metric, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (values, value) in self.samples.get(metric.name).into_iter().flatten() {
            let labels: Vec<(&str, &str)> =
                metric.labels.iter().copied().zip(values.iter().map(String::as_str)).collect();
            if metric.kind == Type::Info {
                encoder.encode_info(&labels)?;
            } else if labels.is_empty() {
                encoder.encode_gauge(value)?;
            } else {
                encoder.encode_family(&labels)?.encode_gauge(value)?;
            }
        }
        Ok(())
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ALL {
            let unit = metric.unit.as_str().map(|unit| Unit::Other(unit.to_owned()));
            let kind = match metric.kind {
                Type::Counter => MetricType::Counter,
                Type::Gauge => MetricType::Gauge,
                Type::Histogram => MetricType::Histogram,
                Type::Info => MetricType::Info,
            };
            let encoder =
                encoder.encode_descriptor(metric.name, metric.help, unit.as_ref(), kind)?;
            match counters::counted(metric) {
                Some(counted) => counted.encode(encoder)?,
                None => self.encode_samples(metric, encoder)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Reason, Recovery, cleanup, recovery};
    use super::*;

    fn value(text: &str, series: &str) -> u64 {
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("{series} is not in {text}")).trim().parse().unwrap()
    }

    #[test]
    fn what_is_counted_is_there_from_the_start_and_grows() {
        let before = Figures::default().into_text().unwrap();
        for reason in Reason::ALL {
            cleanup(reason);
        }
        for reason in Recovery::ALL {
            recovery(reason);
        }
        let after = Figures::default().into_text().unwrap();
        let cleanups = Reason::ALL.map(Reason::as_str).map(|reason| ("orlop_cleanups", reason));
        let recoveries = Recovery::ALL.map(Recovery::as_str).map(|r| ("orlop_recoveries", r));
        for (name, reason) in cleanups.into_iter().chain(recoveries) {
            let series = format!("{name}_total{{reason=\"{reason}\"}}");
            // Other tests of this process may count as well.
            assert!(value(&after, &series) > value(&before, &series), "{series}");
        }
        assert!(after.ends_with("# EOF\n"));
    }
}
