//! Configuration: loading, error messages and secrets.

pub mod file;
pub mod keys;
pub mod secret;
