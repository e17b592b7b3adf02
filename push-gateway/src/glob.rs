//! Patterns with `*` (any characters) and `?` (one character), and lookup of the best match.

use std::collections::HashMap;

/// A pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Glob(Vec<char>);

impl Glob {
    /// Every text is a valid pattern.
    pub(crate) fn new(pattern: &str) -> Self {
        Self(pattern.chars().collect())
    }

    /// Whether the pattern has no wildcards and matches only itself.
    pub(crate) fn is_exact(&self) -> bool {
        !self.0.iter().any(|character| matches!(character, '*' | '?'))
    }

    /// Characters in the pattern; a longer pattern counts as more specific.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the whole text matches.
    pub(crate) fn matches(&self, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let (mut at, mut in_text) = (0, 0);
        // Where to resume if the match after the last star fails: with the star consuming one more character.
        let mut retry: Option<(usize, usize)> = None;
        while in_text < text.len() {
            match self.0.get(at) {
                Some('*') => {
                    at += 1;
                    retry = Some((at, in_text));
                }
                Some(wanted) if *wanted == '?' || *wanted == text[in_text] => {
                    at += 1;
                    in_text += 1;
                }
                _ => {
                    let Some((after_star, taken)) = retry else { return false };
                    retry = Some((after_star, taken + 1));
                    (at, in_text) = (after_star, taken + 1);
                }
            }
        }
        self.0[at..].iter().all(|rest| *rest == '*')
    }

    /// Whether some text matches both patterns.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (&self.0, &other.0);
        // table[i][j]: some text matches both a[i..] and b[j..].
        let mut table = vec![vec![false; b.len() + 1]; a.len() + 1];
        for i in (0..=a.len()).rev() {
            for j in (0..=b.len()).rev() {
                table[i][j] = match (a.get(i), b.get(j)) {
                    (None, None) => true,
                    (Some('*'), right) => table[i + 1][j] || (right.is_some() && table[i][j + 1]),
                    (left, Some('*')) => table[i][j + 1] || (left.is_some() && table[i + 1][j]),
                    (Some(left), Some(right)) => {
                        (left == right || *left == '?' || *right == '?') && table[i + 1][j + 1]
                    }
                    (None, Some(_)) | (Some(_), None) => false,
                };
            }
        }
        table[0][0]
    }
}

/// Values by pattern: an exact match wins, else the longest matching pattern.
#[derive(Debug)]
pub(crate) struct ByGlob<T> {
    exact: HashMap<String, T>,
    /// Longest first.
    globs: Vec<(Glob, T)>,
}

impl<T> ByGlob<T> {
    /// Duplicate patterns are rejected earlier, by the validation of the configuration.
    pub(crate) fn new(entries: impl IntoIterator<Item = (String, T)>) -> Self {
        let (mut exact, mut globs) = (HashMap::new(), Vec::new());
        for (pattern, value) in entries {
            let glob = Glob::new(&pattern);
            if glob.is_exact() {
                exact.insert(pattern, value);
            } else {
                globs.push((glob, value));
            }
        }
        globs.sort_by_key(|(glob, _)| std::cmp::Reverse(glob.len()));
        Self { exact, globs }
    }

    /// All values, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.exact.values().chain(self.globs.iter().map(|(_, value)| value))
    }

    /// The value of the best match for `text`.
    pub(crate) fn find(&self, text: &str) -> Option<&T> {
        self.exact.get(text).or_else(|| self.globs.iter().find(|(glob, _)| glob.matches(text)).map(|(_, value)| value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_and_question_marks_match() {
        for (pattern, text, expected) in [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("a*", "a", true),
            ("a*c", "abcbc", true),
            ("a*c", "abcb", false),
            ("*.push.example", "eu.push.example", true),
            ("*.push.example", "push.example", false),
            ("a?c", "aéc", true),
            ("a?c", "ac", false),
            ("*", "", true),
            ("?", "", false),
            ("*a*b*", "xxaxxbxx", true),
            ("im.fluffychat.*", "im.fluffychat.ABCDEF", true),
        ] {
            assert_eq!(Glob::new(pattern).matches(text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn two_patterns_overlap_when_a_text_matches_both() {
        for (a, b, expected) in [
            ("a*", "*b", true),
            ("a*x", "b*x", false),
            ("a?", "?b", true),
            ("a?", "b?", false),
            ("a*", "a", true),
            ("a?*", "a", false),
            ("*", "", true),
            ("abc", "abc", true),
        ] {
            assert_eq!(Glob::new(a).overlaps(&Glob::new(b)), expected, "{a} {b}");
            assert_eq!(Glob::new(b).overlaps(&Glob::new(a)), expected, "{b} {a}");
        }
    }

    #[test]
    fn exact_wins_over_globs_and_long_globs_over_short_ones() {
        let apps = ["org.*", "org.example.*", "org.example.ios"].map(|id| (id.to_owned(), id));
        let apps = ByGlob::new(apps);
        assert_eq!(apps.find("org.example.ios"), Some(&"org.example.ios"));
        assert_eq!(apps.find("org.example.ios.voip"), Some(&"org.example.*"));
        assert_eq!(apps.find("org.other"), Some(&"org.*"));
        assert_eq!(apps.find("com.example"), None);
    }
}
