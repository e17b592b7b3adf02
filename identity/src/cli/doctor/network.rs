//! All other dependencies of the server, except the mail server.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::{Response, StatusCode, Uri, header::DATE};
use serde_json::Value;
use tokio::time::timeout;
use url::Url;
use waypost_shared::{
    client::{Outbound, Reach, Targets},
    clock::{Clock, millis},
    operations::doctor::{Finding, unreached},
};

use super::{
    findings::{Findings, LIMIT, Skew, told},
    listeners::{Running, get, has_our_key},
};
use crate::{
    app::base_url,
    config::{
        Config, EmailTransport,
        sms::{SmsConfig, SmsTransport},
    },
    delivery::sms::Sms,
    domain::{server_name::ServerName, signing::SigningKeys},
};

/// A clock that is off by more than this is warned of ...
const SKEW_WARNED_MS: i64 = 5_000;
/// ... and by more than this is wrong.
const SKEW_WRONG_MS: i64 = 60_000;

/// Whether the name servers answer the queries of server discovery.
pub(super) async fn dns(config: &Config, outbound: &Outbound) -> Finding {
    let Some(name) = a_name(config) else {
        return Finding::Soon(
            "was not checked, since no real name is configured: set identity.server_name for production".to_owned(),
        );
    };
    let asked = format!("_matrix-fed._tcp.{name}");
    let servers = "check outbound.dns_servers, or /etc/resolv.conf if that is empty, and firewalls (port 53)";
    match timeout(LIMIT, outbound.resolver().srv(&asked)).await {
        Ok(Ok(_)) => Finding::Good("the name servers answer".to_owned()),
        Ok(Err(error)) => Finding::Bad(format!("the name servers do not answer: {servers} ({})", told(&error))),
        Err(_) => Finding::Bad(format!("the name servers do not answer in time: {servers}")),
    }
}

/// A configured name to query the name servers for.
fn a_name(config: &Config) -> Option<String> {
    let of_server = std::iter::once(config.identity.server_name.as_str());
    let of_url = config.identity.public_base_url.as_ref().and_then(Url::host_str);
    let names = of_server.chain(of_url).chain(config.homeservers.overrides.keys().map(String::as_str));
    names
        .filter_map(|name| ServerName::parse(name).ok())
        .find(|name| name.literal().is_none() && name.host() != "localhost")
        .map(|name| name.host().to_owned())
}

/// Whether the proxy for outgoing calls can be reached and accepts our credentials; `None` if there is none.
pub(super) async fn proxy(outbound: &Outbound) -> Option<Finding> {
    Some(match outbound.try_proxy(LIMIT).await? {
        Ok(()) => Finding::Good("can be reached, and accepts the credentials".to_owned()),
        Err(error) => Finding::Bad(unreached(&error)),
    })
}

/// Whether text messages can be sent. None is.
pub(super) async fn sms(config: &Config, outbound: &Outbound) -> Finding {
    if let Err(error) = Sms::new(&config.sms, outbound, Clock::System) {
        return Finding::Bad(format!("{error}: check [sms]"));
    }
    let Some(origin) = gateway(&config.sms) else {
        return match config.sms.transport {
            SmsTransport::Off => Finding::Good("are off: phone numbers are refused".to_owned()),
            SmsTransport::Log => {
                Finding::Soon("are written to the log, not sent: set sms.transport for production".to_owned())
            }
            // An address that is not a URL was refused above.
            SmsTransport::Http | SmsTransport::OpenMarket => Finding::Bad("the gateway has no address".to_owned()),
        };
    };
    match outbound.client(Reach::Anywhere).reach(&origin, LIMIT).await {
        Ok(()) if origin.scheme_str() == Some("http") => {
            Finding::Soon(format!("{origin} can be reached, without encryption: use its https address if there is one"))
        }
        Ok(()) if config.sms.countries_allowed.is_empty() => Finding::Soon(
            "go to every country, and fraudsters earn money with them: name yours in sms.countries_allowed".to_owned(),
        ),
        Ok(()) => Finding::Good(format!(
            "{origin} can be reached; the first message will show whether it accepts the credentials"
        )),
        Err(error) => Finding::Bad(format!("{origin}: {}", unreached(&error))),
    }
}

