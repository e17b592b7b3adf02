//! The budgets of lookups, which keep strangers from enumerating phone numbers.
//!
//! An address is charged when its account asks for it for the first time. Whoever enumerates asks for new ones every
//! time; whoever has an address book asks for the same ones every day. The budgets are shared by all replicas, and
//! nothing is charged unless all of them have room.
//!
//! A homeserver that the operator has named is trusted with a large budget. All others are strangers, of which anybody
//! can have any number: each starts with a small budget that grows with its age, and all of them share one.

use waypost_shared::{http::rate_limit::Rate, source::RequestSource};

use crate::{
    app::{Account, App},
    domain::{
        address_book,
        hashing::{self, LookupHash},
    },
    error::ApiError,
    metrics::Caller,
    storage::rate_limits::Charge,
};

/// The budget of a stranger doubles with each of these ...
const WEEK_MS: i64 = 7 * waypost_shared::clock::DAY_MS;
/// ... this many times.
const MOST_DOUBLINGS: u32 = 5;

/// The addresses of a lookup that its account asked for, for the first time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct New {
    /// Who asked.
    pub(crate) caller: Caller,
    /// How many.
    pub(crate) addresses: u32,
}

/// Charges the new ones among the addresses with these hashes; `None` if there are none, or nothing is limited.
///
/// # Errors
///
/// [`ApiError::RateLimited`] if a budget is used up, or a database failure.
pub(crate) async fn charge(
    app: &App,
    account: &Account,
    source: RequestSource,
    hashes: &[Option<LookupHash>],
) -> Result<Option<New>, ApiError> {
    if !app.config.limits.limit_addresses() {
        return Ok(None);
    }
    let marks: Vec<_> = hashes.iter().flatten().map(|hash| address_book::mark(hashing::prefix(hash))).collect();
    let cached = app.address_books.of(&account.mxid);
    if cached.book.read().new_among(&marks).is_empty() {
        return Ok(None);
    }
    let _charging = cached.charging.lock().await;
    // Another replica may know more.
    let key = app.keys.budget_hash(account.mxid.as_str());
    let stored = app.store.address_book(&app.keys, &key).await?;
    let new = {
        let mut book = cached.book.write();
        book.merge(&stored);
        book.new_among(&marks)
    };
    if new.is_empty() {
        return Ok(None);
    }
    let addresses = u32::try_from(new.len()).unwrap_or(u32::MAX);
    let (now_ms, caller) = (app.clock.now_ms(), caller(app, account));
    let charges = charges(app, account, source, caller, addresses).await?;
    app.store.take_all(&charges, now_ms).await?.map_err(|wait| {
        app.metrics.lookup_refused(caller);
        ApiError::rate_limited(wait)
    })?;
    let bytes = {
        let mut book = cached.book.write();
        // Not only the new ones: the others have been used again.
        book.extend(&marks);
        book.to_bytes()
    };
    app.store.put_address_book(&app.keys, &key, &bytes, now_ms).await?;
    app.address_books.grown(&account.mxid, &cached);
    Ok(Some(New { caller, addresses }))
}

/// Whether the operator has named the account's homeserver.
fn caller(app: &App, account: &Account) -> Caller {
    if app.config.homeservers.names(&account.homeserver) { Caller::Named } else { Caller::Stranger }
}

/// The smallest budgets first.
async fn charges(
    app: &App,
    account: &Account,
    source: RequestSource,
    caller: Caller,
    count: u32,
) -> Result<Vec<Charge>, ApiError> {
    let (keys, limits) = (&app.keys, &app.config.limits);
    let owner = keys.budget_hash(&account.owner.to_string());
    let charge = |bucket, key, rate| Charge { bucket, key, rate, count };
    let account = keys.budget_hash(account.mxid.as_str());
    let mut charges = vec![charge("addresses_per_account", account, limits.addresses_per_account)];
    match caller {
        Caller::Named => {
            charges.push(charge("addresses_per_homeserver", owner, limits.addresses_per_homeserver));
        }
        Caller::Stranger => {
            let now_ms = app.clock.now_ms();
            let age_ms = now_ms.saturating_sub(app.store.homeserver_since(&owner, now_ms).await?);
            let rate = grown(limits.addresses_per_stranger, age_ms);
            charges.push(charge("addresses_per_stranger", owner, rate));
        }
    }
    charges.push(charge("addresses_per_source", keys.budget_hash(&source.to_string()), limits.addresses_per_source));
    if caller == Caller::Stranger {
        charges.push(charge("addresses_of_strangers", keys.budget_hash(""), limits.addresses_of_strangers));
    }
    charges.push(charge("addresses_total", keys.budget_hash(""), limits.addresses_total));
    Ok(charges)
}

