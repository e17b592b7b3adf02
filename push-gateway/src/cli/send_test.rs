//! `send-test`: sends one push and shows the request, the answer and what it means.

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, Request, Response};
use serde_json::{Value, json};
use url::Url;
use waypost_shared::{hex, source::RequestSource};

use crate::{
    app::App,
    encoding::{from_base64, path_segment},
    notification::{Device, Notification},
    outcome::{Ended, Fault, Outcome},
    run_error::RunError,
    upstream::Attempt,
};

/// The device to send to.
#[derive(Debug, Args)]
pub(super) struct Options {
    /// The `app_id` of the device's pusher.
    #[arg(long, value_name = "ID")]
    app: String,
    /// The device's pushkey. The output shows it shortened.
    #[arg(long, value_name = "KEY", allow_hyphen_values = true)]
    pushkey: String,
    /// The pusher's `data`, such as {"endpoint":"https://…","auth":"…"} for web push.
    #[arg(long, value_name = "JSON")]
    data: Option<String>,
}

/// Sends the push and prints the exchange.
pub(super) async fn run(app: &App, options: &Options) -> Result<(), RunError> {
    let entry = app
        .entry(&options.app)
        .ok_or_else(|| RunError::Usage(format!("no entry of `apps` matches --app {}", options.app)))?;
    let notification = notification(app, options)?;
    let [device] = notification.devices.as_slice() else {
        return Err(RunError::Usage("--pushkey does not name a device".to_owned()));
    };
    if let Some(fault) = &device.fault {
        return Err(RunError::Usage(format!("--data or --pushkey: {fault}")));
    }
    let hidden = Hidden::new(device);
    println!("app  {}", entry.id);
    let outcome = match entry.provider.prepare(&notification, device, entry.content) {
        Ok(request) => {
            println!("{}", hidden.shorten(&sent(&request)));
            let Attempt { outcome, answer } =
                entry.provider.attempt(&request, device, app.config.attempt_timeout()).await;
            match answer {
                Some(answer) => println!("{}", hidden.shorten(&received(&answer))),
                None => println!("<  no answer; see the log for the reason"),
            }
            outcome
        }
        Err(Ended::With(outcome)) => {
            println!(">  nothing was sent");
            outcome
        }
        Err(Ended::Dropped | Ended::Suppressed) => {
            println!(">  nothing was sent: this app only gets other events (an app for calls only gets calls)");
            return Err(RunError::Undelivered);
        }
    };
    println!("{}", meaning(&outcome));
    if outcome == Outcome::Delivered { Ok(()) } else { Err(RunError::Undelivered) }
}

/// A recognisable message, with the event id that is never deduplicated.
fn notification(app: &App, options: &Options) -> Result<Notification, RunError> {
    let data: Value = match &options.data {
        None => Value::Null,
        Some(text) => {
            serde_json::from_str(text).map_err(|error| RunError::Usage(format!("--data is not valid JSON: {error}")))?
        }
    };
    let body = json!({"notification": {
        "event_id": "$THIS_IS_A_FAKE_EVENT_ID",
        "room_id": "!waypost:example.org",
        "type": "m.room.message",
        "sender": "@waypost:example.org",
        "sender_display_name": "Waypost",
        "room_name": "Test",
        "content": {"msgtype": "m.text", "body": "This is a test of the push gateway."},
        "counts": {"unread": 1},
        "devices": [{"app_id": options.app, "pushkey": options.pushkey, "data": data}],
    }});
    let Value::Object(body) = body else { return Err(RunError::Usage("no notification".to_owned())) };
    Notification::parse(body, RequestSource::UNKNOWN, &app.config).map_err(|error| RunError::Usage(error.to_string()))
}

fn sent(request: &Request<Bytes>) -> String {
    let head = format!(">  {} {}", request.method(), request.uri());
    [head, headers('>', request.headers()), body('>', request.body())].concat()
}

