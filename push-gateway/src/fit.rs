//! Making texts fit: what a provider takes is limited in bytes, and people's messages are not.
//!
//! All of it takes time linear in the texts' length, and cuts between characters only.

/// Bytes that a text takes between the quotes of compact JSON.
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

/// The longest beginning of `text` that takes no more than `max` bytes in JSON.
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

/// Cuts `text` so that it takes no more than `max` bytes in JSON, `mark` at its end included.
pub(crate) fn cut(text: &mut String, max: usize, mark: &str) {
    if json_len(text) <= max {
        return;
    }
    // Where not even the mark fits, nothing does.
    match max.checked_sub(json_len(mark)) {
        Some(left) => {
            text.truncate(beginning(text, left).len());
            text.push_str(mark);
        }
        None => text.clear(),
    }
}

/// Takes at least `excess` bytes off the texts, the longest first: all that are cut end up equally long.
///
/// False when there is not that much to take; then nothing is cut.
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

/// The greatest length that each may have so that all together take no more than `budget`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_serde_json() {
        for text in ["", "abc", "\"\\\n\r\t\u{8}\u{c}\u{0}\u{1f}\u{7f}", "äöü…😀\u{2028}"] {
            assert_eq!(json_len(text) + 2, serde_json::Value::from(text).to_string().len(), "{text:?}");
        }
    }

    #[test]
    fn a_cut_falls_between_characters() {
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
        // 2 + 10 + 6 bytes, 7 too many: 11 are left, 2 for the short one, 9 for two: 4 each.
        let (mut short, mut long, mut middle) = ("ab".to_owned(), "0123456789".to_owned(), "abcdef".to_owned());
        assert!(shrink(vec![&mut short, &mut long, &mut middle], 7, ""));
        assert_eq!((short.as_str(), long.as_str(), middle.as_str()), ("ab", "0123", "abcd"));
        assert!(!shrink(vec![&mut short], 3, ""));
        assert_eq!(short, "ab");
    }
}
