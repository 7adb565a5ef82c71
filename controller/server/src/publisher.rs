//! Publication of the log's tiles, bundles and checkpoints in an object store, for readers who never
//! come to the controller.
//!
//! It follows what the ledger's desk shows, some seconds behind, and stands in nobody's way: a store
//! that does not answer makes the public copy old and nothing else. Each epoch has a folder of its own,
//! `e1`, `e2`. What is new goes first, the checkpoint last, so a reader of the checkpoint finds all of it;
//! whoever dies in between begins again at the checkpoint that is there.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_controller_store::{Db, LogHead, Store, StoreError};
use berth_ledger::checkpoint::{OpenCheckpointError, SignedCheckpoint};
use berth_ledger::note::{KeyError, KeyName};
use berth_ledger::tile::Resource;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _};

use crate::ledger_desk::Shown;

/// Objects that are read from the database and written at once.
const AT_ONCE: usize = 64;
/// After a failure the store is left alone for so long, at least.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(10);

/// Where the log is published, and how far it is.
#[derive(Debug)]
pub(crate) struct Publisher {
    objects: Arc<dyn ObjectStore>,
    every: Duration,
    progress: Mutex<Progress>,
}

/// How far the public copy is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Size of the newest published checkpoint, once it is known.
    pub(crate) size: Option<u64>,
    /// Whether the last attempt failed.
    pub(crate) is_failing: bool,
}

/// Why nothing was published.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PublishError {
    /// The object store did not do what it was asked.
    #[error("could not {action} {object} of the published log")]
    Objects {
        /// What was tried.
        action: &'static str,
        /// With which object.
        object: Path,
        /// Why not.
        #[source]
        cause: object_store::Error,
    },
    /// The database could not be read.
    #[error("could not read the log")]
    Store(#[from] StoreError),
    /// The database does not have what its log needs.
    #[error("the log has no {resource}")]
    Missing {
        /// What is missing.
        resource: Resource,
    },
    /// What is published is not by this controller.
    #[error("the published checkpoint {object} is not one of this log by its key")]
    Foreign {
        /// Which.
        object: Path,
        /// Why not.
        #[source]
        cause: OpenCheckpointError,
    },
    /// What is published is newer than the database.
    #[error(
        "{published} entries are published and the database has {found}: it went back in time. Restore the newer database, or begin a new log with `berth-controller new-epoch --reason …`"
    )]
    RolledBack {
        /// Entries that are published.
        published: u64,
        /// Entries that there are.
        found: u64,
    },
    /// What is published is of another history.
    #[error(
        "the published log is not the one that the database has: at {size} entries its root is another. Restore the database that belongs to it, or begin a new log with `berth-controller new-epoch --reason …`"
    )]
    Forked {
        /// The size of the published checkpoint.
        size: u64,
    },
    /// The log's name is not one.
    #[error("the log's name cannot be that of a key")]
    Name(#[source] KeyError),
    /// A thread died.
    #[error("reading the log was given up")]
    GivenUp,
}

impl PublishError {
    /// Whether the database must not be served: others were shown what it does not have.
    pub(crate) fn is_rollback(&self) -> bool {
        matches!(self, Self::RolledBack { .. } | Self::Forked { .. })
    }
}

impl Publisher {
    pub(crate) fn new(objects: Arc<dyn ObjectStore>, every: Duration) -> Self {
        Self {
            objects,
            every,
            progress: Mutex::default(),
        }
    }

    /// How far the public copy is.
    pub(crate) fn progress(&self) -> Progress {
        *self.lock()
    }

    /// Compare what is published with the database: it is an anchor that others keep for us.
    pub(crate) async fn check(&self, store: &Arc<Store>) -> Result<(), PublishError> {
        let head = read(store, |db| db.log_head()).await?;
        let size = self.published(store, &Shown::from(head)).await?;
        self.lock().size = Some(size);
        Ok(())
    }

