//! Inviting people by an address that is not bound yet.
//!
//! Source: Identity Service API, "Invitation storage" and "Ephemeral invitation signing".

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use subtle::ConstantTimeEq as _;
use url::Url;
use waypost_shared::{
    clock::DAY_MS,
    error::Chain,
    http::{Incoming, MatrixError, Response, json, params::Params},
    random,
    source::RequestSource,
};
use zeroize::Zeroizing;

use crate::{
    app::App,
    auth,
    delivery::{email::Mail, templates::Look},
    domain::{
        invite::{self, WEB_CLIENT_LOCATION},
        language,
        mxid::Mxid,
        next_link, shown,
        signing::{self, SigningKey},
        threepid::{Medium, Threepid},
    },
    error::ApiError,
    storage::{invites::NewInvite, rate_limits::Charge},
};

/// The only type of room that has its own wording.
const SPACE: &str = "m.space";
const SIGN_PATH: &str = "/_matrix/identity/v2/sign-ed25519";
const IS_VALID_PATH: &str = "/_matrix/identity/v2/pubkey/isvalid";
const IS_EPHEMERAL_VALID_PATH: &str = "/_matrix/identity/v2/pubkey/ephemeral/isvalid";
/// The ID of an ephemeral key in its signatures.
const EPHEMERAL_KEY_ID: &str = "ed25519:0";
/// The longest room ID and avatar URL accepted, in bytes: the limit for Matrix IDs.
const MAX_ID: usize = 255;

/// An invitation as requested.
struct Invitation {
    /// As typed; the room sees a redacted form.
    address: String,
    threepid: Threepid,
    room_id: String,
    sender: Mxid,
    sender_name: Option<String>,
    room_name: Option<String>,
    room_avatar_url: Option<String>,
    room_type: Option<String>,
    web_client: Option<Url>,
}

/// The secrets of an invitation, which only its email contains.
struct Ephemeral {
    token: String,
    seed: Zeroizing<[u8; 32]>,
    key: SigningKey,
}

/// `POST /_matrix/identity/v2/store-invite`: stores an invite until its address is bound, and emails the invitee.
pub(crate) async fn store_invite(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let account = auth::account_with_terms(&app, &request).await?;
    let object = request.json_object()?;
    let invitation = Invitation::read(&app, object.clone())?;
    if invitation.sender != account.mxid {
        return Err(ApiError::NotYourMxid);
    }
    take(app, &request, invitation, &object).await
}

/// `POST /_matrix/identity/api/v1/store-invite`: the same, for a listed homeserver, whose word is enough for any
/// `sender`.
pub(crate) async fn v1_store_invite(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    auth::listed_caller(&app, &request)?;
    let object = super::v1_values(&mut request)?;
    let invitation = Invitation::read(&app, object.clone())?;
    if !app.config.homeservers.allows(invitation.sender.server_name()) {
        return Err(ApiError::HomeserverNotAllowed);
    }
    take(app, &request, invitation, &object).await
}

/// Accepts an invitation whose sender has been verified, unless it is blocked, exceeds a rate limit or its address is
/// bound. `texts` has every parameter that was sent.
async fn take(
    app: Arc<App>,
    request: &Incoming,
    invitation: Invitation,
    texts: &Map<String, Value>,
) -> Result<Response, ApiError> {
    let texts = texts.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_str()?)));
    if app.config.invites.blocked.refuses(&app.owners, &invitation.sender, &invitation.room_id, texts) {
        return Err(ApiError::InviteNotAllowed);
    }
    // Before revealing whether the address is bound, so that this is not a way to probe many addresses.
    let charges = charges(&app, request.source, &invitation);
    app.store.take_all(&charges, app.clock.now_ms()).await?.map_err(ApiError::rate_limited)?;
    if let Some(mxid) = app.store.owner(&app.keys.fingerprint(&invitation.threepid)).await? {
        return Err(ApiError::ThreepidInUse(mxid));
    }

    let preferred = language::preferred(request.query_param("lang").as_deref(), None);
    let look = app.templates.look(request.query_param("brand").as_deref(), &preferred);
    match keep(&app, &look, &invitation).await {
        Ok(answer) => Ok(json(&answer)),
        Err(error) => {
            if error.is_unsent_by_our_fault() {
                app.store.give_back(&charges).await?;
            }
            Err(error)
        }
    }
}

