//! Sending text messages.

mod credentials;
mod error;
mod gateway;
mod openmarket;

use bytes::Bytes;
use http::Request;
use waypost_shared::{
    client::{CallLimits, HttpClient, Outbound, Reach},
    clock::Clock,
    operations::status::HealthProbe,
};

pub(crate) use self::error::{SmsError, SmsSetupError};

use self::{gateway::Gateway, openmarket::OpenMarket};
use crate::{
    config::sms::{SmsConfig, SmsTransport},
    domain::phone::Phone,
};

/// The most bytes read of a gateway's answer.
const MAX_ANSWER: usize = 64 * 1024;

/// Sends text messages.
#[derive(Debug)]
pub(crate) struct Sms {
    transport: Transport,
    limits: CallLimits,
    /// Whether the gateway is up, judged by the latest message.
    pub(crate) probe: HealthProbe,
}

#[derive(Debug)]
enum Transport {
    Off,
    Http(HttpClient, Gateway),
    OpenMarket(HttpClient, OpenMarket),
    Log,
}

impl Sms {
    /// Sets up the configured transport. Does not connect yet.
    pub(crate) fn new(config: &SmsConfig, outbound: &Outbound, clock: Clock) -> Result<Self, SmsSetupError> {
        let client = || outbound.client(Reach::Anywhere);
        let transport = match config.transport {
            SmsTransport::Off => Transport::Off,
            SmsTransport::Http => Transport::Http(client(), Gateway::new(config)?),
            SmsTransport::OpenMarket => Transport::OpenMarket(client(), OpenMarket::new(config)?),
            SmsTransport::Log => Transport::Log,
        };
        let timeout = std::time::Duration::from_secs(config.timeout_secs);
        Ok(Self { transport, limits: CallLimits { timeout, max_body: MAX_ANSWER }, probe: HealthProbe::new(clock) })
    }

    /// Whether messages can be sent at all.
    pub(crate) fn is_on(&self) -> bool {
        !matches!(self.transport, Transport::Off)
    }

    /// Sends `text`, which contains `code`; returns once the gateway has accepted it.
    pub(crate) async fn send(&self, to: &Phone, text: &str, code: &str) -> Result<(), SmsError> {
        let sent = self.hand_over(to, text, code).await;
        match &sent {
            Err(error @ (SmsError::Unreachable(_) | SmsError::Refused(_) | SmsError::NotSuccess)) => {
                self.probe.mark_down(|| error.to_string());
            }
            Ok(()) | Err(_) => self.probe.mark_up(),
        }
        sent
    }

    async fn hand_over(&self, to: &Phone, text: &str, code: &str) -> Result<(), SmsError> {
        let digits = to.threepid.address();
        match &self.transport {
            Transport::Off => Err(SmsError::Off),
            Transport::Log => {
                tracing::info!(code, "SMS written to the log, not sent: sms.transport is \"log\"");
                Ok(())
            }
            Transport::OpenMarket(client, openmarket) => {
                let request = openmarket.request(digits, to.calling_code, text)?;
                self.call(client, request, "").await
            }
            Transport::Http(client, gateway) => {
                let request = gateway.request(digits, text, code)?;
                self.call(client, request, gateway.success_contains()).await
            }
        }
    }

    async fn call(&self, client: &HttpClient, request: Request<Bytes>, contains: &str) -> Result<(), SmsError> {
        let answer = client.send(request, self.limits).await?;
        if !answer.status().is_success() {
            return Err(SmsError::Refused(answer.status()));
        }
        if String::from_utf8_lossy(answer.body()).contains(contains) { Ok(()) } else { Err(SmsError::NotSuccess) }
    }
}

/// The problems in the transport's configuration, each as a key below `sms` and a reason. Does not read secrets from
/// files: the user running the check may lack permission, unlike the server.
pub(crate) fn problems(config: &SmsConfig) -> Vec<(String, String)> {
    let mut problems = match config.transport {
        SmsTransport::Off | SmsTransport::Log => Vec::new(),
        SmsTransport::Http => gateway::problems(&config.http),
        SmsTransport::OpenMarket => openmarket::problems(config),
    };
    if config.timeout_secs == 0 {
        problems.push(("timeout_secs".to_owned(), "must be at least 1".to_owned()));
    }
    if config.password.is_some() && config.password_file.is_some() {
        problems
            .push(("password".to_owned(), "is set together with sms.password_file; keep one of the two".to_owned()));
    }
    problems
}
