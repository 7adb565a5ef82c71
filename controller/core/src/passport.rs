//! Which entries of the ledger show that a slot was clean when a VM got it.
//!
//! Owns the choice alone; `berth_ledger::passport` checks what comes of it. The newest wipe that
//! everything since is accounted for is the best: claims in between must have ended before their host
//! heard of them.

/// What an entry says of a slot, without saying who had it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkKind {
    /// The host approved it.
    Approved,
    /// It was wiped.
    Wiped,
    /// A claim ended of which the host never heard.
    Unheard,
}

/// An entry on a slot's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark {
    /// What it says.
    pub kind: MarkKind,
    /// Its place in the log.
    pub index: u64,
    /// Of an unheard claim its own; else that of the last claim that the host had heard of, 0 if none.
    pub fencing_epoch: u64,
}

/// The way of a slot to a claim.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Passage {
    /// What made the slot fit to be claimed: a wipe or an approval.
    pub before: Mark,
    /// The places of claims in between that had no effect, oldest first.
    pub unused: Vec<u64>,
}

/// The way to a claim of this epoch over marks that are all older than the claim, newest first; `None`
/// if a claim in between is not accounted for.
#[must_use]
pub fn passage_to(fencing_epoch: u64, marks: &[Mark]) -> Option<Passage> {
    marks
        .iter()
        .enumerate()
        .find_map(|(newer, before)| passage_from(*before, marks.get(..newer)?, fencing_epoch))
}

fn passage_from(before: Mark, newer: &[Mark], fencing_epoch: u64) -> Option<Passage> {
    match before.kind {
        MarkKind::Wiped => {}
        MarkKind::Approved if before.fencing_epoch == 0 => {}
        MarkKind::Approved | MarkKind::Unheard => return None,
    }
    let mut next = before.fencing_epoch.checked_add(1)?;
    let mut unused = Vec::new();
    for mark in newer.iter().rev() {
        if mark.kind == MarkKind::Unheard {
            if mark.fencing_epoch != next {
                return None;
            }
            next = next.checked_add(1)?;
            unused.push(mark.index);
        }
    }
    (next == fencing_epoch).then_some(Passage { before, unused })
}

#[cfg(test)]
mod tests {
    use super::MarkKind::{Approved, Unheard, Wiped};
    use super::*;

    /// Marks oldest first, each at its place.
    fn way(fencing_epoch: u64, marks: &[(MarkKind, u64)]) -> Option<(u64, Vec<u64>)> {
        let mut newest_first: Vec<Mark> = (0..)
            .zip(marks)
            .map(|(index, (kind, fencing_epoch))| Mark {
                kind: *kind,
                index,
                fencing_epoch: *fencing_epoch,
            })
            .collect();
        newest_first.reverse();
        let found = passage_to(fencing_epoch, &newest_first);
        found.map(|passage| (passage.before.index, passage.unused))
    }

    #[test]
    fn the_newest_wipe_that_leads_to_the_claim_is_taken() {
        assert_eq!(way(1, &[(Approved, 0)]), Some((0, vec![])));
        assert_eq!(way(2, &[(Approved, 0), (Wiped, 1)]), Some((1, vec![])));
        let twice = [(Wiped, 1), (Wiped, 1)];
        assert_eq!(way(2, &twice), Some((1, vec![])));
        let unheard = [(Wiped, 1), (Unheard, 2), (Unheard, 3)];
        assert_eq!(way(4, &unheard), Some((0, vec![1, 2])));
        // A wipe that was ordered after a claim that had no effect still is of the epoch before it.
        let ordered = [(Wiped, 1), (Unheard, 2), (Wiped, 1)];
        assert_eq!(way(3, &ordered), Some((0, vec![1])));
        // Nobody had it, and it was wiped all the same.
        assert_eq!(way(1, &[(Approved, 0), (Wiped, 0)]), Some((1, vec![])));
    }

    #[test]
    fn a_claim_that_is_not_accounted_for_leads_nowhere() {
        assert_eq!(way(1, &[]), None);
        assert_eq!(way(2, &[(Approved, 0)]), None);
        assert_eq!(way(2, &[(Approved, 1)]), None);
        assert_eq!(way(4, &[(Wiped, 1), (Unheard, 3)]), None);
        assert_eq!(way(2, &[(Unheard, 1)]), None);
        assert_eq!(way(1, &[(Wiped, 1)]), None);
        assert_eq!(way(u64::MAX, &[(Wiped, u64::MAX)]), None);
    }
}
