//! The mail server: everything up to the sender of an email, which is then aborted.

use std::{error::Error, io, time::Duration};

use lettre::{
    message::Mailbox,
    transport::smtp::{
        authentication::DEFAULT_MECHANISMS,
        client::{AsyncSmtpConnection, TlsParameters},
        commands::{Mail, Rset},
        extension::ClientId,
    },
};
use tokio::{
    net::{TcpStream, lookup_host},
    time::timeout,
};
use waypost_shared::operations::doctor::Finding;

use super::findings::LIMIT;
use crate::{
    config::{Config, EmailConfig, EmailTransport, SmtpTls},
    delivery::email::{credentials, tls_parameters},
};

type SmtpError = lettre::transport::smtp::Error;

/// Talks to the mail server as `serve` will, and sends nothing.
pub(super) async fn check(config: &Config) -> Finding {
    let email = &config.email;
    if email.transport == EmailTransport::Folder {
        return Finding::Soon(
            "emails are written to files and their links to the log, not sent: set email.transport = \"smtp\" for \
             production"
                .to_owned(),
        );
    }
    let limit = LIMIT.min(Duration::from_secs(email.smtp_timeout_secs.max(1)));
    let talk = Talk { email, place: format!("{}:{}", email.smtp_host, email.smtp_port), limit };
    match talk.hold(config).await {
        Err(problem) => Finding::Bad(format!("{}: {problem}", talk.place)),
        Ok(()) => {
            let text = format!("{} accepts mail from {}", talk.place, email.from);
            let is_near = matches!(email.smtp_host.as_str(), "localhost" | "127.0.0.1" | "::1");
            if email.smtp_tls == SmtpTls::None && !is_near {
                return Finding::Soon(format!(
                    "{text}, without encryption: set email.smtp_tls unless the network in between is trusted"
                ));
            }
            Finding::Good(text)
        }
    }
}

struct Talk<'c> {
    email: &'c EmailConfig,
    place: String,
    /// Time-out of each step.
    limit: Duration,
}

