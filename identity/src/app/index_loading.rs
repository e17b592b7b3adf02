//! The lookup indexes: filled from the database on several threads, and kept up with the stored peppers.

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use crate::{
    domain::{
        peppered::{Found, Peppered},
        threepid::Threepid,
    },
    error::ApiError,
    storage::{
        StoreError,
        associations::{Seen, StoredAssociations},
    },
};

use super::AppState;

/// How long a lookup waits for an index that is being filled: a million associations take a second or two.
const WAIT: Duration = Duration::from_secs(10);
/// Batches that were read and wait for a thread.
const QUEUE: usize = 4;

impl AppState {
    /// The pepper to hand out, with its index.
    ///
    /// # Errors
    ///
    /// [`ApiError::PepperNotReady`] while the server starts.
    pub(crate) fn current_pepper(&self) -> Result<Arc<Peppered>, ApiError> {
        self.lookups.current(self.clock.now_ms()).ok_or(ApiError::PepperNotReady)
    }

    /// The index for a pepper that a client hashed with; none if that pepper is not in force.
    ///
    /// # Errors
    ///
    /// [`ApiError::PepperNotReady`] if its index takes too long to fill.
    pub(crate) async fn peppered(&self, pepper: &str) -> Result<Option<Arc<Peppered>>, ApiError> {
        let mut filled = self.filled.subscribe();
        let search = async {
            loop {
                match self.lookups.find(pepper, self.clock.now_ms()) {
                    Found::Complete(peppered) => return Ok(Some(peppered)),
                    Found::Unknown => return Ok(None),
                    // Another replica was faster, and this client asked it for the pepper.
                    Found::Filling => {}
                }
                if filled.changed().await.is_err() {
                    return Err(ApiError::PepperNotReady);
                }
            }
        };
        tokio::time::timeout(WAIT, search).await.unwrap_or(Err(ApiError::PepperNotReady))
    }

    /// Fills the indexes of all peppers in force, on all processors.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; one address that does not open ends it, because a lookup must not miss anybody silently.
    pub(crate) async fn load_index(self: &Arc<Self>) -> Result<Seen, StoreError> {
        let _alone = self.filling.lock().await;
        let new = self.lookups.keep(self.store.peppers().await?, self.clock.now_ms());
        self.fill(&new, processors()).await
    }

    /// Takes up stored peppers that are new, and forgets those whose time is over.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub(crate) async fn refresh_peppers(self: &Arc<Self>) -> Result<(), StoreError> {
        let _alone = self.filling.lock().await;
        let new = self.lookups.keep(self.store.peppers().await?, self.clock.now_ms());
        if !new.is_empty() {
            // Requests go on meanwhile and want the other processors.
            self.fill(&new, processors().div_ceil(4)).await?;
            tracing::info!(associations = self.lookups.len(), "a new pepper is ready");
        }
        Ok(())
    }

    /// Fills all indexes anew while the old ones answer, and says up to where changes are contained.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the old ones go on answering.
    pub(crate) async fn reload_index(self: &Arc<Self>) -> Result<Seen, StoreError> {
        let _alone = self.filling.lock().await;
        let new = self.lookups.renew();
        let seen = self.fill(&new, processors().div_ceil(4)).await?;
        self.lookups.replace(new);
        self.filled.send_replace(());
        Ok(seen)
    }

    /// Brings the indexes up to date with whose an address is in the database.
    ///
    /// # Errors
    ///
    /// [`StoreError::Database`].
    pub(crate) async fn refresh_address(&self, threepid: &Threepid) -> Result<(), StoreError> {
        let _order = self.binding(&self.keys.fingerprint(threepid)).await;
        let association = self.store.association(&self.keys, threepid).await?;
        self.lookups.set(threepid, association.as_ref().map(|association| association.mxid.as_str()));
        self.count_associations();
        Ok(())
    }

    /// Brings the metric up to date with the index.
    pub(crate) fn count_associations(&self) {
        self.metrics.associations.set(i64::try_from(self.lookups.len()).unwrap_or(i64::MAX));
    }

    /// One task reads rows; up to `threads` others open addresses, hash them and put them into the indexes.
    async fn fill(self: &Arc<Self>, new: &[Arc<Peppered>], threads: usize) -> Result<Seen, StoreError> {
        let count = self.store.count_associations().await?;
        for peppered in new {
            peppered.index().reserve(count);
        }
        let (sender, mut batches) = mpsc::channel::<StoredAssociations>(QUEUE);
        let fill = async {
            let mut at_work = JoinSet::new();
            while let Some(batch) = batches.recv().await {
                if at_work.len() >= threads
                    && let Some(done) = at_work.join_next().await
                {
                    joined(done)?;
                }
                let (app, new) = (self.clone(), new.to_vec());
                at_work.spawn_blocking(move || app.fill_in(&new, batch));
            }
            while let Some(done) = at_work.join_next().await {
                joined(done)?;
            }
            Ok::<_, StoreError>(())
        };
        let (seen, ()) = tokio::try_join!(self.store.all_associations(sender), fill)?;
        for peppered in new {
            peppered.complete();
        }
        self.filled.send_replace(());
        self.count_associations();
        Ok(seen)
    }

    fn fill_in(&self, new: &[Arc<Peppered>], batch: StoredAssociations) -> Result<(), StoreError> {
        let opened = batch.open(&self.keys)?;
        for peppered in new {
            peppered.fill(opened.iter().filter_map(|change| Some((&change.threepid, change.mxid.as_deref()?))));
        }
        Ok(())
    }
}

/// A panic on a thread goes on here; nobody cancels these tasks.
fn joined(done: Result<Result<(), StoreError>, JoinError>) -> Result<(), StoreError> {
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