    /// Follow what is shown until the future is dropped.
    pub(crate) async fn run(&self, store: &Arc<Store>, shown: impl Fn() -> Shown) {
        loop {
            let newest = shown();
            let pause = match self.publish(store, &newest).await {
                Ok(()) => self.every,
                Err(error) => {
                    self.lock().is_failing = true;
                    let cause = anyhow::Error::new(error);
                    tracing::error!("the log was not published: {cause:#}");
                    self.every.max(PAUSE_AFTER_FAILURE)
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Publish what a checkpoint covers, then the checkpoint. Repeatable.
    pub(crate) async fn publish(
        &self,
        store: &Arc<Store>,
        newest: &Shown,
    ) -> Result<(), PublishError> {
        let known = self.progress();
        if known.size == Some(newest.size) && newest.size > 0 && !known.is_failing {
            return Ok(());
        }
        let published = self.published(store, newest).await?;
        let folder = folder_of(newest);
        if published < newest.size || newest.size == 0 {
            let mut resources = Resource::since(published, newest.size).peekable();
            while resources.peek().is_some() {
                let some: Vec<_> = resources.by_ref().take(AT_ONCE).collect();
                self.publish_some(store, &folder, some, newest.size).await?;
            }
            let place = folder.clone().join("checkpoint");
            self.put(&place, newest.note.clone().into_bytes()).await?;
        }
        *self.lock() = Progress {
            size: Some(newest.size.max(published)),
            is_failing: false,
        };
        Ok(())
    }

    async fn publish_some(
        &self,
        store: &Arc<Store>,
        folder: &Path,
        resources: Vec<Resource>,
        size: u64,
    ) -> Result<(), PublishError> {
        let contents = read(store, move |db| {
            let content = |resource: Resource| Ok((resource, db.published(&resource, size)?));
            resources
                .into_iter()
                .map(content)
                .collect::<Result<Vec<_>, StoreError>>()
        })
        .await?;
        for (resource, content) in contents {
            let content = content.ok_or(PublishError::Missing { resource })?;
            let place = place_of(folder, &resource);
            self.put(&place, content).await?;
            if resource.is_full() {
                self.remove_partial(&place).await?;
            }
        }
        Ok(())
    }

    /// The partial forms of what is full now serve nobody any more.
    async fn remove_partial(&self, full: &Path) -> Result<(), PublishError> {
        let folder = Path::from(format!("{full}.p"));
        let failed = |action, object: &Path| {
            let object = object.clone();
            move |cause| PublishError::Objects {
                action,
                object,
                cause,
            }
        };
        let mut listed = self.objects.list(Some(&folder));
        let mut next = async || poll_fn(|cx| listed.as_mut().poll_next(cx)).await;
        while let Some(object) = next().await {
            let object = object.map_err(failed("list", &folder))?.location;
            self.objects
                .delete(&object)
                .await
                .map_err(failed("remove", &object))?;
        }
        Ok(())
    }

    async fn put(&self, place: &Path, content: Vec<u8>) -> Result<(), PublishError> {
        let put = self.objects.put(place, content.into()).await;
        put.map(drop).map_err(|cause| PublishError::Objects {
            action: "write",
            object: place.clone(),
            cause,
        })
    }

    /// Size of the published checkpoint, 0 if there is none: one by our key, over a tree that ours has
    /// grown out of.
    async fn published(&self, store: &Arc<Store>, newest: &Shown) -> Result<u64, PublishError> {
        let object = folder_of(newest).join("checkpoint");
        let failed = |object: &Path| {
            let object = object.clone();
            move |cause| PublishError::Objects {
                action: "read",
                object,
                cause,
            }
        };
        let bytes = match self.objects.get(&object).await {
            Ok(found) => found.bytes().await.map_err(failed(&object))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(0),
            Err(cause) => return Err(failed(&object)(cause)),
        };
        let origin = KeyName::new(&newest.origin).map_err(PublishError::Name)?;
        let keys = store.ledger_keys().iter();
        let vkeys: Vec<_> = keys
            .map(|key| LogHead::vkey_of(origin.clone(), key))
            .collect();
        let signed = SignedCheckpoint::open(&bytes, &vkeys)
            .map_err(|cause| PublishError::Foreign { object, cause })?;
        let said = signed.checkpoint().clone();
        if said.size > newest.size {
            // Another controller on the same database may have published what it has shown.
            let found = read(store, |db| db.log_head()).await?.size;
            if said.size > found {
                let published = said.size;
                return Err(PublishError::RolledBack { published, found });
            }
        }
        let (size, root) = (said.size, said.root);
        if read(store, move |db| db.root_at(size)).await? != root {
            return Err(PublishError::Forked { size });
        }
        Ok(size)
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each epoch is a log of its own.
fn folder_of(shown: &Shown) -> Path {
    let epoch = shown.origin.rsplit('/').next();
    Path::from(epoch.unwrap_or_default())
}

fn place_of(folder: &Path, resource: &Resource) -> Path {
    Path::from(format!("{folder}/{resource}"))
}

/// Read from the database, off the async threads.
async fn read<T: Send + 'static>(
    store: &Arc<Store>,
    read: impl FnOnce(&Db<'_>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, PublishError> {
    let store = Arc::clone(store);
    let outcome = tokio::task::spawn_blocking(move || store.read(read)).await;
    Ok(outcome.map_err(|_| PublishError::GivenUp)??)
}

#[cfg(test)]
mod tests;
