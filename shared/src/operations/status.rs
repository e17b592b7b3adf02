//! The status of the service, as a page on the operations listener and as JSON.

use std::{fmt, sync::Arc, time::Duration};

use http::{
    HeaderValue, StatusCode,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY},
};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{runtime::Handle, task::JoinHandle, time::timeout};

use crate::{
    clock::Clock,
    http::{Incoming, MatrixError, Response, json, with_body},
    operations::health::Readiness,
    random,
    telemetry::metrics,
};

/// The page. `NONCE` in it is replaced by the nonce of its styles and its script.
const PAGE: &str = include_str!("status.html");
/// The commit this was built from, if the build sets it.
const COMMIT: Option<&str> = option_env!("WAYPOST_COMMIT");

/// The state of a dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// The latest call succeeded.
    Up,
    /// The latest call failed.
    Down,
    /// No call has been made yet.
    Unknown,
    /// Not configured.
    Off,
}

/// The current state of a dependency.
#[derive(Clone, Debug, Serialize)]
pub struct Dependency {
    /// Its name; for an app, the id in the configuration.
    pub name: String,
    /// `database`, `mail`, `sms`, `homeservers`, `redis`, or the type of a push service.
    pub kind: &'static str,
    /// Whether it works.
    pub state: State,
    /// A short explanation without addresses or secrets.
    pub detail: String,
    /// When it entered this state, in milliseconds since the epoch.
    pub since_ms: Option<i64>,
}

/// Something that expires, or whose age matters.
#[derive(Clone, Debug, Serialize)]
pub struct Expiry {
    /// What it is.
    pub name: String,
    /// When it expires, in milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_ms: Option<i64>,
    /// When it was created or became valid, likewise; in the future for a certificate that is not valid yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<i64>,
}

/// Facts about a service that no metric covers.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Its dependencies.
    pub dependencies: Vec<Dependency>,
    /// What expires or ages.
    pub expiries: Vec<Expiry>,
}

/// Gathering facts takes milliseconds unless the service has no CPU time left for it.
const FACTS_TIMEOUT: Duration = Duration::from_secs(5);

/// Gathers the facts of a service on request.
#[derive(Clone)]
pub struct About {
    service: &'static str,
    clock: Clock,
    started_ms: i64,
    ask: Arc<dyn Fn() -> JoinHandle<Facts> + Send + Sync>,
}

impl fmt::Debug for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("About").field("service", &self.service).finish_non_exhaustive()
    }
}

impl About {
    /// Describes the service of this name, started now, with `ask` to gather its facts. They are gathered on the
    /// runtime that this is called in, because resources such as database connections belong to it.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new<F, Fut>(service: &'static str, clock: Clock, ask: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Facts> + Send + 'static,
    {
        let started_ms = clock.now_ms();
        let runtime = Handle::current();
        Self { service, clock, started_ms, ask: Arc::new(move || runtime.spawn(ask())) }
    }

    async fn facts(&self) -> Result<Facts, MatrixError> {
        match timeout(FACTS_TIMEOUT, (self.ask)()).await {
            Ok(Ok(facts)) => Ok(facts),
            Ok(Err(_)) | Err(_) => {
                let text = "The service did not report its status in time: it is overloaded or shutting down";
                Err(MatrixError::new(StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN", text))
            }
        }
    }
}

/// The health of a dependency, as shown by the latest calls to it, and since when.
#[derive(Debug)]
pub struct HealthProbe {
    clock: Clock,
    last: Mutex<Option<(State, String, i64)>>,
}

impl HealthProbe {
    /// Starts in [`State::Unknown`].
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self { clock, last: Mutex::default() }
    }

    /// Records a successful call.
    pub fn mark_up(&self) {
        self.saw(State::Up, String::new);
    }

    /// Records a failed call and its reason.
    pub fn mark_down(&self, why: impl FnOnce() -> String) {
        self.saw(State::Down, why);
    }

    fn saw(&self, state: State, detail: impl FnOnce() -> String) {
        let mut last = self.last.lock();
        match last.as_mut() {
            // The common case, kept cheap.
            Some((State::Up, ..)) if state == State::Up => {}
            Some((known, text, _)) if *known == state => *text = detail(),
            _ => *last = Some((state, detail(), self.clock.now_ms())),
        }
    }

    /// The current state, as a dependency of this name and kind. The detail is `what`, followed by the latest failure.
    #[must_use]
    pub fn dependency(&self, name: impl Into<String>, kind: &'static str, what: &str) -> Dependency {
        let last = self.last.lock().clone();
        let (state, detail, since_ms) = match last {
            Some((state, detail, since_ms)) => (state, detail, Some(since_ms)),
            None => (State::Unknown, String::new(), None),
        };
        let detail = if detail.is_empty() { what.to_owned() } else { format!("{what}: {detail}") };
        Dependency { name: name.into(), kind, state, detail, since_ms }
    }
}

/// The state of the operations listener.
#[derive(Clone)]
pub struct Operations {
    /// All metrics of the process.
    pub registry: Arc<Registry>,
    /// Whether the service can take requests.
    pub readiness: Readiness,
    /// The facts that the status page shows in addition to the metrics.
    pub about: About,
}

impl fmt::Debug for Operations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("readiness", &self.readiness).finish_non_exhaustive()
    }
}

