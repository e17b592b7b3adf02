//! Tests of invitations that need a manual clock.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use http::{HeaderMap, Method};
use waypost_shared::{http::body::Body, source::RequestSource};

use super::*;
use crate::{
    api::pubkey,
    domain::association::Association,
    jobs::{clean_once, tests::app},
};

const ALICE: &str = "@alice:hs.test";

fn request(query: String) -> Incoming {
    Incoming {
        method: Method::GET,
        path: String::new(),
        path_params: Vec::new(),
        query,
        headers: HeaderMap::new(),
        body: Body::default(),
        source: RequestSource::UNKNOWN,
        request_id: "test".to_owned(),
    }
}

fn invitation(app: &App) -> Invitation {
    let object = json!({
        "medium": "email", "address": "alice@example.com", "room_id": "!room:hs.test", "sender": "@bob:hs.test",
    });
    Invitation::read(app, object.as_object().unwrap().clone()).unwrap()
}

/// The response to Alice when she binds her address.
async fn bind(app: &App) -> Value {
    let threepid = Threepid::email("alice@example.com").unwrap();
    let association = Association { threepid, mxid: Mxid::parse(ALICE).unwrap(), bound_ms: app.clock.now_ms() };
    let invites = app.store.begin_bind(&app.keys, &association).await.unwrap().commit(&app.keys, "{}").await.unwrap();
    serde_json::to_value(app.signer.bound(&association, &invites)).unwrap()
}

async fn is_valid(app: &Arc<App>, public_key: &str) -> bool {
    let reply = pubkey::is_ephemeral_valid(app.clone(), request(format!("public_key={public_key}"))).await.unwrap();
    let answer: Value = serde_json::from_slice(reply.body()).unwrap();
    answer["valid"].as_bool().unwrap()
}

/// How signing with a key other than the invite's is refused.
async fn refusal(app: &Arc<App>, token: &str) -> (u16, &'static str) {
    let private_key = URL_SAFE_NO_PAD.encode([7; 32]);
    let query = format!("mxid={ALICE}&token={token}&private_key={private_key}");
    let refused = MatrixError::from(&sign_ed25519(app.clone(), request(query)).await.unwrap_err());
    (refused.status.as_u16(), refused.errcode)
}

#[tokio::test]
async fn an_invite_expires_with_its_key() {
    let (app, clock, _folder) = app(|config| config.invites.lifetime_days = 2).await;
    let look = app.templates.look(None, &language::preferred(None, None));
    let answer = keep(&app, &look, &invitation(&app)).await.unwrap();
    let (token, key) = (answer["token"].as_str().unwrap(), answer["public_keys"][1]["public_key"].as_str().unwrap());

    clock.advance(Duration::from_millis(2 * 24 * 60 * 60 * 1000 - 1));
    clean_once(&app).await.unwrap();
    assert!(is_valid(&app, key).await);
    assert_eq!(refusal(&app, token).await, (403, "M_FORBIDDEN"));
    assert_eq!(app.store.invites(&app.keys, clock.now_ms()).await.unwrap().len(), 1);

    clock.advance(Duration::from_millis(1));
    assert!(!is_valid(&app, key).await);
    assert_eq!(refusal(&app, token).await, (404, "M_UNRECOGNIZED"));
    // Whoever binds the address now is not invited.
    assert_eq!(bind(&app).await.get("invites"), None);
    clean_once(&app).await.unwrap();
    // Even at an earlier time: the row is deleted, not merely hidden.
    assert!(app.store.invites(&app.keys, 0).await.unwrap().is_empty());
}

#[tokio::test]
async fn the_key_of_an_invite_that_was_handed_out_stays_valid() {
    let (app, clock, _folder) = app(|config| config.invites.lifetime_days = 2).await;
    let look = app.templates.look(None, &language::preferred(None, None));
    let answer = keep(&app, &look, &invitation(&app)).await.unwrap();
    let key = answer["public_keys"][1]["public_key"].as_str().unwrap();
    assert_eq!(bind(&app).await["invites"][0]["token"], answer["token"]);
    clock.advance(Duration::from_secs(3 * 24 * 60 * 60));
    clean_once(&app).await.unwrap();
    assert!(is_valid(&app, key).await);
}
