//! Logging to standard error, as text or as JSON.

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _},
    panic::{self, PanicHookInfo},
    sync::OnceLock,
};

use serde::Deserialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Registry,
    filter::{LevelFilter, Targets},
    fmt::{self, FmtContext, FormatEvent, FormatFields, format::Writer},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::trace;

/// The section `[log]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// The least severe level that is logged. Default info.
    pub level: LogLevel,
    /// The format of a line. Default text.
    pub format: LogFormat,
}

/// The log level.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Only what an operator must act upon.
    Error,
    /// Also what an operator should know.
    Warn,
    /// Also normal events.
    Info,
    /// Also every refused request.
    Debug,
    /// Everything.
    Trace,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    Text,
    /// One JSON object per line.
    Json,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: LogLevel::Info, format: LogFormat::Text }
    }
}

/// Changes the level of the running subscriber.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Starts logging. Further calls have no effect.
pub fn init(config: &LogConfig) {
    let (filter, handle) = reload::Layer::new(filter(config.level));
    let registry = tracing_subscriber::registry().with(filter);
    let started = match config.format {
        LogFormat::Text => {
            registry.with(fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal())).try_init()
        }
        LogFormat::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_writer(io::stderr);
            registry.with(layer.map_event_format(WithTrace)).try_init()
        }
    };
    if started.is_ok() {
        drop(FILTER.set(handle));
        panic::set_hook(Box::new(log_panic));
    }
    // Fails if a subscriber is installed already (by another test), which then serves us too.
}

/// Logs a panic like any other event. Its text may hold anything that a request did, unless it is a literal in the source.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let at = panic.location().map(ToString::to_string).unwrap_or_default();
    let text = panic.payload().downcast_ref::<&'static str>().copied().unwrap_or("not a literal, so not logged");
    let thread = std::thread::current().name().unwrap_or_default().to_owned();
    let backtrace = Backtrace::capture();
    match backtrace.status() {
        BacktraceStatus::Captured => tracing::error!(at, text, thread, %backtrace, "panic"),
        _ => tracing::error!(at, text, thread, "panic"),
    }
}

/// JSON lines that begin with the `trace_id` of the request they are about, if it has one.
struct WithTrace<F>(F);

impl<S, N, F> FormatEvent<S, N> for WithTrace<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        let Some(trace) = trace::current_trace() else { return self.0.format_event(context, writer, event) };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"trace_id\":\"{trace}\",{rest}"),
            None => writer.write_str(&line),
        }
    }
}

/// Changes the log level.
pub fn set_level(level: LogLevel) {
    if let Some(Err(error)) = FILTER.get().map(|handle| handle.reload(filter(level))) {
        tracing::warn!(%error, "the log level could not be changed; keeping the previous one");
    }
}

fn filter(level: LogLevel) -> Targets {
    let level = match level {
        LogLevel::Error => Level::ERROR,
        LogLevel::Warn => Level::WARN,
        LogLevel::Info => Level::INFO,
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Trace => Level::TRACE,
    };
    // Other crates log requests, statements and addresses below WARN; only our own are known not to.
    Targets::new().with_default(LevelFilter::WARN.min(LevelFilter::from_level(level))).with_target("waypost", level)
}
