//! How a gateway knows the operator.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderValue;
use waypost_shared::config::secret::{ExposeSecret as _, SecretString};

use super::error::SmsSetupError;
use crate::config::sms::SmsConfig;

/// The configured password.
pub(super) fn password(config: &SmsConfig) -> Result<Option<SecretString>, SmsSetupError> {
    config.password().map_err(|source| SmsSetupError::Secret { key: "sms.password".to_owned(), source })
}

/// `Authorization: Basic …`, marked so that nothing prints it; none without a user.
pub(super) fn basic(config: &SmsConfig, password: Option<&SecretString>) -> Option<HeaderValue> {
    let username = config.username.as_ref()?;
    let password = password.map(|password| password.expose_secret()).unwrap_or_default();
    let credentials = STANDARD.encode(format!("{username}:{password}"));
    // Base64 is always fit for a header.
    let mut value = HeaderValue::from_str(&format!("Basic {credentials}")).ok()?;
    value.set_sensitive(true);
    Some(value)
}
