//! HTTP: one file for each section of the specification, one function for each endpoint.

pub(crate) mod account;
pub(crate) mod associations;
pub(crate) mod internal;
pub(crate) mod lookup;
pub(crate) mod pubkey;
pub(crate) mod status;
pub(crate) mod terms;
pub(crate) mod validation;
