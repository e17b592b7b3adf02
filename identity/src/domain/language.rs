//! Language negotiation: the languages a request asks for, matched against the available ones.
//!
//! Source: RFC 9110, 12.5.4 (Accept-Language); RFC 4647, 3.4 (lookup).

/// The language of all built-in texts.
pub(crate) const ENGLISH: &str = "en";
/// The most languages read from one `Accept-Language` header; browsers send about five.
const MOST: usize = 16;

/// The reader's languages in lower case, best first: that of `lang`, then those of `Accept-Language`.
pub(crate) fn preferred(lang: Option<&str>, accept_language: Option<&str>) -> Vec<String> {
    let mut languages: Vec<String> = lang.and_then(tag).into_iter().collect();
    let mut accepted: Vec<(String, f32)> = accept_language
        .unwrap_or_default()
        .split(',')
        .take(MOST)
        .filter_map(|entry| {
            let mut parts = entry.split(';');
            let language = tag(parts.next()?)?;
            let weight = parts.find_map(|part| part.trim().strip_prefix("q=")).map_or(Ok(1.0), str::parse).ok()?;
            (weight > 0.0).then_some((language, weight))
        })
        .collect();
    // A stable sort: languages of equal weight keep their order.
    accepted.sort_by(|(_, one), (_, other)| other.total_cmp(one));
    languages.extend(accepted.into_iter().map(|(language, _)| language));
    languages
}

/// The first of `preferred` that `known` has, either exactly or with trailing subtags removed: `de` serves `de-AT`.
pub(crate) fn choose<'a>(preferred: &[String], known: impl Fn(&str) -> Option<&'a str>) -> Option<&'a str> {
    preferred.iter().find_map(|language| {
        let mut rest = language.as_str();
        loop {
            if let Some(found) = known(rest) {
                return Some(found);
            }
            rest = rest.rsplit_once('-')?.0;
        }
    })
}

/// Parses a language tag and lower-cases it: groups of at most eight letters and digits, the first one of two or three
/// letters.
pub(crate) fn tag(text: &str) -> Option<String> {
    let text = text.trim().replace('_', "-").to_ascii_lowercase();
    let mut groups = text.split('-');
    let first = groups
        .next()
        .is_some_and(|group| (2..=3).contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_lowercase()));
    let rest =
        groups.all(|group| (1..=8).contains(&group.len()) && group.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    (first && rest && text.len() <= 35).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(lang: Option<&str>, accept: Option<&str>) -> Option<&'static str> {
        choose(&preferred(lang, accept), |language| ["en", "de", "pt-br"].into_iter().find(|known| *known == language))
    }

    #[test]
    fn the_best_available_language_is_chosen() {
        for (lang, accept, found) in [
            (None, None, None),
            (Some("de"), None, Some("de")),
            (Some("de_AT"), Some("en"), Some("de")),
            (Some("pt-BR"), None, Some("pt-br")),
            (Some("pt"), None, None),
            (Some("fr"), Some("de-DE, en;q=0.5"), Some("de")),
            (None, Some("fr, en;q=0.3, de;q=0.7"), Some("de")),
            (None, Some("de;q=0, en"), Some("en")),
            (None, Some("*"), None),
            (None, Some("de;q=abc, en;q=0.1"), Some("en")),
            (Some("../../etc/passwd"), Some("en"), Some("en")),
        ] {
            assert_eq!(chosen(lang, accept), found, "{lang:?} {accept:?}");
        }
    }

    #[test]
    fn malformed_tags_are_rejected() {
        for text in ["", "d", "e/n", "..", "de.", "en\r\n-x", "de-", "de-123456789", "1234"] {
            assert_eq!(tag(text), None, "{text:?}");
        }
    }
}
