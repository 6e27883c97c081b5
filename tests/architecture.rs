//! The map of ARCHITECTURE.md holds: arrows between modules point down only, and what is dangerous stays in its place.

#[cfg(test)]
mod rules {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    /// What each module may use of this crate. `cli` and the crate's root may use everything.
    const ARROWS: [(&str, &[&str]); 8] = [
        ("volume", &[]),
        ("fault", &[]),
        ("telemetry", &[]),
        ("host", &["volume", "fault"]),
        ("store", &["volume", "host", "fault", "telemetry"]),
        ("backend", &["volume", "host", "store", "fault"]),
        ("engine", &["backend", "store", "host", "volume", "fault", "telemetry"]),
        ("csi", &["engine", "volume", "telemetry"]),
    ];

    /// Words of the code, and the beginnings of the paths of the files that may have them.
    const PLACES: [(&str, &[&str]); 7] = [
        ("unsafe", &["host/linux/sys"]),
        ("tonic", &["csi", "cli"]),
        ("prost", &["csi", "cli"]),
        ("tokio", &["csi", "cli"]),
        ("hyper", &["csi"]),
        ("clap", &["cli", "main.rs"]),
        ("process::Command", &["host/linux/command.rs", "cli/try_run"]),
    ];

    const LONGEST_FILE: usize = 500;

    /// System calls that change the disk. Those of `host` are steps of `host/faulty.rs`, which does not compile without them.
    const CHANGES: [&str; 20] = [
        "fallocate",
        "fchmod",
        "fchmodat",
        "fchown",
        "fchownat",
        "fsync",
        "ftruncate",
        "linkat",
        "mkdirat",
        "mknodat",
        "renameat",
        "renameat2",
        "set_len",
        "symlinkat",
        "sync_all",
        "sync_data",
        "syncfs",
        "unlinkat",
        "utimensat",
        "write_all_at",
    ];

    /// Functions that change the disk without a fault point, and why.
    const WITHOUT_POINT: [(&str, &str, &str); 4] = [
        (
            "backend/tree.rs",
            "copy",
            "what it begins with is thrown away with the first entry's point",
        ),
        ("backend/tree.rs", "remove_links", "behind the last entry, before the point of the walk"),
        ("backend/tree.rs", "file", "between the points of two entries"),
        ("backend/tree.rs", "attributes", "between the points of two entries"),
    ];

