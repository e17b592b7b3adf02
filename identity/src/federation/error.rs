//! How calls to homeservers fail.

use http::StatusCode;
use waypost_shared::client::HttpClientError;

/// A failed call to a homeserver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeserverError {
    /// An invalid server name.
    #[error("`matrix_server_name` is not a valid server name")]
    InvalidName,
    /// No answer: DNS, network, TLS, or an address that must not be called.
    #[error("The homeserver could not be reached")]
    Unreachable(#[source] HttpClientError),
    /// The homeserver does not know the token.
    #[error("The homeserver does not accept this OpenID token")]
    TokenRefused,
    /// A response that does not match the specification.
    #[error("The homeserver sent an invalid response")]
    BadAnswer,
    /// A concurrent request has just failed to fetch its keys.
    #[error("The homeserver's keys could not be fetched")]
    NoKeys,
    /// The homeserver answered with this status, an error.
    #[error("The homeserver answered {0}")]
    Refused(StatusCode),
    /// The token belongs to a user of another server, where it may have been harvested.
    #[error("The OpenID token does not belong to a user of that homeserver")]
    WrongServer,
}
