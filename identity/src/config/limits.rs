//! The section `[limits]`: rate limits.

use serde::Deserialize;
use waypost_shared::{
    config::file::{ConfigError, Source},
    http::rate_limit::Rate,
};

/// Rate limits. A burst of 0 is no limit.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LimitsConfig {
    /// Registrations from one source address, in each replica. Default 20, then one every 3 seconds.
    pub(crate) register_per_source: Rate,
    /// Lookups by one account, in each replica. Default 50, then one a second.
    pub(crate) lookup_per_account: Rate,
    /// Lookups by all accounts of one homeserver, in each replica. Default 2000, then 50 a second.
    pub(crate) lookup_per_homeserver: Rate,
    /// Addresses that one account looks up for the first time. Default 5000, then 500 a day.
    pub(crate) addresses_per_account: Rate,
    /// Addresses that accounts of one homeserver look up for the first time each, if the operator has named it in
    /// `homeservers.allow` or `homeservers.trusted`. Default 1000000, then 100 a second.
    pub(crate) addresses_per_homeserver: Rate,
    /// The same for any other homeserver, in its first week. The budget doubles each week, five times. Default 5000,
    /// then 5000 a day.
    pub(crate) addresses_per_stranger: Rate,
    /// The same for all of these homeservers together. Default 50000, then 25000 a day.
    pub(crate) addresses_of_strangers: Rate,
    /// The same for one source address. Default 100000, then one a second.
    pub(crate) addresses_per_source: Rate,
    /// The same for everyone. Default 2000000, then 200 a second.
    pub(crate) addresses_total: Rate,
    /// Emails to one address. Default 5, then one every 5 minutes.
    pub(crate) mail_per_address: Rate,
    /// Emails requested by one account. Default 10, then one a minute.
    pub(crate) mail_per_account: Rate,
    /// Emails requested from one source address. Default 20, then one every 30 seconds.
    pub(crate) mail_per_source: Rate,
    /// Emails requested by all accounts of one homeserver that the operator has not named. Default 100, then one a
    /// minute.
    pub(crate) mail_per_stranger: Rate,
    /// Emails requested by accounts of all these homeservers together. Default 250, then one every 2 seconds.
    pub(crate) mail_of_strangers: Rate,
    /// Emails of validations in total. Default 500, then one a second.
    pub(crate) mail_total: Rate,
    /// Invites to one address. Default 5, then one an hour.
    pub(crate) invite_per_address: Rate,
    /// Invites sent by one account. Default 20, then one a minute.
    pub(crate) invite_per_account: Rate,
    /// Invites from one source address, which is a homeserver with all its users. Default 200, then one every 5
    /// seconds.
    pub(crate) invite_per_source: Rate,
    /// Invites by all accounts of one homeserver that the operator has not named. Default 50, then one a minute.
    pub(crate) invite_per_stranger: Rate,
    /// Invites by accounts of all these homeservers together. Default 250, then one every 4 seconds.
    pub(crate) invite_of_strangers: Rate,
    /// Invites in total. Default 500, then one every 2 seconds.
    pub(crate) invite_total: Rate,
    /// Binds by one account, in each replica: each of them makes us call a homeserver. Default 20, then one every 10
    /// seconds.
    pub(crate) bind_per_account: Rate,
    /// Acceptances of terms by one account, in each replica. Default 20, then one every 10 seconds.
    pub(crate) terms_per_account: Rate,
    /// Unbind requests from one source address, in each replica: they need no token, and make us fetch the keys of
    /// homeservers. Default 50, then one a second.
    pub(crate) unbind_per_source: Rate,
    /// SMS to one number. Default 5, then one an hour.
    pub(crate) sms_per_number: Rate,
    /// SMS to one country. Default 50, then one a minute.
    pub(crate) sms_per_country: Rate,
    /// SMS requested by one account. Default 5, then one every 10 minutes.
    pub(crate) sms_per_account: Rate,
    /// SMS requested from one source address. Default 10, then one every 5 minutes.
    pub(crate) sms_per_source: Rate,
    /// SMS requested by all accounts of one homeserver that the operator has not named. Default 20, then 20 a day.
    pub(crate) sms_per_stranger: Rate,
    /// SMS requested by accounts of all these homeservers together. Default 200, then 200 a day.
    pub(crate) sms_of_strangers: Rate,
    /// SMS in total. Default 500, then 500 a day.
    pub(crate) sms_total: Rate,
    /// Wrong codes for one number, over all its sessions, apart from the first three in each. Default 20, then one every 10 minutes.
    pub(crate) sms_codes_per_number: Rate,
    /// Wrong codes from one source address. Default 50, then one a minute.
    pub(crate) sms_codes_per_source: Rate,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        let rate = Rate::new;
        Self {
            register_per_source: rate(20, 3.0),
            lookup_per_account: rate(50, 1.0),
            lookup_per_homeserver: rate(2000, 0.02),
            addresses_per_account: rate(5000, 172.8),
            addresses_per_homeserver: rate(1_000_000, 0.01),
            addresses_per_stranger: rate(5000, 17.28),
            addresses_of_strangers: rate(50_000, 3.456),
            addresses_per_source: rate(100_000, 1.0),
            addresses_total: rate(2_000_000, 0.005),
            mail_per_address: rate(5, 300.0),
            mail_per_account: rate(10, 60.0),
            mail_per_source: rate(20, 30.0),
            mail_per_stranger: rate(100, 60.0),
            mail_of_strangers: rate(250, 2.0),
            mail_total: rate(500, 1.0),
            invite_per_address: rate(5, 3600.0),
            invite_per_account: rate(20, 60.0),
            invite_per_source: rate(200, 5.0),
            invite_per_stranger: rate(50, 60.0),
            invite_of_strangers: rate(250, 4.0),
            invite_total: rate(500, 2.0),
            bind_per_account: rate(20, 10.0),
            terms_per_account: rate(20, 10.0),
            unbind_per_source: rate(50, 1.0),
            sms_per_number: rate(5, 3600.0),
            sms_per_country: rate(50, 60.0),
            sms_per_account: rate(5, 600.0),
            sms_per_source: rate(10, 300.0),
            sms_per_stranger: rate(20, 4320.0),
            sms_of_strangers: rate(200, 432.0),
            sms_total: rate(500, 172.8),
            sms_codes_per_number: rate(20, 600.0),
            sms_codes_per_source: rate(50, 60.0),
        }
    }
}

