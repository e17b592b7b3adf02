//! Addresses that strangers choose, for web push and UnifiedPush: syntax checks before any request is made. Whether the
//! IP address behind one may be reached is decided when connecting (`waypost_shared::client`).

use url::Url;

use crate::{encoding::from_base64, encryption::Subscription, glob::Glob};

/// The longest endpoint in bytes. Those of push services have some hundred.
pub(crate) const MAX_BYTES: usize = 2048;

/// Parses an endpoint. It must be https and have no user info; a fragment is dropped, since servers never see it.
pub(crate) fn parse(text: &str) -> Option<Url> {
    let mut endpoint = Url::parse(text).ok()?;
    let is_plain = endpoint.username().is_empty() && endpoint.password().is_none();
    if endpoint.scheme() != "https" || !endpoint.has_host() || !is_plain {
        return None;
    }
    endpoint.set_fragment(None);
    Some(endpoint)
}

/// Whether the operator allows the endpoint's host. An empty list allows every host.
pub(crate) fn is_allowed(allowed: &[Glob], endpoint: &Url) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    // A trailing dot does not change the name.
    let host = host.strip_suffix('.').unwrap_or(host);
    allowed.is_empty() || allowed.iter().any(|pattern| pattern.matches(host))
}

/// Decodes the keys of a subscription. None if one is not base64 or has the wrong length.
pub(crate) fn subscription(p256dh: &str, auth: &str) -> Option<Subscription> {
    let p256dh = from_base64(p256dh)?.try_into().ok()?;
    let auth = from_base64(auth)?.try_into().ok()?;
    Some(Subscription { p256dh, auth })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_endpoint_is_https_and_nothing_else() {
        for (text, expected) in [
            ("https://push.example/up?id=1#x", Some("https://push.example/up?id=1")),
            ("https://push.example:8443/up", Some("https://push.example:8443/up")),
            ("http://push.example/up", None),
            ("https://user@push.example/up", None),
            ("https://user:pw@push.example/up", None),
            ("file:///etc/passwd", None),
            ("push.example/up", None),
            ("", None),
        ] {
            assert_eq!(parse(text).as_ref().map(Url::as_str), expected, "{text}");
        }
    }

    #[test]
    fn hosts_are_allowed_by_pattern() {
        let allowed = ["*.push.example", "a.example"].map(Glob::new);
        for (text, expected) in [
            ("https://eu.push.example/x", true),
            ("https://A.example./x", true),
            ("https://push.example/x", false),
            ("https://a.example.evil/x", false),
        ] {
            let endpoint = parse(text).unwrap();
            assert_eq!(is_allowed(&allowed, &endpoint), expected, "{text}");
            assert!(is_allowed(&[], &endpoint), "{text}");
        }
    }
}
