//! Any gateway with an HTTP API: URL, headers and body are templates that the operator writes.

use std::fmt::Write as _;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, Output, State, UndefinedBehavior, Value, context};
use url::Url;
use waypost_shared::config::secret::{self, ExposeSecret as _, SecretString};

use super::{
    credentials::{basic, password},
    error::{SmsError, SmsSetupError, refuse},
};
use crate::config::sms::{SmsConfig, SmsHttpConfig, SmsMethod};

/// Template instructions that one rendering may execute.
const FUEL: u64 = 10_000;

/// How values are escaped in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Escape {
    /// For the inside of a JSON string; the template supplies the quotes.
    Json,
    /// Percent-encoding, for forms and URLs.
    Form,
    /// XML's five predefined entities.
    Xml,
    /// No escaping.
    Plain,
}

impl Escape {
    /// The escaping for a content type; none if the type is unknown.
    fn for_content_type(content_type: &str) -> Option<Self> {
        let kind = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        match kind.as_str() {
            "application/x-www-form-urlencoded" => Some(Self::Form),
            "text/plain" => Some(Self::Plain),
            kind if kind.ends_with("/json") || kind.ends_with("+json") => Some(Self::Json),
            kind if kind.ends_with("/xml") || kind.ends_with("+xml") => Some(Self::Xml),
            _ => None,
        }
    }

    fn write(self, text: &str, output: &mut Output<'_>) -> std::fmt::Result {
        match self {
            Self::Plain => output.write_str(text),
            Self::Json => {
                let quoted = serde_json::Value::from(text).to_string();
                output.write_str(quoted.get(1..quoted.len() - 1).unwrap_or_default())
            }
            // `%20` means a space everywhere, `+` only in forms.
            Self::Form => url::form_urlencoded::byte_serialize(text.as_bytes())
                .try_for_each(|part| output.write_str(if part == "+" { "%20" } else { part })),
            Self::Xml => text.chars().try_for_each(|c| match c {
                '&' => output.write_str("&amp;"),
                '<' => output.write_str("&lt;"),
                '>' => output.write_str("&gt;"),
                '"' => output.write_str("&quot;"),
                '\'' => output.write_str("&apos;"),
                c => output.write_char(c),
            }),
        }
    }
}

/// A gateway as configured.
#[derive(Debug)]
pub(super) struct Gateway {
    method: Method,
    url: Environment<'static>,
    body: Environment<'static>,
    headers: HeaderMap,
    username: String,
    password: Option<SecretString>,
    success_contains: String,
}

