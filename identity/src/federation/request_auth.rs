//! Requests signed by a homeserver: the `X-Matrix` header, and the keys that verify it.
//!
//! Source: Server-Server API, "Request Authentication" and "Retrieving server keys".

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use http::{HeaderMap, header::AUTHORIZATION};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use waypost_shared::owner::{ByServer, Owners};

use crate::domain::signing;

const SCHEME: &str = "x-matrix";
/// Homeservers have a key or two; further signatures and keys are ignored.
const MAX_SIGNATURES: usize = 10;
/// Maximum time to trust keys, whatever their server says. The Server-Server API has 7 days, but these are for unbinds,
/// which are rare, and a stolen key that its homeserver has withdrawn must not unbind anybody.
const MAX_VALIDITY_MS: i64 = 60 * 60 * 1000;
/// How soon keys may be fetched again if a request names an unknown one.
const FETCH_AGAIN_MS: i64 = 60 * 1000;
/// Strangers choose the names, so their number is bounded.
const MAX_CACHED: usize = 10_000;

/// A parsed `Authorization: X-Matrix …` header.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct XMatrix {
    /// The server that signed.
    pub(crate) origin: String,
    /// The server that it was signed for; older servers omit it.
    pub(crate) destination: Option<String>,
    key: String,
    signature: String,
}

/// The X-Matrix headers of a request; those that do not parse are skipped.
pub(crate) fn x_matrix(headers: &HeaderMap) -> Vec<XMatrix> {
    let values = headers.get_all(AUTHORIZATION).iter().filter_map(|value| value.to_str().ok());
    values.filter_map(parse).take(MAX_SIGNATURES).collect()
}

/// Parses leniently: names in any case, values quoted or not (an unquoted `host:port` is not an HTTP token, but is
/// sent), spaces anywhere in between.
fn parse(value: &str) -> Option<XMatrix> {
    let (scheme, mut rest) = value.trim().split_once([' ', '\t'])?;
    if !scheme.eq_ignore_ascii_case(SCHEME) {
        return None;
    }
    let mut parameters: HashMap<String, String> = HashMap::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            break;
        }
        let (name, after) = rest.split_once('=')?;
        let (value, after) = parameter_value(after.trim_start())?;
        // A repeated parameter is ambiguous.
        if parameters.insert(name.trim().to_ascii_lowercase(), value).is_some() {
            return None;
        }
        rest = after;
    }
    Some(XMatrix {
        origin: parameters.remove("origin")?,
        destination: parameters.remove("destination"),
        key: parameters.remove("key")?,
        signature: parameters.remove("sig")?,
    })
}

/// Splits a value from what follows it.
fn parameter_value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return Some((text[..end].to_owned(), &text[end..]));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// A request whose signature is to be verified.
#[derive(Debug)]
pub(crate) struct SignedRequest<'a> {
    pub(crate) method: &'a str,
    /// Path and query.
    pub(crate) uri: &'a str,
    pub(crate) content: &'a Map<String, Value>,
    /// The names of this server; the request must have been signed for one of them.
    pub(crate) destinations: &'a [String],
    pub(crate) signatures: &'a [XMatrix],
}

impl SignedRequest<'_> {
    /// Whether `origin` made one of the signatures, with one of its keys, for one of the destinations.
    pub(super) fn holds(&self, origin: &str, keys: &ServerKeys) -> bool {
        // Signatures by unknown keys cost nothing, and each text is made once for all others.
        let of_origin = self.signatures.iter().filter(|header| header.origin == origin);
        let candidates: Vec<_> =
            of_origin.filter_map(|header| Some((keys.valid.get(&header.key)?, &header.signature))).collect();
        if candidates.is_empty() {
            return false;
        }
        // Synapse signs `destination_is`; the specification has `destination`.
        let names = ["destination_is", "destination"];
        let signed = self.destinations.iter().flat_map(|destination| names.map(|name| (name, destination)));
        signed.into_iter().any(|(name, destination)| {
            let Some(text) = signing::text_to_sign(&self.object(origin, name, destination)) else { return false };
            candidates.iter().any(|(public_key, signature)| signing::holds_text(public_key, signature, &text))
        })
    }

    fn object(&self, origin: &str, destination_name: &str, destination: &str) -> Map<String, Value> {
        let fields = [
            ("method", Value::from(self.method)),
            ("uri", Value::from(self.uri)),
            ("origin", Value::from(origin)),
            (destination_name, Value::from(destination)),
            ("content", Value::Object(self.content.clone())),
        ];
        fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
    }
}

/// The keys of a homeserver, by their IDs.
#[derive(Clone, Debug)]
pub(super) struct ServerKeys {
    valid: HashMap<String, String>,
    fetched_ms: i64,
    until_ms: i64,
}