/// Scheme, host and port of the gateway; its path and query may hold secrets.
fn gateway(sms: &SmsConfig) -> Option<Uri> {
    let url = match sms.transport {
        SmsTransport::Off | SmsTransport::Log => return None,
        SmsTransport::Http => &sms.http.url,
        SmsTransport::OpenMarket => &sms.openmarket.url,
    };
    // Values are filled in after the host.
    let url = Url::parse(url.split("{{").next().unwrap_or_default()).ok()?;
    format!("{}/", url.origin().ascii_serialization()).parse().ok()
}

/// Whether this server can be reached at the URL in its emails, and the clock skew there.
pub(super) async fn public_base_url(
    config: &Config,
    outbound: &Outbound,
    running: Running,
    keys: Option<&SigningKeys>,
) -> (Finding, Option<Skew>) {
    let base = base_url(config.identity.public_base_url.as_ref(), config.listen.public);
    let Some(url) = &config.identity.public_base_url else {
        let text = format!(
            "identity.public_base_url is not set, so links in emails begin with {base}, which nobody else can open: \
             set it"
        );
        let is_trial = config.email.transport == EmailTransport::Folder;
        return (if is_trial { Finding::Soon(text) } else { Finding::Bad(text) }, None);
    };
    let is_local =
        url.host_str().is_some_and(|host| host == "localhost" || host.starts_with("127.") || host == "[::1]");
    if url.scheme() != "https" && !is_local {
        let text = format!("{base} is not https, which clients need: put TLS on the reverse proxy, and use https here");
        return (Finding::Bad(text), None);
    }
    let client = outbound.client(Reach::Anywhere);
    let answer = match get(&client, &format!("{base}/_matrix/identity/versions")).await {
        Ok(answer) => answer,
        Err(error) => return (Finding::Bad(format!("{base}: {}", unreached(&error))), None),
    };
    let skew = skew(&base, &answer);
    let leads = format!("the reverse proxy must pass /_matrix/identity and /_waypost to {}", config.listen.public);
    let status = answer.status();
    let is_away =
        matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT);
    if is_away && running == Running::No {
        let text = format!("{base} answers {status}, and this server is not running: start it, then check again");
        return (Finding::Soon(text), skew);
    }
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    if status != StatusCode::OK || !body["versions"].is_array() {
        let text = format!("{base} answers {status}, and not as an identity server: {leads}");
        return (Finding::Bad(text), skew);
    }
    let Some(keys) = keys else {
        let text = format!("{base} answers; whether it is this server cannot be checked before there is a signing key");
        return (Finding::Soon(text), skew);
    };
    let finding = match has_our_key(&client, &base, keys).await {
        Ok(true) if url.scheme() == "https" => Finding::Good(format!("{base} answers, and it is this server")),
        Ok(true) => Finding::Soon(format!("{base} answers, and it is this server, but clients need https")),
        Ok(false) => Finding::Bad(format!("{base} is another identity server, with another signing key: {leads}")),
        Err(error) => Finding::Bad(format!("{base}: {}", unreached(&error))),
    };
    (finding, skew)
}

/// Whether the homeservers with configured addresses can be reached, and their clock skews.
pub(super) async fn homeservers(config: &Config, outbound: &Outbound) -> (Findings, Vec<Skew>) {
    let all = config.homeservers.overrides.iter().map(|(name, target)| homeserver(outbound, name, target));
    let mut findings = Findings::new();
    let mut skews = Vec::new();
    for (name, (finding, skew)) in config.homeservers.overrides.keys().zip(futures_util::future::join_all(all).await) {
        findings.push((format!("homeserver {name}"), finding));
        skews.extend(skew);
    }
    (findings, skews)
}