/// Stores the invite with a key generated for it, and sends the email: both or neither.
async fn keep(app: &App, look: &Look, invitation: &Invitation) -> Result<Value, ApiError> {
    let seed = Zeroizing::new(random::bytes::<32>());
    let key = SigningKey::from_seed(EPHEMERAL_KEY_ID.to_owned(), &seed);
    let ephemeral = Ephemeral { token: random::token(), seed, key };
    let now_ms = app.clock.now_ms();
    let new = NewInvite {
        token: &ephemeral.token,
        threepid: &invitation.threepid,
        room_id: &invitation.room_id,
        sender: &invitation.sender,
        key_id: app.signer.keys.first().key_id(),
        ephemeral_key: ephemeral.key.public_bytes(),
        now_ms,
        expires_ms: now_ms.saturating_add(i64::from(app.config.invites.lifetime_days) * DAY_MS),
    };
    // It may have been bound since the check.
    if let Some(mxid) = app.store.add_invite(&app.keys, &new).await? {
        return Err(ApiError::ThreepidInUse(mxid));
    }
    let sent = send_mail(app, look, invitation, &ephemeral).await;
    app.metrics.mail(sent.is_ok());
    if let Err(error) = sent {
        // The homeserver gets a 400, but only the operator can fix it.
        tracing::warn!(error = %Chain(&error), "an invitation could not be sent; dropping the invite");
        // Nobody has learned its token, so it must not let anybody in.
        app.store.revoke_invite(&app.keys, &ephemeral.token).await?;
        return Err(error);
    }
    app.metrics.invites.inc();
    tracing::info!(sender = %invitation.sender, "invite stored");
    Ok(answer(app, invitation, &ephemeral))
}

impl Invitation {
    fn read(app: &App, object: Map<String, Value>) -> Result<Self, ApiError> {
        let mut params = Params::new(object);
        let medium = params.text("medium");
        let address = params.text("address");
        let room_id = params.text("room_id");
        let sender = params.text("sender");
        // Synapse sends an empty string for what a room or a user does not have.
        let mut optional = |name| params.optional_text(name).filter(|text| !text.is_empty());
        let sender_name = optional("sender_display_name");
        let room_name = optional("room_name");
        let room_avatar_url = optional("room_avatar_url");
        // It becomes part of the link, which people read, so only a known value is accepted.
        let room_type = optional("room_type").filter(|kind| kind == SPACE);
        let web_client = optional(WEB_CLIENT_LOCATION);
        params.finish()?;
        if Medium::parse(&medium) != Some(Medium::Email) {
            return Err(ApiError::UnsupportedMedium);
        }
        let plain = !room_id.chars().any(|c| c.is_whitespace() || c.is_control());
        if !room_id.starts_with('!') || room_id.len() > MAX_ID || !plain {
            return Err(MatrixError::invalid_param("room_id", "must be a Matrix room ID").into());
        }
        Ok(Self {
            threepid: Threepid::email(&address)?,
            address,
            room_id,
            sender: super::mxid("sender", &sender)?,
            sender_name: sender_name.and_then(|name| shown::name(&name, shown::MAX_PERSON)),
            room_name: room_name.and_then(|name| shown::name(&name, shown::MAX_ROOM)),
            room_avatar_url: room_avatar_url.filter(|url| url.starts_with("mxc://") && url.len() <= MAX_ID),
            room_type,
            web_client: web_client.and_then(|location| allowed_client(app, &location)),
        })
    }
}

/// The web client that a homeserver names, if the operator trusts it with the key that accepts the invite.
fn allowed_client(app: &App, location: &str) -> Option<Url> {
    let patterns = app.config.invites.web_clients_allowed.iter();
    let patterns: Vec<_> = patterns.filter_map(|pattern| next_link::Pattern::parse(pattern)).collect();
    next_link::allowed(&patterns, location)
}

/// The rate limits of an invite: nobody can be flooded with invites, or flood others with them.
fn charges(app: &App, source: RequestSource, invitation: &Invitation) -> Vec<Charge> {
    let (keys, limits) = (&app.keys, &app.config.limits);
    let (sender, source) = (keys.budget_hash(invitation.sender.as_str()), keys.budget_hash(&source.to_string()));
    let mut charges = vec![Charge::one("invite_per_account", sender, limits.invite_per_account)];
    let homeserver = invitation.sender.server_name();
    if !app.config.homeservers.names(homeserver) {
        let owner = keys.budget_hash(&app.owners.of(homeserver).to_string());
        charges.push(Charge::one("invite_per_stranger", owner, limits.invite_per_stranger));
        charges.push(Charge::one("invite_of_strangers", keys.budget_hash(""), limits.invite_of_strangers));
    }
    charges.push(Charge::one("invite_per_source", source, limits.invite_per_source));
    let mailbox = keys.mailbox_hash(&invitation.threepid);
    charges.push(Charge::one("invite_per_address", mailbox, limits.invite_per_address));
    charges.push(Charge::one("invite_total", keys.budget_hash(""), limits.invite_total));
    charges
}

