//! Which writing transactions of the database this program knows of, and whether others made some.
//!
//! Transactions are numbered without gaps. A number that does not follow the last known one means that
//! somebody else wrote. It may say so once too often, never too seldom.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct SeenChanges(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    last: u64,
    others_wrote: bool,
}

impl SeenChanges {
    /// All up to this one are known.
    pub(crate) fn up_to(last: u64) -> Self {
        Self(Mutex::new(Seen {
            last,
            others_wrote: false,
        }))
    }

    /// This program has committed the transaction of this number.
    pub(crate) fn own(&self, number: u64) {
        let mut seen = self.lock();
        seen.others_wrote |= number > seen.last.saturating_add(1);
        seen.last = seen.last.max(number);
    }

    /// The database is at this number: whether others wrote since this was last asked.
    pub(crate) fn have_others_written(&self, number: u64) -> bool {
        let mut seen = self.lock();
        let others_wrote = seen.others_wrote || number > seen.last;
        seen.others_wrote = false;
        seen.last = seen.last.max(number);
        others_wrote
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_changes_alone_are_no_news() {
        let seen = SeenChanges::up_to(7);
        assert!(!seen.have_others_written(7));
        seen.own(8);
        seen.own(9);
        assert!(!seen.have_others_written(9));
    }

    #[test]
    fn others_changes_are_seen_once_whether_before_after_or_between_own_ones() {
        let seen = SeenChanges::up_to(0);
        assert!(seen.have_others_written(1), "nothing of its own");
        assert!(!seen.have_others_written(1), "once");
        seen.own(3);
        assert!(seen.have_others_written(3), "2 was another's");
        seen.own(4);
        assert!(seen.have_others_written(5), "5 is another's");
        assert!(!seen.have_others_written(5));
    }
}
