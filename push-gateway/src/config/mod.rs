//! The configuration file by section, with defaults. `config.sample.toml` explains each key.

mod apps;
mod guards;
mod seen;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use waypost_shared::{
    client::OutboundConfig,
    config::{
        file as config_file,
        file::{ConfigError, Loaded, Source},
    },
    http::server::ServerConfig,
    telemetry::{logs::LogConfig, otlp::TracesConfig},
};

pub(crate) use apps::{
    ApnsConfig, AppConfig, Content, FcmConfig, FcmProfile, PushType, WebPushConfig,
    credentials::{ApnsCredentials, FcmCredentials, ProviderConfig},
};
pub(crate) use guards::{HoldConfig, LimitsConfig, MOST_IN_WINDOW};
pub(crate) use seen::SeenConfig;

/// The least allowed `max_body_bytes`: Synapse sends whole event contents, up to 64 KiB before escaping.
const LEAST_MAX_BODY_BYTES: usize = 256 * 1024;

/// The gateway has to answer within 25 s (homeservers wait 30 s or more), which leaves a second for the answer itself.
const LARGEST_BUDGET_SECS: u64 = 24;

/// The whole configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Config {
    pub(crate) listen: ListenConfig,
    pub(crate) server: ServerConfig,
    pub(crate) outbound: OutboundConfig,
    pub(crate) log: LogConfig,
    pub(crate) traces: TracesConfig,
    pub(crate) notify: NotifyConfig,
    pub(crate) seen: SeenConfig,
    pub(crate) limits: LimitsConfig,
    pub(crate) hold: HoldConfig,
    pub(crate) apps: Vec<AppConfig>,
}

/// The section `[listen]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct ListenConfig {
    /// Address and port for homeservers. Default 127.0.0.1:5000.
    pub(crate) public: SocketAddr,
    /// Address and port for health and metrics. Default 127.0.0.1:5001.
    pub(crate) operations: SocketAddr,
}

impl Default for ListenConfig {
    fn default() -> Self {
        Self { public: SocketAddr::from(([127, 0, 0, 1], 5000)), operations: SocketAddr::from(([127, 0, 0, 1], 5001)) }
    }
}

/// The section `[notify]`: how requests are handled.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NotifyConfig {
    /// Seconds until every device of a request is settled or left to the homeserver's retry. Default 20.
    pub(crate) budget_secs: u64,
    /// Time-out of one attempt, in seconds. Default 10.
    pub(crate) attempt_timeout_secs: u64,
    /// How to answer for an `app_id` that no entry of `apps` matches. Default retry.
    pub(crate) unknown_app: UnknownApp,
    /// Most devices in one request. Default 100.
    pub(crate) max_devices: usize,
}

impl Default for NotifyConfig {
    fn default() -> Self {
        Self { budget_secs: 20, attempt_timeout_secs: 10, unknown_app: UnknownApp::Retry, max_devices: 100 }
    }
}

impl NotifyConfig {
    /// The time budget of a whole request.
    pub(crate) fn budget(&self) -> Duration {
        Duration::from_secs(self.budget_secs)
    }

    /// The time-out of one attempt.
    pub(crate) fn attempt_timeout(&self) -> Duration {
        Duration::from_secs(self.attempt_timeout_secs)
    }
}

/// How to answer for apps that are not configured.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum UnknownApp {
    /// 503: a mistake in the configuration must not delete everybody's pushers.
    Retry,
    /// Reject the pushkey; the homeserver deletes the pusher.
    Reject,
}

impl Config {
    /// Loads the file, if any, with `environment` overriding it.
    pub(crate) fn load(
        path: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Loaded<Self>, ConfigError> {
        config_file::load_unless(path, environment, apps::flat::problems)
    }

    /// Copies from `before` the keys that take effect only at a start, and returns the names of those that changed.
    pub(crate) fn keep_what_a_start_reads(&mut self, before: &Self) -> Vec<&'static str> {
        let mut waiting = Vec::new();
        waypost_shared::keep_started! { self, before, waiting;
            "[listen]": listen,
            "[server]": server,
            "[seen]": seen,
            "log.format": log.format,
            "traces.otlp_endpoint": traces.otlp_endpoint,
            "traces.sample_ratio": traces.sample_ratio,
            "traces.timeout_secs": traces.timeout_secs,
        }
        waiting
    }

    /// The secret files that may be replaced while the gateway runs.
    pub(crate) fn secret_files(&self) -> Vec<PathBuf> {
        let of_app = |app: &AppConfig| {
            let apns =
                app.apns.iter().flat_map(|apns| [&apns.key_file, &apns.certificate_file, &apns.certificate_key_file]);
            let fcm = app.fcm.iter().map(|fcm| &fcm.service_account_file);
            let vapid = app.webpush.iter().chain(&app.unifiedpush).map(|webpush| &webpush.vapid_key_file);
            apns.chain(fcm).chain(vapid).cloned().collect::<Vec<_>>()
        };
        let of_apps = self.apps.iter().flat_map(of_app);
        let of_all = [self.outbound.proxy_url_file.clone(), self.outbound.extra_ca_file.clone()];
        of_apps.chain(of_all).flatten().chain(self.traces.secret_files().cloned()).collect()
    }

    /// Files with secrets that are read only at start-up, with the keys that name them.
    pub(crate) fn start_files(&self) -> Vec<(&'static str, PathBuf)> {
        let files = [("seen.redis_url_file", &self.seen.redis_url_file), ("seen.secret_file", &self.seen.secret_file)];
        files.into_iter().filter_map(|(key, file)| Some((key, file.clone()?))).collect()
    }

    /// Checks what the types cannot, and reads each app's credentials. Reports all mistakes together.
    pub(crate) fn validate(&self, source: &Source) -> Result<Vec<ProviderConfig>, ConfigError> {
        let mut errors = self.server.problems(source);
        errors.extend(self.outbound.problems(source));
        errors.extend(self.traces.problems(source));
        errors.extend(self.limits.problems(source));
        errors.extend(self.hold.problems(source));
        errors.extend(self.seen.replicas(source).err());
        let mut must = |holds: bool, key: &str, problem: &str| {
            if !holds {
                errors.push(source.error(key, problem));
            }
        };
        let NotifyConfig { budget_secs, attempt_timeout_secs, max_devices, .. } = self.notify;
        let budget = format!("must be 1 to {LARGEST_BUDGET_SECS}: homeservers stop waiting soon after");
        must((1..=LARGEST_BUDGET_SECS).contains(&budget_secs), "notify.budget_secs", &budget);
        must(
            (1..=budget_secs.max(1)).contains(&attempt_timeout_secs),
            "notify.attempt_timeout_secs",
            "must be 1 to notify.budget_secs",
        );
        must(max_devices > 0, "notify.max_devices", "must be 1 or more");
        let delivered = "must be 1 or more: homeservers retry events, and no device may get one twice";
        must(self.seen.delivered_ttl_secs > 0, "seen.delivered_ttl_secs", delivered);
        must(self.seen.max_entries > 0, "seen.max_entries", "must be 1 or more");
        let body = format!("must be {LEAST_MAX_BODY_BYTES} or more: homeservers send whole events");
        must(self.server.max_body_bytes >= LEAST_MAX_BODY_BYTES, "server.max_body_bytes", &body);

        errors.extend(apps::ambiguous::problems(&self.apps, source));
        let providers = apps::credentials::read(&self.apps, source).map_err(|error| errors.push(error));
        match providers {
            Ok(providers) if errors.is_empty() => Ok(providers),
            _ => Err(ConfigError::merge(errors)),
        }
    }
}

#[cfg(test)]
mod tests;
