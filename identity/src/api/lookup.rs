//! Hashed lookup: clients send hashes of addresses, never the addresses.
//!
//! Source: Identity Service API, "Association lookup".

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;
use serde_json::json;
use waypost_shared::{
    http::{Incoming, Response, json, with_body},
    params::Params,
};

use crate::{
    app::{App, AppState},
    auth,
    domain::{hashing, threepid::Threepid},
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
    Ok(json(&json!({ "algorithms": algorithms, "lookup_pepper": app.pepper })))
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
        return Err(explain(&request));
    };
    if !(lookup.algorithm.0 == SHA256 || lookup.algorithm.0 == NONE && app.config.lookup.allow_none) {
        return Err(ApiError::UnknownAlgorithm);
    }
    if lookup.addresses.len() > app.config.lookup.max_addresses {
        return Err(ApiError::TooManyAddresses(app.config.lookup.max_addresses));
    }
    if lookup.pepper.0 != app.pepper {
        let (algorithm, lookup_pepper) = (lookup.algorithm.0.into_owned(), app.pepper.clone());
        return Err(ApiError::InvalidPepper { algorithm, lookup_pepper });
    }
    app.limits.lookup.check(&account.mxid).map_err(ApiError::LimitExceeded)?;
    Ok(with_body(StatusCode::OK, "application/json", mappings(&app, &lookup)))
}

/// What is wrong with a body that is not as it should be; the fast way of reading does not tell it well.
fn explain(request: &Incoming) -> ApiError {
    let read = || {
        let mut params = Params::new(request.json_object()?);
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
fn mappings(app: &AppState, lookup: &LookupRequest<'_>) -> Bytes {
    let hashed = lookup.algorithm.0 == SHA256;
    let index = app.index.read();
    let mut found: Vec<(&str, &str)> = lookup
        .addresses
        .iter()
        .filter_map(|Text(address)| {
            let hash = if hashed { hashing::parse(address) } else { plain(address, &app.pepper) };
            Some((address.as_ref(), index.get(&hash?)?))
        })
        .collect();
    found.sort_unstable();
    found.dedup();
    app.metrics.looked_up.inc_by(lookup.addresses.len() as u64);
    app.metrics.found.inc_by(found.len() as u64);

    let mut body = Vec::with_capacity(16 + found.len() * 96);
    body.extend_from_slice(br#"{"mappings":{"#);
    for (number, (address, mxid)) in found.into_iter().enumerate() {
        if number > 0 {
            body.push(b',');
        }
        write_text(&mut body, address);
        body.push(b':');
        write_text(&mut body, mxid);
    }
    body.extend_from_slice(b"}}");
    body.into()
}

fn write_text(body: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(body, text).expect("a string can be written into memory");
}

/// `address medium`, as the algorithm `none` has it.
fn plain(text: &str, pepper: &str) -> Option<hashing::LookupHash> {
    let (address, medium) = text.rsplit_once(' ')?;
    let threepid = match crate::domain::threepid::Medium::parse(medium)? {
        crate::domain::threepid::Medium::Email => Threepid::email(address).ok()?,
        msisdn => Threepid::stored(msisdn, address.to_owned()),
    };
    Some(hashing::lookup_hash(&threepid, pepper))
}
