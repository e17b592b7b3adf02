//! Generates the manual's configuration reference from the output of `sample-config`, which a test checks against the
//! code.

use std::fmt::Write as _;

/// The first line of a page.
const MADE: &str = "<!-- Made of `sample-config` by a test: WAYPOST_WRITE_REFERENCE=1 cargo test -p waypost-tests \
                    --test all reference -->";

/// A key in the sample.
struct Key {
    name: String,
    value: String,
    /// Whether the value is only an example, of a key that is not set.
    example: bool,
    text: String,
}

/// The reference page of `program`.
pub fn page(program: &str, sample: &str) -> String {
    let mut page = format!(
        "{MADE}\n\n# Every key of `{program}`\n\nEach key with its default, from `{program} sample-config`. \
         [Configuration](../configuration.md) explains the file, the environment and secrets.\n"
    );
    // Whether the section is commented out: an entry of an array of tables, or a table in one. Those come last.
    let mut is_example = false;
    let (mut text, mut keys): (Vec<&str>, Vec<Key>) = (Vec::new(), Vec::new());
    // Skip the comment at the top, which describes the file.
    let mut lines = sample.lines().skip_while(|line| !line.is_empty()).peekable();
    while let Some(line) = lines.next() {
        // Comments in there have a second `#`.
        let line = if is_example { line.strip_prefix("# ").unwrap_or(line) } else { line };
        let header = line.strip_prefix("# ").filter(|line| line.starts_with("[[")).unwrap_or(line);
        let comment = line.strip_prefix("# ").unwrap_or_default();
        if header.starts_with('[') && header.ends_with(']') {
            finish(&mut page, is_example, &mut keys);
            is_example |= header.starts_with("[[");
            let _ = write!(page, "\n## `{header}`\n");
            if !text.is_empty() {
                let _ = write!(page, "\n{}\n", escaped(&text.join(" ")));
            }
            text.clear();
        } else if let Some((name, value)) = key(line) {
            keys.push(Key { name, value: whole(value, &mut lines), example: false, text: text.join(" ") });
            text.clear();
        } else if let Some((name, value)) = key(comment) {
            keys.push(Key { name, value: value.to_owned(), example: true, text: text.join(" ") });
            text.clear();
        } else if !comment.is_empty() {
            text.push(comment);
        } else if line.is_empty() {
            text.clear();
        }
    }
    finish(&mut page, is_example, &mut keys);
    page
}

/// Parses `name = value`.
fn key(line: &str) -> Option<(String, &str)> {
    let (name, value) = line.split_once(" = ")?;
    let plain =
        name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '_' | '.' | '-' | '"'));
    (plain && !name.is_empty()).then(|| (name.to_owned(), value))
}

/// A value joined with its continuation lines.
fn whole<'a>(value: &str, lines: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> String {
    let mut value = value.to_owned();
    while value.matches(['[', '{']).count() > value.matches([']', '}']).count()
        && let Some(line) = lines.next()
    {
        value.push_str(line.trim());
    }
    value
}

fn finish(page: &mut String, is_example: bool, keys: &mut Vec<Key>) {
    if keys.is_empty() {
        return;
    }
    page.push_str("\n| key | default | what it is |\n|---|---|---|\n");
    for Key { name, value, example, text } in keys.drain(..) {
        let value = if is_example || example { format!("such as `{value}`") } else { format!("`{value}`") };
        let _ = writeln!(page, "| `{name}` | {} | {} |", value.replace('|', "\\|"), escaped(&text));
    }
}

/// A comment as Markdown, with everything escaped that could be taken for HTML or a column.
fn escaped(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('[', "\\[").replace('*', "\\*")
}
