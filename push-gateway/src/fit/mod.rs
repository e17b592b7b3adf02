//! Makes texts fit into payloads, whose size providers limit.
//!
//! Everything runs in time linear in the texts' length and cuts only at character boundaries.

use serde_json::{Map, Value};

/// Bytes of a text in compact JSON, without the quotes.
pub(crate) fn json_len(text: &str) -> usize {
    text.chars().map(json_char_len).sum()
}

fn json_char_len(character: char) -> usize {
    match character {
        '"' | '\\' | '\u{8}' | '\u{c}' | '\n' | '\r' | '\t' => 2,
        '\0'..='\u{1f}' => 6, // \u001f
        _ => character.len_utf8(),
    }
}

/// The longest prefix of `text` that takes at most `max` bytes in JSON.
fn beginning(text: &str, max: usize) -> &str {
    let mut taken = 0;
    for (at, character) in text.char_indices() {
        taken += json_char_len(character);
        if taken > max {
            return &text[..at];
        }
    }
    text
}

/// Truncates `text` to at most `max` bytes in JSON, including `mark` at its end.
pub(crate) fn cut(text: &mut String, max: usize, mark: &str) {
    if json_len(text) <= max {
        return;
    }
    // If not even the mark fits, nothing does.
    match max.checked_sub(json_len(mark)) {
        Some(left) => {
            text.truncate(beginning(text, left).len());
            text.push_str(mark);
        }
        None => text.clear(),
    }
}

/// Shortens the texts by at least `excess` bytes in total, the longest first: all that are cut end up equally long.
///
/// Returns false, and cuts nothing, if the texts are shorter than `excess` together.
pub(crate) fn shrink(texts: Vec<&mut String>, excess: usize, mark: &str) -> bool {
    let mut lengths: Vec<_> = texts.iter().map(|text| json_len(text)).collect();
    let Some(budget) = lengths.iter().sum::<usize>().checked_sub(excess) else { return false };
    lengths.sort_unstable();
    let level = level(&lengths, budget);
    for text in texts {
        cut(text, level, mark);
    }
    true
}

/// The greatest length to limit each text to so that together they take at most `budget`.
fn level(ascending: &[usize], budget: usize) -> usize {
    let mut left = budget;
    for (shorter, length) in ascending.iter().enumerate() {
        let others = ascending.len() - shorter;
        if length * others > left {
            return left / others;
        }
        left -= length;
    }
    usize::MAX
}

/// An event's content without HTML: notifications show plain text, and HTML takes up most of the space.
pub(crate) fn without_html(content: &Map<String, Value>) -> Map<String, Value> {
    content
        .iter()
        .filter(|(key, _)| *key != "formatted_body")
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}

/// Serializes a notification to at most `max_bytes` of compact JSON. Its human-readable texts are cut; if that is not
/// enough, the content is left out and the app fetches the event. None if it cannot be made to fit.
pub(crate) fn notification(mut payload: Map<String, Value>, max_bytes: usize) -> Option<String> {
    loop {
        let body = serde_json::to_string(&payload).ok()?;
        let Some(excess) = body.len().checked_sub(max_bytes).filter(|excess| *excess > 0) else {
            return Some(body);
        };
        if shrink(readable(&mut payload), excess, "") {
            continue;
        }
        // The rest of the content must not be cut (ciphertext, ids, keys).
        payload.remove("content")?;
    }
}

/// The texts of a notification that may be cut: the human-readable ones.
fn readable(payload: &mut Map<String, Value>) -> Vec<&mut String> {
    payload
        .iter_mut()
        .filter_map(|(key, value)| match (key.as_str(), value) {
            ("room_name" | "room_alias" | "sender_display_name", Value::String(text)) => Some(text),
            ("content", Value::Object(content)) => match content.get_mut("body") {
                Some(Value::String(text)) => Some(text),
                _ => None,
            },
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod properties;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_match_serde_json() {
        for text in ["", "abc", "\"\\\n\r\t\u{8}\u{c}\u{0}\u{1f}\u{7f}", "äöü…😀\u{2028}"] {
            assert_eq!(json_len(text) + 2, serde_json::Value::from(text).to_string().len(), "{text:?}");
        }
    }

    #[test]
    fn a_cut_falls_on_a_character_boundary() {
        for (max, expected) in
            [(9, "a😀b\u{e9}z"), (8, "a😀b\u{e9}"), (7, "a😀b"), (5, "a😀"), (4, "a"), (1, "a"), (0, "")]
        {
            let mut text = "a😀b\u{e9}z".to_owned();
            cut(&mut text, max, "");
            assert_eq!(text, expected, "{max}");
        }
        let mut text = "abcdefgh".to_owned();
        cut(&mut text, 6, "…");
        assert_eq!(text, "abc…");
        cut(&mut text, 2, "…");
        assert_eq!(text, "");
    }

    #[test]
    fn the_longest_is_cut_first() {
        // 2 + 10 + 6 bytes, 7 too many. 11 are left: 2 for the short one, and 9 for the other two, so 4 each.
        let (mut short, mut long, mut middle) = ("ab".to_owned(), "0123456789".to_owned(), "abcdef".to_owned());
        assert!(shrink(vec![&mut short, &mut long, &mut middle], 7, ""));
        assert_eq!((short.as_str(), long.as_str(), middle.as_str()), ("ab", "0123", "abcd"));
        assert!(!shrink(vec![&mut short], 3, ""));
        assert_eq!(short, "ab");
    }
}
