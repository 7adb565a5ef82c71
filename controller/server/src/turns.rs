//! Requests under one `Idempotency-Key`, one after the other.
//!
//! The transaction alone decides what is a repeat. This only keeps repeats from piling up behind a
//! change that is slow: one waits a moment, and is then told to come again. Another controller on the
//! same database knows nothing of it; there a repeat waits for the lock of the transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_controller_store::IdempotencyKey;
use tokio::sync::OwnedMutexGuard;

/// How long a repeat waits for the request before it.
const PATIENCE: Duration = Duration::from_secs(2);

/// Scope, route and key.
type Id = (String, String, String);
type OfOneKey = Arc<tokio::sync::Mutex<()>>;

/// Who is under way; as many as there are requests that wait for the database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Turns(Arc<Mutex<HashMap<Id, OfOneKey>>>);

/// One request's turn under its key; over when dropped.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Turns,
    id: Id,
    held: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    /// The turn of a request under this key; `None` if the one before it takes too long.
    pub(crate) async fn take(&self, key: &IdempotencyKey) -> Option<Turn> {
        let id = (key.scope.clone(), key.route.clone(), key.key.clone());
        // Whether or not it ever holds anything, its end clears up.
        let mut turn = Turn {
            turns: self.clone(),
            id: id.clone(),
            held: None,
        };
        let of_key = Arc::clone(self.lock().entry(id).or_default());
        turn.held = tokio::time::timeout(PATIENCE, of_key.lock_owned())
            .await
            .ok();
        turn.held.is_some().then_some(turn)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, OfOneKey>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.turns.lock();
        drop(self.held.take());
        // One reference is the table's own: nobody else waits.
        if all
            .get(&self.id)
            .is_some_and(|of_key| Arc::strong_count(of_key) == 1)
        {
            all.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> IdempotencyKey {
        IdempotencyKey {
            scope: "acme".to_owned(),
            route: "POST /v1/vms".to_owned(),
            key: text.to_owned(),
            digest: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeat_gets_its_turn_when_the_first_is_done_or_is_told_to_come_again() {
        let turns = Turns::default();
        let first = turns.take(&key("k-1")).await.unwrap();
        let other = turns.take(&key("k-2")).await;
        assert!(other.is_some(), "another key waits for nobody");
        // The clock stands still but for those who wait for it.
        assert!(turns.take(&key("k-1")).await.is_none());
        let repeat = tokio::spawn({
            let turns = turns.clone();
            async move { turns.take(&key("k-1")).await.is_some() }
        });
        tokio::task::yield_now().await;
        drop(first);
        assert!(repeat.await.unwrap());
        drop(other);
        assert!(turns.lock().is_empty(), "nothing is kept");
    }
}
