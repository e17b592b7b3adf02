//! The lookup indexes: filled from the database on several threads, and kept in step with the stored peppers.

use std::{num::NonZeroUsize, sync::Arc, thread, time::Duration};

use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet},
};

use crate::{
    domain::{
        lookups::{Found, PepperIndex},
        sealing::StorageKeys,
        threepid::Threepid,
    },
    error::ApiError,
    storage::{
        StoreError,
        associations::{ChangeCursor, StoredAssociations},
    },
};

use super::App;

/// How long a lookup waits for an index that is being filled: a million associations take a second or two.
const WAIT: Duration = Duration::from_secs(10);
/// Batches that have been read and wait for a thread.
const QUEUE: usize = 4;

impl App {
    /// The current pepper, with its index.
    ///
    /// # Errors
    ///
    /// [`ApiError::PepperNotReady`] while the server starts.
    pub(crate) fn current_pepper(&self) -> Result<Arc<PepperIndex>, ApiError> {
        self.lookups.current(self.clock.now_ms()).ok_or(ApiError::PepperNotReady)
    }

    /// The index for a pepper that a client hashed with; `None` if that pepper is not valid.
    ///
    /// # Errors
    ///
    /// [`ApiError::PepperNotReady`] if its index takes too long to fill.
    pub(crate) async fn pepper_index(&self, pepper: &str) -> Result<Option<Arc<PepperIndex>>, ApiError> {
        let mut filled = self.filling.done.subscribe();
        let search = async {
            loop {
                match self.lookups.find(pepper, self.clock.now_ms()) {
                    Found::Complete(pepper_index) => return Ok(Some(pepper_index)),
                    Found::Unknown => return Ok(None),
                    // The client got this pepper from a replica that was ready earlier.
                    Found::Filling => {}
                }
                if filled.changed().await.is_err() {
                    return Err(ApiError::PepperNotReady);
                }
            }
        };
        tokio::time::timeout(WAIT, search).await.unwrap_or(Err(ApiError::PepperNotReady))
    }

    /// Fills the indexes of all valid peppers, on all processors.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; a single address that cannot be decrypted is an error, because a lookup must not silently miss
    /// anyone.
    pub(crate) async fn load_index(&self) -> Result<ChangeCursor, StoreError> {
        let _alone = self.filling.turn.lock().await;
        let new = self.lookups.keep(self.store.peppers().await?, self.clock.now_ms());
        self.fill(&new, processors()).await
    }

    /// Adds peppers that have been stored since, and drops expired ones.
    pub(crate) async fn refresh_peppers(&self) -> Result<(), StoreError> {
        let _alone = self.filling.turn.lock().await;
        let new = self.lookups.keep(self.store.peppers().await?, self.clock.now_ms());
        if !new.is_empty() {
            // Leaves the other processors to the requests in flight.
            self.fill(&new, processors().div_ceil(4)).await?;
            tracing::info!(associations = self.lookups.len(), "a new pepper is ready");
        }
        Ok(())
    }

    /// Rebuilds all indexes while the old ones keep answering; returns the cursor up to which they have all changes.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; the old indexes stay in use.
    pub(crate) async fn reload_index(&self) -> Result<ChangeCursor, StoreError> {
        let _alone = self.filling.turn.lock().await;
        let new = self.lookups.renew();
        let cursor = self.fill(&new, processors().div_ceil(4)).await?;
        self.lookups.replace(new);
        self.filling.done.send_replace(());
        Ok(cursor)
    }

    /// Updates the indexes with the current binding of an address in the database.
    pub(crate) async fn refresh_address(&self, threepid: &Threepid) -> Result<(), StoreError> {
        let _order = self.lock_address(&self.keys.fingerprint(threepid)).await;
        let association = self.store.association(&self.keys, threepid).await?;
        self.lookups.set(threepid, association.as_ref().map(|association| &association.mxid));
        self.count_associations();
        Ok(())
    }

    /// Updates the metric from the index.
    pub(crate) fn count_associations(&self) {
        self.metrics.associations.set(i64::try_from(self.lookups.len()).unwrap_or(i64::MAX));
    }

    /// One task reads rows; up to `threads` others decrypt the addresses, hash them and insert them into the indexes.
    async fn fill(&self, new: &[Arc<PepperIndex>], threads: usize) -> Result<ChangeCursor, StoreError> {
        let count = self.store.count_associations().await?;
        for pepper_index in new {
            pepper_index.index().reserve(count);
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
                let (keys, new) = (self.keys.clone(), new.to_vec());
                at_work.spawn_blocking(move || fill_in(&keys, &new, batch));
            }
            while let Some(done) = at_work.join_next().await {
                joined(done)?;
            }
            Ok::<_, StoreError>(())
        };
        let (cursor, ()) = tokio::try_join!(self.store.all_associations(sender), fill)?;
        for pepper_index in new {
            pepper_index.complete();
        }
        self.filling.done.send_replace(());
        self.count_associations();
        Ok(cursor)
    }
}

fn fill_in(keys: &StorageKeys, new: &[Arc<PepperIndex>], batch: StoredAssociations) -> Result<(), StoreError> {
    let opened = batch.open(keys)?;
    for pepper_index in new {
        pepper_index.fill(opened.iter().filter_map(|change| Some((&change.threepid, change.mxid.as_ref()?))));
    }
    Ok(())
}

/// Propagates the panic of a thread; nothing cancels these tasks.
fn joined(done: Result<Result<(), StoreError>, JoinError>) -> Result<(), StoreError> {
    done.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

fn processors() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}
