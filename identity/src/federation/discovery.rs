//! Server discovery: from a server name to the place to connect to.
//!
//! Source: Server-Server API, "Resolving server names". The steps, in order: an IP literal; a port; delegation by
//! `.well-known/matrix/server`; SRV `_matrix-fed._tcp`, then `_matrix._tcp`; port 8448.

use std::time::Duration;

use bytes::Bytes;
use http::{
    HeaderMap, Request, Uri,
    header::{CACHE_CONTROL, LOCATION},
};
use parking_lot::Mutex;
use serde_json::Value;
use waypost_shared::{
    client::{CallLimits, HttpClient, resolver::Resolver},
    clock::{Clock, millis},
    owner::{ByServer, Owners},
};

use crate::domain::server_name::{DEFAULT_PORT, ServerName};

use super::destination::Destination;

/// A .well-known file is a line; 50 KiB is what other servers allow.
const WELL_KNOWN_LIMITS: CallLimits = CallLimits { timeout: Duration::from_secs(10), max_body: 50 * 1024 };
const MAX_REDIRECTS: usize = 3;
/// How long a delegation is cached if the server does not say (Server-Server API: 24 hours, at most 48).
const DEFAULT_CACHE: Duration = Duration::from_secs(24 * 60 * 60);
const MAX_CACHE: Duration = Duration::from_secs(48 * 60 * 60);
/// How long the absence of a delegation is cached (Server-Server API: up to an hour).
const FAILURE_CACHE: Duration = Duration::from_secs(60 * 60);
/// Strangers choose the names, so their number is bounded.
const MAX_CACHED: usize = 10_000;

/// Finds homeservers. Caches delegations; DNS caches SRV records.
pub(super) struct Discovery {
    well_known: HttpClient,
    resolver: Resolver,
    clock: Clock,
    delegations: Mutex<ByServer<Delegation>>,
}

#[derive(Clone, Debug)]
struct Delegation {
    to: Option<ServerName>,
    until_ms: i64,
}

impl Discovery {
    /// `well_known` must connect to public addresses only, since strangers choose the server names.
    pub(super) fn new(well_known: HttpClient, resolver: Resolver, owners: Owners, clock: Clock) -> Self {
        Self { well_known, resolver, clock, delegations: Mutex::new(ByServer::new(owners, MAX_CACHED)) }
    }

    /// Where to connect for `name`, without checking that anything answers there.
    pub(super) async fn find(&self, name: &ServerName) -> Destination {
        if let Some(direct) = direct(name) {
            return direct;
        }
        let delegated = self.delegated(name).await;
        let name = delegated.as_ref().unwrap_or(name);
        if let Some(direct) = direct(name) {
            return direct;
        }
        for service in ["_matrix-fed._tcp", "_matrix._tcp"] {
            // A failed SRV lookup counts as no record, so that the default port is tried.
            let found = self.resolver.srv(&format!("{service}.{}", name.host())).await.unwrap_or_default();
            if !found.is_empty() {
                let targets = found.into_iter().map(|target| (target.host, target.port)).collect();
                return Destination { authority: name.as_str().to_owned(), targets };
            }
        }
        at(name, DEFAULT_PORT)
    }

    async fn delegated(&self, name: &ServerName) -> Option<ServerName> {
        let now_ms = self.clock.now_ms();
        if let Some(known) = self.cached(name, now_ms) {
            return known.to;
        }
        let found = self.fetch(name).await;
        let lives = found.as_ref().map_or(FAILURE_CACHE, |(_, lives)| *lives);
        let to = found.map(|(to, _)| to);
        let mut delegations = self.delegations.lock();
        let until_ms = now_ms.saturating_add(millis(lives));
        delegations.insert(name.as_str(), Delegation { to: to.clone(), until_ms });
        to
    }

    fn cached(&self, name: &ServerName, now_ms: i64) -> Option<Delegation> {
        let delegations = self.delegations.lock();
        delegations.get(name.as_str()).filter(|known| known.until_ms > now_ms).cloned()
    }