impl ServerKeys {
    /// Reads the response of `server_name`: the keys that are valid now and have signed it. Its `old_verify_keys` are
    /// not valid for requests.
    pub(super) fn read(server_name: &str, answer: Value, now_ms: i64) -> Option<Self> {
        let Value::Object(answer) = answer else { return None };
        let until_ms = answer.get("valid_until_ts")?.as_i64()?;
        if answer.get("server_name")?.as_str()? != server_name || until_ms <= now_ms {
            return None;
        }
        let signatures = answer.get("signatures")?.get(server_name)?;
        let signed = |id: &str, key: &str| {
            let signature = signatures.get(id).and_then(Value::as_str);
            signature.is_some_and(|signature| signing::holds(key, signature, &answer))
        };
        let valid = answer.get("verify_keys")?.as_object()?.iter().filter_map(|(id, key)| {
            let key = key.get("key")?.as_str()?;
            (id.starts_with("ed25519:") && signed(id, key)).then(|| (id.clone(), key.to_owned()))
        });
        let valid = valid.take(MAX_SIGNATURES).collect();
        Some(Self { valid, fetched_ms: now_ms, until_ms: until_ms.min(now_ms.saturating_add(MAX_VALIDITY_MS)) })
    }
}

/// Held while a homeserver's keys are being fetched; contains when that last failed, in milliseconds since the epoch.
pub(super) type Fetching = tokio::sync::Mutex<Option<i64>>;

/// A cache of the keys of homeservers.
#[derive(Debug)]
pub(super) struct KeyCache {
    known: Mutex<ByServer<ServerKeys>>,
    /// Only entries that are in use are kept.
    fetching: Mutex<HashMap<String, Weak<Fetching>>>,
}

impl KeyCache {
    pub(super) fn new(owners: Owners) -> Self {
        Self { known: Mutex::new(ByServer::new(owners, MAX_CACHED)), fetching: Mutex::default() }
    }

    /// The cached keys of `origin`; `None` if they must be fetched because they are unknown, no longer valid, or do not
    /// include those of the request, which may be new.
    pub(super) fn get(&self, origin: &str, request: &SignedRequest<'_>, now_ms: i64) -> Option<ServerKeys> {
        let known = self.known.lock();
        let keys = known.get(origin).filter(|keys| keys.until_ms > now_ms)?;
        let named = request.signatures.iter().any(|header| keys.valid.contains_key(&header.key));
        let fresh = now_ms.saturating_sub(keys.fetched_ms) < FETCH_AGAIN_MS;
        (named || fresh).then(|| keys.clone())
    }

    /// The lock to hold while fetching the keys of `origin`.
    pub(super) fn fetching(&self, origin: &str) -> Arc<Fetching> {
        let mut fetching = self.fetching.lock();
        if let Some(held) = fetching.get(origin).and_then(Weak::upgrade) {
            return held;
        }
        fetching.retain(|_, held| held.strong_count() > 0);
        let held = Arc::default();
        fetching.insert(origin.to_owned(), Arc::downgrade(&held));
        held
    }

