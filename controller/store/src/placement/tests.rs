//! The few that are asked first never hide the node that all together would have chosen.

use berth_controller_core::placement::{Apart, Wishes};
use proptest::prelude::*;

use super::*;
use crate::fixture;
use crate::ledger::Cause;
use crate::store::Store;

/// A node as it is put into the database.
#[derive(Clone, Debug)]
struct Given {
    memory: u32,
    used: u32,
    vcpus: u32,
    silent_s: i64,
    has_image: bool,
    is_reserved: bool,
    is_cordoned: bool,
    owner: Option<&'static str>,
    zone: Option<&'static str>,
    max_vms: Option<u32>,
    /// NUMA nodes of its slots, all of class `nvme`, and whether each is free.
    slots: Vec<(Option<u32>, bool)>,
    /// VMs of acme's group `web` that are there, and whether they are strict.
    group: Vec<bool>,
}

fn node(memory: u32, used: u32, vcpus: u32) -> Given {
    Given {
        memory,
        used,
        vcpus,
        silent_s: 0,
        has_image: true,
        is_reserved: false,
        is_cordoned: false,
        owner: None,
        zone: None,
        max_vms: None,
        slots: Vec::new(),
        group: Vec::new(),
    }
}

fn store(nodes: &[Given]) -> (tempfile::TempDir, Store) {
    let (folder, store) = fixture::store();
    let nodes = nodes.to_vec();
    store
        .write(move |tx| {
            for id in ["acme", "other"] {
                tx.create_tenant(fixture::new_tenant(id, 1), &Cause::controller())?
                    .unwrap();
            }
            for (number, given) in nodes.into_iter().enumerate() {
                insert(tx, number, &given)?;
            }
            Ok(())
        })
        .unwrap();
    (folder, store)
}

fn insert(
    tx: &mut crate::writer::WriteTx<'_>,
    number: usize,
    given: &Given,
) -> Result<(), StoreError> {
    let id = NodeId::generate().to_string();
    let name = format!("node-{number}");
    tx.conn.execute(
        "INSERT INTO node (node_id, name, public_key, machine_id, epoch, boot_id, agent_version,
         enrolled_at, last_sync_at, vcpus, memory_mib, disk_mib, kvm, memory_used_mib, is_reserved,
         cordoned_at, dedicated_to, zone, max_vms, vms)
         VALUES (?1, ?2, ?3, '', 1, '', '', 0, ?4, ?5, ?6, 9000, 1, ?7, ?8, ?9, ?10, ?11, ?12, ?13)",
        (
            &id,
            &name,
            name.as_bytes(),
            tx.now - given.silent_s * 1000,
            given.vcpus,
            given.memory,
            given.used,
            given.is_reserved,
            given.is_cordoned.then_some(1),
            given.owner,
            given.zone,
            given.max_vms,
            given.group.len(),
        ),
    )?;
    if given.has_image {
        tx.conn.execute(
            "INSERT INTO node_image (node_id, name, digest, disk_mib)
             VALUES (?1, 'debian-12', '', 1024)",
            [&id],
        )?;
    }
    for (numa_node, is_free) in &given.slots {
        tx.conn.execute(
            "INSERT INTO slot (slot_id, node_id, name, class, host_state, generation, host_epoch,
             devices, identity, numa_node, is_reported, reported_at, admitted_identity)
             VALUES (?1, ?2, '', 'nvme', ?3, 1, 0, '[]', '', ?4, 1, 0, '')",
            (
                SlotId::generate().to_string(),
                &id,
                if *is_free { "free" } else { "wiping" },
                *numa_node,
            ),
        )?;
    }
    for is_required in &given.group {
        let vm_id = berth_api::ids::VmId::generate().to_string();
        tx.conn.execute(
            "INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
             vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index, node_id, apart_group,
             is_apart_required)
             VALUES (?1, 'acme', ?1, 'running', 0, 'running', 1, 1, 1, 1, '', '{}', 0, 0, ?2, 'web', ?3)",
            (&vm_id, &id, *is_required),
        )?;
    }
    Ok(())
}

fn demand(vcpus: u32, memory_mib: u64) -> Demand {
    Demand {
        tenant: "acme".parse().unwrap(),
        vcpus,
        memory_mib,
        disk_mib: 1024,
        slots: Vec::new(),
        wishes: Wishes::default(),
    }
}

/// The few are asked first; what comes of it is what all would have said.
#[track_caller]
fn check(nodes: &[Given], demand: &Demand) -> Decision {
    let (_folder, store) = store(nodes);
    store
        .read(|db| {
            let decision = db.decide_placement("debian-12", demand)?;
            let of_all = place(demand, &db.candidates("debian-12", demand)?);
            assert_eq!(decision, of_all);
            Ok(decision)
        })
        .unwrap()
}

#[test]
fn the_roomiest_node_that_can_is_chosen_whoever_else_is_there() {
    let mut nodes = vec![
        Given {
            silent_s: 40,
            ..node(8000, 0, 1)
        },
        Given {
            has_image: false,
            ..node(7000, 0, 1)
        },
        node(6000, 1000, 1),
        node(5500, 0, 1),
        node(5500, 0, 1),
    ];
    assert!(matches!(
        check(&nodes, &demand(1, 512)),
        Decision::Chosen(_)
    ));
    // More of those that are full of vCPUs than are looked at first.
    nodes.extend(vec![node(9000, 0, 0); 20]);
    assert!(matches!(
        check(&nodes, &demand(1, 512)),
        Decision::Chosen(_)
    ));
}

