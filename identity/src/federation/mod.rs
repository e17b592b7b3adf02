//! Talking to homeservers: finding them, and asking them who somebody is.

pub(crate) mod client;
pub(crate) mod discovery;
