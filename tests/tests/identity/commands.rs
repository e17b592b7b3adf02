//! What an operator does beside a running server.

use std::process::Output;

use waypost_tests::identity::TestIdentity;
use waypost_tests::on_each_database;
use waypost_tests::process::eventually;
use waypost_tests::record::PATIENCE;

use super::{ALICE, BOB, EMAIL};

fn good(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

on_each_database! {
    async fn an_association_is_shown_and_listed(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        t.publish(&token, "alice@work.example.com", ALICE).await;
        // Typed as people type it.
        let shown = t.server.run(&["association", "show", "--medium", "email", "--address", "Alice@Example.com"]);
        let shown = good(shown);
        assert!(shown.starts_with(&format!("{ALICE}  since ")) && shown.trim_end().ends_with(" GMT"), "{shown}");
        let list = good(t.server.run(&["association", "list", "--mxid", ALICE]));
        let addresses: Vec<_> = list.lines().map(|line| line.split("  since ").next().unwrap()).collect();
        assert_eq!(addresses, ["email alice@example.com", "email alice@work.example.com"]);
        assert_eq!(good(t.server.run(&["association", "list", "--mxid", BOB])), "");
    }

    async fn the_running_server_follows_a_removal(database: Database) {
        let t = TestIdentity::start(database).await;
        let token = t.register(ALICE).await;
        t.publish(&token, EMAIL, ALICE).await;
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
        let remove = ["association", "remove", "--medium", "email", "--address", EMAIL];
        assert_eq!(good(t.server.run(&remove)), format!("removed from {ALICE}\n"));
        eventually(PATIENCE, "the removal", || async { t.who_is(&token, EMAIL).await.is_none().then_some(()) }).await;

        let again = t.server.run(&remove);
        assert_eq!(again.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&again.stderr).contains("belongs to nobody"));
        // It can be bound again.
        let sid = t.validate(&token, EMAIL, "another_secret").await;
        t.bind(&token, &sid, "another_secret", ALICE).await.ok();
        assert_eq!(t.who_is(&token, EMAIL).await.as_deref(), Some(ALICE));
    }

    async fn what_is_no_address_is_refused(database: Database) {
        let t = TestIdentity::start(database).await;
        for (medium, address, code) in [("email", "alice", 1), ("msisdn", "alice@example.com", 1), ("fax", "1", 2)] {
            let output = t.server.run(&["association", "show", "--medium", medium, "--address", address]);
            assert_eq!(output.status.code(), Some(code), "{medium} {address}");
        }
        assert_eq!(t.server.run(&["association", "show"]).status.code(), Some(2));
    }
}