    /// The Rust files below a directory of the project, relative to it.
    fn files_in(top: &str) -> BTreeMap<PathBuf, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(top);
        let mut found = BTreeMap::new();
        let mut directories = vec![root.clone()];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(&directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                } else if path.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&path).unwrap();
                    found.insert(path.strip_prefix(&root).unwrap().to_owned(), text);
                }
            }
        }
        found
    }

    /// The length of the comment, string or character that the text begins with; `None` when it is code.
    fn not_code(text: &str) -> Option<usize> {
        let until = |from: usize, end: &str| {
            text[from..].find(end).map_or(text.len(), |at| from + at + end.len())
        };
        if text.starts_with("//") {
            return Some(text.find('\n').unwrap_or(text.len()));
        }
        if text.starts_with("/*") {
            return Some(until(2, "*/"));
        }
        if let Some(raw) = text.strip_prefix('r') {
            let hashes = raw.len() - raw.trim_start_matches('#').len();
            if raw[hashes..].starts_with('"') {
                return Some(until(hashes + 2, &format!("\"{}", "#".repeat(hashes))));
            }
        }
        let quote = text.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let mut escaped = false;
        for (at, c) in text.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                _ if c == quote => return Some(at + 1),
                // A lifetime, not a character.
                _ if quote == '\'' && at > 1 && !text.starts_with("'\\") => return None,
                _ => {}
            }
        }
        None
    }

    fn is_word(c: char) -> bool {
        c.is_alphanumeric() || c == '_'
    }

    /// The text without comments, strings and white space around what is left of a line.
    fn code(text: &str) -> String {
        let (mut code, mut rest) = (String::new(), text);
        while let Some(c) = rest.chars().next() {
            let in_word = code.chars().next_back().is_some_and(is_word);
            let skip = if in_word && c == 'r' { None } else { not_code(rest) };
            if let Some(length) = skip {
                rest = &rest[length..];
            } else {
                code.push(c);
                rest = &rest[c.len_utf8()..];
            }
        }
        code
    }

    /// The end of the block that begins in this text.
    fn block_end(text: &str) -> usize {
        let mut depth = 0_u32;
        for (at, c) in text.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth <= 1 => return at + 1,
                '}' => depth -= 1,
                ';' if depth == 0 => return at + 1,
                _ => {}
            }
        }
        text.len()
    }

    /// The code without what only tests see.
    fn without_tests(mut code: &str) -> String {
        const TEST: &str = "#[cfg(test)]";
        let mut kept = String::new();
        while let Some((before, item)) = code.split_once(TEST) {
            kept.push_str(before);
            code = &item[block_end(item)..];
        }
        kept + code
    }

    /// The name at the beginning of the text, or those of a group in braces.
    fn names(text: &str) -> Vec<String> {
        let word = |text: &str| text.chars().take_while(|c| is_word(*c)).collect::<String>();
        let Some(group) = text.strip_prefix('{') else {
            return vec![word(text)];
        };
        let (mut names, mut depth, mut start) = (Vec::new(), 0_u32, true);
        for (at, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => start = true,
                _ if start && !c.is_whitespace() => {
                    names.push(word(&group[at..]));
                    start = false;
                }
                _ => {}
            }
        }
        names
    }

    /// Every place of `word` in the code where it stands alone; what follows it.
    fn after<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
        let alone = move |(at, found): (usize, &str)| {
            let before = code[..at].chars().next_back();
            let rest = &code[at + found.len()..];
            let ends = word.ends_with("::") || !rest.starts_with(is_word);
            (ends && !before.is_some_and(|c| is_word(c) || c == ':' || c == '$')).then_some(rest)
        };
        code.match_indices(word).filter_map(alone)
    }

    /// The top-level modules that a file of the crate uses.
    fn uses(path: &Path, code: &str) -> Vec<String> {
        let mut used: Vec<String> = after(code, "crate::").flat_map(names).collect();
        // As many times `super` as the module is deep lead to the crate's root.
        let depth = path.components().count();
        for rest in after(code, "super::") {
            let mut rest = rest;
            let mut up = 1;
            while let Some(further) = rest.strip_prefix("super::") {
                (rest, up) = (further, up + 1);
            }
            if up >= depth {
                used.extend(names(rest));
            }
        }
        used
    }

    /// The functions in this code that change the disk without a fault point.
    fn without_point(path: &Path, code: &str) -> Vec<String> {
        let layers = ["store", "backend"];
        if !layers.iter().any(|layer| path.starts_with(layer)) {
            return Vec::new();
        }
        let functions = after(code, "fn").map(|rest| &rest[..block_end(rest)]);
        let changes = |body: &str| {
            let calls = |word: &&&str| after(body, word).any(|rest| rest.starts_with('('));
            CHANGES.iter().find(calls).copied()
        };
        let mut found = Vec::new();
        for body in functions.filter(|body| !body.contains("fault::")) {
            let name = names(body.trim_start()).remove(0);
            let known = WITHOUT_POINT
                .iter()
                .any(|(file, function, _)| path == Path::new(file) && name == *function);
            if let Some(call) = changes(body).filter(|_| !known) {
                found.push(format!(
                    "{}: {name} calls {call} and has no fault point",
                    path.display()
                ));
            }
        }
        found
    }

    /// Everything about one file that breaks a rule.
    fn offences(path: &Path, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        let shown = path.display();
        if !text.starts_with("//!") {
            found.push(format!("{shown} does not begin with //!"));
        }
        let lines = text.lines().count();
        if lines >= LONGEST_FILE {
            found.push(format!("{shown} has {lines} lines"));
        }
        let all_code = code(text);
        let code = without_tests(&all_code);
        for (word, places) in PLACES {
            // Tests of the code below may well use what the code may not, except `unsafe`.
            let searched = if word == "unsafe" { &all_code } else { &code };
            let allowed = places.iter().any(|place| {
                path.starts_with(place) || path == Path::new(place).with_extension("rs")
            });
            let used = searched.match_indices(word).any(|(at, found)| {
                let before = searched[..at].chars().next_back();
                let next = searched[at + found.len()..].chars().next();
                !before.is_some_and(is_word) && !next.is_some_and(is_word)
            });
            if used && !allowed {
                found.push(format!("{shown} uses {word}, which belongs to {places:?}"));
            }
        }
        found.extend(without_point(path, &code));
        let top = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
        if let Some((_, allowed)) = ARROWS.iter().find(|(module, _)| *module == top) {
            for used in uses(path, &code) {
                let is_module = used == "cli" || ARROWS.iter().any(|(module, _)| *module == used);
                if is_module && used != top && !allowed.contains(&used.as_str()) {
                    found.push(format!("{shown} uses crate::{used}; {top} may use {allowed:?}"));
                }
            }
        }
        found
    }

    /// Files that only tests compile: `#[cfg(test)] mod tests;` above them.
    fn is_test(path: &Path) -> bool {
        path.file_name().is_some_and(|name| name == "tests.rs")
    }

    #[test]
    fn the_crate_keeps_the_rules() {
        let sources = files_in("src");
        assert!(sources.len() > 50, "the sources are found");
        let mut found = Vec::new();
        for (path, text) in sources.iter().filter(|(path, _)| !is_test(path)) {
            found.extend(offences(path, text));
            let top = path.iter().next().unwrap().to_str().unwrap().trim_end_matches(".rs");
            let known = ARROWS.iter().any(|(module, _)| *module == top);
            if !known && !matches!(top, "cli" | "lib" | "main") {
                found.push(format!("{top} is a new module; say here what it may use"));
            }
        }
        assert!(found.is_empty(), "{found:#?}");
    }

    /// What is wrong with how tests are ignored in a file of `tests/`.
    fn hidden_tests(path: &Path, text: &str) -> Vec<String> {
        let begins = path.to_string_lossy();
        let in_vm = ["privileged", "privileged_host", "privileged_driver"]
            .iter()
            .any(|target| begins.split(['/', '.']).next() == Some(target));
        let run_by = match begins.split('/').next() {
            Some("power") => "make power",
            _ if in_vm => "make vm",
            _ => "nothing",
        };
        let end = format!(": {run_by}\"]");
        let lines = text.lines().map(str::trim).filter(|line| line.starts_with("#[ignore"));
        let says_why =
            |line: &&str| line.starts_with("#[ignore = \"needs ") && line.ends_with(&end);
        lines
            .filter(|line| !says_why(line))
            .map(|line| format!("{begins}: {line} is run by {run_by}, or does not say so"))
            .collect()
    }

    #[test]
    fn what_is_ignored_runs_in_the_virtual_machine() {
        let mut ignored = 0;
        for (path, text) in files_in("tests") {
            assert_eq!(hidden_tests(&path, &text), Vec::<String>::new());
            ignored += text.matches("#[ignore = ").count();
        }
        assert!(ignored > 2, "the ignored tests are found");
        for (path, attribute) in [
            ("grpc/life.rs", "#[ignore = \"needs much: make vm\"]"),
            ("privileged_driver/life.rs", "#[ignore]"),
            ("privileged_driver/life.rs", "#[ignore = \"is slow\"]"),
            ("privileged_driver/life.rs", "#[ignore = \"needs power cuts: make power\"]"),
            ("power/guest.rs", "#[ignore = \"needs much: make vm\"]"),
        ] {
            assert_eq!(hidden_tests(Path::new(path), attribute).len(), 1, "{path} {attribute}");
        }
    }

    #[test]
    fn offences_are_found() {
        for (path, text, what) in [
            ("store/a.rs", "//! A.\nuse crate::engine::Engine;", "crate::engine"),
            ("store/a.rs", "//! A.\nuse crate::{volume, csi::{self}};", "crate::csi"),
            (
                "store/a.rs",
                "//! A.\nuse crate::{\n    volume::{Key, Size},\n    cli,\n};",
                "crate::cli",
            ),
            ("store/a.rs", "//! A.\nfn f() { crate::backend::f() }", "crate::backend"),
            ("store/a.rs", "//! A.\nuse super::super::engine;", "crate::engine"),
            ("store.rs", "//! A.\nuse super::engine;", "crate::engine"),
            ("volume/a.rs", "//! A.\nuse crate::host::Host;", "crate::host"),
            ("volume/a.rs", "//! A.\n#[cfg(test)]\nmod t { }\nuse crate::host;", "crate::host"),
            ("volume/a.rs", "//! A.\n#[cfg(test)]\nmod t;\nuse crate::host;", "crate::host"),
            ("host/a.rs", "//! A.\nfn f<'a>(x: &'a u8) { unsafe { g() } }", "unsafe"),
            ("host/a.rs", "//! A.\n#[cfg(test)]\nmod t { fn f() { unsafe { g() } } }", "unsafe"),
            ("host/a.rs", "//! A.\nuse std::process::Command;", "process::Command"),
            ("host/a.rs", "//! A.\nfn f() { process::Command::new(X); }", "process::Command"),
            ("engine.rs", "//! A.\nuse tonic::Status;", "tonic"),
            ("engine/a.rs", "//! A.\nuse tokio::sync::Mutex;", "tokio"),
            ("engine/a.rs", "// A.\n", "//!"),
            ("store/a.rs", "//! A.\nfn f() { x(); fsync(fd); }", "f calls fsync"),
            ("backend/a.rs", "//! A.\nfn g() { file.set_len(1) }", "g calls set_len"),
            ("engine/a.rs", &format!("//! A.{}", "\n".repeat(500)), "lines"),
        ] {
            let found = offences(Path::new(path), text);
            assert!(found.len() == 1 && found[0].contains(what), "{path}: {text}: {found:?}");
        }
    }

    #[test]
    fn what_is_allowed_is_no_offence() {
        for (path, text) in [
            (
                "store/a.rs",
                "//! A.\nuse crate::{fault, host::Host, store::x, volume};\nuse super::b;",
            ),
            ("store/a/b.rs", "//! A.\nuse super::super::engine;"),
            ("engine/a.rs", "//! A.\n#[cfg(test)]\nmod tests {\n    use crate::csi::x;\n}"),
            (
                "engine/a.rs",
                "//! tonic\n/// unsafe crate::csi::x\n// tokio\nconst A: &str = \"unsafe\";",
            ),
            ("engine/a.rs", "//! A.\nconst A: (char, &str) = ('\"', r#\"crate::csi \" \"#);"),
            ("engine/a.rs", "//! A.\nconst A: char = '\\'';\nfn is_unsafe() {}"),
            ("store/a.rs", "//! A.\nfn f() { fault::step!(\"x\", fsync(fd)) }\nfn g() { y() }"),
            ("host/linux/a.rs", "//! A.\nfn f() { fsync(fd) }"),
            ("csi.rs", "//! A.\nuse tonic::Status;"),
            ("csi/a.rs", "//! A.\nuse crate::engine;"),
            ("cli/try_run/a.rs", "//! A.\nuse std::process::Command;\nuse crate::host;"),
            ("cli/try_run.rs", "//! A.\nuse std::process::Command;"),
            ("host/linux/sys.rs", "//! A.\nfn f() { unsafe { g() } }"),
            ("host/linux/sys/a.rs", "//! A.\nfn f() { unsafe { g() } }"),
        ] {
            assert_eq!(offences(Path::new(path), text), Vec::<String>::new(), "{text}");
        }
    }
}
