//! Asking homeservers.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode};
use serde_json::Value;
use waypost_shared::{
    clock::Clock,
    http_client::{CallLimits, HttpClient, HttpClientError, Outbound, Reach, Targets},
};

use crate::domain::server_name::{ServerName, is_user_of};

use super::discovery::{Destination, Discovery};

/// An answer of a homeserver is a line or two.
const LIMITS: CallLimits = CallLimits { timeout: Duration::from_secs(15), max_body: 64 * 1024 };

/// What a homeserver did not do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeserverError {
    /// Not a server name.
    #[error("`matrix_server_name` is not a server name")]
    InvalidName,
    /// No answer: name, network, TLS, or an address that may not be reached.
    #[error("The homeserver could not be reached")]
    Unreachable(#[source] HttpClientError),
    /// It does not know the token.
    #[error("The homeserver does not accept this OpenID token")]
    TokenRefused,
    /// An answer that is not what the specification has.
    #[error("The homeserver's answer was not understood")]
    BadAnswer,
    /// The token belongs to a user of another server, so it may have been collected there.
    #[error("The OpenID token does not belong to a user of that homeserver")]
    WrongServer,
}

/// A client for homeservers.
pub(crate) struct Homeservers {
    http: HttpClient,
    outbound: Outbound,
    discovery: Discovery,
    targets: Targets,
    overrides: BTreeMap<String, Destination>,
}

impl Homeservers {
    /// `overrides` are server names and the `host:port` to connect to instead of discovering it.
    pub(crate) fn new(outbound: &Outbound, overrides: &BTreeMap<String, String>, clock: Clock) -> Self {
        let targets = Targets::default();
        let overrides = overrides.iter().filter_map(|(name, target)| {
            let target = ServerName::parse(target).ok()?;
            let to = vec![(target.host().to_owned(), target.port()?)];
            Some((name.clone(), Destination { authority: name.clone(), targets: to }))
        });
        Self {
            http: outbound.client_with_targets(Reach::PublicOnly, targets.clone()),
            discovery: Discovery::new(outbound.client(Reach::PublicOnly), clock),
            overrides: overrides.collect(),
            outbound: outbound.clone(),
            targets,
        }
    }

    /// The user that an OpenID token belongs to, who is a user of exactly `server_name`.
    ///
    /// Source: Server-Server API, `GET /_matrix/federation/v1/openid/userinfo`.
    ///
    /// # Errors
    ///
    /// [`HomeserverError`].
    pub(crate) async fn openid_user(&self, server_name: &str, openid_token: &str) -> Result<String, HomeserverError> {
        let name = ServerName::parse(server_name).map_err(|_| HomeserverError::InvalidName)?;
        let query: String =
            url::form_urlencoded::Serializer::new(String::new()).append_pair("access_token", openid_token).finish();
        let answer = self.get(&name, &format!("/_matrix/federation/v1/openid/userinfo?{query}")).await?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_client_error() => return Err(HomeserverError::TokenRefused),
            _ => return Err(HomeserverError::BadAnswer),
        }
        let body: Value = serde_json::from_slice(answer.body()).map_err(|_| HomeserverError::BadAnswer)?;
        let sub = body.get("sub").and_then(Value::as_str).ok_or(HomeserverError::BadAnswer)?;
        if is_user_of(sub, server_name) { Ok(sub.to_owned()) } else { Err(HomeserverError::WrongServer) }
    }

    async fn get(&self, name: &ServerName, path: &str) -> Result<http::Response<Bytes>, HomeserverError> {
        let destination = match self.overrides.get(name.as_str()) {
            Some(known) => known.clone(),
            None => self.discovery.find(name, self.outbound.resolver()).await,
        };
        self.targets.set(&destination.authority, destination.targets);
        let request = Request::get(format!("https://{}{path}", destination.authority))
            .body(Bytes::new())
            .map_err(|_| HomeserverError::InvalidName)?;
        self.http.send(request, LIMITS).await.map_err(HomeserverError::Unreachable)
    }
}
