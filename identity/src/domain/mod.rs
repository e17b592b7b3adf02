//! Domain rules: pure functions and types; no I/O, no async, no database.

pub(crate) mod address_book;
pub(crate) mod association;
pub(crate) mod hashing;
pub(crate) mod invite;
pub(crate) mod language;
pub(crate) mod lookup_index;
pub(crate) mod lookups;
pub(crate) mod markdown;
pub(crate) mod mxid;
pub(crate) mod next_link;
pub(crate) mod phone;
pub(crate) mod sealing;
pub(crate) mod server_name;
pub(crate) mod session;
pub(crate) mod shown;
pub(crate) mod signer;
pub(crate) mod signing;
pub(crate) mod terms;
pub(crate) mod threepid;