    async fn fetch(&self, name: &ServerName) -> Option<(ServerName, Duration)> {
        let mut uri: Uri = format!("https://{}/.well-known/matrix/server", name.host()).parse().ok()?;
        for _ in 0..=MAX_REDIRECTS {
            let request = Request::get(uri.clone()).body(Bytes::new()).ok()?;
            let answer = self.well_known.send(request, WELL_KNOWN_LIMITS).await.ok()?;
            if answer.status().is_redirection() {
                uri = redirected(&uri, answer.headers())?;
                continue;
            }
            if answer.status() != 200 {
                return None;
            }
            let body: Value = serde_json::from_slice(answer.body()).ok()?;
            let to = ServerName::parse(body.get("m.server")?.as_str()?).ok()?;
            return Some((to, lives(answer.headers())));
        }
        None
    }
}

/// The first two steps: what needs no discovery.
fn direct(name: &ServerName) -> Option<Destination> {
    match (name.literal(), name.port()) {
        (_, Some(port)) => Some(at(name, port)),
        (Some(_), None) => Some(at(name, DEFAULT_PORT)),
        (None, None) => None,
    }
}

fn at(name: &ServerName, port: u16) -> Destination {
    Destination { authority: name.as_str().to_owned(), targets: vec![(name.host().to_owned(), port)] }
}

/// The target of a redirect; https only, so that nobody on the way can choose the server.
fn redirected(from: &Uri, headers: &HeaderMap) -> Option<Uri> {
    let location = headers.get(LOCATION)?.to_str().ok()?;
    let to = url::Url::parse(&from.to_string()).ok()?.join(location).ok()?;
    (to.scheme() == "https").then(|| to.as_str().parse().ok())?
}

fn lives(headers: &HeaderMap) -> Duration {
    let directives = headers.get(CACHE_CONTROL).and_then(|value| value.to_str().ok()).unwrap_or_default();
    for directive in directives.split(',').map(str::trim) {
        if directive.eq_ignore_ascii_case("no-store") || directive.eq_ignore_ascii_case("no-cache") {
            return Duration::ZERO;
        }
        if let Some(seconds) = directive.strip_prefix("max-age=").and_then(|seconds| seconds.parse().ok()) {
            return Duration::from_secs(seconds).min(MAX_CACHE);
        }
    }
    DEFAULT_CACHE
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::HeaderValue;

    use super::*;

    #[test]
    fn literals_and_ports_need_no_discovery() {
        for (name, host, port) in [
            ("1.2.3.4", "1.2.3.4", 8448),
            ("[::1]", "[::1]", 8448),
            ("1.2.3.4:443", "1.2.3.4", 443),
            ("hs.test:443", "hs.test", 443),
        ] {
            let expected = Destination { authority: name.to_owned(), targets: vec![(host.to_owned(), port)] };
            assert_eq!(direct(&ServerName::parse(name).unwrap()), Some(expected));
        }
        assert_eq!(direct(&ServerName::parse("hs.test").unwrap()), None);
    }

    #[test]
    fn a_delegation_is_cached_for_its_max_age_and_at_most_two_days() {
        for (value, seconds) in
            [("max-age=60", 60), ("public, max-age=999999", 172_800), ("no-store", 0), ("public", 86_400)]
        {
            let headers = HeaderMap::from_iter([(CACHE_CONTROL, HeaderValue::from_static(value))]);
            assert_eq!(lives(&headers), Duration::from_secs(seconds), "{value}");
        }
    }

    #[test]
    fn redirects_lead_to_https_only() {
        let from: Uri = "https://hs.test/.well-known/matrix/server".parse().unwrap();
        for (location, to) in [
            ("/other", Some("https://hs.test/other")),
            ("https://a.test/x", Some("https://a.test/x")),
            ("http://a.test/x", None),
            ("file:///etc/passwd", None),
        ] {
            let headers = HeaderMap::from_iter([(LOCATION, HeaderValue::from_static(location))]);
            assert_eq!(redirected(&from, &headers).map(|to| to.to_string()).as_deref(), to);
        }
    }
}
