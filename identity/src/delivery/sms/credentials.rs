//! The operator's credentials at an SMS gateway.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use waypost_shared::config::secret::{ExposeSecret as _, SecretString};

use super::error::SmsSetupError;
use crate::config::sms::SmsConfig;

/// The configured password, given directly or in a file.
pub(super) fn password(config: &SmsConfig) -> Result<Option<SecretString>, SmsSetupError> {
    config.password().map_err(|source| SmsSetupError::Secret { key: "sms.password".to_owned(), source })
}

/// The value of `Authorization: Basic …`, marked sensitive so that it is never printed; none if no user is configured.
pub(super) fn basic(config: &SmsConfig, password: Option<&SecretString>) -> Option<HeaderValue> {
    let username = config.username.as_ref()?;
    let password = password.map(|password| password.expose_secret()).unwrap_or_default();
    let credentials = STANDARD.encode(format!("{username}:{password}"));
    // Base64 is always a valid header value.
    let mut value = HeaderValue::from_str(&format!("Basic {credentials}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