#[test]
fn what_no_node_takes_is_refused_with_the_reasons_of_all() {
    let nodes = vec![node(600, 500, 1); 20];
    let Decision::NoCapacity(reasons) = check(&nodes, &demand(1, 512)) else {
        panic!("it is full");
    };
    assert_eq!(reasons["memory_taken"], 20);
    assert!(matches!(
        check(&nodes, &demand(1, 700)),
        Decision::Impossible(_)
    ));
    let mut silent = nodes;
    silent.push(Given {
        silent_s: 3600,
        ..node(900, 0, 1)
    });
    assert!(matches!(check(&silent, &demand(1, 512)), Decision::Wait(_)));
}

#[test]
fn a_tenants_own_node_goes_before_larger_ones_and_a_reserved_one_comes_last() {
    let own = Given {
        owner: Some("acme"),
        ..node(1000, 0, 1)
    };
    let reserved = Given {
        is_reserved: true,
        ..node(90_000, 0, 1)
    };
    let mut nodes = vec![node(8000, 0, 1); 10];
    nodes.extend([own, reserved]);
    let (_folder, store) = store(&nodes);
    let chosen = |memory| {
        store
            .read(|db| {
                let Decision::Chosen(placement) =
                    db.decide_placement("debian-12", &demand(1, memory))?
                else {
                    panic!("there is room");
                };
                Ok(db.node(placement.node_id)?.unwrap().memory_mb)
            })
            .unwrap()
    };
    assert_eq!([512, 2000, 9000].map(chosen), [1000, 8000, 90_000]);
}

fn any_node() -> impl Strategy<Value = Given> {
    let owner = prop::option::weighted(0.4, prop::sample::select(vec!["acme", "other"]));
    let zone = prop::option::of(prop::sample::select(vec!["north", "south"]));
    let size = (1_u32..5, 0_u32..3, 0_u32..2);
    let flags = (
        prop::bool::weighted(0.1),
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
    );
    let max_vms = prop::option::weighted(0.2, 0_u32..3);
    let slot = (prop::option::of(0_u32..2), prop::bool::weighted(0.7));
    let slots = prop::collection::vec(slot, 0..4);
    let group = prop_oneof![
        4 => Just(Vec::new()),
        1 => prop::collection::vec(prop::bool::weighted(0.3), 1..3)
    ];
    (size, flags, owner, zone, max_vms, slots, group).prop_map(
        |((memory, used, vcpus), flags, owner, zone, max_vms, slots, group)| Given {
            memory: memory * 512,
            used: used * 512,
            vcpus,
            silent_s: if flags.0 { 3600 } else { 0 },
            has_image: flags.1,
            is_reserved: flags.2,
            is_cordoned: flags.3,
            owner,
            zone,
            max_vms,
            slots,
            group,
        },
    )
}

fn any_demand() -> impl Strategy<Value = Demand> {
    let zone = prop::option::weighted(0.3, Just("north".to_owned()));
    let apart = prop::option::of(any::<bool>());
    (0_u32..3, zone, apart, prop::bool::weighted(0.3)).prop_map(
        |(slots, zone, apart, is_numa_strict)| Demand {
            slots: (slots > 0)
                .then(|| SlotWish::Class {
                    class: "nvme".to_owned(),
                    count: slots,
                })
                .into_iter()
                .collect(),
            wishes: Wishes {
                node: None,
                zone,
                labels: BTreeMap::new(),
                apart: apart.map(|is_required| Apart {
                    group: "web".to_owned(),
                    is_required,
                }),
                is_numa_strict,
            },
            ..demand(1, 512)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn the_few_that_are_asked_first_never_hide_the_best(
        nodes in prop::collection::vec(any_node(), 0..40),
        demands in prop::collection::vec(any_demand(), 8),
    ) {
        let (_folder, store) = store(&nodes);
        for demand in demands {
            let (few, all) = store
                .read(|db| {
                    let few = db.decide_placement("debian-12", &demand)?;
                    Ok((few, place(&demand, &db.candidates("debian-12", &demand)?)))
                })
                .unwrap();
            prop_assert_eq!(few, all, "{:?}", demand);
        }
    }
}

#[test]
fn the_roomiest_are_found_by_the_index() {
    let (_folder, store) = store(&[]);
    let plan: Vec<String> = store
        .read(|db| {
            let sql = format!("EXPLAIN QUERY PLAN {}", roomiest_sql());
            let mut explain = db.conn.prepare_cached(&sql)?;
            let params = ("", 1, "north", "debian-12", "web", "acme", "nvme");
            let lines = explain.query_map(params, |row| row.get(3))?;
            Ok(lines.collect::<Result<_, _>>()?)
        })
        .unwrap();
    assert!(
        plan.iter().any(|step| step.contains("node_open_by_room")),
        "{plan:?}"
    );
    assert!(
        plan.iter().any(|step| step.contains("slot_free")),
        "{plan:?}"
    );
    assert!(
        !plan.iter().any(|step| step.contains("TEMP B-TREE")),
        "{plan:?}"
    );
}
