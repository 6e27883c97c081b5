//! Completions and manual pages.

use std::fs;

use super::harness::{Node, fails, names, prints};

#[test]
fn every_shell_gets_completions() {
    for (shell, word) in [
        ("bash", "complete -F _orlop"),
        ("zsh", "#compdef orlop"),
        ("fish", "complete -c orlop"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = prints(&["completions", shell]);
        for part in [word, "metrics-address", "doctor"] {
            assert!(script.contains(part), "{shell}: {part}");
        }
        assert!(!script.contains('\u{1b}'), "{shell}: colours are for terminals");
    }
    let complaint = fails(2, &["completions", "csh"]);
    assert!(complaint.contains("fish"), "{complaint}");
}

#[test]
fn every_command_has_a_manual_page() {
    let node = Node::new();
    fs::create_dir(node.path("man")).unwrap();
    assert_eq!(prints(&["man", &node.text("man")]), "");
    let pages = names(&node.path("man"));
    for page in [
        "orlop.1",
        "orlop-serve.1",
        "orlop-doctor.1",
        "orlop-volume.1",
        "orlop-volume-show.1",
        "orlop-pool-check.1",
    ] {
        assert!(pages.iter().any(|name| name == page), "{page} is not among {pages:?}");
    }
    let serve = fs::read_to_string(node.path("man/orlop-serve.1")).unwrap();
    assert!(serve.starts_with(".ie") && serve.contains(".TH orlop-serve 1"), "{serve}");
    assert!(serve.contains("ORLOP_METRICS_ADDRESS"), "{serve}");
    let complaint = fails(1, &["man", &node.text("absent")]);
    assert!(complaint.contains(&node.text("absent")), "{complaint}");
    // It is for packagers; the other is for everybody.
    let help = prints(&["--help"]);
    assert!(!help.contains("manual") && help.contains("completions"), "{help}");
}
