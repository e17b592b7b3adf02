//! The section `[sms]`: how and where text messages are sent.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use waypost_shared::config::secret::{self, SecretError, SecretString};

use crate::domain::phone::Country;

/// How text messages are sent.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SmsConfig {
    /// `off`, `http` (any gateway with an HTTP API), `openmarket`, or `log`: messages are written to the log, for
    /// trials. Default off.
    pub(crate) transport: SmsTransport,
    /// The user name for HTTP Basic authentication. Default none.
    pub(crate) username: Option<String>,
    /// Its password. Default none.
    pub(crate) password: Option<SecretString>,
    /// A file that holds the password. Default none.
    pub(crate) password_file: Option<PathBuf>,
    /// Seconds for sending one message. Default 20.
    pub(crate) timeout_secs: u64,
    /// Countries that messages may go to, as `GB` or `+44`; an empty list allows all. Default empty.
    pub(crate) countries_allowed: Vec<String>,
    /// Countries that they may not go to, even if allowed. Default empty.
    pub(crate) countries_denied: Vec<String>,
    /// For `transport = "http"`.
    pub(crate) http: SmsHttpConfig,
    /// For `transport = "openmarket"`.
    pub(crate) openmarket: OpenMarketConfig,
}

impl Default for SmsConfig {
    fn default() -> Self {
        Self {
            transport: SmsTransport::Off,
            username: None,
            password: None,
            password_file: None,
            timeout_secs: 20,
            countries_allowed: Vec::new(),
            countries_denied: Vec::new(),
            http: SmsHttpConfig::default(),
            openmarket: OpenMarketConfig::default(),
        }
    }
}

/// See [`SmsConfig::transport`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SmsTransport {
    /// Not at all: requests for phone numbers are refused.
    Off,
    /// As the operator configures it.
    Http,
    /// OpenMarket's format.
    OpenMarket,
    /// To the log.
    Log,
}

/// A request to a gateway, as configured by the operator. URL and body are templates.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct SmsHttpConfig {
    /// The URL. Values are percent-encoded. Default empty.
    pub(crate) url: String,
    /// `POST`, `PUT` or `GET`. Default POST.
    pub(crate) method: SmsMethod,
    /// The type of the body, which decides how values in it are escaped. Default `application/json`.
    pub(crate) content_type: String,
    /// The body. Default empty.
    pub(crate) body: String,
    /// Additional headers; their values are never printed. Default none.
    pub(crate) headers: BTreeMap<String, SecretString>,
    /// The same, with files that hold the values. Default none.
    pub(crate) header_files: BTreeMap<String, PathBuf>,
    /// Text that a successful response contains, for gateways that answer everything with 200. Default empty: the
    /// status decides.
    pub(crate) success_contains: String,
}

impl Default for SmsHttpConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            method: SmsMethod::Post,
            content_type: "application/json".to_owned(),
            body: String::new(),
            headers: BTreeMap::new(),
            header_files: BTreeMap::new(),
            success_contains: String::new(),
        }
    }
}

/// See [`SmsHttpConfig::method`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum SmsMethod {
    /// With a body.
    Post,
    /// With a body.
    Put,
    /// Without.
    Get,
}

/// OpenMarket's gateway.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct OpenMarketConfig {
    /// The URL. Default that of version 4.
    pub(crate) url: String,
    /// Senders by calling code, or `default`: `long:447700900000`, `short:12345` or `alpha:Matrix`. Default none, which
    /// is `alpha:Matrix`.
    pub(crate) originators: BTreeMap<String, Vec<String>>,
}

impl Default for OpenMarketConfig {
    fn default() -> Self {
        Self { url: "https://smsc.openmarket.com/sms/v4/mt".to_owned(), originators: BTreeMap::new() }
    }
}

impl SmsConfig {
    /// The password, if any.
    pub(crate) fn password(&self) -> Result<Option<SecretString>, SecretError> {
        secret::inline_or_file(self.password.as_ref(), self.password_file.as_deref())
    }

    /// The countries that messages may go to, and those that they may not. Invalid ones were refused by the validation
    /// of the configuration.
    pub(crate) fn countries(&self) -> (Vec<Country>, Vec<Country>) {
        let parse = |texts: &[String]| texts.iter().filter_map(|text| Country::parse(text)).collect();
        (parse(&self.countries_allowed), parse(&self.countries_denied))
    }

    /// Mistakes in the lists of countries: keys below `sms`, and what is wrong.
    pub(super) fn problems(&self) -> Vec<(String, String)> {
        let lists = [("countries_allowed", &self.countries_allowed), ("countries_denied", &self.countries_denied)];
        lists
            .into_iter()
            .flat_map(|(key, list)| list.iter().enumerate().map(move |(number, country)| (key, number, country)))
            .filter(|(_, _, country)| Country::parse(country).is_none())
            .map(|(key, number, _)| {
                let must = "must be a country, such as \"GB\", or a calling code, such as \"+44\"";
                (format!("{key}.{number}"), must.to_owned())
            })
            .collect()
    }
}
