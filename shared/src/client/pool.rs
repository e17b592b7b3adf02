//! The connection pool of a client: a few connections to each of the most recently used origins.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use http::{
    Uri,
    uri::{Authority, Scheme},
};
use hyper_rustls::HttpsConnector;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::time::{Instant, interval};

use super::{
    connector::Connector,
    load::{Loads, OriginLoad},
    origin::{Origin, PoolLimits},
};
use crate::owner::Owners;

/// Interval between sweeps for idle connections.
const SWEPT_EVERY: Duration = Duration::from_secs(15);

/// Fairness limits, for pools whose origins strangers choose.
pub(super) struct Shares {
    /// One owner may hold a quarter of all origins.
    pub(super) owners: Owners,
    /// In-flight requests by address, if limited.
    pub(super) loads: Option<Arc<Loads>>,
}

/// The connections of one client.
pub(super) struct Pool {
    connector: Connector,
    tls: Arc<ClientConfig>,
    shares: Option<Shares>,
    limits: PoolLimits,
    origins: Mutex<HashMap<(Scheme, Authority), Arc<Origin>>>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Pool {
    /// `tls` specifies the protocols to offer.
    pub(super) fn new(connector: Connector, tls: ClientConfig, shares: Option<Shares>, limits: PoolLimits) -> Self {
        Self { connector, tls: Arc::new(tls), shares, limits, origins: Mutex::default() }
    }

    /// The origin of `uri`; `None` if it is not absolute.
    pub(super) fn origin(self: &Arc<Self>, uri: &Uri) -> Option<Arc<Origin>> {
        let key = (uri.scheme()?.clone(), uri.authority()?.clone());
        let mut origins = self.origins.lock();
        if let Some(origin) = origins.get(&key) {
            return Some(origin.clone());
        }
        // Copied, because the request's own authority shares its memory with the path, which may be secret.
        let authority = Authority::try_from(key.1.as_str()).ok()?;
        let uri = Uri::builder().scheme(key.0.clone()).authority(authority.clone()).path_and_query("/").build().ok()?;
        if origins.is_empty() {
            self.sweep_from_now_on();
        }
        let owner = self.shares.as_ref().map(|shares| shares.owners.of(authority.as_str()));
        let of_same = origins.values().filter(|origin| owner.is_some() && origin.owner == owner).count();
        // Inventing origins evicts only the inventor's own.
        let has_share = of_same >= (self.limits.origins / 4).max(1);
        if has_share || origins.len() >= self.limits.origins {
            let may_go = origins.iter().filter(|(_, origin)| !has_share || origin.owner == owner);
            let oldest = may_go.min_by_key(|(_, origin)| origin.last_used()).map(|(key, _)| key.clone());
            if let Some(oldest) = oldest {
                // Requests in flight there keep their connection until they have finished.
                origins.remove(&oldest);
            }
        }
        let loads = self.shares.as_ref().and_then(|shares| shares.loads.clone());
        let load = loads.map(|loads| Arc::new(OriginLoad::new(loads)));
        let connector = Connector { load: load.clone(), ..self.connector.clone() };
        let connector = HttpsConnector::from((connector, self.tls.clone()));
        let origin = Arc::new(Origin::new(uri, connector, self.limits, owner, load));
        origins.insert((key.0, authority), origin.clone());
        Some(origin)
    }

    /// Sweeps idle connections until none are left.
    fn sweep_from_now_on(self: &Arc<Self>) {
        let pool = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut ticks = interval(SWEPT_EVERY);
            loop {
                ticks.tick().await;
                let Some(pool) = pool.upgrade() else { return };
                let now = Instant::now();
                let mut origins = pool.origins.lock();
                origins.retain(|_, origin| origin.sweep(now));
                if origins.is_empty() {
                    return;
                }
            }
        });
    }

    /// Whether connections to the origin of `uri` are kept.
    #[cfg(test)]
    pub(super) fn keeps(&self, uri: &Uri) -> bool {
        let (Some(scheme), Some(authority)) = (uri.scheme(), uri.authority()) else { return false };
        self.origins.lock().contains_key(&(scheme.clone(), authority.clone()))
    }

    /// The number of origins to which connections are kept.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.origins.lock().len()
    }
}