impl Talk<'_> {
    async fn hold(&self, config: &Config) -> Result<(), String> {
        let stream = self.connect().await?;
        let parameters = match self.email.smtp_tls {
            SmtpTls::None => None,
            SmtpTls::Starttls | SmtpTls::Tls => Some(tls_parameters(config).map_err(|error| error.to_string())?),
        };
        let mut connection = self.greet(stream, parameters).await?;
        let done = match self.log_in(config, &mut connection).await {
            Ok(()) => self.begin_mail(&mut connection).await,
            Err(problem) => Err(problem),
        };
        // The result of QUIT does not matter.
        drop(timeout(self.limit, connection.quit()).await);
        done
    }

    /// By the system's resolver, as emails go.
    async fn connect(&self) -> Result<TcpStream, String> {
        let found = timeout(self.limit, lookup_host((self.email.smtp_host.as_str(), self.email.smtp_port))).await;
        let addresses = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
            format!("the name cannot be resolved: check email.smtp_host, and this machine's name servers ({error})")
        })?;
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for address in addresses {
            let connecting = timeout(self.limit, TcpStream::connect(address)).await;
            match connecting.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(format!(
            "no connection: check email.smtp_host and email.smtp_port, and firewalls (many networks block port 25; 587 \
             and 465 are for logins) ({last})"
        ))
    }

    /// Up to EHLO on the encrypted connection.
    async fn greet(&self, stream: TcpStream, tls: Option<TlsParameters>) -> Result<AsyncSmtpConnection, String> {
        let hello = ClientId::default();
        let is_tls = self.email.smtp_tls == SmtpTls::Tls;
        let greeting = async {
            if is_tls {
                // lettre starts TLS only on connections that it has opened itself.
                drop(stream);
                let place = (self.email.smtp_host.as_str(), self.email.smtp_port);
                AsyncSmtpConnection::connect_tokio1(place, Some(self.limit), &hello, tls.clone(), None).await
            } else {
                AsyncSmtpConnection::connect_with_transport(Box::new(stream), &hello).await
            }
        };
        let greeted = timeout(self.limit, greeting).await.map_err(|_| {
            if is_tls {
                self.tls_advice("no answer in time")
            } else {
                "it does not greet: a port that expects TLS from the first byte (465) needs email.smtp_tls = \"tls\""
                    .to_owned()
            }
        })?;
        let mut connection = greeted.map_err(|error| match error.status() {
            Some(code) => {
                format!("it rejects this machine (SMTP status {code}: {}): ask its operator", innermost(&error))
            }
            None if is_tls && !error.is_response() => self.tls_advice(&innermost(&error)),
            None => format!("it does not speak SMTP: check email.smtp_port ({})", innermost(&error)),
        })?;
        let (Some(tls), false) = (tls, is_tls) else { return Ok(connection) };
        if !connection.can_starttls() {
            return Err(
                "it offers no STARTTLS: set email.smtp_tls = \"tls\" for a port that is encrypted from the first byte \
                 (465), or \"none\" if the network in between is trusted"
                    .to_owned(),
            );
        }
        match timeout(self.limit, connection.starttls(tls, &hello)).await {
            Ok(Ok(())) => Ok(connection),
            Ok(Err(error)) => Err(self.tls_advice(&innermost(&error))),
            Err(_) => Err(self.tls_advice("no answer in time")),
        }
    }

    async fn log_in(&self, config: &Config, connection: &mut AsyncSmtpConnection) -> Result<(), String> {
        let Some(credentials) = credentials(config).map_err(|error| error.to_string())? else { return Ok(()) };
        if connection.server_info().get_auth_mechanism(DEFAULT_MECHANISMS).is_none() {
            return Err("it offers no login (AUTH PLAIN or LOGIN): remove email.smtp_username, or use the port for \
                        logins (587 or 465), with encryption"
                .to_owned());
        }
        match timeout(self.limit, connection.auth(DEFAULT_MECHANISMS, &credentials)).await {
            Ok(Ok(_)) => Ok(()),
            // Its message is not shown, because it may repeat what was sent.
            Ok(Err(error)) => Err(format!(
                "it rejects the login{}: check email.smtp_username and email.smtp_password",
                error.status().map(|code| format!(" (SMTP status {code})")).unwrap_or_default()
            )),
            Err(_) => Err("it does not answer the login in time: check its log".to_owned()),
        }
    }

    /// Sends the sender, and aborts before there is a recipient.
    async fn begin_mail(&self, connection: &mut AsyncSmtpConnection) -> Result<(), String> {
        let from = self.email.from.parse::<Mailbox>().map_err(|error| format!("email.from: {error}"))?;
        match timeout(self.limit, connection.command(Mail::new(Some(from.email), Vec::new()))).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(self.sender_advice(&error)),
            Err(_) => return Err("it does not answer to the sender in time: check its log".to_owned()),
        }
        // The connection is closed in any case.
        drop(timeout(self.limit, connection.command(Rset)).await);
        Ok(())
    }

    fn sender_advice(&self, error: &SmtpError) -> String {
        let said = innermost(error);
        match error.status().map(u16::from) {
            Some(530) => format!(
                "it requires encryption or a login first: set email.smtp_tls = \"starttls\", or email.smtp_username \
                 and its password (SMTP status 530: {said})"
            ),
            Some(code) => format!(
                "it does not accept mail from {}: set email.from to a sender that it accepts (SMTP status {code}: \
                 {said})",
                self.email.from
            ),
            None => format!("it hung up at the sender: check its log ({said})"),
        }
    }

    fn tls_advice(&self, reason: &str) -> String {
        if reason.contains("certificate") {
            return format!(
                "its certificate is not trusted: it must be valid, be for {} (email.smtp_host), and chain to a root \
                 that is trusted here (ca-certificates, or outbound.extra_ca_file) ({reason})",
                self.email.smtp_host
            );
        }
        format!(
            "no TLS: email.smtp_tls = \"tls\" is for ports that are encrypted from the first byte (465), \"starttls\" \
             for others (587, 25) ({reason})"
        )
    }
}

/// The innermost cause: the layers above repeat it.
fn innermost(error: &SmtpError) -> String {
    let mut cause: &dyn Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
