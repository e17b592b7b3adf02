//! `waypost-identity invites`

use clap::Subcommand;
use waypost_shared::clock::{Clock, DAY_MS};

use crate::{app, config::Config, domain::invite};

/// Actions on invites.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List the pending invites, one per line: token, room, sender, beginnings of the address, age and days left.
    List,
    /// Revoke one: it admits nobody any more, and its key is no longer valid.
    Revoke {
        /// The token, as `invites list` prints it, and which is the state key of `m.room.third_party_invite` in the
        /// room.
        // Tokens may begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        token: String,
    },
    /// Revoke all that are older than the configured lifetime.
    Expire {
        /// Maximum age in days, instead of the configured lifetime.
        #[arg(long, value_name = "DAYS")]
        older_than_days: Option<u32>,
    },
}

/// Runs the command.
pub(super) async fn run(config: &Config, action: Action) -> Result<(), Box<dyn std::error::Error>> {
    let app::Opened { keys, store, .. } = app::open(config).await?;
    let now_ms = Clock::System.now_ms();
    match action {
        Action::List => {
            for listed in store.invites(&keys, now_ms).await? {
                println!(
                    "{}\t{}\t{}\t{}\t{} d old\t{} d left",
                    listed.token,
                    listed.room_id,
                    listed.sender,
                    invite::redacted(&listed.address, 3, 3),
                    now_ms.saturating_sub(listed.created_ms) / DAY_MS,
                    listed.expires_ms.saturating_sub(now_ms) / DAY_MS
                );
            }
        }
        Action::Revoke { token } => {
            if !store.revoke_invite(&keys, &token).await? {
                return Err("no pending invite has this token".into());
            }
            println!("revoked");
        }
        Action::Expire { older_than_days } => {
            let days = i64::from(older_than_days.unwrap_or(config.invites.lifetime_days));
            let revoked = store.revoke_invites_before(now_ms.saturating_sub(days * DAY_MS)).await?;
            println!("{revoked} invites expired");
        }
    }
    store.close().await;
    Ok(())
}
