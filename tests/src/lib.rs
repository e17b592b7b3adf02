//! Shared by the tests and the demo: stand-ins for everything that Waypost talks to, which record what they receive,
//! and a harness that runs the two real programs.
//!
//! Everything is black-box: stand-ins speak the real protocols over real sockets, and waiting means waiting for
//! something to be recorded, never sleeping.

// A stand-in that cannot continue has to fail its test at once and say where; and time-outs here are in real time.
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