/// The names and values of all fields, so that none can be forgotten.
macro_rules! by_name {
    ($config:expr; $($name:ident),* $(,)?) => {{
        let LimitsConfig { $($name),* } = $config;
        [$((stringify!($name), $name)),*]
    }};
}

impl LimitsConfig {
    /// Whether any limit counts the addresses of lookups.
    pub(crate) fn limit_addresses(&self) -> bool {
        [
            self.addresses_per_account,
            self.addresses_per_homeserver,
            self.addresses_per_stranger,
            self.addresses_of_strangers,
            self.addresses_per_source,
            self.addresses_total,
        ]
        .iter()
        .any(|rate| rate.burst > 0)
    }

    /// Mistakes that the types cannot rule out.
    pub(super) fn problems(&self, source: &Source) -> Vec<ConfigError> {
        let rates = by_name! { self;
            register_per_source,
            lookup_per_account,
            lookup_per_homeserver,
            addresses_per_account,
            addresses_per_homeserver,
            addresses_per_stranger,
            addresses_of_strangers,
            addresses_per_source,
            addresses_total,
            mail_per_address,
            mail_per_account,
            mail_per_source,
            mail_per_stranger,
            mail_of_strangers,
            mail_total,
            invite_per_address,
            invite_per_account,
            invite_per_source,
            invite_per_stranger,
            invite_of_strangers,
            invite_total,
            bind_per_account,
            terms_per_account,
            unbind_per_source,
            sms_per_number,
            sms_per_country,
            sms_per_account,
            sms_per_source,
            sms_per_stranger,
            sms_of_strangers,
            sms_total,
            sms_codes_per_number,
            sms_codes_per_source,
        };
        let problems = rates.into_iter().filter_map(|(key, rate)| Some((key, rate.problem()?)));
        problems.map(|(key, problem)| source.error(&format!("limits.{key}"), problem)).collect()
    }
}
