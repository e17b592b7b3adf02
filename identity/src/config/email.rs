//! The section `[email]`: how emails are sent.

use std::path::PathBuf;

use serde::Deserialize;
use waypost_shared::config::secret::SecretString;

use crate::domain::language;

/// How emails are sent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EmailConfig {
    /// `smtp`, or `folder`: emails are written to files and their links to the log, for trials. Default folder.
    pub(crate) transport: EmailTransport,
    /// The sender. Default `Waypost <noreply@localhost>`.
    pub(crate) from: String,
    /// The SMTP server. Default `localhost`.
    pub(crate) smtp_host: String,
    /// Its port. Default 25.
    pub(crate) smtp_port: u16,
    /// `none`, `starttls` (required, not merely tried) or `tls`. Default starttls.
    pub(crate) smtp_tls: SmtpTls,
    /// The user name for authentication. Default none.
    pub(crate) smtp_username: Option<String>,
    /// Its password. Default none.
    pub(crate) smtp_password: Option<SecretString>,
    /// A file that holds the password. Default none.
    pub(crate) smtp_password_file: Option<PathBuf>,
    /// Maximum number of emails in flight. Default 10.
    pub(crate) smtp_max_connections: u32,
    /// Seconds for sending one email. Default 30.
    pub(crate) smtp_timeout_secs: u64,
    /// Where the folder transport writes. Default `mail` in the data folder.
    pub(crate) folder: Option<PathBuf>,
    /// A folder with templates that replace the built-in ones of the same names. Default none.
    pub(crate) template_dir: Option<PathBuf>,
    /// The language for everyone whose languages have no templates. Default en.
    pub(crate) default_language: String,
}

impl Default for EmailConfig {
    fn default() -> Self {
        Self {
            transport: EmailTransport::Folder,
            from: "Waypost <noreply@localhost>".to_owned(),
            smtp_host: "localhost".to_owned(),
            smtp_port: 25,
            smtp_tls: SmtpTls::Starttls,
            smtp_username: None,
            smtp_password: None,
            smtp_password_file: None,
            smtp_max_connections: 10,
            smtp_timeout_secs: 30,
            folder: None,
            template_dir: None,
            default_language: language::ENGLISH.to_owned(),
        }
    }
}

/// See [`EmailConfig::transport`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum EmailTransport {
    /// To a mail server.
    Smtp,
    /// To files.
    Folder,
}

/// See [`EmailConfig::smtp_tls`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SmtpTls {
    /// Unencrypted.
    None,
    /// Encrypted after STARTTLS, which is required.
    Starttls,
    /// TLS from the first byte.
    Tls,
}
