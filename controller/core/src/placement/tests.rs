//! Every rejection by its name, the order among those that fit, and what holds for any fleet.

use proptest::prelude::*;

use super::*;
use crate::slot::Obstacle;

fn tenant(id: &str) -> TenantId {
    id.parse().unwrap()
}

fn demand() -> Demand {
    Demand {
        tenant: tenant("acme"),
        vcpus: 2,
        memory_mib: 512,
        disk_mib: 1024,
        slots: Vec::new(),
        wishes: Wishes::default(),
    }
}

fn wishing(change: impl FnOnce(&mut Wishes)) -> Demand {
    let mut demand = demand();
    change(&mut demand.wishes);
    demand
}

fn node() -> Candidate {
    Candidate {
        node_id: NodeId::generate(),
        liveness: Liveness::Online,
        capacity: Capacity {
            vcpus: 2,
            memory_mib: 2048,
            disk_mib: 10_000,
            kvm: true,
        },
        has_image: true,
        policy: NodePolicy::default(),
        vms: 0,
        vcpus_used: 0,
        memory_used_mib: 0,
        group: GroupHere::default(),
        slots: Vec::new(),
    }
}

fn slot(numa_node: Option<u32>, obstacle: Option<Obstacle>) -> SlotCandidate {
    SlotCandidate {
        slot_id: SlotId::generate(),
        class: "nvme".to_owned(),
        numa_node,
        obstacle,
    }
}

fn drives(count: u32) -> Vec<SlotWish> {
    vec![SlotWish::Class {
        class: "nvme".to_owned(),
        count,
    }]
}

fn with(change: impl FnOnce(&mut Candidate)) -> Candidate {
    let mut changed = node();
    change(&mut changed);
    changed
}

fn apart(is_required: bool) -> Option<Apart> {
    Some(Apart {
        group: "web".to_owned(),
        is_required,
    })
}

#[track_caller]
fn chosen(demand: &Demand, nodes: &[Candidate]) -> NodeId {
    let decision = place(demand, nodes);
    let Decision::Chosen(placement) = &decision else {
        panic!("{decision:?}");
    };
    placement.node_id
}

#[test]
fn the_emptiest_node_wins_and_the_order_of_the_list_does_not_matter() {
    let full = with(|n| n.memory_used_mib = 1024);
    let (a, b) = (node(), node());
    let first = a.node_id.min(b.node_id);
    for nodes in [[&a, &b, &full], [&b, &full, &a], [&full, &a, &b]] {
        let nodes: Vec<_> = nodes.into_iter().cloned().collect();
        assert_eq!(chosen(&demand(), &nodes), first);
    }
}

#[track_caller]
fn check_demand(demand: &Demand, change: impl FnOnce(&mut Candidate), expected: &str) {
    let said = match place(demand, &[with(change)]) {
        Decision::Chosen(_) => "chosen".to_owned(),
        Decision::Wait(reasons) => format!("wait {reasons:?}"),
        Decision::NoCapacity(reasons) => format!("full {reasons:?}"),
        Decision::Impossible(reasons) => format!("never {reasons:?}"),
    };
    assert_eq!(said, expected);
}

#[track_caller]
fn check(change: impl FnOnce(&mut Candidate), expected: &str) {
    check_demand(&demand(), change, expected);
}

