//! Several signing keys, and what was signed with the older ones.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use ed25519_dalek::SigningKey;
use serde_json::json;
use waypost_tests::database::Database;
use waypost_tests::identity::{SERVER_NAME, TestIdentity};
use waypost_tests::matrix::verify_signed_json;
use waypost_tests::on_each_database;
use waypost_tests::process::{TempFolder, text};

use super::{ALICE, BOB, EMAIL, failure, invitation};

const OLD: [u8; 32] = [1; 32];
const NEW: [u8; 32] = [2; 32];

fn public_key(seed: [u8; 32]) -> String {
    STANDARD_NO_PAD.encode(SigningKey::from_bytes(&seed).verifying_key().as_bytes())
}

fn line(version: &str, seed: [u8; 32]) -> String {
    format!("ed25519 {version} {}\n", STANDARD_NO_PAD.encode(seed))
}

async fn start(database: Database, key_file: &Path) -> TestIdentity {
    TestIdentity::start_with(database, |settings| {
        settings.set("keys", "signing_key_file", text(key_file));
    })
    .await
}

on_each_database! {
    async fn all_keys_of_the_file_are_known_and_the_first_signs(database: Database) {
        let folder = TempFolder::new();
        // As Synapse writes it, then as the earliest Sydent did.
        let hex: String = OLD.iter().map(|byte| format!("{byte:02x}")).collect();
        let t = start(database, &folder.write("keys", &format!("{}{hex}\n", line("a_AbCd", NEW)))).await;
        for (id, seed) in [("ed25519:a_AbCd", NEW), ("ed25519:0", OLD)] {
            assert_eq!(t.get(&format!("/pubkey/{id}"), None).await.ok(), json!({"public_key": public_key(seed)}));
            let key = public_key(seed).replace('+', "%2B").replace('/', "%2F");
            let reply = t.get(&format!("/pubkey/isvalid?public_key={key}"), None).await;
            assert_eq!(reply.ok(), json!({"valid": true}), "{id}");
        }
        assert_eq!(t.get("/pubkey/ed25519:1", None).await.failure(), failure(404, "M_NOT_FOUND"));
        let alice = t.register(ALICE).await;
        let signed = t.publish(&alice, EMAIL, ALICE).await;
        verify_signed_json(&signed, SERVER_NAME, "ed25519:a_AbCd", &public_key(NEW)).unwrap();
        assert_eq!(signed["signatures"][SERVER_NAME].as_object().unwrap().len(), 1);
    }

    async fn an_invite_is_signed_with_the_key_that_its_room_has(database: Database) {
        let folder = TempFolder::new();
        let file = folder.write("keys", &line("0", OLD));
        let t = start(database, &file).await;
        let bob = t.register(BOB).await;
        let answer = t.post("/store-invite", Some(&bob), &invitation()).await.ok();
        assert_eq!(answer["public_keys"][0]["public_key"], public_key(OLD));

        folder.write("keys", &format!("{}{}", line("1", NEW), line("0", OLD)));
        let t = t.restart().await;
        let alice = t.register(ALICE).await;
        let signed = t.publish(&alice, EMAIL, ALICE).await;
        verify_signed_json(&signed, SERVER_NAME, "ed25519:1", &public_key(NEW)).unwrap();
        verify_signed_json(&signed["invites"][0]["signed"], SERVER_NAME, "ed25519:0", &public_key(OLD)).unwrap();
    }
}
