//! Talking to homeservers: finding them, and asking them who somebody is.

mod client;
mod discovery;

use std::collections::BTreeMap;

use http::StatusCode;
use serde_json::Value;
use waypost_shared::{
    clock::Clock,
    http_client::{HttpClientError, Outbound, Reach},
};

use crate::domain::server_name::{ServerName, is_user_of};

use client::Client;
use discovery::Discovery;

/// Where to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Destination {
    /// The name for the URI, for `Host` and for TLS.
    authority: String,
    /// Hosts and ports to connect to, in this order.
    targets: Vec<(String, u16)>,
}

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

/// All homeservers, by their names.
pub(crate) struct Homeservers {
    client: Client,
    discovery: Discovery,
    overrides: BTreeMap<String, Destination>,
}

impl Homeservers {
    /// `overrides` are server names and the `host:port` to connect to instead of discovering it.
    pub(crate) fn new(outbound: &Outbound, overrides: &BTreeMap<String, String>, clock: Clock) -> Self {
        let overrides = overrides.iter().filter_map(|(name, target)| {
            let target = ServerName::parse(target).ok()?;
            let targets = vec![(target.host().to_owned(), target.port()?)];
            Some((name.clone(), Destination { authority: name.clone(), targets }))
        });
        Self {
            client: Client::new(outbound),
            discovery: Discovery::new(outbound.client(Reach::PublicOnly), outbound.resolver().clone(), clock),
            overrides: overrides.collect(),
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
        let path = format!("/_matrix/federation/v1/openid/userinfo?{query}");
        let answer = self.client.get(self.destination(&name).await, &path).await?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_client_error() => return Err(HomeserverError::TokenRefused),
            _ => return Err(HomeserverError::BadAnswer),
        }
        let body: Value = serde_json::from_slice(answer.body()).map_err(|_| HomeserverError::BadAnswer)?;
        let sub = body.get("sub").and_then(Value::as_str).ok_or(HomeserverError::BadAnswer)?;
        if is_user_of(sub, server_name) { Ok(sub.to_owned()) } else { Err(HomeserverError::WrongServer) }
    }

    async fn destination(&self, name: &ServerName) -> Destination {
        match self.overrides.get(name.as_str()) {
            Some(known) => known.clone(),
            None => self.discovery.find(name).await,
        }
    }
}
