//! Arbitrary texts and notifications for property tests, from a generator with a fixed seed, so that failures can be
//! reproduced.

#![allow(clippy::unwrap_used)]

use serde_json::{Map, Value, json};

use crate::notification::{Notification, tests::notification};

/// Characters of every kind: one to four bytes long, escaped in JSON, combining, right to left.
const ALPHABET: &[char] = &[
    'a',
    'Z',
    '0',
    ' ',
    '"',
    '\\',
    '/',
    '\n',
    '\r',
    '\t',
    '\u{0}',
    '\u{1f}',
    '\u{7f}',
    'é',
    'ß',
    '\u{301}',
    'ا',
    'ש',
    '日',
    '語',
    '\u{200d}',
    '\u{fe0f}',
    '\u{2028}',
    '\u{feff}',
    '\u{fffd}',
    '\u{ffff}',
    '😀',
    '🏳',
    '🇩',
    '\u{10ffff}',
];

/// Event types with different texts, and one unknown type.
const TYPES: [&str; 6] =
    ["m.room.message", "m.room.encrypted", "m.call.invite", "m.room.member", "org.example.new", ""];

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 up to but not including `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound).unwrap()).unwrap()
    }

    /// True with a probability of one in `times`.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// Any character; half of them from [`ALPHABET`], which is likely to break things.
    fn character(&mut self) -> char {
        if self.once_in(2) {
            return ALPHABET[self.below(ALPHABET.len())];
        }
        loop {
            let number = u32::try_from(self.below(0x11_0000)).unwrap();
            if let Some(character) = char::from_u32(number) {
                return character;
            }
        }
    }

    /// Up to `most` characters.
    pub(crate) fn text(&mut self, most: usize) -> String {
        (0..self.below(most + 1)).map(|_| self.character()).collect()
    }

    /// A text that is usually short.
    fn odd_text(&mut self) -> String {
        let most = [0, 3, 30, 300, 2000][self.below(5)];
        self.text(most)
    }

    /// Any JSON value, nested at most `depth` levels.
    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 4 } else { 6 }) {
            0 => Value::Null,
            1 => Value::Bool(self.once_in(2)),
            2 => Value::from(self.below(1 << 53)),
            3 => Value::from(self.text(40)),
            4 => (0..self.below(3)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object(self.object(depth - 1)),
        }
    }

    /// An object with unknown keys.
    fn object(&mut self, depth: usize) -> Map<String, Value> {
        (0..self.below(4)).map(|number| (format!("x{number}{}", self.text(3)), self.value(depth))).collect()
    }

    /// A pusher's `default_payload`: usually like Element's, sometimes unexpected.
    fn default_payload(&mut self) -> Value {
        let mut payload = self.object(2);
        if self.once_in(2) {
            payload.insert("cs".to_owned(), self.text(30).into());
        }
        if self.once_in(3) {
            let alert = match self.below(3) {
                0 => self.odd_text().into(),
                1 => json!({"title": self.text(20), "body": self.odd_text(), "loc-args": [self.text(9), 5, null]}),
                _ => self.value(1),
            };
            payload.insert("aps".to_owned(), json!({"mutable-content": 1, "alert": alert}));
        }
        if self.once_in(8) {
            // More than any push may hold.
            payload.insert("big".to_owned(), "x".repeat(self.below(6000)).into());
        }
        Value::Object(payload)
    }

    fn content(&mut self) -> Value {
        let mut content = self.object(2);
        content.insert("msgtype".to_owned(), ["m.text", "m.emote", "m.image"][self.below(3)].into());
        if !self.once_in(4) {
            content.insert("body".to_owned(), self.odd_text().into());
        }
        if self.once_in(3) {
            content.insert("formatted_body".to_owned(), self.odd_text().into());
        }
        if self.once_in(4) {
            content.insert("ciphertext".to_owned(), "c".repeat(self.below(6000)).into());
            content.insert("session_id".to_owned(), "s".repeat(self.below(60)).into());
        }
        Value::Object(content)
    }

    /// A notification for one device, as a homeserver may send it; `data` is the pusher's.
    pub(crate) fn notification(&mut self, data: &Value) -> Notification {
        let mut value = self.object(1);
        for (key, sign) in [("event_id", '$'), ("room_id", '!'), ("sender", '@')] {
            if !self.once_in(8) {
                value.insert(key.to_owned(), format!("{sign}{}", self.text(60)).into());
            }
        }
        for key in ["sender_display_name", "room_name", "room_alias"] {
            if !self.once_in(3) {
                value.insert(key.to_owned(), self.odd_text().into());
            }
        }
        value.insert("type".to_owned(), TYPES[self.below(TYPES.len())].into());
        value.insert("membership".to_owned(), ["invite", "join"][self.below(2)].into());
        value.insert("user_is_target".to_owned(), self.once_in(2).into());
        value.insert("prio".to_owned(), ["high", "low", "urgent"][self.below(3)].into());
        if !self.once_in(4) {
            value.insert("content".to_owned(), self.content());
        }
        if self.once_in(5) {
            for (key, most) in [("ciphertext", 5000), ("ephemeral", 44), ("mac", 12)] {
                value.insert(key.to_owned(), "c".repeat(1 + self.below(most)).into());
            }
        }
        if !self.once_in(4) {
            value.insert("counts".to_owned(), json!({"unread": self.below(1 << 53), "missed_calls": self.below(3)}));
        }
        let mut data = data.clone();
        data["default_payload"] = self.default_payload();
        value.insert("devices".to_owned(), json!([{"app_id": "org.example", "pushkey": "k", "data": data}]));
        notification(Value::Object(value))
    }
}

/// Asserts that `cut` equals `whole`, except that texts at places where `may_be_cut` holds may be prefixes followed by
/// `mark`, or empty. A place looks like `.aps.alert.loc-args[]`.
pub(crate) fn assert_only_cut(whole: &Value, cut: &Value, place: &str, may_be_cut: &dyn Fn(&str) -> bool, mark: &str) {
    match (whole, cut) {
        (Value::Object(whole), Value::Object(cut)) => {
            let keys = |object: &Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(whole), keys(cut), "{place}");
            for (key, value) in whole {
                assert_only_cut(value, &cut[key], &format!("{place}.{key}"), may_be_cut, mark);
            }
        }
        (Value::Array(whole), Value::Array(cut)) => {
            assert_eq!(whole.len(), cut.len(), "{place}");
            for (whole, cut) in whole.iter().zip(cut) {
                assert_only_cut(whole, cut, &format!("{place}[]"), may_be_cut, mark);
            }
        }
        (Value::String(whole), Value::String(cut)) if whole != cut && may_be_cut(place) => {
            let kept = if cut.is_empty() { "" } else { cut.strip_suffix(mark).unwrap() };
            assert!(whole.starts_with(kept) && kept.len() < whole.len(), "{place}: {whole:?} {cut:?}");
        }
        (whole, cut) => assert_eq!(whole, cut, "{place}"),
    }
}

/// The size in bytes once every text that may be cut is empty, and how many such texts there are.
pub(crate) fn least(whole: &Value, may_be_cut: &dyn Fn(&str) -> bool) -> (usize, usize) {
    fn empty(value: &mut Value, place: &str, may_be_cut: &dyn Fn(&str) -> bool) -> usize {
        match value {
            Value::Object(object) => {
                object.iter_mut().map(|(key, value)| empty(value, &format!("{place}.{key}"), may_be_cut)).sum()
            }
            Value::Array(values) => {
                values.iter_mut().map(|value| empty(value, &format!("{place}[]"), may_be_cut)).sum()
            }
            Value::String(text) if may_be_cut(place) => {
                text.clear();
                1
            }
            _ => 0,
        }
    }
    let mut value = whole.clone();
    let texts = empty(&mut value, "", may_be_cut);
    (value.to_string().len(), texts)
}
