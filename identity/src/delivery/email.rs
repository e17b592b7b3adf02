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

/// A mail that did not go out. The texts name no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailError {
    /// The address is not one that a mail can go to.
    #[error("the address cannot be written to")]
    Address,
    /// The mail could not be put together.
    #[error("the mail could not be put together")]
    Message(#[from] lettre::error::Error),
    /// The mail server could not be reached, or refused.
    #[error("the mail server did not take the mail{}", reason(.0))]
    Smtp(Box<lettre::transport::smtp::Error>),
    /// The mail server was too slow, or too many mails are under way.
    #[error("the mail was not sent within {0} seconds")]
    Timeout(u64),
    /// The mail could not be written to the folder.
    #[error("the mail could not be written")]
    Folder(#[from] io::Error),
}

impl MailError {
    /// Whether no other mail would have gone out either, as far as one can tell.
    fn is_of_the_server(&self) -> bool {
        match self {
            Self::Address | Self::Message(_) => false,
            // What it refuses for good it refuses for the recipient.
            Self::Smtp(error) => !error.is_permanent(),
            Self::Timeout(_) | Self::Folder(_) => true,
        }
    }
}

/// What the operator can be told. The mail server's sentences often quote the recipient, so of those only the status is;
/// what this side says about the connection and its TLS names nobody.
fn reason(error: &lettre::transport::smtp::Error) -> String {
    match error.status() {
        Some(code) => format!(" (SMTP status {code})"),
        None if error.is_timeout() => " (no answer in time)".to_owned(),
        None if error.is_response() => " (its answer is not SMTP)".to_owned(),
        None => format!(" ({error})"),
    }
}

/// A mail configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailerError {
    /// The sender.
    #[error("email.from: {0}")]
    From(#[from] lettre::address::AddressError),
    /// TLS.
    #[error("the mail server's TLS cannot be set up: {0}")]
    Tls(#[from] lettre::transport::smtp::Error),
    /// The password.
    #[error("email.smtp_password: {0}")]
    Password(#[from] SecretError),
    /// The additional roots or the folder.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// What a mail says.
#[derive(Debug)]
pub(crate) struct Mail {
    /// The subject, without line ends.
    pub(crate) subject: String,
    /// For readers of plain text.
    pub(crate) text: String,
    /// For everybody else.
    pub(crate) html: String,
}

/// Sends mails.
#[derive(Debug)]
pub(crate) struct Mailer {
    from: Mailbox,
    timeout_secs: u64,
    transport: Transport,
    /// Whether the mail server took what it was last given.
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
    /// Sets up the configured way to send; nothing is sent or connected to yet.
    ///
    /// # Errors
    ///
    /// [`MailerError`].
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

    /// Sends a mail to one address; returns when the mail server has taken it.
    ///
    /// `link` is what the mail is about. The folder transport writes it to the log, because then nobody reads a mailbox.
    ///
    /// # Errors
    ///
    /// [`MailError`].
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
                // lettre's own time-out is for each command.
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
                // tokio writes files in the background; only this says whether it could.
                open.flush().await?;
                tracing::info!(file = %file.display(), link, "mail written to a file, since email.transport is \"folder\"");
            }
        }
        Ok(())
    }

    fn message(&self, to: Address, mail: Mail) -> Result<Message, lettre::error::Error> {
        let domain = self.from.email.domain();
        // RFC 3834: what writes mail by itself says so, and holiday notices stay away.
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

/// Whom to log in as at the mail server, if at all.
///
/// # Errors
///
/// [`MailerError::Password`].
pub(crate) fn credentials(config: &Config) -> Result<Option<Credentials>, MailerError> {
    let Some(username) = &config.email.smtp_username else { return Ok(None) };
    let password = config.smtp_password()?;
    let password = password.as_ref().map(|password| password.expose_secret()).unwrap_or_default();
    Ok(Some(Credentials::new(username.clone(), password.to_owned())))
}

/// How TLS is spoken with the mail server.
///
/// # Errors
///
/// [`MailerError`]: the additional roots.
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
    fn a_mail_has_the_headers_that_it_should() {
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
    fn a_line_end_in_a_subject_makes_no_header() {
        let mail = formatted("Hello\r\nBcc: eve@evil.test");
        assert!(!mail.split("\r\n").any(|line| line.starts_with("Bcc")), "{mail}");
    }
}
