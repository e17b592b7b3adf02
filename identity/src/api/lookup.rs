//! Hashed lookup: clients send hashes of addresses, never the addresses.
//!
//! Source: Identity Service API, "Association lookup".

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Map, json};
use waypost_shared::{
    http::{Incoming, Response, json, json_object, with_body},
    owner::Owner,
    params::Params,
};

use crate::{
    app::{App, AppState},
    auth::{self, Account},
    domain::{
        hashing,
        peppered::Peppered,
        threepid::{Medium, Threepid},
    },
    error::ApiError,
};

/// The algorithm that every client has.
const SHA256: &str = "sha256";
/// Plain addresses; off unless configured.
const NONE: &str = "none";

/// `GET /_matrix/identity/v2/hash_details`: how to hash.
pub(crate) async fn hash_details(app: App, request: Incoming) -> Result<Response, ApiError> {
    auth::account_with_terms(&app, &request).await?;
    let algorithms: &[_] = if app.config.lookup.allow_none { &[SHA256, NONE] } else { &[SHA256] };
    Ok(json(&json!({ "algorithms": algorithms, "lookup_pepper": app.current_pepper()?.pepper() })))
}

/// The body of a lookup, borrowed from the request where nothing is escaped in it: 1000 hashes are no allocations.
#[derive(Deserialize)]
struct LookupRequest<'a> {
    #[serde(borrow)]
    addresses: Vec<Text<'a>>,
    #[serde(borrow)]
    algorithm: Text<'a>,
    #[serde(borrow)]
    pepper: Text<'a>,
}

/// A string that is borrowed if it can be. (`Cow` itself is always read as an owned one.)
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// `POST /_matrix/identity/v2/lookup`: whose addresses have these hashes. Answered from memory.
pub(crate) async fn lookup(app: App, request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    // serde would also take a list of the three values.
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
    let Some(peppered) = app.peppered(&lookup.pepper.0).await? else {
        let lookup_pepper = app.current_pepper()?.pepper().to_owned();
        return Err(ApiError::InvalidPepper { algorithm: lookup.algorithm.0.into_owned(), lookup_pepper });
    };
    charge(&app, &account, lookup.addresses.len())?;
    Ok(with_body(StatusCode::OK, "application/json", mappings(&app, &lookup, &peppered)))
}

/// `GET /_matrix/identity/api/v1/lookup`: the signed association of an address, for a homeserver that the operator
/// listed; an empty object if the address is nobody's.
pub(crate) async fn v1_lookup(app: App, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let mut params = Params::new(super::v1_values(&mut request)?);
    let medium = params.text("medium");
    let address = params.text("address");
    params.finish()?;
    let caller = Owner::from(request.source);
    app.limits.lookup_homeserver.check(&caller).map_err(ApiError::LimitExceeded)?;
    app.limits.addresses_homeserver.check(&caller).map_err(ApiError::LimitExceeded)?;

    app.metrics.looked_up.inc();
    // What is no address is nobody's.
    let threepid = Medium::parse(&medium).and_then(|medium| Threepid::given(medium, &address).ok());
    let Some(threepid) = threepid else { return Ok(json(&Map::new())) };
    let Some(association) = app.store.association(&app.keys, &threepid).await? else {
        return Ok(json(&Map::new()));
    };
    app.metrics.found.inc();
    let signed = super::signed(&app, &association, None).map_err(|error| ApiError::Internal(error.into()))?;
    Ok(json(&signed))
}

/// Nobody can go through all addresses that there could be: not one account, and not the owner of a homeserver, who can
/// make many of both.
fn charge(app: &AppState, account: &Account, addresses: usize) -> Result<(), ApiError> {
    let addresses = u32::try_from(addresses).unwrap_or(u32::MAX);
    let limits = &app.limits;
    limits.lookup.check(&account.mxid).map_err(ApiError::LimitExceeded)?;
    limits.lookup_homeserver.check(&account.owner).map_err(ApiError::LimitExceeded)?;
    limits.addresses.check_many(&account.mxid, addresses).map_err(ApiError::LimitExceeded)?;
    limits.addresses_homeserver.check_many(&account.owner, addresses).map_err(ApiError::LimitExceeded)
}

