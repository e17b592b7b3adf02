//! `waypost-identity outbox`

use clap::Subcommand;
use waypost_shared::clock::Clock;

use crate::{app, config::Config};

const HOUR_MS: i64 = 60 * 60 * 1000;

/// Actions on the outbox.
#[derive(Debug, Subcommand)]
pub(super) enum Action {
    /// List the calls that were given up, one per line: ID, user, attempts, hours since, failure; and how many are
    /// pending.
    List,
    /// Retry calls that were given up.
    Retry {
        /// The ID of one of them, as `outbox list` prints it. Default: all.
        // IDs may begin with a hyphen.
        #[arg(allow_hyphen_values = true)]
        id: Option<String>,
    },
}

/// Runs the command.
pub(super) async fn run(config: &Config, action: Action) -> Result<(), Box<dyn std::error::Error>> {
    let store = app::open(config).await?.store;
    let now_ms = Clock::System.now_ms();
    match action {
        Action::List => {
            for letter in store.dead_letters().await? {
                println!(
                    "{}\t{}\t{} attempts\t{} h ago\t{}",
                    letter.id,
                    letter.mxid,
                    letter.attempts,
                    now_ms.saturating_sub(letter.dead_ms) / HOUR_MS,
                    letter.failure
                );
            }
            let counts = store.outbox_counts().await?;
            println!("{} given up, {} waiting", counts.dead, counts.waiting);
        }
        Action::Retry { id } => {
            let revived = store.revive_dead_letters(id.as_deref(), now_ms).await?;
            if id.is_some() && revived == 0 {
                return Err("no call that was given up has this ID".into());
            }
            println!("{revived} calls will be retried by the server that runs on this database");
        }
    }
    store.close().await;
    Ok(())
}
