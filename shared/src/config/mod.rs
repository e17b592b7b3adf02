//! The configuration file: reading it, what its errors say, and secrets.

pub mod file;
pub mod keys;
pub mod secret;
