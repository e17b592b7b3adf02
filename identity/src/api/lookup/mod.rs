//! Hashed lookup: clients send hashes of addresses, never the addresses.
//!
//! Source: Identity Service API, "Association lookup".

mod budget;

use std::{
    borrow::Cow,
    hash::{BuildHasher as _, RandomState},
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::{HashTable, hash_table::Entry};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, json};
use waypost_shared::{
    http::{Incoming, Response, json, json_object, params::Params, with_body},
    owner::Owner,
};

use crate::{
    app::App,
    auth,
    domain::{
        hashing::{self, LookupHash},
        lookup_index::Escaping,
        lookups::PepperIndex,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
};

/// Supported by every client.
const SHA256: &str = "sha256";
/// Plain addresses; disabled unless configured.
const NONE: &str = "none";

/// `GET /_matrix/identity/v2/hash_details`: the algorithms and the current pepper.
pub(crate) async fn hash_details(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    auth::account_with_terms(&app, &request).await?;
    let algorithms: &[_] = if app.config.lookup.allow_none { &[SHA256, NONE] } else { &[SHA256] };
    Ok(json(&json!({ "algorithms": algorithms, "lookup_pepper": app.current_pepper()?.pepper() })))
}

/// The body of a lookup, borrowed from the request where it contains no escapes, so that 1000 hashes need no
/// allocation.
#[derive(Deserialize)]
struct LookupRequest<'a> {
    #[serde(borrow)]
    addresses: Vec<Text<'a>>,
    #[serde(borrow)]
    algorithm: Text<'a>,
    #[serde(borrow)]
    pepper: Text<'a>,
}

/// A string, borrowed where possible. (A bare `Cow` always deserialises to an owned one.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// `POST /_matrix/identity/v2/lookup`: the users whose addresses have these hashes, answered from memory.
pub(crate) async fn lookup(app: Arc<App>, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    // serde would also accept an array of the three values.
    let is_object = request.body.trim_ascii_start().starts_with(b"{");
    let Some(lookup) = serde_json::from_slice::<LookupRequest<'_>>(&request.body).ok().filter(|_| is_object) else {
        return Err(explain(&request.body));
    };
    if !(lookup.algorithm.0 == SHA256 || lookup.algorithm.0 == NONE && app.config.lookup.allow_none) {
        return Err(ApiError::UnknownAlgorithm);
    }
    if lookup.addresses.len() > app.config.lookup.max_addresses {
        return Err(ApiError::TooManyAddresses(app.config.lookup.max_addresses));
    }
    let Some(pepper_index) = app.pepper_index(&lookup.pepper.0).await? else {
        let lookup_pepper = app.current_pepper()?.pepper().to_owned();
        return Err(ApiError::InvalidPepper { algorithm: lookup.algorithm.0.into_owned(), lookup_pepper });
    };
    app.limits.lookup.check(&account.mxid).map_err(ApiError::rate_limited)?;
    app.limits.lookup_homeserver.check(&account.owner).map_err(ApiError::rate_limited)?;
    let hashes = hashes(&lookup, pepper_index.pepper());
    let new = budget::charge(&app, &account, request.source, &hashes).await?;
    let (body, found) = mappings(&lookup, &hashes, &pepper_index);
    app.metrics.looked_up(hashes.len(), found);
    if let Some(new) = new {
        app.metrics.looked_up_first(new.caller, new.addresses, found);
    }
    Ok(with_body(StatusCode::OK, "application/json", body))
}

/// `GET /_matrix/identity/api/v1/lookup`: the signed association of an address, for a listed homeserver; an empty
/// object if the address is not bound.
pub(crate) async fn v1_lookup(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let mut params = Params::new(super::v1_values(&mut request)?);
    let medium = params.text("medium");
    let address = params.text("address");
    params.finish()?;
    let caller = Owner::from(request.source);
    app.limits.lookup_homeserver.check(&caller).map_err(ApiError::rate_limited)?;
    app.limits.addresses_homeserver.check(&caller).map_err(ApiError::rate_limited)?;

    // An invalid address is bound to nobody.
    let threepid = Medium::parse(&medium).and_then(|medium| Threepid::given(medium, &address).ok());
    let association = match threepid {
        Some(threepid) => app.store.association(&app.keys, &threepid).await?,
        None => None,
    };
    app.metrics.looked_up(1, usize::from(association.is_some()));
    let Some(association) = association else { return Ok(json(&Map::new())) };
    Ok(json(&app.signer.association(&association)))
}

/// The error for a body that does not parse, which the fast parser does not describe well.
fn explain(body: &[u8]) -> ApiError {
    let read = || {
        let mut params = Params::new(json_object(body)?);
        params.texts("addresses");
        params.text("algorithm");
        params.text("pepper");
        params.finish()
    };
    match read() {
        Err(error) => error.into(),
        // The two parsers differ only in duplicate keys, which this one accepts.
        Ok(()) => waypost_shared::http::MatrixError::bad_request("M_BAD_JSON", "A key appears twice").into(),
    }
}

/// The lookup hash of each address; `None` for what cannot be an address.
fn hashes(lookup: &LookupRequest<'_>, pepper: &str) -> Vec<Option<LookupHash>> {
    let is_hashed = lookup.algorithm.0 == SHA256;
    let hash = |Text(address): &Text<'_>| if is_hashed { hashing::parse(address) } else { plain(address, pepper) };
    lookup.addresses.iter().map(hash).collect()
}

/// The body of the response: each address that was found, as it was sent, once; and how many.
fn mappings(lookup: &LookupRequest<'_>, hashes: &[Option<LookupHash>], pepper_index: &PepperIndex) -> (Bytes, usize) {
    let addresses = &lookup.addresses;
    let hashed = lookup.algorithm.0 == SHA256;

    // Names in a JSON object must be unique, so only the first of equal addresses is answered.
    let mut answered = HashTable::with_capacity(addresses.len());
    let random = RandomState::new();
    // Plain addresses that differ only in case share a lookup hash, so keying by it would cause collisions.
    let key = |at: &usize| match &hashes[*at] {
        Some(hash) if hashed => hashing::prefix(hash),
        _ => random.hash_one(&addresses[*at].0),
    };
    let view = pepper_index.index().read();
    let mut found: Vec<(&str, u32)> = Vec::with_capacity(addresses.len());
    view.find_all(hashes, |at, mxid| {
        let address = &*addresses[at].0;
        if let Entry::Vacant(entry) = answered.entry(key(&at), |other| addresses[*other].0 == address, key) {
            entry.insert(at);
            found.push((address, mxid));
        }
    });
    // Parsing has shown that hashes are URL-safe base64.
    let escaping = if hashed { Escaping::None } else { Escaping::Json };
    (view.mappings(&found, escaping).into(), found.len())
}

/// Hashes `address medium`, the format of the algorithm `none`.
fn plain(text: &str, pepper: &str) -> Option<LookupHash> {
    let (address, medium) = text.rsplit_once(' ')?;
    let threepid = match Medium::parse(medium)? {
        Medium::Email => Threepid::email(address).ok()?,
        Medium::Msisdn => Threepid::stored(Medium::Msisdn, address.to_owned()),
    };
    Some(hashing::lookup_hash(&threepid, pepper))
}
