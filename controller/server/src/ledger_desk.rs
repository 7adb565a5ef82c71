//! What the world is shown of the ledger: committed first, then anchored, then, where a quorum of
//! witnesses is asked for, cosigned, then served.
//!
//! Changes are answered as soon as they are committed; this desk follows the head some milliseconds
//! behind, as one fsync of the anchor serves all that were committed meanwhile.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_api::rest::WitnessStatus;
use berth_controller_store::{LogHead, Store, StoreError, WriteTx};
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::merkle::Hash;
use berth_ledger::note::{KeyName, Note};
use tokio::sync::{Mutex, Notify, watch};

use crate::anchor::{Anchor, AnchorError};
use crate::witnesses::Witnesses;

/// How often the head is looked at when nobody here has moved it: another controller may have.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Least time between two anchors.
const ANCHOR_PAUSE: Duration = Duration::from_millis(20);
/// Least time between two rounds of the witnesses.
const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// When a round is repeated in which one was missing.
const ROUND_AGAIN: Duration = Duration::from_secs(10);
/// How long a caller waits for a quorum of witnesses.
const QUORUM_PATIENCE: Duration = Duration::from_secs(5);

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
    anchored: watch::Sender<Shown>,
    shown: watch::Sender<Shown>,
    moved: Notify,
    anchoring: Mutex<()>,
    witnesses: Witnesses,
    /// The witnesses that have seen what this log does not have, and what each has seen.
    contradictions: watch::Sender<BTreeMap<String, String>>,
}

impl LedgerDesk {
    /// Compare the database with its anchor, and show what it has; where a quorum of witnesses is waited for,
    /// what was shown last. Without such, the head: it was shown before there was a quorum to wait for.
    pub(crate) fn open(
        store: Arc<Store>,
        anchor: Anchor,
        witnesses: Witnesses,
    ) -> Result<Self, AnchorError> {
        anchor.check(&store)?;
        let head: Shown = store.read(|db| db.log_head())?.into();
        anchor.write(&head.note)?;
        let shown = shown_last(&store, &witnesses, &head)?;
        let contradictions = contradictions(&store, &witnesses, &head.origin)?;
        Ok(Self {
            store,
            anchor,
            anchored: watch::Sender::new(head),
            shown: watch::Sender::new(shown),
            moved: Notify::new(),
            anchoring: Mutex::new(()),
            witnesses,
            contradictions: watch::Sender::new(contradictions),
        })
    }

    /// How the witnesses stand.
    pub(crate) fn witnesses(&self) -> Vec<WitnessStatus> {
        self.witnesses.status()
    }

    /// Whether a witness has seen what this log does not have: nothing is signed any more.
    pub(crate) fn is_contradicted(&self) -> bool {
        !self.contradictions.borrow().is_empty()
    }

