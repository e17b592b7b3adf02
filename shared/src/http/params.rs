//! Parses request parameters, leniently where deployed clients deviate, with helpful errors.
//!
//! All missing parameters are reported at once (`M_MISSING_PARAMS`); a wrong type is `M_INVALID_PARAM`, never a 500.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::http::error::MatrixError;

/// The largest number of pairs accepted in a query or form. No request of any Matrix API has a quarter as many, and
/// 16,000 fit into the 64 KiB that most routes accept.
pub const MAX_PAIRS: usize = 64;

/// The parameters of one request, and the errors found so far.
///
/// Each getter returns a placeholder if its parameter is missing or invalid; [`Params::finish`] reports the errors, so
/// the values must not be used before it succeeds.
#[derive(Debug)]
pub struct Params {
    values: Map<String, Value>,
    missing: Vec<&'static str>,
    invalid: Option<MatrixError>,
}

impl Params {
    /// From a JSON object, or from a query or form converted into one.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Self {
        Self { values, missing: Vec::new(), invalid: None }
    }

    /// Parses a query or form; see [`given_once`] for repeated names.
    ///
    /// # Errors
    ///
    /// 400 `M_INVALID_PARAM` if there are more than [`MAX_PAIRS`].
    pub fn from_pairs(text: &[u8]) -> Result<Self, MatrixError> {
        Ok(Self::new(given_once(pairs(text)?)))
    }

    /// A required string. NUL is refused: no Matrix parameter contains one, and PostgreSQL cannot store it.
    pub fn text(&mut self, name: &'static str) -> String {
        match self.values.remove(name) {
            None | Some(Value::Null) => self.lacks(name),
            Some(Value::String(text)) => self.no_nul(name, text),
            Some(_) => self.wrong(name, "must be a string"),
        }
    }

    /// An optional string; null counts as absent.
    pub fn optional_text(&mut self, name: &'static str) -> Option<String> {
        match self.values.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(self.no_nul(name, text)),
            Some(_) => Some(self.wrong(name, "must be a string")),
        }
    }

    /// A required integer; a string of digits is accepted, because matrix-js-sdk sends `"1"`.
    pub fn integer(&mut self, name: &'static str) -> i64 {
        let value = match self.values.remove(name) {
            None | Some(Value::Null) => return self.lacks(name),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        value.unwrap_or_else(|| self.wrong(name, "must be an integer"))
    }

    /// A required list of strings.
    pub fn texts(&mut self, name: &'static str) -> Vec<String> {
        let Some(value) = self.values.remove(name).filter(|value| !value.is_null()) else {
            return self.lacks(name);
        };
        let texts = match value {
            Value::Array(items) => items
                .into_iter()
                .map(|item| match item {
                    Value::String(text) if !text.contains('\0') => Some(text),
                    _ => None,
                })
                .collect(),
            _ => None,
        };
        texts.unwrap_or_else(|| self.wrong(name, "must be a list of strings"))
    }

    /// A required object, to be parsed like a request of its own.
    pub fn object(&mut self, name: &'static str) -> Map<String, Value> {
        match self.values.remove(name) {
            None | Some(Value::Null) => self.lacks(name),
            Some(Value::Object(object)) => object,
            Some(_) => self.wrong(name, "must be an object"),
        }
    }

    /// Reports the errors, if any: all missing parameters, or else the first invalid one.
    ///
    /// # Errors
    ///
    /// 400 `M_MISSING_PARAMS` or `M_INVALID_PARAM`.
    pub fn finish(self) -> Result<(), MatrixError> {
        if !self.missing.is_empty() {
            let names = self.missing.join(", ");
            return Err(MatrixError::bad_request("M_MISSING_PARAMS", format!("Missing parameters: {names}")));
        }
        self.invalid.map_or(Ok(()), Err)
    }

    fn no_nul(&mut self, name: &'static str, text: String) -> String {
        if text.contains('\0') {
            return self.wrong(name, "must not contain NUL");
        }
        text
    }

    fn lacks<T: Default>(&mut self, name: &'static str) -> T {
        self.missing.push(name);
        T::default()
    }

    fn wrong<T: Default>(&mut self, name: &'static str, must: &str) -> T {
        self.invalid.get_or_insert_with(|| MatrixError::invalid_param(name, must));
        T::default()
    }
}