/// Requests the keys of one, which every homeserver publishes.
async fn homeserver(outbound: &Outbound, name: &str, target: &str) -> (Finding, Option<Skew>) {
    let Some((host, port)) = ServerName::parse(target).ok().and_then(|at| Some((at.host().to_owned(), at.port()?)))
    else {
        return (Finding::Bad(format!("{target} is not a host and port: fix homeservers.overrides")), None);
    };
    let targets = Targets::default();
    targets.set(name, vec![(host, port)]);
    // As the server calls it: only public addresses, and those that are allowed.
    let client = outbound.client_with_targets(Reach::PublicOnly, targets);
    let answer = match get(&client, &format!("https://{name}/_matrix/key/v2/server")).await {
        Ok(answer) => answer,
        Err(error) => return (Finding::Bad(format!("{target}: {}", unreached(&error))), None),
    };
    let skew = skew(name, &answer);
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    let finding = match body["server_name"].as_str() {
        Some(says) if says == name => Finding::Good(format!("{target} answers, and is {name}")),
        Some(_) => Finding::Bad(format!("{target} is another homeserver: fix its entry in homeservers.overrides")),
        None => Finding::Bad(format!(
            "{target} answers {}, and not as a homeserver: set homeservers.overrides to its federation port (8448, or \
             that of its `federation` listener behind TLS)",
            answer.status()
        )),
    };
    (finding, skew)
}

/// How far the clock of the responder is ahead of ours, in milliseconds; `None` without a `Date` header.
fn skew(who: &str, answer: &Response<Bytes>) -> Option<Skew> {
    let date = httpdate::parse_http_date(answer.headers().get(DATE)?.to_str().ok()?).ok()?;
    // `Date` has whole seconds, so half of one is lost on average.
    let theirs = millis(date.duration_since(UNIX_EPOCH).ok()?).saturating_add(500);
    Some((who.to_owned(), theirs.saturating_sub(Clock::System.now_ms())))
}

/// Whether the clock of this machine is right, judged by the largest skew.
pub(super) fn clock(skews: &[Skew]) -> Finding {
    let Some((who, skew)) = skews.iter().max_by_key(|(_, skew)| skew.saturating_abs()) else {
        return Finding::Soon("was not checked: there is nothing to compare it with".to_owned());
    };
    let off = skew.saturating_abs();
    if off <= SKEW_WARNED_MS {
        return Finding::Good(format!("agrees with that of {who}"));
    }
    let side = if *skew > 0 { "behind" } else { "ahead of" };
    let text = format!(
        "is {} s {side} that of {who}: set both by NTP (such as chrony or systemd-timesyncd); signatures and limits \
         depend on it",
        off / 1000
    );
    if off > SKEW_WRONG_MS { Finding::Bad(text) } else { Finding::Soon(text) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_clock_is_judged_by_how_far_it_is_off() {
        let clock = |skews: &[i64]| clock(&skews.iter().map(|skew| ("x".to_owned(), *skew)).collect::<Vec<_>>());
        assert!(matches!(clock(&[]), Finding::Soon(_)));
        assert!(matches!(clock(&[0, 5_000, -5_000]), Finding::Good(_)));
        assert!(matches!(clock(&[5_001]), Finding::Soon(text) if text.contains("5 s behind")));
        assert!(matches!(clock(&[0, -60_000]), Finding::Soon(text) if text.contains("60 s ahead of")));
        assert!(matches!(clock(&[0, 60_001]), Finding::Bad(_)));
    }

    #[test]
    fn the_gateway_is_named_without_its_secrets() {
        let mut sms = SmsConfig { transport: SmsTransport::Http, ..SmsConfig::default() };
        sms.http.url = "https://user:swordfish@sms.example:8443/send?key=swordfish&to={{ to }}".to_owned();
        assert_eq!(gateway(&sms).unwrap().to_string(), "https://sms.example:8443/");
        sms.transport = SmsTransport::Off;
        assert_eq!(gateway(&sms), None);
    }
}
