//! `association`: shows and removes bindings, for operators. Running servers pick up removals.

use std::error::Error;

use clap::{Args, Subcommand};
use waypost_shared::clock::Clock;

use crate::{
    app::{Opened, open},
    config::Config,
    domain::{
        mxid::Mxid,
        sealing::StorageKeys,
        threepid::{Medium, Threepid},
    },
    storage::Store,
};

use super::date::date;

/// Actions on associations.
#[derive(Debug, Subcommand)]
pub(crate) enum AssociationCommand {
    /// Show who an address belongs to.
    Show(Address),
    /// Unbind an address from whoever it belongs to.
    Remove(Address),
    /// List the addresses that are bound to a Matrix ID.
    List {
        /// `@user:server`
        #[arg(long, value_parser = Mxid::parse)]
        mxid: Mxid,
    },
}

/// An address on the command line.
#[derive(Debug, Args)]
pub(crate) struct Address {
    /// `email` or `msisdn`
    #[arg(long, value_parser = medium)]
    medium: Medium,
    /// The email address, or the phone number in its international form.
    #[arg(long)]
    address: String,
}

fn medium(text: &str) -> Result<Medium, String> {
    Medium::parse(text).ok_or_else(|| "must be `email` or `msisdn`".to_owned())
}

/// Runs the command.
pub(crate) async fn run(config: &Config, command: AssociationCommand) -> Result<(), Box<dyn Error>> {
    let Opened { keys, store, .. } = open(config).await?;
    match command {
        AssociationCommand::Show(address) => show(&store, &keys, &address).await?,
        AssociationCommand::Remove(address) => remove(&store, &keys, &address).await?,
        AssociationCommand::List { mxid } => list(&store, &keys, &mxid).await?,
    }
    store.close().await;
    Ok(())
}

async fn show(store: &Store, keys: &StorageKeys, address: &Address) -> Result<(), Box<dyn Error>> {
    let threepid = Threepid::given(address.medium, &address.address)?;
    let association = store.association(keys, &threepid).await?.ok_or("that address belongs to nobody")?;
    println!("{}  since {}", association.mxid, date(association.bound_ms));
    Ok(())
}

async fn remove(store: &Store, keys: &StorageKeys, address: &Address) -> Result<(), Box<dyn Error>> {
    let threepid = Threepid::given(address.medium, &address.address)?;
    let association = store.association(keys, &threepid).await?.ok_or("that address belongs to nobody")?;
    let mxid = Some(&association.mxid);
    if !store.remove_association(keys, &threepid, mxid, Clock::System.now_ms()).await? {
        return Err("that address has just been bound or unbound: check again".into());
    }
    println!("removed from {}", association.mxid);
    Ok(())
}

async fn list(store: &Store, keys: &StorageKeys, mxid: &Mxid) -> Result<(), Box<dyn Error>> {
    for association in store.associations_of(keys, mxid).await? {
        let threepid = &association.threepid;
        println!("{} {}  since {}", threepid.medium().as_str(), threepid.address(), date(association.bound_ms));
    }
    Ok(())
}