    /// Put what is anchored before the witnesses, until the future is dropped.
    pub(crate) async fn ask_witnesses(&self) {
        if self.witnesses.is_empty() {
            return std::future::pending().await;
        }
        let mut anchored = self.anchored.subscribe();
        loop {
            let newest = anchored.borrow_and_update().clone();
            let is_incomplete = self.round(newest).await;
            tokio::time::sleep(ROUND_PAUSE).await;
            if is_incomplete {
                // A checkpoint that is newer, or some time, is reason enough to ask again.
                drop(tokio::time::timeout(ROUND_AGAIN, anchored.changed()).await);
            } else if anchored.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether somebody is to be asked again.
    async fn round(&self, newest: Shown) -> bool {
        let Some(signed) = opened(&self.store, &newest.origin, &newest.note) else {
            tracing::error!("what was anchored is no checkpoint by the ledger's key");
            return true;
        };
        let mut note: Note = signed.note().clone();
        let round = self.witnesses.ask(&self.store, signed).await;
        let origin = &newest.origin;
        self.note_contradictions(origin, round.contradictions, &round.cosigners)
            .await;
        if self.is_contradicted() {
            return true;
        }
        let cosignatures = round.lines.len();
        round.lines.into_iter().for_each(|line| note.add(line));
        if self.witnesses.is_quorum(cosignatures) {
            let note = note.to_string();
            let cosigned = Shown { note, ..newest };
            if !self.keep(&cosigned).await {
                return true;
            }
            self.shown.send_if_modified(|shown| {
                let is_newer = shown.size <= cosigned.size && shown.note != cosigned.note;
                if is_newer {
                    *shown = cosigned;
                }
                is_newer
            });
        }
        round.is_incomplete
    }

    /// Where a quorum is waited for, what it has cosigned is kept before anybody sees it: a restart shows
    /// nothing older and nothing that was not cosigned.
    async fn keep(&self, cosigned: &Shown) -> bool {
        if !self.witnesses.are_waited_for() {
            return true;
        }
        let Shown {
            origin, size, note, ..
        } = cosigned.clone();
        self.write(move |tx| tx.keep_shown(&origin, size, &note))
            .await
    }

    /// What witnesses contradict is kept, until each of those cosigns the log again.
    async fn note_contradictions(
        &self,
        origin: &str,
        found: Vec<(String, String)>,
        cosigners: &[String],
    ) {
        for (witness, reason) in found {
            let known = self.contradictions.borrow().get(&witness).cloned();
            if known.as_ref() == Some(&reason) {
                continue;
            }
            tracing::error!(witness, "nothing is changed any more: {reason}");
            self.contradictions
                .send_modify(|all| drop(all.insert(witness.clone(), reason.clone())));
            let origin = origin.to_owned();
            // It holds without the disk for as long as this process lives.
            self.write(move |tx| tx.keep_contradiction(&origin, &witness, &reason))
                .await;
        }
        for witness in cosigners {
            if !self.contradictions.borrow().contains_key(witness) {
                continue;
            }
            let (origin, key) = (origin.to_owned(), witness.clone());
            if self
                .write(move |tx| tx.end_contradiction(&origin, &key))
                .await
            {
                tracing::warn!(
                    witness,
                    "the witness cosigns the ledger again: changes go on"
                );
                self.contradictions
                    .send_modify(|all| drop(all.remove(witness)));
            }
        }
    }

    /// Whether it is on the disk.
    async fn write(
        &self,
        change: impl FnOnce(&mut WriteTx<'_>) -> Result<(), StoreError> + Send + 'static,
    ) -> bool {
        let store = Arc::clone(&self.store);
        match tokio::task::spawn_blocking(move || store.write(change)).await {
            Ok(Ok(())) => return true,
            Ok(Err(error)) => {
                let cause = anyhow::Error::new(error);
                tracing::error!("what witnesses said was not kept: {cause:#}");
            }
            Err(error) => tracing::error!(%error, "keeping what witnesses said panicked"),
        }
        false
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
            self.wait_for_quorum(size).await;
        }
        self.shown()
    }

    async fn wait_for_quorum(&self, size: u64) {
        if self.witnesses.are_waited_for() && size <= self.anchored.borrow().size {
            let mut shown = self.shown.subscribe();
            let cosigned = shown.wait_for(|shown| shown.size >= size);
            // Without a quorum what was shown before is all that there is to show.
            drop(tokio::time::timeout(QUORUM_PATIENCE, cosigned).await);
        }
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
        let known = self.anchored.borrow().clone();
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
            Ok(Ok(Some(anchored))) => {
                if !self.witnesses.are_waited_for() {
                    self.shown.send_replace(anchored.clone());
                }
                self.anchored.send_replace(anchored);
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

/// A checkpoint by a key of this log.
fn opened(store: &Store, origin: &str, note: &str) -> Option<SignedCheckpoint> {
    let origin = KeyName::new(origin).ok()?;
    let keys = store.ledger_keys().iter();
    let vkeys: Vec<_> = keys
        .map(|key| LogHead::vkey_of(origin.clone(), key))
        .collect();
    SignedCheckpoint::open(note.as_bytes(), &vkeys).ok()
}

/// What to show first. What was shown last and is not of this log, or by a key that is dropped, is no use.
fn shown_last(store: &Store, witnesses: &Witnesses, head: &Shown) -> Result<Shown, StoreError> {
    let kept = store.read(|db| db.shown_note())?;
    if !witnesses.are_waited_for() {
        if kept.is_some() {
            store.write(|tx| tx.forget_shown())?;
        }
        return Ok(head.clone());
    }
    if let Some(note) = kept
        && let Some(signed) = opened(store, &head.origin, &note)
        && signed.checkpoint().size <= head.size
    {
        let (size, root) = (signed.checkpoint().size, signed.checkpoint().root);
        if store.read(|db| db.root_at(size))? == root {
            let origin = head.origin.clone();
            return Ok(Shown {
                origin,
                size,
                root,
                note,
            });
        }
    }
    let Shown {
        origin, size, note, ..
    } = head.clone();
    store.write(move |tx| tx.keep_shown(&origin, size, &note))?;
    Ok(head.clone())
}

/// What was found before this start. A witness that is not asked any more does not count.
fn contradictions(
    store: &Store,
    witnesses: &Witnesses,
    origin: &str,
) -> Result<BTreeMap<String, String>, StoreError> {
    let kept = store.read(|db| db.contradictions(origin))?;
    let counted = kept
        .into_iter()
        .filter(|(witness, _)| witnesses.has(witness));
    let counted: BTreeMap<_, _> = counted.collect();
    for (witness, reason) in &counted {
        tracing::error!(
            witness,
            "nothing is changed, as before this start: {reason}"
        );
    }
    Ok(counted)
}
