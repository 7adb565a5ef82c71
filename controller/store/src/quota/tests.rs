//! Counters against a simple model of them, under any sequence of what can happen to VMs.

use std::collections::BTreeMap;

use berth_api::agent::{Capacity, EnrollRequest, PROTOCOL_VERSION};
use berth_api::ids::{ProjectId, TokenId, VmId};
use berth_api::rest::{CreateVm, VmState};
use berth_controller_core::quota::{Ceilings, QuotaScope, Resource};
use berth_controller_core::shape::validate;
use berth_controller_core::stop::StopOrder;
use berth_controller_core::vm::Event;
use berth_ledger::keys::SigningKey;
use proptest::prelude::*;

use super::NewOverride;
use crate::fixture::{self, new_tenant};
use crate::join_tokens::NewJoinToken;
use crate::ledger::{Cause, EntryFilter};
use crate::revocations::Revoked;
use crate::store::Store;
use crate::tenants::TenantChange;
use crate::tokens::{NewTokenRecord, RecordTokenDenied};
use crate::vm_create::CreateVmDenied;
use crate::vm_events::{ActOnVmDenied, VmWish};
use crate::vms::VmRef;

const IMAGE: &str = "debian-12";
const PROJECTS: [&str; 2] = ["default", "other"];

fn tenant() -> berth_api::ids::TenantId {
    "acme".parse().unwrap()
}

fn scope(project: Option<&str>) -> QuotaScope {
    QuotaScope {
        tenant: tenant(),
        project: project.map(|id| id.parse().unwrap()),
    }
}

/// A store with one large node, the tenant `acme` and its two projects.
fn store(max_vms: u32) -> (tempfile::TempDir, Store) {
    let (folder, store) = fixture::store();
    let node_key = SigningKey::from_seed(&[3; 32]).unwrap().public();
    store
        .write(move |tx| {
            let cause = Cause::controller();
            tx.create_tenant(new_tenant("acme", max_vms), &cause)?.unwrap();
            tx.insert_project(&tenant(), &"other".parse().unwrap(), "Other", 0)?;
            let join = NewJoinToken {
                tenant_id: None,
                secret_hash: vec![7],
                node_name: None,
                expires_at: i64::MAX,
            };
            tx.add_join_token(&join, &cause)?.unwrap();
            let request = EnrollRequest {
                protocol_version: PROTOCOL_VERSION,
                secret: String::new(),
                node_name: "node-1".to_owned(),
                node_public_key: node_key.to_base64(),
                machine_id: "m".to_owned(),
                boot_id: "b".to_owned(),
                agent_version: "0".to_owned(),
                capacity: Capacity {
                    vcpus: 4096,
                    memory_mib: 1 << 30,
                    disk_mib: 1 << 30,
                    kvm: true,
                },
            };
            let node = tx.enroll(&[7], &node_key, &request, &cause)?.unwrap().node_id;
            let node = node.to_string();
            tx.conn.execute("UPDATE node SET last_sync_at = ?1", [tx.now + 3_600_000])?;
            tx.conn.execute(
                "INSERT INTO node_image (node_id, name, digest, disk_mib) VALUES (?1, ?2, '00', 1024)",
                (&node, IMAGE),
            )?;
            Ok(())
        })
        .unwrap();
    (folder, store)
}

fn request(project: &str, vcpus: u32, memory_mb: u64, disk_gb: u32) -> CreateVm {
    serde_json::from_value(serde_json::json!({
        "image": IMAGE, "project_id": project, "vcpus": vcpus, "memory_mb": memory_mb,
        "disk_gb": disk_gb,
    }))
    .unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u32, u64, u32),
    Start(usize),
    Stop(usize),
    Delete(usize),
    Happens(usize, Event),
    Ceiling(Option<usize>, Resource, Option<u64>),
    /// A token of one of two holders; whether it is good for an hour, or was over before it began.
    Issue(usize, bool),
    Revoke(usize),
    RevokeHolder(usize),
    RevokeAll,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let vm = 0_usize..6;
    let events = prop::sample::select(vec![
        Event::Running,
        Event::Running,
        Event::StopDone,
        Event::StopDone,
        Event::GuestShutdown,
        Event::Broke,
        Event::Missing,
        Event::LaunchFailed,
        Event::StopFailed,
        Event::HostRebooted,
        Event::DeleteDone,
        Event::DeleteDone,
    ]);
    let resources = prop::sample::select(vec![
        Resource::Vms,
        Resource::RunningVms,
        Resource::Vcpus,
        Resource::MemoryMb,
        Resource::StorageGb,
        Resource::CreatesPerDay,
        Resource::Tokens,
    ]);
    let step = prop_oneof![
        4 => (0_usize..2, prop::bool::weighted(0.8)).prop_map(|(h, good)| Step::Issue(h, good)),
        1 => (0_usize..6).prop_map(Step::Revoke),
        1 => (0_usize..2).prop_map(Step::RevokeHolder),
        1 => Just(Step::RevokeAll),
        4 => (0_usize..2, 1_u32..4, 128_u64..512, 1_u32..4)
            .prop_map(|(p, v, m, d)| Step::Create(p, v, m, d)),
        2 => vm.clone().prop_map(Step::Start),
        1 => vm.clone().prop_map(Step::Stop),
        1 => vm.clone().prop_map(Step::Delete),
        5 => (vm, events).prop_map(|(n, event)| Step::Happens(n, event)),
        2 => (prop::option::of(0_usize..2), resources, prop::option::of(0_u64..12))
            .prop_map(|(p, r, c)| Step::Ceiling(p, r, c)),
    ];
    prop::collection::vec(step, 1..40)
}

