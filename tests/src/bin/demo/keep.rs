//! `--keep`: keeps everything running, and prints commands to try.

use waypost_tests::gateway::{ANDROID, NOTIFY, TestGateway};
use waypost_tests::identity::{TestIdentity, V2};

/// Prints the commands and waits for Ctrl-C.
pub(crate) async fn keep(identity: Option<&TestIdentity>, gateway: Option<&TestGateway>) {
    println!("\nEverything is still running. Try, in another terminal:\n");
    if let Some(identity) = identity {
        let (public, operations) = (&identity.server.public, &identity.server.operations);
        let token = identity.register("@bob:hs.test").await;
        identity.accept_terms(&token).await;
        println!("  curl {public}/_matrix/identity/versions");
        println!("  curl {public}{V2}/pubkey/ed25519:0");
        println!("  curl -H 'Authorization: Bearer {token}' {public}{V2}/hash_details");
        println!("  curl {operations}/health/ready");
        println!("  curl {operations}/metrics\n");
    }
    if let Some(gateway) = gateway {
        let (public, operations) = (&gateway.server.public, &gateway.server.operations);
        println!(
            "  curl {public}{NOTIFY} --json '{{\"notification\":{{\"event_id\":\"$try\",\"room_id\":\"!a:hs.test\",\
             \"devices\":[{{\"app_id\":\"{ANDROID}\",\"pushkey\":\"mine\"}}]}}}}'"
        );
        println!("  curl {operations}/health/ready");
        println!("  curl {operations}/metrics\n");
    }
    println!("Ctrl-C ends it.");
    // Handling Ctrl-C makes sure that the programs are stopped; if no handler can be installed, end at once.
    let _ = tokio::signal::ctrl_c().await;
}
