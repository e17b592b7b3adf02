//! Log lines are a contract: docs/logs.md names each event of a running service that an operator sees by default.

use std::fs;
use std::path::{Path, PathBuf};

/// An event in the sources.
#[derive(Debug, PartialEq, Eq)]
struct Event {
    level: &'static str,
    message: String,
}

/// The source files below a folder.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// The arguments of a macro, from behind its opening bracket to the closing one.
fn arguments(text: &str) -> &str {
    let (mut depth, mut in_text, mut escaped) = (1, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_text => escaped = true,
            '"' => in_text = !in_text,
            '(' | '{' | '[' if !in_text => depth += 1,
            ')' | '}' | ']' if !in_text => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..at];
        }
    }
    panic!("a macro without an end");
}

/// The last string literal of a macro's arguments, which is its message, as it is logged.
fn message(arguments: &str) -> String {
    let (mut literal, mut begin, mut escaped) = (None, None, false);
    for (at, c) in arguments.char_indices() {
        match (c, begin) {
            _ if escaped => escaped = false,
            ('\\', Some(_)) => escaped = true,
            ('"', None) => begin = Some(at + 1),
            ('"', Some(from)) => (literal, begin) = (Some(&arguments[from..at]), None),
            _ => {}
        }
    }
    // A line that ends with a backslash goes on with the first letter of the next.
    let mut lines = literal.expect("an event has a message").split("\\\n");
    let mut text = lines.next().unwrap_or_default().to_owned();
    lines.for_each(|line| text.push_str(line.trim_start()));
    text.replace("\\\"", "\"")
}

fn events() -> Vec<Event> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut events = Vec::new();
    for file in
        ["shared", "identity", "push-gateway"].iter().flat_map(|package| sources(&root.join(package).join("src")))
    {
        let source = fs::read_to_string(&file).unwrap();
        for level in ["error", "warn", "info"] {
            for call in source.split(&format!("tracing::{level}!(")).skip(1) {
                events.push(Event { level, message: message(arguments(call)) });
            }
        }
    }
    events
}

#[test]
fn every_event_is_in_the_manual() {
    let manual = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/logs.md")).unwrap();
    let rows: Vec<Event> = manual
        .lines()
        .filter_map(|line| {
            let (cell, rest) = line.strip_prefix("| `")?.split_once(" | ")?;
            let level = ["error", "warn", "info"].into_iter().find(|level| rest.starts_with(level))?;
            Some(Event { level, message: cell.trim_matches(['`', ' ']).to_owned() })
        })
        .collect();
    let events = events();
    assert!(events.len() > 40, "the sources were read");
    let missing: Vec<_> = events.iter().filter(|event| !rows.contains(event)).collect();
    assert!(missing.is_empty(), "not in docs/logs.md: {missing:#?}");
    let stale: Vec<_> = rows.iter().filter(|row| !events.contains(row)).collect();
    assert!(stale.is_empty(), "in docs/logs.md, and logged nowhere: {stale:#?}");
}

/// docs/security.md names the tests of each of its promises.
#[test]
fn every_test_that_the_manual_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folders = ["shared/src", "identity/src", "push-gateway/src", "tests/tests"];
    let rust = folders.iter().flat_map(|folder| sources(&root.join(folder)));
    let python = [root.join("tests/deploy/test_docs.py")];
    let text: String = rust.chain(python).map(|file| fs::read_to_string(file).unwrap()).collect();
    let manual = fs::read_to_string(root.join("docs/security.md")).unwrap();
    let section = manual.split_once("## Which test shows it").unwrap().1.split_once("\n## ").unwrap().0;
    let rows = section.lines().filter(|line| line.starts_with("| "));
    let names: Vec<&str> = rows.flat_map(|row| row.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 50, "the table was read");
    let missing = |name: &&&str| !text.contains(&format!("fn {name}(")) && !text.contains(&format!("def {name}("));
    let missing: Vec<_> = names.iter().filter(missing).collect();
    assert!(missing.is_empty(), "docs/security.md names tests that do not exist: {missing:#?}");
}
