//! Which of a node's slots a VM gets.
//!
//! Slots of one NUMA node are preferred; the older id wins otherwise.

use std::collections::{BTreeMap, BTreeSet};

use berth_api::ids::SlotId;

use super::Reasons;
use crate::slot::Obstacle;

/// What a VM wants of slots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotWish {
    /// So many of a class.
    Class {
        /// Which class.
        class: String,
        /// How many.
        count: u32,
    },
    /// This one.
    One(SlotId),
}

/// A slot as placement sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotCandidate {
    /// Which slot.
    pub slot_id: SlotId,
    /// Its class.
    pub class: String,
    /// The NUMA node of its devices, if its host told one for all of them.
    pub numa_node: Option<u32>,
    /// Why it cannot be claimed.
    pub obstacle: Option<Obstacle>,
}

/// Why a node's slots do not do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shortage {
    /// Whether it would be the same if all of its slots were free.
    pub is_permanent: bool,
    /// Slots per rejection; `slots.numa_split` counts the node.
    pub reasons: Reasons,
}

/// The slots that fulfil all wishes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    /// Which.
    pub(super) slots: Vec<SlotId>,
    /// Whether they are near each other; a single one always is.
    pub(super) is_numa_local: bool,
}

/// The slots that fulfil all wishes, or why there are none. `is_strict`: all of one NUMA node, or none.
pub(super) fn choose(
    wishes: &[SlotWish],
    slots: &[SlotCandidate],
    is_strict: bool,
) -> Result<Choice, Shortage> {
    let mut free: Vec<&SlotCandidate> = slots
        .iter()
        .filter(|slot| slot.obstacle.is_none())
        .collect();
    free.sort_by_key(|slot| slot.slot_id);
    if let Some(slots) = take_near(wishes, &free) {
        return Ok(Choice {
            slots,
            is_numa_local: true,
        });
    }
    let Some(taken) = take(wishes, free) else {
        return Err(shortage(wishes, slots));
    };
    let is_numa_local = taken.len() <= 1;
    if is_strict && !is_numa_local {
        return Err(Shortage {
            is_permanent: take_near(wishes, &slots.iter().collect::<Vec<_>>()).is_none(),
            reasons: Reasons::from([("slots.numa_split".to_owned(), 1)]),
        });
    }
    Ok(Choice {
        slots: taken,
        is_numa_local,
    })
}

/// Take slots for every wish out of one NUMA node's.
fn take_near(wishes: &[SlotWish], slots: &[&SlotCandidate]) -> Option<Vec<SlotId>> {
    let numa_nodes: BTreeSet<u32> = slots.iter().filter_map(|slot| slot.numa_node).collect();
    numa_nodes.into_iter().find_map(|numa_node| {
        let near = slots
            .iter()
            .copied()
            .filter(|slot| slot.numa_node == Some(numa_node))
            .collect();
        take(wishes, near)
    })
}

/// Take slots for every wish out of `free`, named ones first.
fn take(wishes: &[SlotWish], mut free: Vec<&SlotCandidate>) -> Option<Vec<SlotId>> {
    let mut chosen = Vec::new();
    for wish in wishes {
        if let SlotWish::One(id) = wish {
            let at = free.iter().position(|slot| slot.slot_id == *id)?;
            chosen.push(free.remove(at).slot_id);
        }
    }
    for wish in wishes {
        if let SlotWish::Class { class, count } = wish {
            for _ in 0..*count {
                let at = free.iter().position(|slot| slot.class == *class)?;
                chosen.push(free.remove(at).slot_id);
            }
        }
    }
    Some(chosen)
}

