//! What mails and pages say about people: texts that strangers choose, made safe to show.
//!
//! Everything that a stranger may have chosen goes through here: display names, names of rooms, and Matrix IDs, whose
//! localpart is whatever a homeserver gives out, which may be the stranger's own.

use icu_normalizer::ComposingNormalizer;
use icu_properties::{CodePointSetData, props::DefaultIgnorableCodePoint};

use waypost_shared::owner::is_top_level_domain;

use super::mxid::Mxid;

/// The longest name of a person or a localpart, in characters: room for a name, not for a message.
pub(crate) const MAX_PERSON: usize = 20;
/// The longest name of a room, in characters.
pub(crate) const MAX_ROOM: usize = 30;
/// The longest server name, in characters. Its end says whose it is.
const MAX_SERVER: usize = 50;
/// Marks an omission.
const LEFT_OUT: &str = "…";
/// Digits from which on a number may be meant to be called.
const PHONE_DIGITS: usize = 7;

/// Characters that read as a dot between two labels, also after NFKC: full stops of other scripts, which separate labels
/// (RFC 3490, section 3.1), and look-alikes (Unicode, confusables).
const DOTS: [char; 15] = [
    '.',
    '\u{b7}',
    '\u{387}',
    '\u{660}',
    '\u{6d4}',
    '\u{6f0}',
    '\u{701}',
    '\u{702}',
    '\u{2027}',
    '\u{3002}',
    '\u{30fb}',
    '\u{a4f8}',
    '\u{a60e}',
    '\u{10a50}',
    '\u{1d16d}',
];

/// What mail programs make links of.
const LINK_STARTS: [&str; 12] =
    ["://", "//", "\\\\", "www.", "mailto:", "tel:", "sms:", "sip:", "data:", "javascript:", "matrix:", "xmpp:"];

/// A name as it may be shown: a single line of at most `most` characters, without anything that could be taken for a
/// link, an address or a phone number. None if nothing is left.
pub(crate) fn name(text: &str, most: usize) -> Option<String> {
    let plain = plain(text);
    let words = plain.split_whitespace().map(|word| if is_link(word) { LEFT_OUT } else { word });
    let name = without_numbers(&words.collect::<Vec<_>>().join(" "));
    if !name.chars().any(char::is_alphanumeric) && !name.chars().any(is_symbol) {
        return None;
    }
    if name.chars().count() <= most {
        return Some(name);
    }
    let begin: String = name.chars().take(most.saturating_sub(1)).collect();
    Some(format!("{}{LEFT_OUT}", begin.trim_end()))
}

/// A Matrix ID as it may be shown. A localpart that could be taken for something else is left out.
pub(crate) fn mxid(mxid: &Mxid) -> String {
    let localpart = mxid.as_str().strip_prefix('@').and_then(|rest| rest.split_once(':')).map_or("", |(part, _)| part);
    // Dots are common in localparts (`alice.smith`). Mail programs make a link of one only before a top-level domain.
    let undotted = localpart.replace('.', "_");
    let is_plain = name(&undotted, MAX_PERSON).is_some_and(|shown| shown == undotted)
        && !starts_link(localpart)
        && !has_top_level_domain(localpart);
    format!("@{}:{}", if is_plain { localpart } else { LEFT_OUT }, server(mxid))
}

/// Whether a label after a dot, or its beginning, is a top-level domain, or a number as in an IP address.
fn has_top_level_domain(localpart: &str) -> bool {
    localpart.split('.').skip(1).any(|label| {
        let begin = label.split(|c: char| !c.is_ascii_alphanumeric()).next().unwrap_or_default();
        begin.bytes().all(|byte| byte.is_ascii_digit()) || is_top_level_domain(begin)
    })
}

/// The server of a Matrix ID as it may be shown. The name is verified, but a sub-domain may say anything.
pub(crate) fn server(mxid: &Mxid) -> String {
    let name = mxid.server_name();
    let Some((from, _)) = name.char_indices().nth_back(MAX_SERVER - 1) else { return name.to_owned() };
    if from == 0 { name.to_owned() } else { format!("{LEFT_OUT}{}", &name[from..]) }
}

