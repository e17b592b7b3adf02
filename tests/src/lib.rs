//! What the tests and the demo share: stand-ins for everything that Waypost talks to, which record what they were
//! sent, and a harness that runs the two real programs.
//!
//! Nothing here looks into the programs. A stand-in speaks the real protocol over a real socket, and a wait is a wait
//! for something that was recorded, never a sleep.

// A stand-in that cannot go on must end its test at once and say where; and time-outs here are real time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::large_futures)]

pub mod apns;
pub mod ca;
pub mod database;
pub mod dns;
pub mod fault;
pub mod fcm;
pub mod gateway;
pub mod homeserver;
pub mod http;
pub mod identity;
pub mod jwt;
pub mod mail;
pub mod matrix;
pub mod otlp;
pub mod process;
pub mod proxy;
pub mod record;
pub mod redis;
pub mod reference;
pub mod retrier;
pub mod script;
pub mod service;
pub mod settings;
pub mod silence;
pub mod smtp;
pub mod tls_server;
pub mod unifiedpush;
pub mod webpush;
