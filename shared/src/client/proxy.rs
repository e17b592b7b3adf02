//! HTTP proxies: a CONNECT tunnel (RFC 9110, section 9.3.6) for each connection, even for plain HTTP.

use std::{io, net::IpAddr, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use url::Url;

use crate::config::secret::{ExposeSecret as _, SecretString};

/// Limit in bytes on the proxy's response.
const MAX_ANSWER: usize = 16 * 1024;

/// What is wrong with the proxy's configuration. Does not contain the URL, which may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAProxy {
    #[error("must be http://host:port, with user:password@ before the host if the proxy wants them")]
    Url,
    #[error("`{0}` must be a name such as example.com, an address, a range or *")]
    Exception(String),
}

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(super) enum TunnelError {
    #[error("the proxy requires different credentials from those in outbound.proxy_url (it answered 407)")]
    Credentials,
    #[error("the proxy refused to open a tunnel (it answered {0})")]
    Refused(u16),
    #[error("the server at outbound.proxy_url did not answer with HTTP")]
    NoHttp,
    #[error("the connection to the proxy broke")]
    Io(#[from] io::Error),
}

/// A destination that is reached without the proxy.
#[derive(Clone, Debug)]
enum Exception {
    Everyone,
    /// A name and all its subdomains, in lower case.
    Name(String),
    Range(IpNet),
}

/// The proxy, and the destinations reached without it.
#[derive(Clone)]
pub(super) struct Proxy {
    pub(super) host: String,
    pub(super) port: u16,
    /// The value of `Proxy-Authorization`.
    credentials: Option<SecretString>,
    exceptions: Arc<[Exception]>,
}

impl Proxy {
    pub(super) fn new(url: &SecretString, exceptions: &[String]) -> Result<Self, NotAProxy> {
        let url = Url::parse(url.expose_secret()).map_err(|_| NotAProxy::Url)?;
        let host = url.host_str().filter(|_| url.scheme() == "http").ok_or(NotAProxy::Url)?;
        if url.path() != "/" || url.query().is_some() || url.fragment().is_some() {
            return Err(NotAProxy::Url);
        }
        let credentials = (!url.username().is_empty()).then(|| {
            let mut pair: Vec<u8> = percent_decode_str(url.username()).collect();
            pair.push(b':');
            pair.extend(percent_decode_str(url.password().unwrap_or_default()));
            SecretString::from(format!("Basic {}", STANDARD.encode(pair)))
        });
        let exceptions = exceptions.iter().map(|text| exception(text)).collect::<Result<_, _>>()?;
        Ok(Self {
            host: bare(host).to_owned(),
            port: url.port_or_known_default().unwrap_or(80),
            credentials,
            exceptions,
        })
    }

    /// Whether a host is reached without the proxy.
    pub(super) fn spares(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        let address = bare(&host).parse::<IpAddr>().ok();
        self.exceptions.iter().any(|exception| match exception {
            Exception::Everyone => true,
            Exception::Name(name) => {
                host.strip_suffix(name.as_str()).is_some_and(|above| above.is_empty() || above.ends_with('.'))
            }
            Exception::Range(range) => address.is_some_and(|address| range.contains(&address)),
        })
    }

    /// Whether an address that a name resolved to is reached without the proxy.
    pub(super) fn spares_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.exceptions.iter().any(|exception| matches!(exception, Exception::Range(range) if range.contains(&address)))
    }

    /// Turns `stream`, a connection to the proxy, into one to `target` (`host:port`).
    pub(super) async fn tunnel(&self, stream: &mut TcpStream, target: &str) -> Result<(), TunnelError> {
        let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
        if let Some(credentials) = &self.credentials {
            request.push_str(&format!("Proxy-Authorization: {}\r\n", credentials.expose_secret()));
        }
        request.push_str("\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(256);
        loop {
            if stream.read_buf(&mut answer).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            match status(&answer) {
                Some(Ok(200..=299)) if answer.ends_with(b"\r\n\r\n") => return Ok(()),
                // The far end of a tunnel sends nothing before we do.
                Some(Ok(200..=299) | Err(())) => return Err(TunnelError::NoHttp),
                Some(Ok(407)) => return Err(TunnelError::Credentials),
                Some(Ok(status)) => return Err(TunnelError::Refused(status)),
                None if answer.len() >= MAX_ANSWER => return Err(TunnelError::NoHttp),
                None => {}
            }
        }
    }
}

/// The status of a response, once its head is complete.
fn status(answer: &[u8]) -> Option<Result<u16, ()>> {
    answer.windows(4).any(|window| window == b"\r\n\r\n").then(|| {
        let status = answer.strip_prefix(b"HTTP/1.").and_then(|rest| rest.get(2..5)).ok_or(())?;
        std::str::from_utf8(status).map_err(drop)?.parse().map_err(drop)
    })
}

fn exception(text: &str) -> Result<Exception, NotAProxy> {
    let text = text.trim().to_ascii_lowercase();
    if text == "*" {
        return Ok(Exception::Everyone);
    }
    if let Ok(address) = bare(&text).parse::<IpAddr>() {
        return Ok(Exception::Range(address.into()));
    }
    if let Ok(range) = text.parse() {
        return Ok(Exception::Range(range));
    }
    let name = text.strip_prefix("*.").or_else(|| text.strip_prefix('.')).unwrap_or(&text);
    let is_name = |character: char| character.is_alphanumeric() || matches!(character, '-' | '_' | '.');
    if name.is_empty() || !name.chars().all(is_name) {
        return Err(NotAProxy::Exception(text));
    }
    Ok(Exception::Name(name.to_owned()))
}

/// An IPv6 address without its brackets.
fn bare(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn proxy(url: &str, exceptions: &[&str]) -> Result<Proxy, NotAProxy> {
        let exceptions: Vec<String> = exceptions.iter().map(|text| (*text).to_owned()).collect();
        Proxy::new(&SecretString::from(url), &exceptions)
    }

    #[test]
    fn a_proxy_is_a_host_a_port_and_credentials() {
        let proxy = proxy("http://us%40er:pass%3Aword@proxy.example:3128", &[]).unwrap();
        assert_eq!((proxy.host.as_str(), proxy.port), ("proxy.example", 3128));
        // base64 of `us@er:pass:word`.
        assert_eq!(proxy.credentials.unwrap().expose_secret(), "Basic dXNAZXI6cGFzczp3b3Jk");
        for url in ["proxy.example:3128", "https://proxy.example", "socks5://proxy.example", "http://proxy.example/a"] {
            assert_eq!(super::tests::proxy(url, &[]).err(), Some(NotAProxy::Url), "{url}");
        }
    }

    #[test]
    fn exceptions_are_names_addresses_and_ranges() {
        let proxy = proxy("http://[::1]:3128/", &["example.com", ".internal", "10.0.0.0/8", "::1"]).unwrap();
        assert_eq!(proxy.host, "::1");
        for (host, expected) in [
            ("example.com", true),
            ("Push.Example.com.", true),
            ("notexample.com", false),
            ("metadata.google.internal", true),
            ("10.1.2.3", true),
            ("[::1]", true),
            ("11.1.2.3", false),
        ] {
            assert_eq!(proxy.spares(host), expected, "{host}");
        }
        assert!(proxy.spares_address("::ffff:10.0.0.1".parse().unwrap()));
        assert!(super::tests::proxy("http://a", &["*"]).unwrap().spares("anything"));
        let wrong = super::tests::proxy("http://a", &["http://b"]).err();
        assert_eq!(wrong, Some(NotAProxy::Exception("http://b".to_owned())));
    }

    #[test]
    fn a_response_is_parsed_once_its_head_is_complete() {
        assert_eq!(status(b"HTTP/1.1 200 OK\r\nA: b\r\n"), None);
        assert_eq!(status(b"HTTP/1.0 200 OK\r\n\r\n"), Some(Ok(200)));
        assert_eq!(status(b"HTTP/1.1 407\r\n\r\n"), Some(Ok(407)));
        assert_eq!(status(b"SSH-2.0-OpenSSH\r\n\r\n"), Some(Err(())));
    }
}