/// The decoded pairs of a query or form. Bytes that are not UTF-8 become U+FFFD.
///
/// # Errors
///
/// 400 `M_INVALID_PARAM` if there are more than [`MAX_PAIRS`].
pub fn pairs(text: &[u8]) -> Result<Vec<(String, Value)>, MatrixError> {
    let mut pairs = Vec::new();
    for (name, value) in url::form_urlencoded::parse(text) {
        if pairs.len() == MAX_PAIRS {
            let text = format!("A request can have at most {MAX_PAIRS} parameters");
            return Err(MatrixError::bad_request("M_INVALID_PARAM", text));
        }
        pairs.push((name.into_owned(), Value::from(value.into_owned())));
    }
    Ok(pairs)
}

/// Parameters by name, dropping those given more than once: otherwise two parts of a program could each use a
/// different value.
#[must_use]
pub fn given_once(pairs: Vec<(String, Value)>) -> Map<String, Value> {
    let mut values = Map::new();
    let mut repeated = HashSet::new();
    for (name, value) in pairs {
        if repeated.contains(&name) {
            continue;
        }
        if values.insert(name.clone(), value).is_some() {
            values.remove(&name);
            repeated.insert(name);
        }
    }
    values
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn params(value: Value) -> Params {
        Params::new(value.as_object().unwrap().clone())
    }

    #[test]
    fn all_missing_parameters_are_named_at_once() {
        let mut params = params(json!({"b": 5, "c": null}));
        params.text("a");
        params.text("b");
        params.integer("c");
        let error = params.finish().unwrap_err();
        assert_eq!(error.errcode, "M_MISSING_PARAMS");
        assert_eq!(error.error, "Missing parameters: a, c");
    }

    #[test]
    fn a_wrong_type_is_an_invalid_parameter() {
        for (value, wrong) in [
            (json!({"text": 5, "integer": 1, "texts": []}), "`text` must be a string"),
            (json!({"text": "a\0", "integer": 1, "texts": []}), "`text` must not contain NUL"),
            (json!({"text": "", "integer": 1.5, "texts": []}), "`integer` must be an integer"),
            (json!({"text": "", "integer": 1e30, "texts": []}), "`integer` must be an integer"),
            (json!({"text": "", "integer": 1, "texts": [{}]}), "`texts` must be a list of strings"),
            (json!({"text": "", "integer": 1, "texts": "a"}), "`texts` must be a list of strings"),
        ] {
            let mut params = params(value);
            params.text("text");
            params.integer("integer");
            params.texts("texts");
            let error = params.finish().unwrap_err();
            assert_eq!((error.errcode, error.error.as_str()), ("M_INVALID_PARAM", wrong));
        }
    }

    #[test]
    fn a_send_attempt_may_be_a_string() {
        let mut params = params(json!({"send_attempt": "1"}));
        assert_eq!(params.integer("send_attempt"), 1);
        params.finish().unwrap();
    }

    #[test]
    fn a_query_parameter_that_is_given_twice_is_missing() {
        let mut params = Params::from_pairs(b"a=1&b=x%20y&a=2&a=3").unwrap();
        assert_eq!(params.text("b"), "x y");
        params.text("a");
        assert_eq!(params.finish().unwrap_err().error, "Missing parameters: a");
    }

    #[test]
    fn too_many_pairs_are_refused() {
        let text = |pairs: usize| (0..pairs).map(|number| format!("p{number}=1&")).collect::<String>();
        assert_eq!(pairs(text(MAX_PAIRS).as_bytes()).unwrap().len(), MAX_PAIRS);
        let error = Params::from_pairs(text(MAX_PAIRS + 1).as_bytes()).unwrap_err();
        assert_eq!((error.errcode, error.status.as_u16()), ("M_INVALID_PARAM", 400));
    }
}
