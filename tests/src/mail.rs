//! Parses mail as a mail client does: parts, transfer encodings, links.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A message or a part of one.
#[derive(Clone, Debug)]
pub struct Part {
    headers: Vec<(String, String)>,
    body: String,
}

impl Part {
    /// Splits headers and body. Lines may end in CRLF or LF.
    pub fn parse(raw: &str) -> Self {
        let raw = raw.replace("\r\n", "\n");
        let (head, body) = raw.split_once("\n\n").unwrap_or((&raw, ""));
        let mut headers: Vec<(String, String)> = Vec::new();
        for line in head.lines() {
            if line.starts_with([' ', '\t']) {
                // The continuation of a folded header.
                if let Some((_, value)) = headers.last_mut() {
                    value.push(' ');
                    value.push_str(line.trim());
                }
            } else if let Some((name, value)) = line.split_once(':') {
                headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
        Self { headers, body: body.to_owned() }
    }

    /// A header, unfolded; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        let name = name.to_ascii_lowercase();
        self.headers.iter().find(|(key, _)| *key == name).map_or("", |(_, value)| value)
    }

    /// How often a header occurs.
    pub fn count(&self, name: &str) -> usize {
        let name = name.to_ascii_lowercase();
        self.headers.iter().filter(|(key, _)| *key == name).count()
    }

    /// The decoded text of the first part of this type, at any depth.
    pub fn find(&self, content_type: &str) -> Option<String> {
        let own = self.header("content-type");
        let kind = own.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let kind = if kind.is_empty() { "text/plain" } else { kind.as_str() };
        if kind == content_type {
            return Some(self.decoded());
        }
        if !kind.starts_with("multipart/") {
            return None;
        }
        let boundary = format!("--{}", parameter(own, "boundary")?);
        let mut parts: Vec<String> = Vec::new();
        for line in self.body.lines() {
            if line.trim_end() == boundary {
                parts.push(String::new());
            } else if line.trim_end() == format!("{boundary}--") {
                break;
            } else if let Some(part) = parts.last_mut() {
                part.push_str(line);
                part.push('\n');
            }
        }
        parts.iter().find_map(|part| Self::parse(part).find(content_type))
    }

    fn decoded(&self) -> String {
        match self.header("content-transfer-encoding").to_ascii_lowercase().as_str() {
            "quoted-printable" => quoted_printable(&self.body),
            "base64" => {
                let packed: String = self.body.split_whitespace().collect();
                let bytes = STANDARD.decode(packed).expect("a base64 part is base64");
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => self.body.clone(),
        }
    }
}

/// The first link in a text.
pub fn first_link(text: &str) -> Option<String> {
    let start = text.find("https://").into_iter().chain(text.find("http://")).min()?;
    let link = &text[start..];
    let end = link.find(|c: char| c.is_whitespace() || "<>\"".contains(c)).unwrap_or(link.len());
    Some(link[..end].to_owned())
}

fn parameter(header: &str, name: &str) -> Option<String> {
    header.split(';').skip(1).find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        let ours = key.trim().eq_ignore_ascii_case(name);
        ours.then(|| value.trim().trim_matches('"').to_owned())
    })
}

fn quoted_printable(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let content = line.trim_end_matches('\n').trim_end();
        // A trailing "=" is a soft line break.
        let (content, joined) = match content.strip_suffix('=') {
            Some(content) => (content, true),
            None => (content, false),
        };
        let mut rest = content.as_bytes();
        while let Some((&first, tail)) = rest.split_first() {
            let escape = (first == b'=')
                .then(|| tail.get(..2))
                .flatten()
                .and_then(|hex| std::str::from_utf8(hex).ok())
                .and_then(|hex| u8::from_str_radix(hex, 16).ok());
            match escape {
                Some(byte) => {
                    bytes.push(byte);
                    rest = &tail[2..];
                }
                None => {
                    bytes.push(first);
                    rest = tail;
                }
            }
        }
        if !joined && line.ends_with('\n') {
            bytes.push(b'\n');
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_link_in_the_text_part() {
        let raw = "Subject: Hi\r\n there\r\nContent-Type: multipart/alternative;\r\n boundary=\"x\"\r\n\r\n\
                   --x\r\nContent-Type: text/plain; charset=utf-8\r\n\
                   Content-Transfer-Encoding: quoted-printable\r\n\r\n\
                   Gr=C3=BC=C3=9Fe: https://id.test/a?token=3Dab=\r\nc&sid=3D1\r\nBye\r\n\
                   --x\r\nContent-Type: text/html\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+\r\n--x--\r\n";
        let mail = Part::parse(raw);
        assert_eq!(mail.header("Subject"), "Hi there");
        assert_eq!(mail.find("text/html").unwrap(), "<b>");
        let text = mail.find("text/plain").unwrap();
        assert_eq!(text, "Grüße: https://id.test/a?token=abc&sid=1\nBye\n");
        assert_eq!(first_link(&text).unwrap(), "https://id.test/a?token=abc&sid=1");
    }
}