fn shortage(wishes: &[SlotWish], slots: &[SlotCandidate]) -> Shortage {
    let mut reasons = Reasons::new();
    let mut is_permanent = false;
    let mut add = |reason: String| {
        let count = reasons.entry(reason).or_insert(0_u32);
        *count = count.saturating_add(1);
    };
    let mut wanted: BTreeMap<&str, u32> = BTreeMap::new();
    for wish in wishes {
        match wish {
            SlotWish::Class { class, count } => {
                let sum = wanted.entry(class).or_insert(0);
                *sum = sum.saturating_add(*count);
            }
            SlotWish::One(id) => {
                if !slots.iter().any(|slot| slot.slot_id == *id) {
                    is_permanent = true;
                    add("slot_elsewhere".to_owned());
                }
            }
        }
    }
    for (class, count) in wanted {
        let of_class: Vec<_> = slots.iter().filter(|slot| slot.class == class).collect();
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if of_class.len() < count {
            is_permanent = true;
            add(format!("slots.{class}.too_few"));
        }
        for slot in of_class {
            if let Some(obstacle) = slot.obstacle {
                add(format!("slots.{class}.{}", obstacle.code()));
            }
        }
    }
    Shortage {
        is_permanent,
        reasons,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(class: &str, numa_node: Option<u32>, obstacle: Option<Obstacle>) -> SlotCandidate {
        SlotCandidate {
            slot_id: SlotId::generate(),
            class: class.to_owned(),
            numa_node,
            obstacle,
        }
    }

    fn some(class: &str, count: u32) -> SlotWish {
        SlotWish::Class {
            class: class.to_owned(),
            count,
        }
    }

    #[test]
    fn slots_of_one_numa_node_are_taken_together_if_there_are_enough() {
        let slots = [
            slot("nvme", Some(0), None),
            slot("gpu", Some(1), None),
            slot("nvme", Some(1), None),
        ];
        let both = [some("gpu", 1), some("nvme", 1)];
        let near = Choice {
            slots: vec![slots[1].slot_id, slots[2].slot_id],
            is_numa_local: true,
        };
        assert_eq!(choose(&both, &slots, false), Ok(near.clone()));
        assert_eq!(choose(&both, &slots, true), Ok(near));
        let apart = choose(&[some("nvme", 2)], &slots, false).unwrap();
        assert!(apart.slots.contains(&slots[0].slot_id) && apart.slots.contains(&slots[2].slot_id));
        assert!(!apart.is_numa_local);
    }

    #[test]
    fn a_strict_bundle_is_of_one_numa_node_or_refused() {
        let split = [
            slot("nvme", Some(0), None),
            slot("nvme", Some(1), None),
            slot("nvme", None, None),
        ];
        let never = choose(&[some("nvme", 2)], &split, true).unwrap_err();
        let reasons = Reasons::from([("slots.numa_split".to_owned(), 1)]);
        assert_eq!((never.is_permanent, never.reasons), (true, reasons.clone()));
        let mut later = split.to_vec();
        later.push(slot("nvme", Some(1), Some(Obstacle::Wiping)));
        let full = choose(&[some("nvme", 2)], &later, true).unwrap_err();
        assert_eq!((full.is_permanent, full.reasons), (false, reasons));
        // One slot is near itself, wherever it is.
        let alone = [slot("nvme", None, None)];
        assert!(
            choose(&[some("nvme", 1)], &alone, true)
                .unwrap()
                .is_numa_local
        );
        assert!(choose(&[], &[], true).unwrap().slots.is_empty());
    }

    #[test]
    fn a_slot_that_is_named_is_not_counted_for_its_class_again() {
        let slots = [slot("nvme", None, None), slot("nvme", None, None)];
        let wishes = [some("nvme", 1), SlotWish::One(slots[0].slot_id)];
        assert_eq!(
            choose(&wishes, &slots, false).unwrap().slots,
            [slots[0].slot_id, slots[1].slot_id]
        );
        let twice = [
            SlotWish::One(slots[0].slot_id),
            SlotWish::One(slots[0].slot_id),
        ];
        choose(&twice, &slots, false).unwrap_err();
    }

    #[test]
    fn every_obstacle_is_counted_under_its_class() {
        let slots = [
            slot("nvme", None, Some(Obstacle::Claimed)),
            slot("nvme", None, Some(Obstacle::Claimed)),
            slot("nvme", None, Some(Obstacle::Wiping)),
            slot("gpu", None, Some(Obstacle::Quarantined)),
        ];
        let short = choose(&[some("nvme", 1)], &slots, false).unwrap_err();
        assert!(!short.is_permanent);
        assert_eq!(
            short.reasons,
            Reasons::from([
                ("slots.nvme.claimed".to_owned(), 2),
                ("slots.nvme.wiping".to_owned(), 1),
            ])
        );
        let never = choose(&[some("nvme", 4)], &slots, false).unwrap_err();
        assert!(never.is_permanent);
        assert_eq!(never.reasons["slots.nvme.too_few"], 1);
    }
}
