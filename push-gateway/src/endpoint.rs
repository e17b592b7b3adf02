//! Addresses that strangers choose, of web push and UnifiedPush: what one may look like before anything is asked of
//! it. Where it leads is the guard's to decide, at the connection (`waypost_shared::http_client`).

use url::Url;

use crate::{encoding::from_base64, encryption::Subscription, glob::Glob};

/// An endpoint that may be pushed to: https, without a user's name, and without a fragment, which is no server's.
pub(crate) fn parse(text: &str) -> Option<Url> {
    let mut endpoint = Url::parse(text).ok()?;
    let is_plain = endpoint.username().is_empty() && endpoint.password().is_none();
    if endpoint.scheme() != "https" || !endpoint.has_host() || !is_plain {
        return None;
    }
    endpoint.set_fragment(None);
    Some(endpoint)
}

/// Whether the host is one of those that the operator allows; no pattern allows all.
pub(crate) fn is_allowed(allowed: &[Glob], endpoint: &Url) -> bool {
    let host = endpoint.host_str().unwrap_or_default();
    // A name with its final dot is the same name.
    let host = host.strip_suffix('.').unwrap_or(host);
    allowed.is_empty() || allowed.iter().any(|pattern| pattern.matches(host))
}

/// The keys of a subscription, as clients write them. None when one is not what it has to be.
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