#[test]
fn every_rejection_is_named_and_judged() {
    check(|_| {}, "chosen");
    check(|n| n.capacity.kvm = false, r#"never {"no_kvm": 1}"#);
    check(|n| n.has_image = false, r#"never {"image_unknown": 1}"#);
    check(|n| n.capacity.vcpus = 0, r#"never {"too_few_vcpus": 1}"#);
    check(
        |n| n.capacity.memory_mib = 511,
        r#"never {"too_little_memory": 1}"#,
    );
    check(
        |n| n.liveness = Liveness::Suspect,
        r#"wait {"node_silent": 1}"#,
    );
    check(
        |n| n.liveness = Liveness::Unreachable,
        r#"wait {"node_silent": 1}"#,
    );
    check(|n| n.vcpus_used = 31, r#"full {"vcpus_taken": 1}"#);
    check(|n| n.vcpus_used = 30, "chosen");
    check(|n| n.memory_used_mib = 1537, r#"full {"memory_taken": 1}"#);
    check(|n| n.memory_used_mib = 1536, "chosen");
    check(|n| n.capacity.disk_mib = 1023, r#"full {"disk_full": 1}"#);
}

#[test]
fn what_operators_set_is_a_rejection_of_its_own() {
    check(|n| n.policy.is_cordoned = true, r#"full {"cordoned": 1}"#);
    check(|n| n.policy.is_reserved = true, "chosen");
    check(|n| n.policy.max_vms = Some(0), r#"full {"vms_taken": 1}"#);
    check(
        |n| (n.policy.max_vms, n.vms) = (Some(3), 3),
        r#"full {"vms_taken": 1}"#,
    );
    check(|n| (n.policy.max_vms, n.vms) = (Some(3), 2), "chosen");
    check(|n| n.policy.dedicated_to = Some(tenant("acme")), "chosen");
    // Of another tenant's own node nobody hears.
    check(
        |n| n.policy.dedicated_to = Some(tenant("other")),
        r#"never {"no_nodes": 0}"#,
    );
}

#[test]
fn what_the_tenant_wishes_is_a_rejection_of_its_own() {
    let zone = wishing(|wishes| wishes.zone = Some("north".to_owned()));
    check_demand(&zone, |_| {}, r#"never {"other_zone": 1}"#);
    let north = |n: &mut Candidate| n.policy.zone = Some("north".to_owned());
    check_demand(&zone, north, "chosen");
    let label = ("disk".to_owned(), "fast".to_owned());
    let labels = wishing(|wishes| wishes.labels.extend([label.clone()]));
    check_demand(&labels, |_| {}, r#"never {"label_missing": 1}"#);
    check_demand(&labels, |n| n.policy.labels.extend([label]), "chosen");
    let group = |vms, strict_vms| GroupHere { vms, strict_vms };
    let strict = wishing(|wishes| wishes.apart = apart(true));
    let mild = wishing(|wishes| wishes.apart = apart(false));
    check_demand(&strict, |_| {}, "chosen");
    let refused = r#"full {"anti_affinity": 1}"#;
    check_demand(&strict, |n| n.group = group(1, 0), refused);
    check_demand(&mild, |n| n.group = group(1, 0), "chosen");
    check_demand(&mild, |n| n.group = group(1, 1), refused);
}

#[test]
fn a_named_node_must_be_the_tenants_own_and_a_shared_one_is_like_none() {
    let (shared, own) = (
        node(),
        with(|n| n.policy.dedicated_to = Some(tenant("acme"))),
    );
    let foreign = with(|n| n.policy.dedicated_to = Some(tenant("other")));
    let nodes = [shared.clone(), own.clone(), foreign.clone()];
    let named = |id| wishing(|wishes| wishes.node = Some(id));
    assert_eq!(chosen(&named(own.node_id), &nodes), own.node_id);
    let absent = place(&named(NodeId::generate()), &nodes);
    let reasons = Reasons::from([("other_node".to_owned(), 2)]);
    assert_eq!(absent, Decision::Impossible(reasons));
    for id in [shared.node_id, foreign.node_id] {
        assert_eq!(place(&named(id), &nodes), absent);
    }
}

#[test]
fn among_nodes_that_fit_the_first_difference_decides() {
    // Each is worse than the one before it, though it has more memory.
    let own = with(|n| n.policy.dedicated_to = Some(tenant("acme")));
    let shared = with(|n| n.capacity.memory_mib = 4096);
    let beside = with(|n| {
        n.policy.dedicated_to = Some(tenant("acme"));
        n.group.vms = 1;
        n.capacity.memory_mib = 8192;
    });
    let reserved = with(|n| {
        n.policy.is_reserved = true;
        n.capacity.memory_mib = 16_384;
    });
    let mut left = vec![own, shared, beside, reserved];
    let mild = wishing(|wishes| wishes.apart = apart(false));
    while !left.is_empty() {
        assert_eq!(chosen(&mild, &left), left[0].node_id);
        left.remove(0);
    }
}

#[test]
fn a_node_with_the_slots_on_one_numa_node_goes_before_a_larger_one() {
    let split = with(|n| {
        n.capacity.memory_mib = 4096;
        n.slots = vec![slot(Some(0), None), slot(Some(1), None)];
    });
    let near = with(|n| n.slots = vec![slot(Some(1), None), slot(Some(1), None)]);
    let two = Demand {
        slots: drives(2),
        ..demand()
    };
    assert_eq!(chosen(&two, &[split.clone(), near.clone()]), near.node_id);
    assert_eq!(chosen(&two, std::slice::from_ref(&split)), split.node_id);
    let strict = Demand {
        slots: drives(2),
        ..wishing(|wishes| wishes.is_numa_strict = true)
    };
    let reasons = Reasons::from([("slots.numa_split".to_owned(), 1)]);
    assert_eq!(place(&strict, &[split]), Decision::Impossible(reasons));
}

#[test]
fn without_nodes_it_is_impossible_and_says_so() {
    let reasons = Reasons::from([("no_nodes".to_owned(), 0)]);
    assert_eq!(place(&demand(), &[]), Decision::Impossible(reasons));
}

#[test]
fn reasons_count_the_nodes() {
    let nodes = [
        with(|n| n.has_image = false),
        with(|n| n.has_image = false),
        with(|n| n.vcpus_used = 32),
    ];
    let reasons = Reasons::from([
        ("image_unknown".to_owned(), 2),
        ("vcpus_taken".to_owned(), 1),
    ]);
    assert_eq!(place(&demand(), &nodes), Decision::NoCapacity(reasons));
}

#[test]
fn slots_decide_over_memory_and_no_silent_node_is_waited_for() {
    let wanting = Demand {
        slots: drives(1),
        ..demand()
    };
    let full = with(|n| {
        n.memory_used_mib = 1024;
        n.slots = vec![slot(None, None)];
    });
    let empty = node();
    let Decision::Chosen(placement) = place(&wanting, &[empty.clone(), full.clone()]) else {
        panic!("one node has the slot");
    };
    assert_eq!(placement.node_id, full.node_id);
    assert_eq!(placement.slots, [full.slots[0].slot_id]);
    let too_few = Reasons::from([("slots.nvme.too_few".to_owned(), 1)]);
    assert_eq!(place(&wanting, &[empty]), Decision::Impossible(too_few));
    let silent = with(|n| {
        n.liveness = Liveness::Suspect;
        n.slots = vec![slot(None, None)];
    });
    let reasons = Reasons::from([("node_silent".to_owned(), 1)]);
    assert_eq!(place(&wanting, &[silent]), Decision::NoCapacity(reasons));
}

fn any_policy() -> impl Strategy<Value = NodePolicy> {
    let owner = prop::option::weighted(0.3, prop::sample::select(vec!["acme", "other"]));
    let zone = prop::option::of(prop::sample::select(vec!["north", "south"]));
    let most = prop::option::weighted(0.3, 0_u32..3);
    (prop::bool::weighted(0.2), any::<bool>(), owner, zone, most).prop_map(
        |(is_cordoned, is_reserved, owner, zone, max_vms)| NodePolicy {
            is_cordoned,
            is_reserved,
            dedicated_to: owner.map(tenant),
            zone: zone.map(ToOwned::to_owned),
            labels: BTreeMap::new(),
            max_vms,
        },
    )
}

fn any_slots() -> impl Strategy<Value = Vec<SlotCandidate>> {
    let obstacle = prop::sample::select(vec![None, None, Some(Obstacle::Claimed)]);
    let one = (prop::option::of(0_u32..2), obstacle).prop_map(|(numa, why)| slot(numa, why));
    prop::collection::vec(one, 0..4)
}

fn any_node() -> impl Strategy<Value = Candidate> {
    let alive = prop::sample::select(vec![
        Liveness::Online,
        Liveness::Online,
        Liveness::Online,
        Liveness::Suspect,
    ]);
    let room = (0_u32..4, 0_u32..33, 0_u64..2049, 0_u32..3, 0_u32..2);
    (
        alive,
        prop::bool::weighted(0.9),
        any_policy(),
        room,
        any_slots(),
    )
        .prop_map(
            |(
                liveness,
                has_image,
                policy,
                (vms, vcpus_used, memory_used_mib, all, strict),
                slots,
            )| {
                Candidate {
                    liveness,
                    has_image,
                    policy,
                    vms,
                    vcpus_used,
                    memory_used_mib,
                    group: GroupHere {
                        vms: all,
                        strict_vms: strict.min(all),
                    },
                    slots,
                    ..node()
                }
            },
        )
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let zone = prop::option::weighted(0.3, Just("north".to_owned()));
    let group = prop::option::of(any::<bool>());
    (0_u32..3, zone, group, any::<bool>()).prop_map(|(slots, zone, group, is_numa_strict)| Demand {
        slots: if slots == 0 {
            Vec::new()
        } else {
            drives(slots)
        },
        wishes: Wishes {
            node: None,
            zone,
            labels: BTreeMap::new(),
            apart: group.and_then(apart),
            is_numa_strict,
        },
        ..demand()
    })
}

/// What must hold of a chosen node, said without the words of the code that chose it.
fn keeps_every_rule(demand: &Demand, node: &Candidate, slots: &[SlotId]) -> bool {
    let of_chosen: Vec<_> = node
        .slots
        .iter()
        .filter(|slot| slots.contains(&slot.slot_id))
        .collect();
    let wanted: usize = demand.slots.iter().map(wish_count).sum();
    let is_strict = demand
        .wishes
        .apart
        .as_ref()
        .is_some_and(|apart| apart.is_required);
    node.liveness == Liveness::Online
        && node.has_image
        && !node.policy.is_cordoned
        && node
            .policy
            .dedicated_to
            .as_ref()
            .is_none_or(|owner| *owner == demand.tenant)
        && demand
            .wishes
            .zone
            .as_ref()
            .is_none_or(|zone| node.policy.zone.as_ref() == Some(zone))
        && node.policy.max_vms.is_none_or(|most| node.vms < most)
        && node.memory_used_mib + demand.memory_mib <= node.capacity.memory_mib
        && node.vcpus_used + demand.vcpus <= node.capacity.vcpus * VCPU_OVERCOMMIT
        && !(is_strict && node.group.vms > 0)
        && !(demand.wishes.apart.is_some() && node.group.strict_vms > 0)
        && of_chosen.len() == wanted
        && of_chosen.iter().all(|slot| slot.obstacle.is_none())
        && (!demand.wishes.is_numa_strict
            || wanted <= 1
            || of_chosen
                .iter()
                .all(|slot| slot.numa_node.is_some() && slot.numa_node == of_chosen[0].numa_node))
}

fn wish_count(wish: &SlotWish) -> usize {
    match wish {
        SlotWish::Class { count, .. } => usize::try_from(*count).unwrap(),
        SlotWish::One(_) => 1,
    }
}

proptest! {
    #[test]
    fn the_chosen_node_keeps_every_rule_and_a_reserved_one_is_the_last_resort(
        demand in any_demand(),
        nodes in prop::collection::vec(any_node(), 0..12),
    ) {
        let verdicts = verdicts(&demand, &nodes);
        prop_assert_eq!(verdicts.len(), nodes.len());
        let of = |id: NodeId| nodes.iter().find(|node| node.node_id == id).unwrap();
        let fit: Vec<&Verdict> = verdicts.iter().filter(|v| v.outcome.is_ok()).collect();
        if let Decision::Chosen(placement) = place(&demand, &nodes) {
            let chosen = of(placement.node_id);
            prop_assert!(keeps_every_rule(&demand, chosen, &placement.slots), "{:?}", chosen);
            prop_assert_eq!(verdicts[0].node_id, placement.node_id);
            let slots = verdicts[0].outcome.as_ref().map(|fit| &fit.slots);
            prop_assert_eq!(slots, Ok(&placement.slots));
            if chosen.policy.is_reserved {
                prop_assert!(fit.iter().all(|v| of(v.node_id).policy.is_reserved));
            }
        } else {
            prop_assert!(fit.is_empty());
        }
        // A node that is rejected would break a rule, so that nothing is kept from a tenant.
        for verdict in verdicts.iter().filter(|v| v.outcome.is_err()) {
            let alone = of(verdict.node_id);
            let free: Vec<SlotId> = alone.slots.iter().map(|slot| slot.slot_id).collect();
            let any = subsets(&free).any(|slots| keeps_every_rule(&demand, alone, &slots));
            prop_assert!(!any, "{:?}", verdict);
        }
    }
}

fn subsets(slots: &[SlotId]) -> impl Iterator<Item = Vec<SlotId>> {
    (0..1_u32 << slots.len()).map(|mask| {
        let taken = |(place, _): &(usize, &SlotId)| mask & (1 << place) != 0;
        let chosen = slots.iter().enumerate().filter(taken);
        chosen.map(|(_, slot)| *slot).collect()
    })
}
