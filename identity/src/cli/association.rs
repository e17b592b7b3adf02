//! `association`: whose an address is, for operators who are asked. Running servers follow what is removed.

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

/// What can be done with associations.
#[derive(Debug, Subcommand)]
pub(crate) enum AssociationCommand {
    /// Show whose an address is.
    Show(Address),
    /// Take an address from whomever it belongs to.
    Remove(Address),
    /// List the addresses that belong to a Matrix id.
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
    Medium::parse(text).ok_or_else(|| "it is `email` or `msisdn`".to_owned())
}

/// Does what the command line says.
///
/// # Errors
///
/// What the operator has to know.
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
        return Err("that address was bound or unbound at this very moment: look again".into());
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
