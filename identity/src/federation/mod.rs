//! Talking to homeservers: discovery, OpenID, verifying their signatures, and notifying them of bindings.

mod client;
mod destination;
mod discovery;
mod error;
pub(crate) mod request_auth;

use std::collections::BTreeMap;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;
use waypost_shared::{
    client::{Outbound, Reach},
    clock::Clock,
};

use crate::domain::{mxid::Mxid, server_name::ServerName};

pub(crate) use error::HomeserverError;

use client::Client;
use destination::Destination;
use discovery::Discovery;
use request_auth::{KeyCache, ServerKeys, SignedRequest};

const ONBIND_PATH: &str = "/_matrix/federation/v1/3pid/onbind";

/// Access to all homeservers, by their names.
pub(crate) struct Homeservers {
    client: Client,
    discovery: Discovery,
    overrides: BTreeMap<String, Destination>,
    keys: KeyCache,
    clock: Clock,
}

impl Homeservers {
    /// `overrides` maps server names to the `host:port` to connect to, without discovery.
    pub(crate) fn new(outbound: &Outbound, overrides: &BTreeMap<String, String>, clock: Clock) -> Self {
        let overrides = overrides.iter().filter_map(|(name, target)| {
            let target = ServerName::parse(target).ok()?;
            let targets = vec![(target.host().to_owned(), target.port()?)];
            Some((name.clone(), Destination { authority: name.clone(), targets }))
        });
        Self {
            client: Client::new(outbound),
            discovery: Discovery::new(
                outbound.client(Reach::PublicOnly),
                outbound.resolver().clone(),
                outbound.owners().clone(),
                clock.clone(),
            ),
            overrides: overrides.collect(),
            keys: KeyCache::new(outbound.owners().clone()),
            clock,
        }
    }

    /// The user that an OpenID token belongs to, whose homeserver must be exactly `server_name`.
    ///
    /// Source: Server-Server API, `GET /_matrix/federation/v1/openid/userinfo`.
    pub(crate) async fn openid_user(&self, server_name: &str, openid_token: &str) -> Result<Mxid, HomeserverError> {
        let name = ServerName::parse(server_name).map_err(|_| HomeserverError::InvalidName)?;
        let query: String =
            url::form_urlencoded::Serializer::new(String::new()).append_pair("access_token", openid_token).finish();
        let path = format!("/_matrix/federation/v1/openid/userinfo?{query}");
        let answer = self.client.get(self.destination(&name).await, &path).await?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_client_error() => return Err(HomeserverError::TokenRefused),
            _ => return Err(HomeserverError::BadAnswer),
        }
        let body: Value = serde_json::from_slice(answer.body()).map_err(|_| HomeserverError::BadAnswer)?;
        let sub = body.get("sub").and_then(Value::as_str).ok_or(HomeserverError::BadAnswer)?;
        let user = Mxid::parse(sub).ok().filter(|user| user.server_name() == server_name);
        user.ok_or(HomeserverError::WrongServer)
    }

    /// Notifies a homeserver that an address was bound to one of its users. Deployed servers accept POST; the
    /// specification has PUT.
    ///
    /// Source: Server-Server API, `PUT /_matrix/federation/v1/3pid/onbind`.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`]; the homeserver may have received it nevertheless.
    pub(crate) async fn onbind(&self, server_name: &str, body: Bytes) -> Result<(), HomeserverError> {
        let name = ServerName::parse(server_name).map_err(|_| HomeserverError::InvalidName)?;
        let destination = self.destination(&name).await;
        let posted = self.client.send(Method::POST, destination.clone(), ONBIND_PATH, body.clone()).await?;
        let status = match posted.status() {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                self.client.send(Method::PUT, destination, ONBIND_PATH, body).await?.status()
            }
            status => status,
        };
        if status.is_success() { Ok(()) } else { Err(HomeserverError::Refused(status)) }
    }

    /// Whether `origin` signed this request with a key that is valid now.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`] if its keys cannot be fetched.
    pub(crate) async fn signed(&self, origin: &str, request: &SignedRequest<'_>) -> Result<bool, HomeserverError> {
        let name = ServerName::parse(origin).map_err(|_| HomeserverError::InvalidName)?;
        let now_ms = self.clock.now_ms();
        if let Some(keys) = self.keys.get(origin, request, now_ms) {
            return Ok(request.holds(origin, &keys));
        }
        // Concurrent requests by one homeserver fetch its keys once; the others wait for them.
        let fetching = self.keys.fetching(origin);
        let mut failed_ms = fetching.lock().await;
        if let Some(keys) = self.keys.get(origin, request, now_ms) {
            return Ok(request.holds(origin, &keys));
        }
        // A request that waited for a failed fetch does not start another: one after the other, strangers could make
        // requests wait for hours.
        if failed_ms.is_some_and(|failed_ms| failed_ms >= now_ms) {
            return Err(HomeserverError::NoKeys);
        }
        match self.fetch_keys(&name, now_ms).await {
            Ok(keys) => {
                self.keys.put(origin, keys.clone());
                Ok(request.holds(origin, &keys))
            }
            Err(error) => {
                *failed_ms = Some(self.clock.now_ms());
                Err(error)
            }
        }
    }

    /// Source: Server-Server API, `GET /_matrix/key/v2/server`.
    async fn fetch_keys(&self, name: &ServerName, now_ms: i64) -> Result<ServerKeys, HomeserverError> {
        let answer = self.client.get(self.destination(name).await, "/_matrix/key/v2/server").await?;
        if answer.status() != StatusCode::OK {
            return Err(HomeserverError::Refused(answer.status()));
        }
        let body = serde_json::from_slice(answer.body()).map_err(|_| HomeserverError::BadAnswer)?;
        ServerKeys::read(name.as_str(), body, now_ms).ok_or(HomeserverError::BadAnswer)
    }

    async fn destination(&self, name: &ServerName) -> Destination {
        match self.overrides.get(name.as_str()) {
            Some(known) => known.clone(),
            None => self.discovery.find(name).await,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use futures_util::future::join_all;
    use serde_json::Map;
    use waypost_shared::client::OutboundConfig;

    use super::*;

    #[tokio::test]
    async fn a_request_that_waited_for_a_failed_key_fetch_starts_no_other() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                drop(stream);
            }
        });
        let config = OutboundConfig {
            allowed_ranges: vec!["127.0.0.0/8".parse().unwrap()],
            // No name is resolved here; this only ignores the resolver configuration of the machine.
            dns_servers: vec!["127.0.0.1:53".parse().unwrap()],
            ..OutboundConfig::default()
        };
        let clock = Clock::manual(1_000_000_000_000);
        let overrides = [("hs.test".to_owned(), target)].into();
        let homeservers = Homeservers::new(&Outbound::new(&config).unwrap(), &overrides, clock.clone());
        let content = Map::new();
        let request = SignedRequest { method: "POST", uri: "/", content: &content, destinations: &[], signatures: &[] };
        let all = || join_all((0..4).map(|_| homeservers.signed("hs.test", &request)));
        for _ in 0..2 {
            let ends = all().await;
            let (first, others) = ends.split_first().unwrap();
            assert!(matches!(first, Err(HomeserverError::Unreachable(_))), "{first:?}");
            assert!(others.iter().all(|end| matches!(end, Err(HomeserverError::NoKeys))), "{others:?}");
            // A later request tries again.
            clock.advance(Duration::from_millis(1));
        }
    }
}
