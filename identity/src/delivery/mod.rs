//! What reaches people: mails and pages.

pub(crate) mod email;
pub(crate) mod hosted_terms;
pub(crate) mod templates;