/// The budget of a homeserver of this age.
fn grown(rate: Rate, age_ms: i64) -> Rate {
    let doublings = u32::try_from(age_ms / WEEK_MS).unwrap_or(0).min(MOST_DOUBLINGS);
    let factor = 1 << doublings;
    Rate::new(rate.burst.saturating_mul(factor), rate.refill_secs / f64::from(factor))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{net::IpAddr, sync::Arc, time::Duration};

    use super::*;
    use crate::{domain::mxid::Mxid, jobs::tests::app};

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    fn account(app: &App, mxid: &str) -> Account {
        let mxid = Mxid::parse(mxid).unwrap();
        let homeserver: Arc<str> = mxid.server_name().into();
        let owner = app.owners.of(&homeserver);
        Account { mxid, homeserver, owner, token_hash: [0; 32], terms_accepted: true }
    }

    fn source(number: u32) -> RequestSource {
        IpAddr::from(number.to_be_bytes()).into()
    }

    /// The hashes of the numbers of this range.
    fn hashes(numbers: std::ops::Range<u32>) -> Vec<Option<LookupHash>> {
        let hash = |number: u32| {
            let mut hash = [0; 32];
            // As evenly spread as hashes are: odd factors permute the numbers.
            hash[..4].copy_from_slice(&number.wrapping_mul(0x9e37_79b1).to_be_bytes());
            Some(hash)
        };
        numbers.map(hash).collect()
    }

    /// What ten million numbers cost an enumerator who owns a thousand domains, and has any number of accounts on each
    /// and any number of addresses to come from. The budgets are those of an untouched configuration.
    #[tokio::test]
    async fn ten_million_numbers_take_a_stranger_with_a_thousand_domains_more_than_a_year() {
        let (app, clock, _folder) = app(|_| {}).await;
        let friend = account(&app, "@friend:small.example");
        let book = hashes(0..1000);
        charge(&app, &friend, source(1), &book).await.unwrap();

        let (mut found_out, mut accounts) = (0_u32, 0_u32);
        // In two days the budget of all strangers is full again: he loses nothing by coming no more often.
        for _ in 0..=365 / 2 {
            let mut refused = 0;
            // All budgets but his own are the same for each domain, so a few that are refused show that all are.
            while refused < 3 {
                accounts += 1;
                let mxid = format!("@a{accounts}:evil{}.example", accounts % 1000);
                let numbers = 10_000 + found_out..10_000 + found_out + 5000;
                match charge(&app, &account(&app, &mxid), source(accounts), &hashes(numbers)).await {
                    Ok(new) => found_out += new.map_or(0, |new| new.addresses),
                    Err(ApiError::RateLimited { .. }) => refused += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            // Meanwhile others notice nothing.
            charge(&app, &friend, source(1), &book).await.unwrap();
            clock.advance(2 * DAY);
        }
        assert!(found_out > 8_000_000, "the simulation must use the budget up: {found_out}");
        assert!(found_out < 10_000_000, "{found_out}");
    }

    #[tokio::test]
    async fn somebody_with_four_thousand_contacts_never_notices() {
        let (app, clock, _folder) = app(|_| {}).await;
        let alice = account(&app, "@alice:small.example");
        for day in 0..400_u32 {
            // One contact more every other day, from wherever the phone is, in requests of a thousand addresses.
            let contacts = hashes(0..4000 + day / 2);
            for part in contacts.chunks(1000) {
                charge(&app, &alice, source(day), part).await.unwrap();
            }
            // Another replica, or a restart.
            app.address_books.forget(&alice.mxid);
            clock.advance(DAY);
        }
    }

    #[tokio::test]
    async fn an_address_is_charged_once_and_a_refused_lookup_costs_nothing() {
        let (app, clock, _folder) = app(|config| {
            config.limits.addresses_per_account = Rate::new(100, 3600.0);
            config.limits.addresses_per_source = Rate::new(150, 3600.0);
        })
        .await;
        let (alice, bob) = (account(&app, "@alice:hs.example"), account(&app, "@bob:hs.example"));
        let of = async |account: &Account, numbers| charge(&app, account, source(1), &hashes(numbers)).await;
        let new = async |account: &Account, numbers| {
            of(account, numbers).await.map(|new| new.map_or(0, |new| new.addresses)).map_err(|error| error.to_string())
        };
        assert_eq!(new(&alice, 0..60).await, Ok(60));
        assert_eq!(new(&alice, 0..60).await, Ok(0));
        assert_eq!(new(&alice, 30..90).await, Ok(30));
        // Ten are left to her. The eleven are charged to nobody.
        assert!(new(&alice, 90..101).await.is_err());
        assert_eq!(new(&alice, 90..100).await, Ok(10));
        // Fifty are left to the source, and what Alice has asked for is new for Bob.
        assert!(new(&bob, 0..51).await.is_err());
        assert_eq!(new(&bob, 0..50).await, Ok(50));
        assert_eq!(new(&alice, 0..100).await, Ok(0));
        clock.advance(Duration::from_secs(3600));
        assert_eq!(new(&alice, 200..201).await, Ok(1));
        assert!(new(&alice, 201..202).await.is_err());
    }

    #[tokio::test]
    async fn a_strangers_budget_grows_with_age_and_one_that_is_named_has_the_large_one() {
        let (app, clock, _folder) = app(|config| {
            config.homeservers.trusted = vec!["known.example".to_owned()];
            config.limits.addresses_per_account = Rate::default();
            config.limits.addresses_per_stranger = Rate::new(10, 1.0);
            config.limits.addresses_of_strangers = Rate::new(500, 1.0);
            config.limits.addresses_per_homeserver = Rate::new(600, 1.0);
        })
        .await;
        // How many addresses another account of the homeserver can look up, starting with full budgets.
        let mut numbers = 0;
        let mut most = async |homeserver: &str| {
            let mut count = 0;
            loop {
                numbers += 1;
                let account = account(&app, &format!("@a{numbers}:{homeserver}"));
                if charge(&app, &account, source(1), &hashes(numbers..numbers + 1)).await.is_err() {
                    return count;
                }
                count += 1;
            }
        };
        assert_eq!(most("new.example").await, 10);
        assert_eq!(most("sub.new.example:8448").await, 0, "a sub-domain is no other homeserver");
        for expected in [20, 40, 80, 160, 320, 320] {
            clock.advance(7 * DAY);
            assert_eq!(most("new.example").await, expected);
        }
        assert_eq!(most("known.example").await, 600);
        assert_eq!(most("other.example").await, 10);
        assert_eq!(most("another.example").await, 10);
    }
}