/// What is wrong with a body that is not as it should be; the fast way of reading does not tell it well.
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
        // A key that is there twice: the two ways of reading differ only in that.
        Ok(()) => waypost_shared::matrix_error::MatrixError::bad_request("M_BAD_JSON", "A key is there twice").into(),
    }
}

/// The body of the answer: each address that is known, as it was sent, once.
fn mappings(app: &AppState, lookup: &LookupRequest<'_>, peppered: &Peppered) -> Bytes {
    let hashed = lookup.algorithm.0 == SHA256;
    let hash = |Text(address): &Text<'_>| {
        if hashed { hashing::parse(address) } else { plain(address, peppered.pepper()) }
    };
    let hashes: Vec<_> = lookup.addresses.iter().map(hash).collect();
    let index = peppered.index().read();
    let mut found: Vec<(&str, u32)> = Vec::with_capacity(hashes.len());
    let mut once = Once::new(&lookup.addresses);
    index.find_all(&hashes, |at, mxid| {
        if once.is_first(at, hashes[at].as_ref().map_or(0, hashing::prefix)) {
            found.push((&*lookup.addresses[at].0, mxid));
        }
    });
    app.metrics.looked_up.inc_by(lookup.addresses.len() as u64);
    app.metrics.found.inc_by(found.len() as u64);

    let length: usize = found.iter().map(|(address, mxid)| address.len() + index.json_len(*mxid) + 4).sum();
    let mut body = Vec::with_capacity(length + 16);
    body.extend_from_slice(br#"{"mappings":{"#);
    for (number, (address, mxid)) in found.into_iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        if hashed {
            // URL-safe base64, as parsing it showed: there is nothing to escape.
            body.push(b'"');
            body.extend_from_slice(address.as_bytes());
            body.push(b'"');
        } else {
            write_text(&mut body, address);
        }
        body.push(b':');
        body.extend_from_slice(index.json(mxid));
    }
    body.extend_from_slice(b"}}");
    body.into()
}

/// Tells the first of equal addresses from the others: a name must stand once in an object of JSON.
struct Once<'a> {
    addresses: &'a [Text<'a>],
    /// Numbers of addresses, counted from 1, behind the place that their hash points at; 0 is free. Twice as many places
    /// as addresses, so that there always is a free one.
    places: Vec<u32>,
}

impl<'a> Once<'a> {
    fn new(addresses: &'a [Text<'a>]) -> Self {
        Self { addresses, places: vec![0; (addresses.len() * 2).next_power_of_two()] }
    }

    /// Whether no address equal to number `at` was asked for before; `hash` is one of the address's own.
    #[allow(clippy::cast_possible_truncation)]
    fn is_first(&mut self, at: usize, hash: u64) -> bool {
        let last = self.places.len() - 1;
        let mut place = hash as usize & last;
        while self.places[place] != 0 {
            if self.addresses[self.places[place] as usize - 1].0 == self.addresses[at].0 {
                return false;
            }
            place = (place + 1) & last;
        }
        self.places[place] = u32::try_from(at + 1).unwrap_or(u32::MAX);
        true
    }
}

fn write_text(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("a string can be written into memory");
}

/// `address medium`, as the algorithm `none` has it.
fn plain(text: &str, pepper: &str) -> Option<hashing::LookupHash> {
    let (address, medium) = text.rsplit_once(' ')?;
    let threepid = match Medium::parse(medium)? {
        Medium::Email => Threepid::email(address).ok()?,
        Medium::Msisdn => Threepid::stored(Medium::Msisdn, address.to_owned()),
    };
    Some(hashing::lookup_hash(&threepid, pepper))
}
