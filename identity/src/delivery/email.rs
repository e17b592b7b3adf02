//! Sending mail.

use std::{io, os::unix::fs::DirBuilderExt as _, path::PathBuf, time::Duration};

use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::{
        PoolConfig,
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
    },
};
use tokio::{io::AsyncWriteExt as _, sync::Semaphore, time::timeout};
use waypost_shared::{
    clock::Clock,
    config::secret::{ExposeSecret as _, SecretError},
    operations::status::HealthProbe,
    random,
    trace::{self, Kind},
};

use crate::config::{Config, EmailTransport, SmtpTls};

/// Why a mail could not be sent. The texts never include an address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailError {
    /// The recipient is not a valid mail address.
    #[error("mail cannot be sent to this address")]
    Address,
    /// The message could not be built.
    #[error("the mail could not be built")]
    Message(#[from] lettre::error::Error),
    /// The mail server could not be reached, or refused the mail.
    #[error("the mail server did not accept the mail{}", reason(.0))]
    Smtp(Box<lettre::transport::smtp::Error>),
    /// The mail server was too slow, or no connection slot became free in time.
    #[error("the mail was not sent within {0} seconds")]
    Timeout(u64),
    /// The mail could not be written to `email.folder`.
    #[error("the mail could not be written to its folder")]
    Folder(#[from] io::Error),
}

impl MailError {
    /// Whether certainly no mail went out, for a reason that the requester has no influence on.
    pub(crate) fn is_unsent_by_our_fault(&self) -> bool {
        match self {
            Self::Smtp(error) => !error.is_permanent() && !error.is_timeout(),
            Self::Message(_) | Self::Folder(_) => true,
            Self::Address | Self::Timeout(_) => false,
        }
    }

    /// Whether the server is to blame, so that any other mail would most likely have failed too.
    fn is_of_the_server(&self) -> bool {
        match self {
            Self::Address | Self::Message(_) => false,
            // A permanent refusal (5xx) is about this recipient or message.
            Self::Smtp(error) => !error.is_permanent(),
            Self::Timeout(_) | Self::Folder(_) => true,
        }
    }
}

/// The reason to report to the operator. Replies often quote the recipient, so only their status code is reported;
/// local connection and TLS errors contain no address.
fn reason(error: &lettre::transport::smtp::Error) -> String {
    match error.status() {
        Some(code) => format!(" (SMTP status {code})"),
        None if error.is_timeout() => " (no answer in time)".to_owned(),
        None if error.is_response() => " (its reply is not valid SMTP)".to_owned(),
        None => format!(" ({error})"),
    }
}

/// A mail configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailerError {
    /// The sender address is invalid.
    #[error("email.from: {0}")]
    From(#[from] lettre::address::AddressError),
    /// TLS to the mail server cannot be set up.
    #[error("cannot set up TLS for the mail server: {0}")]
    Tls(#[from] lettre::transport::smtp::Error),
    /// The password cannot be read.
    #[error("email.smtp_password: {0}")]
    Password(#[from] SecretError),
    /// The extra CA file or the mail folder cannot be used.
    #[error("{path}: {source}")]
    File {
        /// The file or folder.
        path: String,
        /// The I/O error.
        source: io::Error,
    },
}

/// The content of a mail.
#[derive(Debug)]
pub(crate) struct Mail {
    /// The subject, a single line.
    pub(crate) subject: String,
    /// The plain text alternative.
    pub(crate) text: String,
    /// The HTML alternative.
    pub(crate) html: String,
}

/// Sends mails.
#[derive(Debug)]
pub(crate) struct Mailer {
    from: Mailbox,
    timeout_secs: u64,
    transport: Transport,
    /// Whether the mail server is up, judged by the latest mail.
    pub(crate) probe: HealthProbe,
}

#[derive(Debug)]
enum Transport {
    Smtp {
        smtp: AsyncSmtpTransport<Tokio1Executor>,
        /// lettre's pool bounds idle connections only.
        at_once: Semaphore,
    },
    Folder(PathBuf),
}

impl Mailer {
    /// Sets up the configured transport. Does not connect yet.
    pub(crate) fn new(config: &Config, clock: Clock) -> Result<Self, MailerError> {
        let email = &config.email;
        let transport = match email.transport {
            EmailTransport::Smtp => {
                Transport::Smtp { smtp: smtp(config)?, at_once: Semaphore::new(email.smtp_max_connections as usize) }
            }
            EmailTransport::Folder => {
                let folder = email.folder.clone().unwrap_or_else(|| config.identity.data_dir.join("mail"));
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(&folder)
                    .map_err(|source| MailerError::File { path: folder.display().to_string(), source })?;
                Transport::Folder(folder)
            }
        };
        let from = email.from.parse()?;
        Ok(Self { from, timeout_secs: email.smtp_timeout_secs, transport, probe: HealthProbe::new(clock) })
    }

    /// Sends a mail to one address; returns once the mail server has accepted it.
    ///
    /// `link` is the link in the mail. The folder transport logs it, since no mailbox receives the mail.
    pub(crate) async fn send(&self, to: &str, mail: Mail, link: &str) -> Result<(), MailError> {
        let to: Address = to.parse().map_err(|_| MailError::Address)?;
        let message = self.message(to, mail)?;
        let mut span = trace::child(Kind::Client, "mail");
        let sent = self.hand_over(message, link).await;
        if let (Some(span), Err(_)) = (&mut span, &sent) {
            span.fail("mail");
        }
        drop(span);
        match &sent {
            Err(error) if error.is_of_the_server() => self.probe.mark_down(|| error.to_string()),
            Ok(()) | Err(_) => self.probe.mark_up(),
        }
        sent
    }

    async fn hand_over(&self, message: Message, link: &str) -> Result<(), MailError> {
        match &self.transport {
            Transport::Smtp { smtp, at_once } => {
                // lettre's own time-out applies to each SMTP command; this one covers the whole mail.
                let sending = async {
                    let _one = at_once.acquire().await;
                    smtp.send(message).await.map_err(|error| MailError::Smtp(Box::new(error)))
                };
                let sent = timeout(Duration::from_secs(self.timeout_secs), sending).await;
                sent.unwrap_or(Err(MailError::Timeout(self.timeout_secs)))?;
            }
            Transport::Folder(folder) => {
                let file = folder.join(format!("{}.eml", random::token()));
                let mut open = tokio::fs::OpenOptions::new();
                let mut open = open.write(true).create_new(true).mode(0o600).open(&file).await?;
                open.write_all(&message.formatted()).await?;
                // tokio writes files in the background; only the flush reports a failed write.
                open.flush().await?;
                tracing::info!(
                    file = %file.display(),
                    link,
                    "mail written to a file, not sent: email.transport is \"folder\""
                );
            }
        }
        Ok(())
    }

    fn message(&self, to: Address, mail: Mail) -> Result<Message, lettre::error::Error> {
        let domain = self.from.email.domain();
        // RFC 3834: marks automatic mail, so that out-of-office responders do not reply.
        let auto_submitted =
            HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
        Message::builder()
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(mail.subject)
            .date_now()
            .message_id(Some(format!("<{}@{domain}>", random::token())))
            .raw_header(auto_submitted)
            .multipart(MultiPart::alternative_plain_html(mail.text, mail.html))
    }
}

fn smtp(config: &Config) -> Result<AsyncSmtpTransport<Tokio1Executor>, MailerError> {
    let email = &config.email;
    let tls = match email.smtp_tls {
        SmtpTls::None => Tls::None,
        SmtpTls::Starttls => Tls::Required(tls_parameters(config)?),
        SmtpTls::Tls => Tls::Wrapper(tls_parameters(config)?),
    };
    let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&email.smtp_host)
        .port(email.smtp_port)
        .timeout(Some(Duration::from_secs(email.smtp_timeout_secs)))
        .pool_config(PoolConfig::new().max_size(email.smtp_max_connections))
        .tls(tls);
    if let Some(credentials) = credentials(config)? {
        builder = builder.credentials(credentials);
    }
    Ok(builder.build())
}

/// The SMTP credentials, or none if no user is configured.
pub(crate) fn credentials(config: &Config) -> Result<Option<Credentials>, MailerError> {
    let Some(username) = &config.email.smtp_username else { return Ok(None) };
    let password = config.smtp_password()?;
    let password = password.as_ref().map(|password| password.expose_secret()).unwrap_or_default();
    Ok(Some(Credentials::new(username.clone(), password.to_owned())))
}

/// The TLS parameters for the mail server, including the roots in `outbound.extra_ca_file`.
pub(crate) fn tls_parameters(config: &Config) -> Result<TlsParameters, MailerError> {
    let mut parameters = TlsParameters::builder(config.email.smtp_host.clone());
    if let Some(file) = &config.outbound.extra_ca_file {
        let unreadable = |source| MailerError::File { path: file.display().to_string(), source };
        parameters = parameters.add_root_certificate(Certificate::from_pem(&std::fs::read(file).map_err(unreadable)?)?);
    }
    Ok(parameters.build_rustls()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn mailer() -> Mailer {
        Mailer {
            probe: HealthProbe::new(Clock::manual(0)),
            from: "Exämple <noreply@id.test>".parse().unwrap(),
            timeout_secs: 1,
            transport: Transport::Folder(PathBuf::new()),
        }
    }

    fn formatted(subject: &str) -> String {
        let mail = Mail { subject: subject.to_owned(), text: "Größe".to_owned(), html: "<p>Größe</p>".to_owned() };
        let message = mailer().message("alice@example.com".parse().unwrap(), mail).unwrap();
        String::from_utf8(message.formatted()).unwrap()
    }

    #[test]
    fn a_mail_has_each_expected_header_once() {
        let mail = formatted("Confirm");
        let (head, _) = mail.split_once("\r\n\r\n").unwrap();
        for start in [
            "From: =?utf-8?b?",
            "To: alice@example.com",
            "Subject: Confirm",
            "Date: ",
            "Message-ID: <",
            "MIME-Version: 1.0",
            "Auto-Submitted: auto-generated",
            "Content-Type: multipart/alternative",
        ] {
            assert_eq!(head.split("\r\n").filter(|line| line.starts_with(start)).count(), 1, "{start}\n{head}");
        }
        assert!(mail.is_ascii() && !mail.replace("\r\n", "").contains('\n'), "{mail}");
    }

    #[test]
    fn a_line_break_in_a_subject_cannot_inject_a_header() {
        let mail = formatted("Hello\r\nBcc: eve@evil.test");
        assert!(!mail.split("\r\n").any(|line| line.starts_with("Bcc")), "{mail}");
    }
}