/// A VM as the model knows it.
#[derive(Clone, Debug)]
struct Modelled {
    id: VmId,
    project: usize,
    vcpus: u64,
    memory_mb: u64,
    disk_gb: u64,
    runs: bool,
    exists: bool,
}

/// A token as the model knows it.
#[derive(Clone, Debug)]
struct ModelledToken {
    id: TokenId,
    holder: usize,
    is_good: bool,
}

#[derive(Default)]
struct Model {
    vms: Vec<Modelled>,
    tokens: Vec<ModelledToken>,
    revoked_holders: Vec<usize>,
    /// Seconds that tokens begin at: one more with each.
    clock: i64,
    ceilings: BTreeMap<(Option<usize>, Resource), u64>,
}

impl Model {
    fn used(&self, project: Option<usize>, resource: &Resource) -> u64 {
        if *resource == Resource::Tokens {
            let good = self.tokens.iter().filter(|token| token.is_good).count();
            // They are the whole tenant's, which stands for them with its default project.
            return if project == Some(1) {
                0
            } else {
                good.try_into().unwrap()
            };
        }
        let of = |vm: &Modelled| match resource {
            Resource::CreatesPerDay => 1,
            Resource::Vms => u64::from(vm.exists),
            Resource::StorageGb if vm.exists => vm.disk_gb,
            Resource::RunningVms => u64::from(vm.runs),
            Resource::Vcpus if vm.runs => vm.vcpus,
            Resource::MemoryMb if vm.runs => vm.memory_mb,
            Resource::Vcpus
            | Resource::MemoryMb
            | Resource::StorageGb
            | Resource::Images
            | Resource::Tokens
            | Resource::Slots(_) => 0,
        };
        let owned = |vm: &&Modelled| project.is_none_or(|project| project == vm.project);
        self.vms.iter().filter(owned).map(of).sum()
    }

    /// The first resource of which there is not enough.
    fn lacks(&self, project: usize, asked: &[(Resource, u64)]) -> Option<Resource> {
        let full = |(resource, amount): &&(Resource, u64)| {
            [None, Some(project)].into_iter().any(|project| {
                let ceiling = self.ceilings.get(&(project, resource.clone()));
                ceiling.is_some_and(|most| self.used(project, resource) + amount > *most)
            })
        };
        asked
            .iter()
            .find(full)
            .map(|(resource, _)| resource.clone())
    }
}

fn running(vcpus: u64, memory_mb: u64) -> [(Resource, u64); 3] {
    [
        (Resource::RunningVms, 1),
        (Resource::Vcpus, vcpus),
        (Resource::MemoryMb, memory_mb),
    ]
}

fn create(store: &Store, model: &mut Model, step: (usize, u32, u64, u32)) {
    let (project, vcpus, memory_mb, disk_gb) = step;
    let mut asked = vec![(Resource::Vms, 1)];
    asked.extend(running(vcpus.into(), memory_mb));
    asked.extend([
        (Resource::StorageGb, disk_gb.into()),
        (Resource::CreatesPerDay, 1),
    ]);
    let expected = model.lacks(project, &asked);
    let shape = validate(request(PROJECTS[project], vcpus, memory_mb, disk_gb)).unwrap();
    let made = store
        .write(move |tx| tx.create_vm(&tenant(), shape, &Cause::controller()))
        .unwrap();
    match made {
        Ok(created) => {
            assert_eq!(expected, None);
            model.vms.push(Modelled {
                id: created.vm.id,
                project,
                vcpus: vcpus.into(),
                memory_mb,
                disk_gb: disk_gb.into(),
                runs: true,
                exists: true,
            });
        }
        Err(CreateVmDenied::Quota(denied)) => {
            assert_eq!(Some(denied.counter.resource.clone()), expected);
            assert!(denied.counter.used + denied.requested > denied.counter.limit.unwrap());
        }
        Err(other) => panic!("{other:?}"),
    }
}