fn received(answer: &Response<Bytes>) -> String {
    let head = format!("<  {}", answer.status());
    [head, headers('<', answer.headers()), body('<', answer.body())].concat()
}

/// One line per header. Values of headers that authenticate the gateway are hidden.
fn headers(mark: char, headers: &HeaderMap) -> String {
    let line = |(name, value): (&http::HeaderName, &http::HeaderValue)| match value.to_str() {
        Ok(value_text) if !value.is_sensitive() => format!("\n{mark}  {name}: {value_text}"),
        _ => format!("\n{mark}  {name}: [secret]"),
    };
    headers.iter().map(line).collect()
}

fn body(mark: char, body: &Bytes) -> String {
    match std::str::from_utf8(body) {
        Ok("") => String::new(),
        Ok(text) => format!("\n{mark}  {text}"),
        Err(_) => format!("\n{mark}  {} bytes, encrypted", body.len()),
    }
}

fn meaning(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Delivered => {
            "Delivered: the push service accepted it. If the device shows nothing, check the app and its settings.".to_owned()
        }
        Outcome::Gone => {
            "Gone: the pushkey is dead. The homeserver would be told and delete the pusher; the app has to register a new one.".to_owned()
        }
        Outcome::Busy { retry_after: Some(wait) } => {
            format!("Busy: the push service asks for {} s of patience. The homeserver would be asked to retry.", wait.as_secs())
        }
        Outcome::Busy { retry_after: None } => {
            "Busy: the push service failed or was unreachable. The homeserver would be asked to retry.".to_owned()
        }
        Outcome::Refused(refusal) => match refusal.fault {
            Fault::Push => format!("Refused because of this push: {}.", refusal.why),
            Fault::App => format!("Refused because of the app's configuration: {}.", refusal.why),
        },
    }
}

/// Texts that identify the device, each with its replacement in the output.
struct Hidden(Vec<(String, String)>);

impl Hidden {
    fn new(device: &Device) -> Self {
        let key = device.pushkey.expose();
        let mut texts = Vec::new();
        for address in [Some(key), device.data_text("endpoint")].into_iter().flatten() {
            if let Ok(url) = Url::parse(address)
                && url.has_host()
            {
                texts.push((url.as_str().to_owned(), format!("{}/…", url.origin().ascii_serialization())));
                texts.push((address.to_owned(), format!("{}/…", url.origin().ascii_serialization())));
            }
        }
        let hexadecimal = from_base64(key).map(|token| hex::encode(&token)).unwrap_or_default();
        for form in [key.to_owned(), key.to_ascii_lowercase(), hexadecimal, path_segment(key)] {
            texts.push((form.clone(), beginning(&form)));
        }
        texts.retain(|(text, _)| !text.is_empty());
        Self(texts)
    }

    fn shorten(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, (hidden, shown)| text.replace(hidden.as_str(), shown))
    }
}

/// A prefix, enough to recognise a pushkey by.
fn beginning(key: &str) -> String {
    let shown = (key.chars().count() / 4).min(8);
    key.chars().take(shown).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    #[test]
    fn only_a_prefix_of_the_pushkey_is_shown() {
        let device = Device {
            app_id: "a".to_owned(),
            pushkey: "AB".repeat(32).into(),
            pushkey_ts_ms: None,
            data: Map::from_iter([("endpoint".to_owned(), "https://push.example/secret?a=b".into())]),
            fault: None,
        };
        let hidden = Hidden::new(&device);
        let (lower, key) = ("ab".repeat(32), device.pushkey.expose());
        for (text, expected) in [
            (format!("/3/device/{lower} {key}"), "/3/device/abababab… ABABABAB…"),
            ("POST https://push.example/secret?a=b".to_owned(), "POST https://push.example/…"),
            ("short".to_owned(), "short"),
        ] {
            assert_eq!(hidden.shorten(&text), expected);
        }
        assert_eq!(beginning("abcd"), "a…");
    }
}
