//! Everything people receive: mails, text messages and pages.

pub(crate) mod email;
pub(crate) mod hosted_terms;
pub(crate) mod sms;
pub(crate) mod templates;