/// `GET /`: a page that polls [`status`].
pub(crate) async fn page(_operations: Operations, _request: Incoming) -> Result<Response, MatrixError> {
    let nonce = random::token();
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; connect-src 'self'; img-src data:; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    let mut response = with_body(StatusCode::OK, "text/html; charset=utf-8", PAGE.replace("NONCE", &nonce));
    // The nonce is URL-safe base64, which is valid in a header.
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    Ok(response)
}

/// `GET /status`: the same as JSON; docs/operations.md describes the fields.
pub(crate) async fn status(operations: Operations, _request: Incoming) -> Result<Response, MatrixError> {
    let about = &operations.about;
    let Facts { dependencies, expiries } = about.facts().await?;
    let mut response = json(&json!({
        "service": about.service,
        "version": env!("CARGO_PKG_VERSION"),
        "commit": COMMIT,
        "started_ms": about.started_ms,
        "now_ms": about.clock.now_ms(),
        "ready": operations.readiness.get(),
        "dependencies": dependencies,
        "expiries": expiries,
        "metrics": samples(&metrics::text(&operations.registry)),
    }));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

/// Parses the samples of an OpenMetrics text.
fn samples(text: &str) -> Vec<Value> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect()
}

/// Parses `name{label="value",…} number`, ignoring an exemplar after it.
fn sample(line: &str) -> Option<Value> {
    let name_ends = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_ends);
    let mut labels = Map::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            rest = rest.trim_start_matches(',');
            if let Some(after) = rest.strip_prefix('}') {
                rest = after;
                break;
            }
            let (label, after) = rest.split_once("=\"")?;
            let (value, after) = quoted(after)?;
            labels.insert(label.to_owned(), value.into());
            rest = after;
        }
    }
    let number: f64 = rest.split_whitespace().next()?.parse().ok()?;
    Some(json!({"name": name, "labels": labels, "value": number}))
}

/// A label value up to its closing quotation mark, and the rest of the text.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(match chars.next()?.1 {
                'n' => '\n',
                escaped => escaped,
            }),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn samples_are_parsed_with_their_labels() {
        let text = "# TYPE a counter\na_total{route=\"/x/{id}\",who=\"a\\\"b\\\\c\\nd\"} 3\nb 0.5\n\
                    c_bucket{le=\"+Inf\"} 7 # {trace_id=\"0\"} 0.1\n# EOF\n";
        assert_eq!(
            Value::from(samples(text)),
            json!([
                {"name": "a_total", "labels": {"route": "/x/{id}", "who": "a\"b\\c\nd"}, "value": 3.0},
                {"name": "b", "labels": {}, "value": 0.5},
                {"name": "c_bucket", "labels": {"le": "+Inf"}, "value": 7.0},
            ])
        );
    }

    #[test]
    fn a_state_keeps_its_first_time_and_its_latest_detail() {
        let clock = Clock::manual(1000);
        let probe = HealthProbe::new(clock.clone());
        let seen = || {
            let Dependency { state, detail, since_ms, .. } = probe.dependency("mail server", "mail", "SMTP");
            (state, detail, since_ms)
        };
        assert_eq!(seen(), (State::Unknown, "SMTP".to_owned(), None));
        probe.mark_up();
        clock.advance(Duration::from_secs(1));
        probe.mark_up();
        assert_eq!(seen(), (State::Up, "SMTP".to_owned(), Some(1000)));
        probe.mark_down(|| "no answer".to_owned());
        clock.advance(Duration::from_secs(1));
        probe.mark_down(|| "refused".to_owned());
        assert_eq!(seen(), (State::Down, "SMTP: refused".to_owned(), Some(2000)));
    }
}
