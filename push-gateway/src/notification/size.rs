//! Limits on what is kept of a request while its pushes are in flight.
//!
//! A parsed list or object takes some thirty times the bytes of its JSON if its values are short, and it lives until all
//! push services have answered. Texts take what they took in the body, which has a limit of its own.

use serde_json::{Map, Value};

/// The most that is kept of a notification, or of the data of one pusher: the largest event has 65,536 bytes, and few
/// have more than a hundred values.
const MOST: Size = Size { values: 4096, bytes: 65_536 };

/// The size of a JSON value.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    /// Values, at any depth.
    values: usize,
    /// Bytes of texts and keys.
    bytes: usize,
}

/// Texts are cut to this many bytes where that helps: no push service takes a message of more, so none is cut shorter
/// than it would be anyway, and a ciphertext that was cut still does not fit.
const LONGEST_TEXT: usize = 5120;

/// Cuts long texts in a value.
pub(super) fn shorten(value: &mut Value) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => {
            text.truncate(text.floor_char_boundary(LONGEST_TEXT));
            text.shrink_to_fit();
        }
        Value::Array(values) => values.iter_mut().for_each(shorten),
        Value::Object(object) => object.values_mut().for_each(shorten),
    }
}

/// Whether an event's content could be one: see [`MOST`].
pub(super) fn value_fits(value: &Value) -> bool {
    take(&mut { MOST }, value)
}

/// Whether an object is no larger than [`MOST`].
pub(super) fn object_fits(object: &Map<String, Value>) -> bool {
    take_object(&mut { MOST }, object)
}

/// Takes a value from what is left; false if it is more. The parser has limited the depth.
fn take(left: &mut Size, value: &Value) -> bool {
    let Some(values) = left.values.checked_sub(1) else { return false };
    left.values = values;
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => take_text(left, text),
        Value::Array(values) => values.iter().all(|value| take(left, value)),
        Value::Object(object) => take_object(left, object),
    }
}

fn take_object(left: &mut Size, object: &Map<String, Value>) -> bool {
    object.iter().all(|(key, value)| take_text(left, key) && take(left, value))
}

fn take_text(left: &mut Size, text: &str) -> bool {
    let bytes = left.bytes.checked_sub(text.len());
    left.bytes = bytes.unwrap_or_default();
    bytes.is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let mut value = json!({"a": [format!("x{}", "é".repeat(4096)), "x".repeat(5120), 1]});
        shorten(&mut value);
        assert_eq!(value, json!({"a": [format!("x{}", "é".repeat(2559)), "x".repeat(5120), 1]}));
    }

    #[test]
    fn values_and_texts_are_counted_at_any_depth() {
        let numbers = |count: usize| json!({"a": {"b": vec![1; count]}});
        // Two objects and the list count too.
        assert!(value_fits(&numbers(4093)) && !value_fits(&numbers(4094)));
        let text = |bytes: usize| json!({"key": [{"a": "x".repeat(bytes)}]});
        assert!(value_fits(&text(65_532)) && !value_fits(&text(65_533)));
        let keys = |count: usize| (0..count).map(|number| (format!("{number:04}"), Value::Null)).collect::<Map<_, _>>();
        assert!(object_fits(&keys(4096)) && !object_fits(&keys(4097)));
        assert!(value_fits(&Value::Null));
    }
}
