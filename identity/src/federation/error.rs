//! How calls of homeservers fail.

use http::StatusCode;
use waypost_shared::client::HttpClientError;

/// A failed call of a homeserver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HomeserverError {
    /// Not a server name.
    #[error("`matrix_server_name` is not a server name")]
    InvalidName,
    /// No answer: name, network, TLS, or an address that may not be reached.
    #[error("The homeserver could not be reached")]
    Unreachable(#[source] HttpClientError),
    /// It does not know the token.
    #[error("The homeserver does not accept this OpenID token")]
    TokenRefused,
    /// An answer that is not what the specification has.
    #[error("The homeserver's answer was not understood")]
    BadAnswer,
    /// Another request waited for its keys in vain.
    #[error("The homeserver's keys could not be fetched")]
    NoKeys,
    /// It answered with this status, and nothing good.
    #[error("The homeserver answered {0}")]
    Refused(StatusCode),
    /// The token belongs to a user of another server, so it may have been collected there.
    #[error("The OpenID token does not belong to a user of that homeserver")]
    WrongServer,
}
