//! `pepper`: rotating the pepper of lookups. Running servers pick up the new one by themselves.

use std::{error::Error, time::Duration};

use clap::Subcommand;
use waypost_shared::clock::{Clock, millis};

use crate::{
    app::open,
    config::Config,
    domain::{hashing, lookups::Pepper},
    storage::Store,
};

use super::date::date;

/// Actions on peppers.
#[derive(Debug, Subcommand)]
pub(crate) enum PepperCommand {
    /// Create a new pepper. The previous one is accepted for a while longer (`lookup.previous_pepper_secs`).
    Rotate,
    /// List the peppers, oldest first.
    List,
}

/// Runs the command.
pub(crate) async fn run(config: &Config, command: PepperCommand) -> Result<(), Box<dyn Error>> {
    let store = open(config).await?.store;
    match command {
        PepperCommand::Rotate => rotate(config, &store).await?,
        PepperCommand::List => list(config, &store).await?,
    }
    store.close().await;
    Ok(())
}

async fn rotate(config: &Config, store: &Store) -> Result<(), Box<dyn Error>> {
    let now_ms = Clock::System.now_ms();
    let active_ms = now_ms.saturating_add(millis(Duration::from_secs(config.lookup.pepper_lead_secs)));
    let pepper = Pepper { text: hashing::new_pepper(), created_ms: now_ms, active_ms };
    if !store.add_pepper(&pepper, now_ms).await? {
        return Err("a rotation is in progress: wait until its pepper is announced (see `pepper list`)".into());
    }
    println!("{}  from {}", pepper.text, date(active_ms));
    println!("The previous one is accepted until {}.", date(active_ms.saturating_add(grace_ms(config))));
    Ok(())
}

async fn list(config: &Config, store: &Store) -> Result<(), Box<dyn Error>> {
    let now_ms = Clock::System.now_ms();
    let peppers = store.peppers().await?;
    for (number, pepper) in peppers.iter().enumerate() {
        let next = peppers.get(number + 1).filter(|next| next.active_ms <= now_ms);
        let state = match next.map(|next| next.active_ms.saturating_add(grace_ms(config))) {
            None if pepper.active_ms > now_ms => format!("from {}", date(pepper.active_ms)),
            None => format!("in force since {}", date(pepper.active_ms)),
            Some(until_ms) if until_ms > now_ms => format!("accepted until {}", date(until_ms)),
            Some(until_ms) => format!("expired since {}", date(until_ms)),
        };
        println!("{}  {state}", pepper.text);
    }
    Ok(())
}

fn grace_ms(config: &Config) -> i64 {
    millis(Duration::from_secs(config.lookup.previous_pepper_secs))
}