async fn send_mail(app: &App, look: &Look, invitation: &Invitation, ephemeral: &Ephemeral) -> Result<(), ApiError> {
    let client = invitation.web_client.as_ref().unwrap_or(&app.config.invites.web_client_url);
    let private_key = Zeroizing::new(URL_SAFE_NO_PAD.encode(*ephemeral.seed));
    let sign_url = Zeroizing::new(format!(
        "{}{SIGN_PATH}?token={}&private_key={}",
        app.base_url,
        invite::encoded(&ephemeral.token),
        invite::encoded(&private_key)
    ));
    let (room_name, sender_name) = (invitation.room_name.as_deref(), invitation.sender_name.as_deref());
    // The parameters that Element Web, iOS and Android read.
    let link = invite::room_link(
        client.as_str(),
        &invitation.room_id,
        &[
            ("email", invitation.threepid.address()),
            ("signurl", sign_url.as_str()),
            ("room_name", room_name.unwrap_or_default()),
            ("room_avatar_url", invitation.room_avatar_url.as_deref().unwrap_or_default()),
            ("inviter_name", sender_name.unwrap_or_default()),
            ("room_type", invitation.room_type.as_deref().unwrap_or_default()),
        ],
    );
    let sender = shown::mxid(&invitation.sender);
    let values = json!({
        "link": link,
        "server_name": app.config.identity.server_name,
        "sender": sender,
        "inviter": sender_name.unwrap_or(&sender),
        "has_name": sender_name.is_some(),
        "homeserver": shown::server(&invitation.sender),
        "room_name": room_name.unwrap_or_default(),
        "is_space": invitation.room_type.is_some(),
        "client": client.host_str().unwrap_or_default(),
        "days": app.config.invites.lifetime_days,
    });
    let render =
        |template| app.templates.render(look, template, &values).map_err(|error| ApiError::Internal(error.into()));
    let mail = Mail {
        subject: render("invitation_subject.txt")?.trim().to_owned(),
        text: render("invitation_mail.txt")?,
        html: render("invitation_mail.html")?,
    };
    // The folder transport logs the link, and the private key is only for the invitee.
    let without_key = invite::room_link(client.as_str(), &invitation.room_id, &[]);
    Ok(app.mailer.send(invitation.threepid.address(), mail, &without_key).await?)
}

fn answer(app: &App, invitation: &Invitation, ephemeral: &Ephemeral) -> Value {
    let long_term = app.signer.keys.first().public_key();
    let invites = &app.config.invites;
    json!({
        "token": ephemeral.token,
        "public_key": long_term,
        "public_keys": [
            { "public_key": long_term, "key_validity_url": format!("{}{IS_VALID_PATH}", app.base_url) },
            {
                "public_key": URL_SAFE_NO_PAD.encode(ephemeral.key.public_bytes()),
                "key_validity_url": format!("{}{IS_EPHEMERAL_VALID_PATH}", app.base_url),
            },
        ],
        "display_name":
            invite::redacted(&invitation.address, invites.redact_local_chars, invites.redact_domain_chars),
    })
}

/// `POST /_matrix/identity/v2/sign-ed25519`: signs, with the key from an invitation's email, that `mxid` accepts the
/// invite.
///
/// Element Web and iOS POST the email's `signurl` as is, with `mxid` added and without an access token: the private key
/// is proof enough. With the key in the body, it is a call of the current specification, which needs a token.
pub(crate) async fn sign_ed25519(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    let mut values = Map::new();
    if request.query_param("private_key").is_none() {
        auth::account_with_terms(&app, &request).await?;
        values = request.json_object()?;
    } else if let Ok(object) = request.json_object() {
        values = object;
    }
    for (name, value) in url::form_urlencoded::parse(request.query.as_bytes()) {
        values.insert(name.into_owned(), Value::from(value.into_owned()));
    }
    sign(&app, values).await
}

/// `POST /_matrix/identity/api/v1/sign-ed25519`: the same for Android, which sends everything in the query; a form or
/// JSON works as well. It needs no token, since v1 has none.
pub(crate) async fn v1_sign_ed25519(app: Arc<App>, mut request: Incoming) -> Result<Response, ApiError> {
    sign(&app, super::v1_values(&mut request)?).await
}

async fn sign(app: &App, values: Map<String, Value>) -> Result<Response, ApiError> {
    let mut params = Params::new(values);
    let mxid = params.text("mxid");
    let token = params.text("token");
    let private_key = Zeroizing::new(params.text("private_key"));
    params.finish()?;
    let mxid = super::mxid("mxid", &mxid)?;
    let seed = signing::key_bytes(&private_key).map(Zeroizing::new);
    let seed = seed.ok_or(MatrixError::invalid_param("private_key", "must be 32 bytes in base64"))?;

    let now_ms = app.clock.now_ms();
    let terms = app.store.invite(&app.keys, &token, now_ms).await?.ok_or(ApiError::UnknownInvite)?;
    let key = SigningKey::from_seed(EPHEMERAL_KEY_ID.to_owned(), &seed);
    let public_key = key.public_bytes();
    let is_its_own: bool = match terms.ephemeral_key {
        Some(known) => known.ct_eq(&public_key).into(),
        None => app.store.is_ephemeral_key(&public_key, now_ms).await?,
    };
    if !is_its_own {
        return Err(ApiError::WrongPrivateKey);
    }
    Ok(json(&app.signer.sign_with(&key, invite::acceptance(&mxid, &terms.sender, &token))))
}

#[cfg(test)]
mod tests;
