//! Black-box tests of both programs: real processes, real sockets, stand-ins for everybody they talk to.
//!
//! `./tests/run` runs them; by hand they want `cargo build --workspace` before, and `WAYPOST_TEST_POSTGRES_URL`.

// A test stops at the first thing that is not as it should be.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::large_futures)]

mod command_line;
mod identity;
mod logs;
mod push;
mod reload;
mod rolling;
mod service_manager;
mod status_page;
mod strangers;
mod traces;
