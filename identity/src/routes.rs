//! Every endpoint of the public and the internal listener, one per line.

use std::sync::Arc;

use waypost_shared::http::Router;

use crate::{
    api::{account, associations, internal, invitations, lookup, pubkey, status, terms, validation},
    app::App,
    config::V1Mode,
};

/// The routes of the public listener, with as much of the v1 API as `v1` enables.
pub(crate) fn routes(v1: V1Mode) -> Router<Arc<App>> {
    match v1 {
        V1Mode::Off => v2_routes(),
        V1Mode::Minimal => v1_minimal_routes(v2_routes()),
        V1Mode::Full => v1_full_routes(v1_minimal_routes(v2_routes())),
    }
}

fn v2_routes() -> Router<Arc<App>> {
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
        .post_large("/_matrix/identity/v2/lookup", lookup::lookup)
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

/// The harmless part of v1, and the part for homeservers that delegate text messages to this server.
fn v1_minimal_routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .get("/_matrix/identity/api/v1", status::ping)
        .get("/_matrix/identity/api/v1/pubkey/isvalid", pubkey::is_valid)
        .get("/_matrix/identity/api/v1/pubkey/ephemeral/isvalid", pubkey::is_ephemeral_valid)
        .get("/_matrix/identity/api/v1/pubkey/{keyId}", pubkey::pubkey)
        .post("/_matrix/identity/api/v1/sign-ed25519", invitations::v1_sign_ed25519)
        .post("/_matrix/identity/api/v1/validate/msisdn/requestToken", validation::msisdn::v1_request_token)
        .post("/_matrix/identity/api/v1/validate/msisdn/submitToken", validation::msisdn::v1_submit_token)
        .get("/_matrix/identity/api/v1/3pid/getValidated3pid", validation::v1_validated_threepid)
}

/// What a homeserver needs that only speaks v1.
fn v1_full_routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    router
        .post("/_matrix/identity/api/v1/validate/email/requestToken", validation::email::v1_request_token)
        .post("/_matrix/identity/api/v1/validate/email/submitToken", validation::email::v1_submit_token)
        .post("/_matrix/identity/api/v1/3pid/bind", associations::v1_bind)
        .get("/_matrix/identity/api/v1/lookup", lookup::v1_lookup)
        .post("/_matrix/identity/api/v1/store-invite", invitations::v1_store_invite)
}

/// The routes of the internal listener, for the operator's own programs.
pub(crate) fn internal_routes() -> Router<Arc<App>> {
    Router::new()
        .private()
        .post("/_matrix/identity/internal/bind", associations::internal_bind)
        .post("/_matrix/identity/internal/unbind", associations::internal_unbind)
        .post("/_matrix/identity/internal/erase", internal::erase)
}
