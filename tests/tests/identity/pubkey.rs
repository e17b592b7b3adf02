//! The server's public key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;
use waypost_tests::identity::TestIdentity;
use waypost_tests::on_each_database;

use super::failure;

on_each_database! {
    async fn the_key_is_published_and_valid(database: Database) {
        let t = TestIdentity::start(database).await;
        let reply = t.get("/pubkey/ed25519:0", None).await.ok();
        let key = reply["public_key"].as_str().unwrap();
        assert_eq!(STANDARD_NO_PAD.decode(key).unwrap().len(), 32);
        assert_eq!(reply, json!({"public_key": key}));

        let standard = key.replace('+', "%2B").replace('/', "%2F");
        let url_safe = key.replace('+', "-").replace('/', "_");
        for spelling in [standard, url_safe] {
            let reply = t.get(&format!("/pubkey/isvalid?public_key={spelling}"), None).await;
            assert_eq!(reply.ok(), json!({"valid": true}), "{spelling}");
        }
    }

    async fn other_keys_are_not(database: Database) {
        let t = TestIdentity::start(database).await;
        for id in ["ed25519:1", "ed25519:nope", "rsa:0", "0"] {
            assert_eq!(t.get(&format!("/pubkey/{id}"), None).await.failure(), failure(404, "M_NOT_FOUND"), "{id}");
        }
        let other = STANDARD_NO_PAD.encode([7; 32]).replace('+', "%2B").replace('/', "%2F");
        for key in [other.as_str(), "", "nonsense"] {
            let reply = t.get(&format!("/pubkey/isvalid?public_key={key}"), None).await;
            assert_eq!(reply.ok(), json!({"valid": false}), "{key:?}");
        }
        assert_eq!(t.get("/pubkey/isvalid", None).await.failure(), failure(400, "M_MISSING_PARAMS"));
    }
}
