//! The listeners, and the proxies that are trusted in front of them.

use std::{io, net::SocketAddr};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use waypost_shared::{
    client::{CallLimits, HttpClient, HttpClientError, Outbound, Reach},
    operations::doctor::Finding,
};

use super::findings::{Findings, LIMIT};
use crate::{config::Config, domain::signing::SigningKeys};

/// Limits of a call that only shows whether somebody answers.
pub(super) const CALL: CallLimits = CallLimits { timeout: LIMIT, max_body: 256 * 1024 };

/// Whether this server is running on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Running {
    Yes,
    No,
    /// Its port is not known, or another program has it.
    Unknown,
}

/// Whether the configured addresses are free, or taken by this very server.
pub(super) async fn check(config: &Config, here: &Outbound, keys: Option<&SigningKeys>) -> (Running, Findings) {
    let listen = &config.listen;
    let all = [
        ("listen.public", Some(listen.public)),
        ("listen.operations", Some(listen.operations)),
        ("listen.internal", listen.internal),
    ];
    // All are bound at once, so that duplicates are noticed.
    let mut bound = Vec::new();
    let mut taken = Vec::new();
    let mut findings = Findings::new();
    for (key, address) in all.into_iter().filter_map(|(key, address)| Some((key, address?))) {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                bound.push(listener);
                findings.push((key.to_owned(), Finding::Good(format!("{address} is free"))));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken.push((key, address)),
            Err(error) => findings.push((key.to_owned(), Finding::Bad(refused(address, &error)))),
        }
    }
    drop(bound);
    let running = if taken.iter().any(|(key, _)| *key == "listen.public") {
        if is_ours(here, listen.public, keys).await { Running::Yes } else { Running::Unknown }
    } else if listen.public.port() == 0 {
        Running::Unknown
    } else {
        Running::No
    };
    for (key, address) in taken {
        let finding = match running {
            Running::Yes => Finding::Good(format!("{address} is taken by this server, which is running")),
            Running::No | Running::Unknown => Finding::Bad(format!(
                "{address} is taken by another program, or configured twice: stop that program, or set {key} to \
                 another port"
            )),
        };
        findings.push((key.to_owned(), finding));
    }
    (running, findings)
}

fn refused(address: SocketAddr, error: &io::Error) -> String {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied => "use a port of 1024 or more, or allow lower ones (CAP_NET_BIND_SERVICE)",
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this machine has this address: use one that it has, 127.0.0.1 behind a proxy on the same \
             machine, or 0.0.0.0 for all"
        }
        _ => "use another address",
    };
    format!("cannot listen on {address} ({error}): {advice}")
}

async fn is_ours(here: &Outbound, address: SocketAddr, keys: Option<&SigningKeys>) -> bool {
    let Some(keys) = keys else { return false };
    has_our_key(&here.client(Reach::Anywhere), &format!("http://{address}"), keys).await.unwrap_or(false)
}

/// Sends a GET request to a valid URL.
pub(super) async fn get(client: &HttpClient, url: &str) -> Result<Response<Bytes>, HttpClientError> {
    let request = Request::get(url).body(Bytes::new()).map_err(|error| HttpClientError::Connect(error.into()))?;
    client.send(request, CALL).await
}

/// Whether the identity server at `base_url` knows the key that this one signs with.
pub(super) async fn has_our_key(
    client: &HttpClient,
    base_url: &str,
    keys: &SigningKeys,
) -> Result<bool, HttpClientError> {
    let key = keys.first().public_key();
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("public_key", &key).finish();
    let answer = get(client, &format!("{base_url}/_matrix/identity/v2/pubkey/isvalid?{query}")).await?;
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    Ok(answer.status() == StatusCode::OK && body["valid"] == true)
}

/// Whether the right proxies are trusted to name the addresses of callers.
pub(super) fn trusted_proxies(config: &Config) -> Finding {
    let trusted = &config.server.trusted_proxies;
    if let Some(all) = trusted.iter().find(|range| range.prefix_len() == 0) {
        return Finding::Bad(format!(
            "server.trusted_proxies holds {all}, so every caller may claim any address, and bypass the limits and \
             v1.allow: list your reverse proxies only"
        ));
    }
    let is_behind = config.listen.public.ip().is_loopback() && config.identity.public_base_url.is_some();
    match trusted.len() {
        0 if is_behind => Finding::Soon(
            "server.trusted_proxies is empty, so all callers have the reverse proxy's address and share its limits: \
             list it, such as 127.0.0.1/32"
                .to_owned(),
        ),
        0 => Finding::Good("none: callers are identified by the addresses that they connect from".to_owned()),
        ranges => Finding::Good(format!("{ranges} ranges are trusted")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn proxies_are_trusted_if_there_are_any() {
        let mut config = Config::default();
        assert!(matches!(trusted_proxies(&config), Finding::Good(_)));
        config.identity.public_base_url = Some("https://id.example.com".parse().unwrap());
        assert!(matches!(trusted_proxies(&config), Finding::Soon(_)));
        config.server.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
        assert!(matches!(trusted_proxies(&config), Finding::Good(_)));
        config.server.trusted_proxies.push("::/0".parse().unwrap());
        assert!(matches!(trusted_proxies(&config), Finding::Bad(_)));
    }
}