impl Gateway {
    /// Compiles the templates and reads the secrets.
    pub(super) fn new(config: &SmsConfig) -> Result<Self, SmsSetupError> {
        let http = &config.http;
        refuse(problems(http))?;
        let problem = |key: &str, problem: String| SmsSetupError::Problem { key: format!("http.{key}"), problem };
        let escape = Escape::for_content_type(&http.content_type).unwrap_or(Escape::Form);
        let password = password(config)?;
        let mut headers = HeaderMap::new();
        let content_type = HeaderValue::from_str(&http.content_type);
        if http.method != SmsMethod::Get {
            headers.insert(CONTENT_TYPE, content_type.map_err(|error| problem("content_type", error.to_string()))?);
        }
        if let Some(credentials) = basic(config, password.as_ref()) {
            headers.insert(AUTHORIZATION, credentials);
        }
        let mut named: Vec<_> = http.headers.iter().map(|(name, value)| (name, value.clone())).collect();
        for (name, file) in &http.header_files {
            let key = format!("sms.http.header_files.{name}");
            named.push((name, secret::from_file(file).map_err(|source| SmsSetupError::Secret { key, source })?));
        }
        for (name, value) in named {
            let unfit = || problem(&format!("headers.{name}"), "is not a valid header".to_owned());
            let name = HeaderName::try_from(name.as_str()).map_err(|_| unfit())?;
            let mut value = HeaderValue::from_str(value.expose_secret()).map_err(|_| unfit())?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(Self {
            method: match http.method {
                SmsMethod::Post => Method::POST,
                SmsMethod::Put => Method::PUT,
                SmsMethod::Get => Method::GET,
            },
            url: template(&http.url, Escape::Form).map_err(|error| problem("url", explain(&error)))?,
            body: template(&http.body, escape).map_err(|error| problem("body", explain(&error)))?,
            headers,
            username: config.username.clone().unwrap_or_default(),
            password,
            success_contains: http.success_contains.clone(),
        })
    }

    /// The text that an answer must contain to count as a success.
    pub(super) fn success_contains(&self) -> &str {
        &self.success_contains
    }

    /// Builds the request that sends `text`, which contains `code`, to the number `digits` (E.164 without the plus).
    pub(super) fn request(&self, digits: &str, text: &str, code: &str) -> Result<Request<Bytes>, SmsError> {
        let values = context! {
            to => format!("+{digits}"),
            digits => digits,
            text => text,
            code => code,
            username => self.username.as_str(),
            password => self.password.as_ref().map(|password| password.expose_secret()).unwrap_or_default(),
        };
        let url = self.url.get_template(NAME)?.render(values.clone())?;
        let body = match self.method {
            Method::GET => String::new(),
            _ => self.body.get_template(NAME)?.render(values)?,
        };
        let mut request = Request::builder().method(self.method.clone()).uri(url).body(Bytes::from(body))?;
        *request.headers_mut() = self.headers.clone();
        Ok(request)
    }
}

/// The name of an environment's only template.
const NAME: &str = "template";

fn template(text: &str, escape: Escape) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(FUEL));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    // The formatter below escapes every value, so minijinja's HTML escaping stays off.
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_formatter(move |output: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value| {
        if value.is_undefined() {
            return minijinja::escape_formatter(output, state, value);
        }
        escape
            .write(&value.to_string(), output)
            .map_err(|error| Error::new(ErrorKind::WriteFailure, "the request could not be written").with_source(error))
    });
    environment.add_template_owned(NAME, text.to_owned())?;
    Ok(environment)
}

/// Renders a template with example values, so that an unknown variable is found before the first message.
fn try_out(text: &str, escape: Escape) -> Result<(), Error> {
    let values = context! {
        to => "+447700900001",
        digits => "447700900001",
        text => "123456 is your code",
        code => "123456",
        username => "",
        password => "",
    };
    let environment = template(text, escape)?;
    environment.get_template(NAME)?.render(values)?;
    Ok(())
}

fn explain(error: &Error) -> String {
    format!("is not a valid template: {error}")
}

