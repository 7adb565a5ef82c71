//! What the world is shown of the ledger: committed first, then anchored, then served.
//!
//! Changes are answered as soon as they are committed; this desk follows the head some milliseconds
//! behind, as one fsync of the anchor serves all that were committed meanwhile.

use std::sync::Arc;
use std::time::Duration;

use berth_controller_store::{LogHead, Store};
use berth_ledger::merkle::Hash;
use tokio::sync::{Mutex, Notify, watch};

use crate::anchor::{Anchor, AnchorError};

/// How often the head is looked at when nobody here has moved it: another controller may have.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two anchors.
const ANCHOR_PAUSE: Duration = Duration::from_millis(20);

/// A checkpoint that others may see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) origin: String,
    pub(crate) size: u64,
    pub(crate) root: Hash,
    pub(crate) note: String,
}

impl From<LogHead> for Shown {
    fn from(head: LogHead) -> Self {
        Self {
            origin: head.origin_text(),
            size: head.size,
            root: head.root,
            note: head.note,
        }
    }
}

/// Follows the head.
#[derive(Debug)]
pub(crate) struct LedgerDesk {
    store: Arc<Store>,
    anchor: Anchor,
    shown: watch::Sender<Shown>,
    moved: Notify,
    anchoring: Mutex<()>,
}

impl LedgerDesk {
    /// Compare the database with its anchor, and show what it has.
    pub(crate) fn open(store: Arc<Store>, anchor: Anchor) -> Result<Self, AnchorError> {
        anchor.check(&store)?;
        let head = store.read(|db| db.log_head())?;
        anchor.write(&head.note)?;
        Ok(Self {
            store,
            anchor,
            shown: watch::Sender::new(head.into()),
            moved: Notify::new(),
            anchoring: Mutex::new(()),
        })
    }

    /// The newest checkpoint that others may see.
    pub(crate) fn shown(&self) -> Shown {
        self.shown.borrow().clone()
    }

    /// Something was committed here.
    pub(crate) fn moved(&self) {
        self.moved.notify_one();
    }

    /// The newest checkpoint of at least `size` entries, looked up now if need be: another
    /// controller may have shown it already. Smaller only where the database has no such thing.
    pub(crate) async fn shown_from(&self, size: u64) -> Shown {
        if self.shown.borrow().size < size {
            // If the database is another one, `run` ends the program by it.
            drop(self.follow().await);
        }
        self.shown()
    }

    /// Follow the head until the future is dropped, or the database is another one than was shown:
    /// it may have been restored, or swapped, under the running controller.
    pub(crate) async fn run(&self) -> AnchorError {
        loop {
            // Both ways of waking up lead to the same look.
            drop(tokio::time::timeout(LOOK_EVERY, self.moved.notified()).await);
            if let Err(error) = self.follow().await {
                return error;
            }
            tokio::time::sleep(ANCHOR_PAUSE).await;
        }
    }

    /// Anchor and show the head, if it has moved. What could not be anchored, and what does not
    /// continue what was shown, is not shown; the latter alone is an error.
    async fn follow(&self) -> Result<(), AnchorError> {
        let _one_at_a_time = self.anchoring.lock().await;
        let (store, anchor) = (Arc::clone(&self.store), self.anchor.clone());
        let known = self.shown();
        let work = move || -> Result<Option<Shown>, AnchorError> {
            let head = store.read(|db| db.log_head())?;
            if head.note == known.note {
                return Ok(None);
            }
            anchor.check_continues(&store, &head, &known.origin, known.size, known.root)?;
            let shown = Shown::from(head);
            anchor.write(&shown.note)?;
            Ok(Some(shown))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(None)) => {}
            Ok(Ok(Some(shown))) => {
                self.shown.send_replace(shown);
            }
            Ok(Err(error)) if error.is_another_history() => return Err(error),
            Ok(Err(error)) => {
                let cause = anyhow::Error::new(error);
                tracing::error!("the ledger's newest checkpoint was not anchored: {cause:#}");
            }
            Err(error) => tracing::error!(%error, "anchoring the ledger's checkpoint panicked"),
        }
        Ok(())
    }
}
