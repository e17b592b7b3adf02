//! Code that both Waypost services use. Nothing here knows about threepids or pushers, and nothing here imports
//! another Waypost crate.
//!
//! Modules are layered, each importing only those below it: `service` → `operations` → `http` → `telemetry` → `client`
//! → `trace` → `config`, and below all of them the small utility modules.

pub mod client;
pub mod clock;
pub mod config;
pub mod current;
pub mod error;
pub mod hex;
pub mod http;
pub mod operations;
pub mod owner;
pub mod random;
pub mod service;
pub mod source;
pub mod stop;
pub mod telemetry;
pub mod trace;
