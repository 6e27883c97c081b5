//! The documents say what the code does: tables are compared, commands that are named exist.

#![expect(
    clippy::panic,
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test says what is wrong by panicking, and runs the program that it tests"
)]

use orlop::csi::CODES;
use orlop::engine::{HEALTH, StorageTrouble};
use orlop::telemetry::metrics::{ALL, Metric};
use orlop::volume::PARAMETERS;

fn read(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The cells of the rows of the table under a heading, without its head.
fn table(text: &str, heading: &str) -> Vec<Vec<String>> {
    let section = text.split(&format!("\n## {heading}\n")).nth(1).expect("the section exists");
    section
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with('|'))
        .skip(2)
        .map(|line| {
            line.trim_matches('|')
                .split('|')
                .map(|cell| cell.trim().trim_matches('`').to_owned())
                .collect()
        })
        .collect()
}

/// `InvalidArgument` as the wire contract writes it.
fn wire_name(code: tonic::Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

/// A row of docs/metrics.md.
fn metric_row(metric: &Metric) -> Vec<String> {
    vec![
        metric.full_name(),
        metric.kind.as_str().into(),
        metric.unit.as_str().unwrap_or("-").into(),
        if metric.labels.is_empty() { "-".into() } else { metric.labels.join(", ") },
        metric.stability.as_str().into(),
        metric.help.into(),
    ]
}

#[test]
fn the_table_of_metrics_is_the_code_s() {
    let documented = table(&read("docs/metrics.md"), "Metrics");
    let known: Vec<Vec<String>> = ALL.iter().copied().map(metric_row).collect();
    let printed: Vec<String> = known
        .iter()
        .map(|row| match row.as_slice() {
            [name, rest @ ..] => format!("| `{name}` | {} |", rest.join(" | ")),
            [] => String::new(),
        })
        .collect();
    assert_eq!(documented, known, "the table should be:\n{}", printed.join("\n"));
}

/// The words of a text that begin like a metric of ours.
fn metrics_in(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("orlop_")).collect()
}

#[test]
fn alerts_and_the_dashboard_name_metrics_that_exist() {
    let ends: [&str; 4] = ["", "_bucket", "_sum", "_count"];
    let known: Vec<String> = ALL
        .iter()
        .flat_map(|metric| ends.map(|end| format!("{}{end}", metric.full_name())))
        .collect();
    for file in ["alerts.yaml", "alerts.test.yaml", "dashboard.json"] {
        let text = read(&format!("deploy/monitoring/{file}"));
        let named = metrics_in(&text);
        assert!(named.len() > 5, "{file}: the search is broken");
        for name in named {
            assert!(known.iter().any(|known| known == name), "{file} names {name}");
        }
    }
    let dashboard =
        serde_json::from_str::<serde_json::Value>(&read("deploy/monitoring/dashboard.json"));
    assert!(dashboard.is_ok_and(|dashboard| dashboard["panels"].is_array()));
    let reasons: Vec<&str> = HEALTH.iter().map(|row| row.reason).collect();
    let alerts = read("deploy/monitoring/alerts.yaml");
    let pattern = alerts.split("reason=~\"").nth(1).and_then(|rest| rest.split('"').next());
    for reason in pattern.expect("an alert names conditions").split('|') {
        assert!(reasons.contains(&reason), "{reason} is no condition");
    }
}

#[test]
fn reasons_of_clean_ups_and_recoveries_are_documented() {
    let text = read("docs/metrics.md");
    let reasons = orlop::telemetry::Reason::ALL.map(|reason| (reason.as_str(), reason.help()));
    let recoveries = orlop::telemetry::Recovery::ALL.map(|r| (r.as_str(), r.help()));
    for (heading, known) in
        [("Clean-ups", reasons.as_slice()), ("Recoveries", recoveries.as_slice())]
    {
        let known: Vec<Vec<String>> =
            known.iter().map(|(word, help)| vec![(*word).into(), (*help).into()]).collect();
        assert_eq!(table(&text, heading), known, "{heading}");
    }
}

#[test]
fn the_table_of_parameters_is_the_code_s() {
    let documented = table(&read("SEMANTICS.md"), "Parameters");
    let known: Vec<Vec<String>> =
        PARAMETERS.iter().map(|p| vec![p.name.into(), p.values.into(), p.help.into()]).collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_errors_is_the_code_s() {
    let documented = table(&read("SEMANTICS.md"), "Errors");
    let known: Vec<Vec<String>> = CODES
        .iter()
        .map(|c| {
            vec![
                c.error.into(),
                c.code.map_or_else(|| "as its cause".to_owned(), wire_name),
                c.meaning.into(),
            ]
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn the_table_of_health_is_the_code_s() {
    let documented = table(&read("SEMANTICS.md"), "Health");
    let known: Vec<Vec<String>> = HEALTH
        .iter()
        .map(|row| {
            let storage = row.storage.map_or("", StorageTrouble::as_str);
            [row.reason, row.volume.as_str(), storage, row.meaning, row.remedy]
                .map(str::to_owned)
                .to_vec()
        })
        .collect();
    assert_eq!(documented, known);
}

#[test]
fn every_command_that_a_document_or_an_error_names_exists() {
    let help = |words: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_orlop"))
            .args(words)
            .arg("--help")
            .output();
        output.expect("orlop starts").status.success()
    };
    assert!(!help(&["no-such-command"]), "an unknown command must fail, or this test cannot");
    let mut named = 0;
    let mut texts = Vec::new();
    for file in [
        "README.md",
        "SEMANTICS.md",
        "ARCHITECTURE.md",
        "deploy/README.md",
        "src/engine/pools.rs",
        "src/engine/offline.rs",
        "src/store/error.rs",
    ] {
        texts.push(read(file));
    }
    for text in texts {
        for phrase in
            text.split('`').skip(1).step_by(2).filter(|phrase| phrase.starts_with("orlop "))
        {
            let words: Vec<&str> = phrase
                .split_whitespace()
                .skip(1)
                .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
                .filter(|word| !word.starts_with("--"))
                .take(2)
                .collect();
            for last in words.last().copied().unwrap_or_default().split('|') {
                let mut command: Vec<&str> = words.clone();
                command.pop();
                command.push(last);
                assert!(help(&command), "`{phrase}` is named but does not exist");
                named += 1;
            }
        }
    }
    assert!(named > 3, "only {named} commands found: the search is broken");
}
