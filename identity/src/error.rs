//! Request failures, and the table of their statuses and error codes.

use std::time::Duration;

use http::StatusCode;
use waypost_shared::http::MatrixError;

use crate::{
    delivery::{email::MailError, sms::SmsError},
    domain::{
        mxid::Mxid,
        threepid::{InvalidAddress, Medium},
    },
    federation::HomeserverError,
    storage::StoreError,
};

/// A failed request.
///
/// The `Display` text goes to the client, so it contains no address, token or SQL; the router logs the sources, once,
/// when it answers.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// Malformed JSON or parameters.
    #[error(transparent)]
    Request(#[from] MatrixError),
    /// No access token, or an unknown one.
    #[error("The access token is missing or unknown")]
    Unauthorized,
    /// `logout` with an unknown token.
    #[error("The access token is unknown")]
    UnknownToken,
    /// There are policies that the user has not accepted.
    #[error("Please accept the terms of service first")]
    TermsNotSigned,
    /// The request is about another user.
    #[error("This access token belongs to a different Matrix ID")]
    NotYourMxid,
    /// A v1 endpoint, called from an address that the operator has not listed.
    #[error("Only homeservers listed by this server's operator may call this")]
    CallerNotListed,
    /// The user's homeserver is not in `homeservers.allow`.
    #[error("Users of that homeserver may not use this server")]
    HomeserverNotAllowed,
    /// The homeserver could not be reached, or sent an unexpected response.
    #[error("{0}")]
    Homeserver(#[from] HomeserverError),
    /// A `client_secret` or `sid` that does not match the grammar of the specification.
    #[error("`{0}` must be 1 to 255 of the characters 0-9 a-z A-Z . = _ -")]
    NotOpaqueId(&'static str),
    /// Not an email address, or not a phone number.
    #[error("That is {0}")]
    InvalidAddress(#[from] InvalidAddress),
    /// The email could not be sent.
    #[error("The email could not be sent")]
    Mail(#[from] MailError),
    /// Text messages to this phone number, or to any, are not allowed.
    #[error("This server does not send messages to that phone number's country")]
    DestinationRejected,
    /// The text message could not be sent.
    #[error("The text message could not be sent")]
    Sms(#[from] SmsError),
    /// `next_link` points to a place that is not allowed.
    #[error("`next_link` is not a URL that this server may redirect to")]
    NextLinkNotAllowed,
    /// No session has this `sid` and `client_secret`.
    #[error("No session has this `sid` and `client_secret`")]
    NoValidSession,
    /// The same for `submitToken`, which has a different error code.
    #[error("No session has this `sid` and `client_secret`")]
    SubmitToNoSession,
    /// The token is not the session's.
    #[error("The token is incorrect")]
    TokenIncorrect,
    /// Too late, or too many wrong tokens.
    #[error("This validation session has expired; ask for a new one")]
    SessionExpired,
    /// The token has not been submitted yet.
    #[error("This validation session has not yet been completed")]
    SessionNotValidated,
    /// A hash algorithm that is not offered.
    #[error("`algorithm` must be one of those listed by hash_details")]
    UnknownAlgorithm,
    /// More addresses than one request may contain.
    #[error("At most {0} addresses can be looked up at once")]
    TooManyAddresses(usize),
    /// A pepper that is not valid. The current one goes into the body, since some clients read it there.
    #[error("Unknown or invalid pepper: it may have been rotated")]
    InvalidPepper {
        /// The requested algorithm.
        algorithm: String,
        /// The current pepper.
        lookup_pepper: String,
    },
    /// An invite to something other than an email address.
    #[error("Only email addresses can be invited")]
    UnsupportedMedium,
    /// An invite that the configuration refuses.
    #[error("This invite is not allowed")]
    InviteNotAllowed,
    /// An invite to an address that is bound to this user.
    #[error("This address is already bound")]
    ThreepidInUse(Mxid),
    /// No pending invite has this token.
    #[error("No pending invite has this token")]
    UnknownInvite,
    /// A private key that does not belong to the invite.
    #[error("The private key does not belong to this invite")]
    WrongPrivateKey,
    /// An unbind with neither a session nor a signature.
    #[error("Either `sid` and `client_secret` or the homeserver's X-Matrix signature is required")]
    NoProof,
    /// An unbind with a session for a different address.
    #[error("The session is for a different address")]
    OtherAddress,
    /// A homeserver's signature that is not valid for this request.
    #[error("The homeserver's signature is not valid for this user and request")]
    InvalidSignature,
    /// A pepper whose index is not complete on this replica yet.
    #[error("This server is not ready for that pepper yet; try again in a moment")]
    PepperNotReady,
    /// No key has this ID.
    #[error("There is no key with this ID")]
    UnknownKey,
    /// A rate limit was exceeded.
    #[error("Too many requests")]
    RateLimited {
        /// How long to wait until there is room again.
        retry_after: Duration,
    },
    /// An internal failure, such as a template of the operator that does not render.
    #[error("Internal server error")]
    Internal(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The database failed. The client learns no more than that.
    #[error("Internal server error")]
    Store(#[from] StoreError),
}

impl ApiError {
    /// Whether this is a message that certainly did not go out, for a reason that the requester has no influence on.
    pub(crate) fn is_unsent_by_our_fault(&self) -> bool {
        match self {
            Self::Mail(error) => error.is_unsent_by_our_fault(),
            Self::Sms(error) => error.is_unsent_by_our_fault(),
            _ => false,
        }
    }

    /// The failure of a request that exceeds a rate limit.
    pub(crate) fn rate_limited(retry_after: Duration) -> Self {
        Self::RateLimited { retry_after }
    }
}

impl From<&ApiError> for MatrixError {
    fn from(error: &ApiError) -> Self {
        use ApiError as E;
        // No `_` arm: a new failure must choose its code here.
        let (status, errcode) = match error {
            E::Request(refused) => return refused.clone(),
            E::Unauthorized => (StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED"),
            E::UnknownToken => (StatusCode::UNAUTHORIZED, "M_UNKNOWN_TOKEN"),
            E::TermsNotSigned => (StatusCode::FORBIDDEN, "M_TERMS_NOT_SIGNED"),
            E::NotYourMxid | E::HomeserverNotAllowed => (StatusCode::FORBIDDEN, "M_UNAUTHORIZED"),
            E::CallerNotListed => (StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            E::Homeserver(error) => homeserver(error),
            E::NotOpaqueId(_) | E::NextLinkNotAllowed | E::UnknownAlgorithm => {
                (StatusCode::BAD_REQUEST, "M_INVALID_PARAM")
            }
            E::InvalidAddress(InvalidAddress(Medium::Email)) => (StatusCode::BAD_REQUEST, "M_INVALID_EMAIL"),
            E::InvalidAddress(InvalidAddress(Medium::Msisdn)) => (StatusCode::BAD_REQUEST, "M_INVALID_ADDRESS"),
            E::DestinationRejected => (StatusCode::BAD_REQUEST, "M_DESTINATION_REJECTED"),
            E::Mail(MailError::Address) => (StatusCode::BAD_REQUEST, "M_INVALID_EMAIL"),
            E::Mail(_) => (StatusCode::BAD_REQUEST, "M_EMAIL_SEND_ERROR"),
            // The specification's code. Clients show the message of a 400 and offer to retry; to them, and to a
            // homeserver that relays it, a 500 means that the server is broken.
            E::Sms(_) => (StatusCode::BAD_REQUEST, "M_SEND_ERROR"),
            E::NoValidSession => (StatusCode::NOT_FOUND, "M_NO_VALID_SESSION"),
            E::SubmitToNoSession => (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
            E::TokenIncorrect => (StatusCode::BAD_REQUEST, "M_TOKEN_INCORRECT"),
            E::SessionExpired => (StatusCode::BAD_REQUEST, "M_SESSION_EXPIRED"),
            E::SessionNotValidated => (StatusCode::BAD_REQUEST, "M_SESSION_NOT_VALIDATED"),
            E::TooManyAddresses(_) => (StatusCode::BAD_REQUEST, "M_TOO_LARGE"),
            E::InvalidPepper { .. } => (StatusCode::BAD_REQUEST, "M_INVALID_PEPPER"),
            E::UnsupportedMedium => (StatusCode::BAD_REQUEST, "M_UNRECOGNIZED"),
            E::InviteNotAllowed => (StatusCode::FORBIDDEN, "M_UNAUTHORIZED"),
            E::ThreepidInUse(_) => (StatusCode::BAD_REQUEST, "M_THREEPID_IN_USE"),
            E::UnknownInvite => (StatusCode::NOT_FOUND, "M_UNRECOGNIZED"),
            E::NoProof => (StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED"),
            E::WrongPrivateKey | E::OtherAddress | E::InvalidSignature => (StatusCode::FORBIDDEN, "M_FORBIDDEN"),
            E::PepperNotReady => (StatusCode::SERVICE_UNAVAILABLE, "M_UNKNOWN"),
            E::UnknownKey => (StatusCode::NOT_FOUND, "M_NOT_FOUND"),
            E::RateLimited { .. } => (StatusCode::TOO_MANY_REQUESTS, "M_LIMIT_EXCEEDED"),
            E::Internal(_) | E::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "M_UNKNOWN"),
        };
        let answer = Self::new(status, errcode, error.to_string());
        match error {
            E::InvalidPepper { algorithm, lookup_pepper } => {
                answer.with("algorithm", algorithm.as_str()).with("lookup_pepper", lookup_pepper.as_str())
            }
            E::ThreepidInUse(mxid) => answer.with("mxid", mxid.as_str()),
            E::RateLimited { retry_after } => answer.retry_after(*retry_after),
            E::PepperNotReady => answer.retry_after(Duration::from_secs(5)),
            _ => answer,
        }
    }
}

fn homeserver(error: &HomeserverError) -> (StatusCode, &'static str) {
    match error {
        HomeserverError::InvalidName => (StatusCode::BAD_REQUEST, "M_INVALID_PARAM"),
        HomeserverError::TokenRefused | HomeserverError::WrongServer => (StatusCode::UNAUTHORIZED, "M_UNAUTHORIZED"),
        HomeserverError::Unreachable(_)
        | HomeserverError::BadAnswer
        | HomeserverError::NoKeys
        | HomeserverError::Refused(_) => (StatusCode::BAD_GATEWAY, "M_UNKNOWN"),
    }
}