/// The problems in `[sms.http]`, each as a key below `sms` and a reason.
pub(super) fn problems(http: &SmsHttpConfig) -> Vec<(String, String)> {
    let mut problems = Vec::new();
    let mut problem = |key: &str, text: String| problems.push((format!("http.{key}"), text));
    // The host must be fixed: a placeholder in it could send the operator's secrets anywhere.
    let origin = http.url.split("{{").next().unwrap_or_default();
    let path_began = origin.len() == http.url.len() || origin.splitn(4, '/').count() == 4 || origin.contains('?');
    let known = Url::parse(origin).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if !known || !path_began {
        problem("url", "must be an http or https URL; only its path and query may be filled in".to_owned());
    } else if let Err(error) = try_out(&http.url, Escape::Form) {
        problem("url", explain(&error));
    }
    if Escape::for_content_type(&http.content_type).is_none() && http.method != SmsMethod::Get {
        problem("content_type", "must be JSON, application/x-www-form-urlencoded, XML or text/plain".to_owned());
    }
    if http.body.is_empty() && http.method != SmsMethod::Get {
        problem("body", "is required: the request body that the gateway expects".to_owned());
    }
    if let Err(error) = try_out(&http.body, Escape::Plain) {
        problem("body", explain(&error));
    }
    for (table, names) in [
        ("headers", http.headers.keys().collect::<Vec<_>>()),
        ("header_files", http.header_files.keys().collect::<Vec<_>>()),
    ] {
        for name in names {
            if HeaderName::try_from(name.as_str()).is_err() {
                problem(&format!("{table}.{name}"), "is not a valid header name".to_owned());
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_unknown_variable_is_found_before_the_first_message() {
        for (url, body, found) in [
            ("https://gateway.test/{{ to }}", "{{ digits }} {{ text }} {{ code }} {{ username }} {{ password }}", None),
            ("https://gateway.test/{{ too }}", "{{ text }}", Some("http.url")),
            ("https://gateway.test/", "{{ txt }}", Some("http.body")),
        ] {
            let http = SmsHttpConfig { url: url.to_owned(), body: body.to_owned(), ..SmsHttpConfig::default() };
            let keys: Vec<String> = problems(&http).into_iter().map(|(key, _)| key).collect();
            assert_eq!(keys, Vec::from_iter(found), "{url} {body}");
        }
    }

    fn filled(content_type: &str, body: &str, text: &str) -> String {
        let http = SmsHttpConfig {
            url: "https://gateway.test/send?to={{ to }}".to_owned(),
            content_type: content_type.to_owned(),
            body: body.to_owned(),
            ..SmsHttpConfig::default()
        };
        let config = SmsConfig { http, ..SmsConfig::default() };
        let request = Gateway::new(&config).unwrap().request("447700900001", text, "123456").unwrap();
        assert_eq!(request.uri(), "https://gateway.test/send?to=%2B447700900001");
        String::from_utf8(request.body().to_vec()).unwrap()
    }

    #[test]
    fn values_are_escaped_for_the_content_type() {
        let text = "\"Ä\" & <b>\n{{ x }}";
        for (content_type, body, expected) in [
            ("application/json", r#"{"text":"{{ text }}"}"#, r#"{"text":"\"Ä\" & <b>\n{{ x }}"}"#),
            ("application/vnd.x+json; charset=utf-8", r#""{{ text }}""#, r#""\"Ä\" & <b>\n{{ x }}""#),
            (
                "application/x-www-form-urlencoded",
                "a={{ text }}",
                "a=%22%C3%84%22%20%26%20%3Cb%3E%0A%7B%7B%20x%20%7D%7D",
            ),
            ("text/xml", "<t>{{ text }}</t>", "<t>&quot;Ä&quot; &amp; &lt;b&gt;\n{{ x }}</t>"),
            ("text/plain", "{{ text }}", "\"Ä\" & <b>\n{{ x }}"),
        ] {
            assert_eq!(filled(content_type, body, text), expected, "{content_type}");
        }
    }

    #[test]
    fn mistakes_are_found_before_a_message_is_sent() {
        let good =
            SmsHttpConfig { url: "https://gateway.test".to_owned(), body: "{}".to_owned(), ..SmsHttpConfig::default() };
        assert!(problems(&good).is_empty(), "{:?}", problems(&good));
        let wrong = |change: fn(&mut SmsHttpConfig)| {
            let mut http = good.clone();
            change(&mut http);
            problems(&http).into_iter().map(|(key, _)| key).collect::<Vec<_>>()
        };
        assert_eq!(wrong(|http| http.url.clear()), ["http.url"]);
        assert_eq!(wrong(|http| http.url = "https://{{ to }}.test/".to_owned()), ["http.url"]);
        assert_eq!(wrong(|http| http.url = "https://a.{{ to }}".to_owned()), ["http.url"]);
        assert_eq!(wrong(|http| http.url = "https://a/{{ to }".to_owned()), ["http.url"]);
        assert_eq!(wrong(|http| http.body = "{% if %}".to_owned()), ["http.body"]);
        assert_eq!(wrong(|http| http.body.clear()), ["http.body"]);
        assert_eq!(wrong(|http| http.content_type = "image/png".to_owned()), ["http.content_type"]);
    }
}
