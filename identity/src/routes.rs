//! Every endpoint of the public and of the internal listener, on a line each.

use waypost_shared::http::Router;

use crate::{
    api::{account, associations, internal, invitations, lookup, pubkey, status, terms, validation},
    app::App,
};

/// The table of the public listener.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        // API version check, status check
        .get("/_matrix/identity/versions", status::versions)
        .get("/_matrix/identity/v2", status::ping)
        // Authentication
        .post("/_matrix/identity/v2/account/register", account::register)
        .get("/_matrix/identity/v2/account", account::account)
        .post("/_matrix/identity/v2/account/logout", account::logout)
        // Terms of service
        .get("/_matrix/identity/v2/terms", terms::terms)
        .post("/_matrix/identity/v2/terms", terms::accept)
        .get("/_waypost/terms/{policy}/{version}/{language}", terms::page)
        // Key management
        .get("/_matrix/identity/v2/pubkey/isvalid", pubkey::is_valid)
        .get("/_matrix/identity/v2/pubkey/ephemeral/isvalid", pubkey::is_ephemeral_valid)
        .get("/_matrix/identity/v2/pubkey/{keyId}", pubkey::pubkey)
        // Association lookup
        .get("/_matrix/identity/v2/hash_details", lookup::hash_details)
        .post("/_matrix/identity/v2/lookup", lookup::lookup)
        // Email associations
        .post("/_matrix/identity/v2/validate/email/requestToken", validation::email::request_token_endpoint)
        .post("/_matrix/identity/v2/validate/email/submitToken", validation::email::submit_token_endpoint)
        .get("/_matrix/identity/v2/validate/email/submitToken", validation::email::token_page)
        // Phone number associations
        .post("/_matrix/identity/v2/validate/msisdn/requestToken", validation::msisdn::request_token_endpoint)
        .post("/_matrix/identity/v2/validate/msisdn/submitToken", validation::msisdn::submit_token_endpoint)
        .get("/_matrix/identity/v2/validate/msisdn/submitToken", validation::msisdn::token_page)
        // General
        .get("/_matrix/identity/v2/3pid/getValidated3pid", validation::validated_threepid)
        .post("/_matrix/identity/v2/3pid/bind", associations::bind)
        .post("/_matrix/identity/v2/3pid/unbind", associations::unbind)
        // Invitation storage, ephemeral invitation signing
        .post("/_matrix/identity/v2/store-invite", invitations::store_invite)
        .post("/_matrix/identity/v2/sign-ed25519", invitations::sign_ed25519)
}

/// The table of the internal listener, for programs of the operator's own.
pub(crate) fn internal_routes() -> Router<App> {
    Router::new()
        .post("/_matrix/identity/internal/bind", internal::bind)
        .post("/_matrix/identity/internal/unbind", internal::unbind)
        .post("/_matrix/identity/internal/erase", internal::erase)
}
