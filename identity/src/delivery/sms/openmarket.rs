//! OpenMarket's gateway: version 4 of its "mobile terminate" API.

use bytes::Bytes;
use http::{
    HeaderValue, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::json;
use url::Url;

use super::{
    credentials::{basic, password},
    error::{SmsError, SmsSetupError, refuse},
};
use crate::config::sms::SmsConfig;

/// The sender of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Originator {
    kind: Kind,
    address: String,
}

/// The kind of sender; the values are OpenMarket's "type of number" (`ton`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// A full phone number.
    Long = 1,
    /// A short code.
    Short = 3,
    /// An alphanumeric name.
    Alpha = 5,
}

impl Originator {
    /// Parses `long:447700900000`, `short:12345` or `alpha:Matrix`.
    fn parse(text: &str) -> Option<Self> {
        let (kind, address) = text.trim().split_once(':')?;
        let kind = match kind {
            "long" => Kind::Long,
            "short" => Kind::Short,
            "alpha" => Kind::Alpha,
            _ => return None,
        };
        let digits = address.bytes().all(|byte| byte.is_ascii_digit());
        (!address.is_empty() && (kind == Kind::Alpha || digits)).then(|| Self { kind, address: address.to_owned() })
    }
}

/// OpenMarket as configured.
#[derive(Debug)]
pub(super) struct OpenMarket {
    url: String,
    credentials: Option<HeaderValue>,
    /// By calling code, or `default`.
    originators: Vec<(String, Vec<Originator>)>,
}

impl OpenMarket {
    /// Reads the password and the originators.
    pub(super) fn new(config: &SmsConfig) -> Result<Self, SmsSetupError> {
        refuse(problems(config))?;
        let password = password(config)?;
        let originators =
            config.openmarket.originators.iter().map(|(country, list)| {
                (country.clone(), list.iter().filter_map(|text| Originator::parse(text)).collect())
            });
        Ok(Self {
            url: config.openmarket.url.clone(),
            credentials: basic(config, password.as_ref()),
            originators: originators.collect(),
        })
    }

    /// Builds the request that sends `text` to the number `digits` (E.164 without the plus).
    pub(super) fn request(&self, digits: &str, calling_code: i32, text: &str) -> Result<Request<Bytes>, SmsError> {
        let originator = self.originator(digits, calling_code);
        let body = json!({"mobileTerminate": {
            "message": {"content": text, "type": "text"},
            "destination": {"address": digits},
            "source": {"ton": originator.kind as u8, "address": originator.address},
        }});
        let request = Request::post(self.url.as_str()).header(CONTENT_TYPE, "application/json");
        let mut request = request.body(Bytes::from(body.to_string()))?;
        if let Some(credentials) = &self.credentials {
            request.headers_mut().insert(AUTHORIZATION, credentials.clone());
        }
        Ok(request)
    }

    /// One of the country's senders, always the same for a given number, so that people recognise it.
    fn originator(&self, digits: &str, calling_code: i32) -> Originator {
        let of = |key: &str| self.originators.iter().find(|(known, list)| known == key && !list.is_empty());
        let sum: usize = digits.bytes().filter(u8::is_ascii_digit).map(|digit| usize::from(digit - b'0')).sum();
        of(&calling_code.to_string())
            .or_else(|| of("default"))
            .and_then(|(_, list)| list.get(sum % list.len()).cloned())
            .unwrap_or_else(|| Originator { kind: Kind::Alpha, address: "Matrix".to_owned() })
    }
}

/// The problems in `[sms.openmarket]`, each as a key below `sms` and a reason.
pub(super) fn problems(config: &SmsConfig) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let openmarket = &config.openmarket;
    if !Url::parse(&openmarket.url).is_ok_and(|url| matches!(url.scheme(), "http" | "https")) {
        problems.push(("openmarket.url".to_owned(), "must be an http or https URL".to_owned()));
    }
    if config.username.is_none() {
        problems.push(("username".to_owned(), "is required for OpenMarket".to_owned()));
    }
    for (country, list) in &openmarket.originators {
        let key = format!("openmarket.originators.{country}");
        if country != "default" && !(country.len() <= 3 && country.bytes().all(|byte| byte.is_ascii_digit())) {
            problems.push((key.clone(), "must be a calling code, such as 44, or default".to_owned()));
        }
        for (number, text) in list.iter().enumerate() {
            if Originator::parse(text).is_none() {
                let must = "must be \"long:\" or \"short:\" and digits, or \"alpha:\" and a name";
                problems.push((format!("{key}.{number}"), must.to_owned()));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sender(originators: &[(&str, &[&str])], digits: &str) -> (u8, String) {
        let originators = originators.iter().map(|(country, list)| {
            ((*country).to_owned(), list.iter().filter_map(|text| Originator::parse(text)).collect())
        });
        let openmarket = OpenMarket { url: String::new(), credentials: None, originators: originators.collect() };
        let originator = openmarket.originator(digits, 44);
        (originator.kind as u8, originator.address)
    }

    #[test]
    fn a_number_always_gets_the_same_sender() {
        let two: &[(&str, &[&str])] = &[("44", &["long:1", "short:2"]), ("default", &["alpha:Other"])];
        // 4+4+7+7+0+0+9+0+0+0+0+1 = 32, even; one more is odd.
        assert_eq!(sender(two, "447700900001"), (1, "1".to_owned()));
        assert_eq!(sender(two, "447700900002"), (3, "2".to_owned()));
        assert_eq!(
            sender(&[("49", &["long:1"]), ("default", &["alpha:Other"])], "447700900001"),
            (5, "Other".to_owned())
        );
        assert_eq!(sender(&[], "447700900001"), (5, "Matrix".to_owned()));
    }

    #[test]
    fn invalid_originators_are_refused() {
        for text in ["", "Matrix", "long:", "long:+44", "short:a", "other:1"] {
            assert_eq!(Originator::parse(text), None, "{text}");
        }
    }
}