fn act(store: &Store, model: &mut Model, nth: usize, wish: VmWish) {
    let Some(vm) = model.vms.get(nth).cloned() else {
        return;
    };
    let done = store
        .write(move |tx| tx.act_on_vm(&tenant(), &VmRef::Id(vm.id), wish, &Cause::controller()))
        .unwrap();
    if wish != VmWish::Start {
        return;
    }
    let lacks = (!vm.runs).then(|| model.lacks(vm.project, &running(vm.vcpus, vm.memory_mb)));
    match done {
        Ok(_) => {
            assert_eq!(lacks.flatten(), None);
            model.vms[nth].runs = true;
        }
        Err(ActOnVmDenied::Quota(denied)) => {
            assert_eq!(Some(denied.counter.resource), lacks.flatten());
        }
        Err(
            ActOnVmDenied::State(_) | ActOnVmDenied::InProgress { .. } | ActOnVmDenied::NotFound,
        ) => {}
        Err(other) => panic!("{other:?}"),
    }
}

fn happens(store: &Store, model: &mut Model, nth: usize, event: Event) {
    let Some(vm) = model.vms.get_mut(nth) else {
        return;
    };
    let id = vm.id;
    let state = store
        .write(move |tx| {
            tx.apply_event(id, event, None, &Cause::controller())?
                .unwrap();
            Ok(tx.stored_vm(id)?.unwrap().vm.state)
        })
        .unwrap();
    match state {
        VmState::Running => vm.runs = true,
        VmState::Stopped => vm.runs = false,
        VmState::Deleted => (vm.runs, vm.exists) = (false, false),
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Stopping
        | VmState::Failed
        | VmState::Unreachable
        | VmState::Deleting => {}
    }
}

fn issue(store: &Store, model: &mut Model, holder: usize, is_good: bool) {
    // The caller's business: nobody issues a token to a holder that is revoked.
    if model.revoked_holders.contains(&holder) {
        return;
    }
    model.clock += 1;
    let id = TokenId::generate();
    let hour = if is_good { 3600 } else { 0 };
    let record = NewTokenRecord {
        token_id: id,
        tenant_id: Some(tenant()),
        scope: Vec::new(),
        resources: None,
        requires_pop: false,
        subject_pubkey: format!("holder-{holder}"),
        label: None,
        issued_at_s: model.clock,
        expires_at_s: jiff::Timestamp::now().as_second() - 60 + hour,
        vm_id: None,
    };
    let expected = model.lacks(0, &[(Resource::Tokens, 1)]);
    let issued = store
        .write(move |tx| tx.record_token(&record, &Cause::controller()))
        .unwrap();
    match issued {
        Ok(()) => {
            assert_eq!(expected, None);
            model.tokens.push(ModelledToken {
                id,
                holder,
                is_good,
            });
        }
        Err(RecordTokenDenied::Quota(denied)) => {
            assert_eq!(Some(denied.counter.resource), expected);
        }
        Err(RecordTokenDenied::NoTenant) => panic!("it is there"),
    }
}

fn revoke(
    store: &Store,
    model: &mut Model,
    what: Revoked,
    is_meant: impl Fn(&ModelledToken) -> bool,
) {
    store
        .write(move |tx| tx.revoke(Some(&tenant()), &what, None, &Cause::controller()))
        .unwrap()
        .unwrap();
    for token in model.tokens.iter_mut().filter(|token| is_meant(token)) {
        token.is_good = false;
    }
}

fn set_ceiling(store: &Store, project: Option<usize>, resource: &Resource, ceiling: Option<u64>) {
    let scope = scope(project.map(|nth| PROJECTS[nth]));
    let ceilings = Ceilings::from([(resource.clone(), ceiling)]);
    store
        .write(move |tx| tx.set_ceilings(&scope, &ceilings, true))
        .unwrap();
}