    /// Caches the keys of `origin`.
    pub(super) fn put(&self, origin: &str, keys: ServerKeys) {
        self.known.lock().insert(origin, keys);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;
    use ruma_common::canonical_json::try_from_json_map;
    use serde_json::json;
    use waypost_shared::clock::DAY_MS;

    use super::*;
    use crate::domain::signing::SigningKey;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(format!("ed25519:{seed}"), &[seed; 32])
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    fn signed(key: &SigningKey, value: Value) -> Value {
        serde_json::to_value(key.sign("hs.test", try_from_json_map(object(value)).unwrap())).unwrap()
    }

    /// The response of `hs.test`: key 1 is valid, key 2 old, key 3 listed although it did not sign.
    fn answer(valid_until_ms: i64) -> Value {
        let unsigned = json!({
            "server_name": "hs.test",
            "valid_until_ts": valid_until_ms,
            "verify_keys": {"ed25519:1": {"key": key(1).public_key()}, "ed25519:3": {"key": key(3).public_key()}},
            "old_verify_keys": {"ed25519:2": {"key": key(2).public_key(), "expired_ts": 1}},
        });
        signed(&key(1), unsigned)
    }

    fn header(key: &SigningKey, content: &Map<String, Value>, destination_name: &str, destination: &str) -> XMatrix {
        let mut request = json!({"method": "POST", "uri": "/x", "origin": "hs.test", "content": content});
        request[destination_name] = json!(destination);
        let signature = signed(key, request)["signatures"]["hs.test"][key.key_id()].as_str().unwrap().to_owned();
        XMatrix { origin: "hs.test".to_owned(), destination: None, key: key.key_id().to_owned(), signature }
    }

    fn holds(keys: &ServerKeys, content: &Map<String, Value>, signatures: &[XMatrix]) -> bool {
        let destinations = ["id.test".to_owned()];
        SignedRequest { method: "POST", uri: "/x", content, destinations: &destinations, signatures }
            .holds("hs.test", keys)
    }

    #[test]
    fn headers_are_read_as_they_are_written() {
        let parsed = |origin: &str, destination: Option<&str>| XMatrix {
            origin: origin.to_owned(),
            destination: destination.map(str::to_owned),
            key: "ed25519:a".to_owned(),
            signature: "AB+/".to_owned(),
        };
        for (value, expected) in [
            (
                r#"X-Matrix origin="hs.test",destination="id.test",key="ed25519:a",sig="AB+/""#,
                Some(parsed("hs.test", Some("id.test"))),
            ),
            ("X-Matrix origin=hs.test:8448,key=ed25519:a,sig=AB+/", Some(parsed("hs.test:8448", None))),
            (r#"x-matrix  Origin = "hs.test" , key="ed25519:a", sig="AB+/" "#, Some(parsed("hs.test", None))),
            (r#"X-Matrix origin="hs\.test",key="ed25519:a",sig="AB+/",new="x""#, Some(parsed("hs.test", None))),
            (r#"X-Matrix origin="hs.test",key="ed25519:a""#, None),
            (r#"X-Matrix origin="a",origin="b",key="ed25519:a",sig="AB+/""#, None),
            (r#"X-Matrix origin="hs.test"#, None),
            ("X-Matrix", None),
            ("X-Matrix origin", None),
            ("Bearer abc", None),
        ] {
            assert_eq!(parse(value), expected, "{value}");
        }
        let mut headers = HeaderMap::new();
        for value in ["Bearer abc", "X-Matrix origin=a,key=b,sig=c", "X-Matrix origin=a,key=d,sig=e"] {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        assert_eq!(x_matrix(&headers).len(), 2);
    }

    #[test]
    fn a_signature_holds_for_exactly_what_was_signed() {
        let keys = ServerKeys::read("hs.test", answer(NOW_MS + DAY_MS), NOW_MS).unwrap();
        let content = object(json!({"mxid": "@alice:hs.test"}));
        for name in ["destination_is", "destination"] {
            let good = header(&key(1), &content, name, "id.test");
            assert!(holds(&keys, &content, std::slice::from_ref(&good)), "{name}");
            let wrong = XMatrix { signature: "AAAA".to_owned(), ..good.clone() };
            assert!(holds(&keys, &content, &[wrong.clone(), good.clone()]), "one of several is enough");
            assert!(!holds(&keys, &content, &[wrong]));
            assert!(!holds(&keys, &object(json!({"mxid": "@bob:hs.test"})), std::slice::from_ref(&good)));
            assert!(!holds(&keys, &content, &[XMatrix { origin: "evil.test".to_owned(), ..good }]));
            assert!(!holds(&keys, &content, &[header(&key(1), &content, name, "other.test")]));
            assert!(!holds(&keys, &content, &[header(&key(2), &content, name, "id.test")]), "an old key");
            assert!(
                !holds(&keys, &content, &[header(&key(3), &content, name, "id.test")]),
                "a key that did not sign the response"
            );
        }
        assert!(!holds(&keys, &content, &[header(&key(1), &content, "to", "id.test")]));
    }

    #[test]
    fn keys_are_trusted_until_they_expire_and_at_most_an_hour() {
        assert!(ServerKeys::read("hs.test", answer(NOW_MS), NOW_MS).is_none());
        assert!(ServerKeys::read("other.test", answer(NOW_MS + DAY_MS), NOW_MS).is_none());
        const MINUTE_MS: i64 = 60 * 1000;
        for (valid_for_ms, believed_ms) in [(MINUTE_MS, MINUTE_MS), (100 * DAY_MS, 60 * MINUTE_MS)] {
            let keys = ServerKeys::read("hs.test", answer(NOW_MS + valid_for_ms), NOW_MS).unwrap();
            assert_eq!(keys.until_ms, NOW_MS + believed_ms);
        }
    }

    #[test]
    fn an_unknown_key_is_fetched_at_most_once_a_minute() {
        let cache = KeyCache::new(Owners::default());
        let keys = ServerKeys::read("hs.test", answer(NOW_MS + DAY_MS), NOW_MS).unwrap();
        cache.put("hs.test", keys);
        let content = Map::new();
        let cached = |key_number: u8, now_ms: i64| {
            let signatures = [header(&key(key_number), &content, "destination", "id.test")];
            let request = SignedRequest {
                method: "POST",
                uri: "/x",
                content: &content,
                destinations: &[],
                signatures: &signatures,
            };
            cache.get("hs.test", &request, now_ms).is_some()
        };
        assert!(cached(1, NOW_MS + FETCH_AGAIN_MS) && cached(1, NOW_MS + MAX_VALIDITY_MS - 1));
        assert!(!cached(1, NOW_MS + MAX_VALIDITY_MS), "no longer valid");
        assert!(cached(9, NOW_MS + FETCH_AGAIN_MS - 1));
        assert!(!cached(9, NOW_MS + FETCH_AGAIN_MS));
    }
}
