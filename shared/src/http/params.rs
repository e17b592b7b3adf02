//! Reading the parameters of a request, leniently where deployed clients differ, with errors that help.
//!
//! A request names all parameters that it lacks at once (`M_MISSING_PARAMS`); a wrong type is `M_INVALID_PARAM`
//! and never a 500.

use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::http::error::MatrixError;

/// Pairs of a query or a form that are read. No request of any Matrix API has a quarter as many, and strangers can
/// send 16,000 in the 64 KiB that most routes take.
pub const MAX_PAIRS: usize = 64;

/// The parameters of one request, and what was found wrong with them so far.
///
/// Each reader returns a stand-in when its parameter is missing or wrong; [`Params::finish`] says what was, so
/// nothing may be done with the values before it.
#[derive(Debug)]
pub struct Params {
    values: Map<String, Value>,
    missing: Vec<&'static str>,
    invalid: Option<MatrixError>,
}

impl Params {
    /// Reads from a JSON object, or from a form or a query turned into one.
    #[must_use]
    pub fn new(values: Map<String, Value>) -> Self {
        Self { values, missing: Vec::new(), invalid: None }
    }

    /// Reads the pairs of a query or a form; see [`given_once`] for names that repeat.
    ///
    /// # Errors
    ///
    /// 400 `M_INVALID_PARAM` for more than [`MAX_PAIRS`].
    pub fn from_pairs(text: &[u8]) -> Result<Self, MatrixError> {
        Ok(Self::new(given_once(pairs(text)?)))
    }

    /// A text that must be there. NUL is refused: no Matrix parameter holds one and PostgreSQL stores none.
    pub fn text(&mut self, name: &'static str) -> String {
        match self.values.remove(name) {
            None | Some(Value::Null) => self.lacks(name),
            Some(Value::String(text)) => self.no_nul(name, text),
            Some(_) => self.wrong(name, "must be a string"),
        }
    }

    /// A text that may be left out; null counts as left out.
    pub fn optional_text(&mut self, name: &'static str) -> Option<String> {
        match self.values.remove(name) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(self.no_nul(name, text)),
            Some(_) => Some(self.wrong(name, "must be a string")),
        }
    }

    /// A whole number that must be there; a string of digits counts, since matrix-js-sdk sends `"1"`.
    pub fn integer(&mut self, name: &'static str) -> i64 {
        let value = match self.values.remove(name) {
            None | Some(Value::Null) => return self.lacks(name),
            Some(Value::Number(number)) => number.as_i64(),
            Some(Value::String(text)) => text.trim().parse().ok(),
            Some(_) => None,
        };
        value.unwrap_or_else(|| self.wrong(name, "must be an integer"))
    }

    /// A list of texts that must be there.
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

    /// An object that must be there, to be read like a request of its own.
    pub fn object(&mut self, name: &'static str) -> Map<String, Value> {
        match self.values.remove(name) {
            None | Some(Value::Null) => self.lacks(name),
            Some(Value::Object(object)) => object,
            Some(_) => self.wrong(name, "must be an object"),
        }
    }

    /// Says what was wrong, if anything: first all that is missing, then the first that has the wrong type.
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

/// The pairs of a query or a form, decoded. What is not UTF-8 comes as U+FFFD.
///
/// # Errors
///
/// 400 `M_INVALID_PARAM` for more than [`MAX_PAIRS`].
pub fn pairs(text: &[u8]) -> Result<Vec<(String, Value)>, MatrixError> {
    let mut pairs = Vec::new();
    for (name, value) in url::form_urlencoded::parse(text) {
        if pairs.len() == MAX_PAIRS {
            let text = format!("A request takes at most {MAX_PAIRS} parameters");
            return Err(MatrixError::bad_request("M_INVALID_PARAM", text));
        }
        pairs.push((name.into_owned(), Value::from(value.into_owned())));
    }
    Ok(pairs)
}

/// Parameters by name, without those that are given twice: two parts of a program could otherwise each believe another
/// value.
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
    fn all_that_is_missing_is_named_at_once() {
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
    fn only_so_many_pairs_are_read() {
        let text = |pairs: usize| (0..pairs).map(|number| format!("p{number}=1&")).collect::<String>();
        assert_eq!(pairs(text(MAX_PAIRS).as_bytes()).unwrap().len(), MAX_PAIRS);
        let error = Params::from_pairs(text(MAX_PAIRS + 1).as_bytes()).unwrap_err();
        assert_eq!((error.errcode, error.status.as_u16()), ("M_INVALID_PARAM", 400));
    }
}