/// Drops what cannot be seen, and makes one of what looks the same (NFKC).
fn plain(text: &str) -> String {
    let ignorable = CodePointSetData::new::<DefaultIgnorableCodePoint>();
    // These have no ink either: a Braille pattern without dots, a musical note without a head.
    let is_blank = |c: char| matches!(c, '\u{2800}' | '\u{1d159}');
    let visible: String = text.chars().filter(|c| !ignorable.contains(*c) && !is_blank(*c)).collect();
    let normal = ComposingNormalizer::new_nfkc().normalize(&visible).into_owned();
    // NFKC makes no new ones of these.
    normal.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Whether a word could be taken for a link or an address.
fn is_link(word: &str) -> bool {
    if starts_link(word) || word.trim_matches(|c: char| !c.is_alphanumeric()).contains('@') {
        return true;
    }
    let chars: Vec<char> = word.chars().collect();
    chars.windows(3).enumerate().any(|(at, three)| {
        let [before, dot, after] = [three[0], three[1], three[2]];
        if !DOTS.contains(&dot) {
            return false;
        }
        let is_address = before.is_numeric() && after.is_numeric();
        // Initials have a single letter between two dots.
        let is_label = chars.get(at + 3).is_some_and(|next| next.is_alphanumeric() || *next == '-');
        is_address || before.is_alphanumeric() && after.is_alphanumeric() && is_label
    })
}

fn starts_link(text: &str) -> bool {
    let lower = text.to_lowercase();
    LINK_STARTS.iter().any(|start| lower.contains(start))
}

/// Leaves out what could be a phone number: digits of any script, and what people write between them.
fn without_numbers(text: &str) -> String {
    let is_between =
        |c: char| matches!(c, ' ' | '+' | '-' | '.' | '/' | '(' | ')' | ',' | '\u{2010}'..='\u{2015}' | '\u{2212}');
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(begin) = rest.find(|c: char| c.is_numeric() || c == '+') {
        let (before, number) = rest.split_at(begin);
        let end = number.find(|c: char| !c.is_numeric() && !is_between(c)).unwrap_or(number.len());
        let (number, after) = number.split_at(end);
        shown.push_str(before);
        if number.chars().filter(|c| c.is_numeric()).count() >= PHONE_DIGITS {
            shown.push_str(LEFT_OUT);
            if number.ends_with(' ') {
                shown.push(' ');
            }
        } else {
            shown.push_str(number);
        }
        rest = after;
    }
    shown.push_str(rest);
    shown
}

/// Whether a character by itself is something to be called by, such as an emoji.
fn is_symbol(c: char) -> bool {
    !c.is_whitespace() && !c.is_ascii() && !LEFT_OUT.contains(c) && !DOTS.contains(&c)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_name_is_one_short_line() {
        for (text, shown) in [
            ("Bob Smith", Some("Bob Smith")),
            ("Bob\r\nBcc: eve", Some("Bob Bcc: eve")),
            ("Zoë", Some("Zoë")),
            ("Zoe\u{308}", Some("Zoë")),
            ("山田太郎", Some("山田太郎")),
            ("فرشته", Some("فرشته")),
            ("🦊", Some("🦊")),
            ("J. R. R. Tolkien", Some("J. R. R. Tolkien")),
            ("J.R.R. Tolkien", Some("J.R.R. Tolkien")),
            ("Room 101", Some("Room 101")),
            ("a\u{2028}b", Some("a b")),
            ("an unusually long display name", Some("an unusually long d…")),
            // NFKC makes eighteen letters of one.
            ("\u{fdfa}\u{fdfa}", Some("صلى الله عليه وسلمص…")),
        ] {
            assert_eq!(name(text, MAX_PERSON).as_deref(), shown, "{text:?}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_seen_is_none() {
        for text in [
            "",
            "  ",
            "\u{3164}",
            "\u{115f}\u{1160}",
            "\u{ffa0}",
            "\u{2800}",
            "\u{200d}",
            "\u{e0061}",
            "\u{1d159}",
            "...",
            "-",
            "…",
        ] {
            assert_eq!(name(text, MAX_PERSON), None, "{text:?}");
        }
    }

    #[test]
    fn what_could_be_taken_for_a_link_or_an_address_is_left_out() {
        for text in [
            "https://evil",
            "hxxp://evil",
            "//evil",
            "\\\\evil",
            "WWW.evil",
            "evil.test",
            "evil.test/x",
            "evil.x1",
            "evil.xn--p1ai",
            "evil．test",
            "evil\u{fe52}test",
            "evil\u{6d4}com",
            "evil\u{701}com",
            "evil。com",
            "evil\u{ff61}com",
            "evil\u{a4f8}com",
            "evil\u{660}com",
            "evil.\u{fe0f}com",
            "evil.\u{34f}com",
            "evil.c\u{200d}om",
            "ev\u{ad}il.com",
            "1.2.3.4/login",
            "1.2.3.4",
            "١.٢.٣.٤",
            "mailto:a",
            "TEL:123",
            "javascript:x",
            "ceo@bank",
            "ceo＠bank",
            // One letter that is "a.m." after NFKC, and one that is "c/o".
            "evil\u{33c2}om",
        ] {
            assert_eq!(name(text, MAX_PERSON), None, "{text:?}");
            assert_eq!(name(&format!("Win {text} now"), MAX_ROOM).as_deref(), Some("Win … now"), "{text:?}");
        }
    }

    #[test]
    fn phone_numbers_are_left_out_and_other_numbers_are_not() {
        for (text, shown) in [
            ("call +1-900-555-0199 now", "call … now"),
            ("call +1 (900) 555 0199", "call …"),
            ("0900/5550199", "…"),
            ("call １９００５５５０１９９ now", "call … now"),
            ("call ٠٩٠٠٥٥٥٠١٩٩", "call …"),
            ("1 9 0 0 5 5 5", "…"),
            ("Class of 2026", "Class of 2026"),
            ("Building 7, floor 3", "Building 7, floor 3"),
            ("C++", "C++"),
        ] {
            let shown = Some(shown).filter(|shown| *shown != LEFT_OUT);
            assert_eq!(name(text, MAX_ROOM).as_deref(), shown, "{text:?}");
        }
    }

    #[test]
    fn a_localpart_that_could_mislead_is_left_out() {
        let long = format!("@bob:{}.hs.test", "a".repeat(60));
        for (id, shown) in [
            ("@bob:hs.test", "@bob:hs.test"),
            ("@b_o-b=:hs.test:8448", "@b_o-b=:hs.test:8448"),
            ("@alice.smith:hs.test", "@alice.smith:hs.test"),
            ("@alice.smith.name:hs.test", "@…:hs.test"),
            ("@paypal.com-login:hs.test", "@…:hs.test"),
            ("@1.2.3.4:hs.test", "@…:hs.test"),
            ("@www.evil.test/x:hs.test", "@…:hs.test"),
            ("@login.bank-of-example.com:hs.test", "@…:hs.test"),
            ("@paypal.com:hs.test", "@…:hs.test"),
            ("@call-1-900-555-0199:hs.test", "@…:hs.test"),
            ("@your-account-is-locked-now:hs.test", "@…:hs.test"),
            ("@bob\r\nHello:hs.test", "@…:hs.test"),
            ("@bob the builder:hs.test", "@bob the builder:hs.test"),
            ("@\u{3164}:hs.test", "@…:hs.test"),
            ("@b\u{200b}ob:hs.test", "@…:hs.test"),
            (&long, &format!("@bob:…{}.hs.test", "a".repeat(42))),
        ] {
            assert_eq!(mxid(&Mxid::stored(id).unwrap()), shown, "{id:?}");
        }
    }
}