fn assert_agree(store: &Store, model: &Model) {
    assert_eq!(store.read(|db| db.check()).unwrap(), []);
    for project in [None, Some(0), Some(1)] {
        let scope = scope(project.map(|nth| PROJECTS[nth]));
        for counter in store.read(|db| db.counters(&scope)).unwrap() {
            assert_eq!(
                counter.used,
                model.used(project, &counter.resource),
                "{project:?} {:?}",
                counter.resource
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn after_any_sequence_the_counters_are_those_of_the_model(steps in steps()) {
        let (_folder, store) = store(6);
        let mut model = Model::default();
        model.ceilings.insert((None, Resource::Vms), 6);
        model.ceilings.insert((None, Resource::StorageGb), 1000);
        for step in steps {
            match step {
                Step::Create(project, vcpus, memory_mb, disk_gb) => {
                    create(&store, &mut model, (project, vcpus, memory_mb, disk_gb));
                }
                Step::Start(nth) => act(&store, &mut model, nth, VmWish::Start),
                Step::Stop(nth) => {
                    act(&store, &mut model, nth, VmWish::Stop(StopOrder::default()));
                }
                Step::Delete(nth) => act(&store, &mut model, nth, VmWish::Delete),
                Step::Happens(nth, event) => happens(&store, &mut model, nth, event),
                Step::Issue(holder, is_good) => issue(&store, &mut model, holder, is_good),
                Step::Revoke(nth) => {
                    if let Some(id) = model.tokens.get(nth).map(|token| token.id) {
                        revoke(&store, &mut model, Revoked::Link(id), |token| token.id == id);
                    }
                }
                Step::RevokeHolder(holder) => {
                    let key = Revoked::Holder(format!("holder-{holder}"));
                    model.revoked_holders.push(holder);
                    revoke(&store, &mut model, key, |token| token.holder == holder);
                }
                Step::RevokeAll => {
                    let before = Revoked::Before(model.clock + 1);
                    revoke(&store, &mut model, before, |_| true);
                }
                Step::Ceiling(project, resource, ceiling) => {
                    set_ceiling(&store, project, &resource, ceiling);
                    match ceiling {
                        Some(most) => model.ceilings.insert((project, resource), most),
                        None => model.ceilings.remove(&(project, resource)),
                    };
                }
            }
            assert_agree(&store, &model);
        }
    }
}

fn events(store: &Store, event_type: &str) -> Vec<serde_json::Value> {
    let filter = EntryFilter {
        event_type: Some(event_type.to_owned()),
        limit: 1000,
        ..EntryFilter::default()
    };
    let entries = store.read(|db| db.entries(&filter)).unwrap();
    entries
        .iter()
        .map(|entry| serde_json::from_str(&entry.body).unwrap())
        .collect()
}

fn create_plain(store: &Store, project: &str) -> Result<VmId, Box<CreateVmDenied>> {
    let shape = validate(request(project, 1, 128, 1)).unwrap();
    store
        .write(move |tx| tx.create_vm(&tenant(), shape, &Cause::controller()))
        .unwrap()
        .map(|created| created.vm.id)
        .map_err(Box::new)
}

#[test]
fn each_share_of_a_ceiling_is_told_once_and_refusals_tell_none() {
    let (_folder, store) = store(5);
    for _ in 0..5 {
        create_plain(&store, "default").unwrap();
    }
    create_plain(&store, "default").unwrap_err();
    let told: Vec<_> = events(&store, "QUOTA_THRESHOLD_CROSSED")
        .into_iter()
        .map(|event| {
            (
                event["detail"]["percent"].clone(),
                event["detail"]["used"].clone(),
            )
        })
        .collect();
    let expected = [(80, 4), (100, 5)];
    let expected: Vec<_> = expected
        .map(|(percent, used)| (percent.into(), used.into()))
        .into();
    assert_eq!(told, expected);
}

#[test]
fn a_refusal_counts_what_there_is_by_state() {
    let (_folder, store) = store(2);
    let first = create_plain(&store, "default").unwrap();
    create_plain(&store, "other").unwrap();
    store
        .write(move |tx| tx.apply_event(first, Event::Running, None, &Cause::controller()))
        .unwrap()
        .unwrap();
    let denied = create_plain(&store, "default").unwrap_err();
    let CreateVmDenied::Quota(denied) = *denied else {
        panic!("{denied:?}");
    };
    let counted = BTreeMap::from([("running".to_owned(), 1), ("scheduling".to_owned(), 1)]);
    assert_eq!(denied.to_detail().counted, counted);
    let entry = &events(&store, "VM_CREATE_DENIED")[0];
    assert_eq!(entry["detail"]["quota"]["used"], 2);
    assert_eq!(entry["detail"]["quota"]["requested"], 1);
}

#[test]
fn an_override_holds_until_its_time_and_is_in_the_ledger() {
    let (_folder, store) = store(1);
    create_plain(&store, "default").unwrap();
    create_plain(&store, "default").unwrap_err();
    let set = |until: i64| {
        let new = NewOverride {
            limit: 2,
            until,
            reason: "a busy week".to_owned(),
        };
        store
            .write(move |tx| {
                let cause = Cause::controller();
                tx.override_quota(&tenant(), &Resource::Vms, Some(&new), &cause)
            })
            .unwrap()
    };
    // One whose time is over changes nothing.
    assert!(set(1));
    create_plain(&store, "default").unwrap_err();
    assert!(set(i64::MAX));
    let usage = store.read(|db| db.usage(&scope(None))).unwrap().unwrap();
    assert_eq!(usage.quotas["vms"], Some(2));
    assert_eq!(usage.overrides[0].reason, "a busy week");
    create_plain(&store, "default").unwrap();
    create_plain(&store, "default").unwrap_err();
    store
        .write(|tx| tx.override_quota(&tenant(), &Resource::Vms, None, &Cause::controller()))
        .unwrap();
    let usage = store.read(|db| db.usage(&scope(None))).unwrap().unwrap();
    assert!(usage.over_limit && usage.overrides.is_empty());
    assert_eq!(events(&store, "QUOTA_OVERRIDE_SET").len(), 2);
    assert_eq!(events(&store, "QUOTA_OVERRIDE_ENDED").len(), 1);
}

#[test]
fn a_tier_sets_what_the_record_does_not() {
    let (_folder, store) = store(1);
    let tier = |most: u64| crate::tenants::Tier {
        name: format!("of-{most}"),
        ceilings: Ceilings::from([
            (Resource::Vms, Some(most)),
            (Resource::Vcpus, Some(most)),
            (Resource::Slots("nvme".to_owned()), Some(most)),
        ]),
    };
    let mut new = new_tenant("other", 7);
    new.profile.tier = tier(3);
    let made = store
        .write(move |tx| tx.create_tenant(new, &Cause::controller()))
        .unwrap()
        .unwrap();
    assert_eq!((made.max_vms, made.max_vcpus), (7, Some(3)));
    assert_eq!(made.slot_limits, BTreeMap::from([("nvme".to_owned(), 3)]));
    assert_eq!(made.max_memory_mb, None);
    let change = |change: TenantChange| {
        let id = made.tenant_id.clone();
        store
            .write(move |tx| tx.change_tenant(&id, change, &Cause::controller()))
            .unwrap()
            .unwrap()
    };
    let changed = change(TenantChange {
        tier: Some(tier(5)),
        ..TenantChange::default()
    });
    assert_eq!((changed.max_vms, changed.max_vcpus), (7, Some(5)));
    assert_eq!(changed.slot_limits["nvme"], 5);
    let own = change(TenantChange {
        ceilings: Ceilings::from([(Resource::Vcpus, Some(1))]),
        ..TenantChange::default()
    });
    assert_eq!(own.max_vcpus, Some(1));
    let none = crate::tenants::Tier::default();
    let bare = change(TenantChange {
        tier: Some(none),
        ..TenantChange::default()
    });
    assert_eq!((bare.max_vcpus, bare.slot_limits.len()), (Some(1), 0));
    assert_eq!(store.read(|db| db.check()).unwrap(), []);
}

#[test]
fn no_vm_hangs_on_a_project_that_its_tenant_does_not_have() {
    let (_folder, store) = store(3);
    let nowhere = create_plain(&store, "nowhere").unwrap_err();
    assert!(
        matches!(*nowhere, CreateVmDenied::NoProject(_)),
        "{nowhere:?}"
    );
    let vm_id = create_plain(&store, "default").unwrap();
    store
        .write(|tx| tx.create_tenant(new_tenant("foreign", 1), &Cause::controller()))
        .unwrap()
        .unwrap();
    let foreign: ProjectId = "other".parse().unwrap();
    for (tenant, project) in [
        ("foreign", "default"),
        ("acme", "nowhere"),
        ("acme", foreign.as_str()),
    ] {
        let row = (tenant.to_owned(), project.to_owned(), vm_id.to_string());
        let hung = store.write(move |tx| {
            tx.conn.execute(
                "INSERT INTO charge (tenant_id, project_id, vm_id, resource, amount)
                 VALUES (?1, ?2, ?3, 'images', 1)",
                row,
            )?;
            Ok(())
        });
        assert!(hung.is_err(), "{tenant}/{project}");
    }
}
