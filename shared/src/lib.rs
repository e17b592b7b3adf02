//! What both Waypost services use: serving HTTP, calling out, configuration, logs, metrics, traces.
//!
//! Nothing here knows a threepid or a pusher, and nothing here imports another Waypost crate.

pub mod body;
pub mod clock;
pub mod command_line;
pub mod config_file;
pub mod config_keys;
pub mod current;
pub mod doctor;
pub mod error;
pub mod health;
pub mod hex;
pub mod http;
pub mod http_client;
pub mod matrix_error;
pub mod metrics;
pub mod otlp;
pub mod owner;
pub mod params;
pub mod process_metrics;
pub mod random;
pub mod rate_limit;
pub mod reload;
pub mod resolver;
pub mod retry;
pub mod secret;
pub mod serve;
pub mod service;
pub mod service_manager;
pub mod status;
pub mod telemetry;
pub mod trace;
