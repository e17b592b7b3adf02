//! The allow-list for `next_link`: an open redirect on a page people trust would be a gift to phishers.

use url::Url;

/// An allowed origin, optionally with a path prefix.
#[derive(Clone, Debug)]
pub(crate) struct Pattern {
    scheme: String,
    /// May contain one `*`, which matches one or more characters.
    host: String,
    port: u16,
    path: String,
}

impl Pattern {
    /// Parses `https://app.example.com`, `https://*.example.com:8443` or `https://app.example.com/done/*`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (scheme, rest) = text.split_once("://")?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, "*"));
        let path = path.strip_suffix('*')?;
        let default_port = if scheme == "http" { 80 } else { 443 };
        let (host, port) = match authority.split_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (authority, default_port),
        };
        let plain = !host.is_empty() && !host.contains(['@', '?', '#', ' ']) && !path.contains('*');
        (matches!(scheme, "http" | "https") && plain).then(|| Self {
            scheme: scheme.to_owned(),
            host: host.to_ascii_lowercase(),
            port,
            path: format!("/{path}"),
        })
    }

    fn allows(&self, url: &Url) -> bool {
        let Some(host) = url.host_str() else { return false };
        let host_matches = match self.host.split_once('*') {
            None => self.host == host,
            Some((before, after)) => {
                host.len() > before.len() + after.len() && host.starts_with(before) && host.ends_with(after)
            }
        };
        url.scheme() == self.scheme
            && host_matches
            && url.port_or_known_default() == Some(self.port)
            && url.path().starts_with(&self.path)
            && url.username().is_empty()
            && url.password().is_none()
    }
}

/// The parsed link, if one of the patterns allows it.
pub(crate) fn allowed(patterns: &[Pattern], link: &str) -> Option<Url> {
    let url = Url::parse(link).ok()?;
    patterns.iter().any(|pattern| pattern.allows(&url)).then_some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_links_are_allowed() {
        let patterns: Vec<_> = ["https://app.example.com", "https://*.wild.example/*", "https://path.example/done/*"]
            .into_iter()
            .filter_map(Pattern::parse)
            .collect();
        assert_eq!(patterns.len(), 3);
        let with_port: Vec<_> = Pattern::parse("https://a.example:443").into_iter().collect();
        assert!(allowed(&with_port, "https://a.example/x").is_some());
        for link in [
            "https://app.example.com",
            "https://app.example.com/a?b#c",
            "https://x.wild.example/",
            "https://path.example/done/1",
        ] {
            assert!(allowed(&patterns, link).is_some(), "{link}");
        }
        for link in [
            "http://app.example.com",
            "https://app.example.com:8443/",
            "https://app.example.com.evil.test/",
            "https://app.example.com@evil.test/",
            "https://user@app.example.com/",
            "https://evil.test/.wild.example/",
            "https://wild.example/",
            "https://.wild.example.evil.test/",
            "https://path.example/",
            "https://path.example/done/../x",
            "javascript:alert(1)",
            "data:text/html,x",
            "file:///etc/passwd",
            "//app.example.com/",
            "/done",
            "",
        ] {
            assert!(allowed(&patterns, link).is_none(), "{link}");
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for text in [
            "",
            "app.example.com",
            "ftp://a",
            "https://",
            "https://a/b",
            "https://a@b",
            "https://a/*/b*",
            "https://a:b",
        ] {
            assert!(Pattern::parse(text).is_none(), "{text}");
        }
    }
}
