//! What a change costs in a fleet that is large elsewhere.

use berth_api::agent::{Capacity, EnrollRequest, LogReport, PROTOCOL_VERSION, SyncRequest};
use berth_api::ids::{AgentInstanceId, NodeId, TenantId, VmId};
use berth_controller_core::shape::validate;
use berth_ledger::keys::{PublicKey, SigningKey};
use serde_json::json;
use tempfile::TempDir;

use crate::error::StoreError;
use crate::fixture;
use crate::join_tokens::NewJoinToken;
use crate::ledger::Cause;
use crate::sql::STEPS;
use crate::store::Store;
use crate::tenants::NewTenant;
use crate::vm_events::VmWish;
use crate::vms::VmRef;
use crate::writer::WriteTx;

const IMAGE: &str = "debian-12";

fn tenant() -> TenantId {
    "acme".parse().unwrap()
}

/// A node with room for every VM, and one with room for none.
struct Fleet {
    _folder: TempDir,
    store: Store,
    idle_key: PublicKey,
    idle: SyncRequest,
}

impl Fleet {
    fn new() -> Self {
        let (folder, store) = fixture::store();
        let key = |seed| SigningKey::from_seed(&[seed; 32]).unwrap();
        let (busy_key, idle_key) = (key(3).public(), key(4).public());
        let for_tx = idle_key;
        let idle = store
            .write(move |tx| {
                let new = NewTenant {
                    storage_quota_gb: 100_000,
                    ..fixture::new_tenant("acme", 10_000)
                };
                tx.create_tenant(new, &Cause::controller())?.unwrap();
                enroll(tx, "busy", &busy_key, 1 << 30)?;
                let node = enroll(tx, "idle", &for_tx, 1)?;
                tx.conn
                    .execute("UPDATE node SET last_sync_at = ?1", [tx.now + 3_600_000])?;
                Ok(node)
            })
            .unwrap();
        Self {
            _folder: folder,
            store,
            idle_key,
            idle: first_sync(idle),
        }
    }

    fn create(&self) -> VmId {
        let request = json!({ "image": IMAGE, "disk_gb": 1, "memory_mb": 128 });
        let shape = validate(serde_json::from_value(request).unwrap()).unwrap();
        let made = self
            .store
            .write(move |tx| tx.create_vm(&tenant(), shape, &Cause::controller()));
        made.unwrap().unwrap().vm.id
    }

    fn delete(&self, vm: VmId) {
        let wish = VmWish::Delete;
        let deleted = self
            .store
            .write(move |tx| tx.act_on_vm(&tenant(), &VmRef::Id(vm), wish, &Cause::controller()));
        deleted.unwrap().unwrap();
    }

    fn sync_of_the_idle(&mut self) {
        self.idle.seq += 1;
        let (key, request) = (self.idle_key, self.idle.clone());
        self.store
            .write(move |tx| tx.sync(&key, &request))
            .unwrap()
            .unwrap();
    }

    /// Steps of the database's machine that `work` takes.
    fn steps(&mut self, work: impl FnOnce(&mut Self)) -> u64 {
        // The writer's thread counts, and is asked on it.
        self.store.write(|_| Ok(STEPS.take())).unwrap();
        work(self);
        self.store.write(|_| Ok(STEPS.take())).unwrap()
    }
}

fn enroll(
    tx: &mut WriteTx<'_>,
    name: &str,
    key: &PublicKey,
    memory_mib: u64,
) -> Result<NodeId, StoreError> {
    let cause = Cause::controller();
    let secret_hash = name.as_bytes().to_vec();
    let join = NewJoinToken {
        tenant_id: None,
        secret_hash: secret_hash.clone(),
        node_name: None,
        expires_at: i64::MAX,
    };
    tx.add_join_token(&join, &cause)?.unwrap();
    let request = EnrollRequest {
        protocol_version: PROTOCOL_VERSION,
        secret: String::new(),
        node_name: name.to_owned(),
        node_public_key: key.to_base64(),
        machine_id: name.to_owned(),
        boot_id: "boot".to_owned(),
        agent_version: "0".to_owned(),
        capacity: Capacity {
            vcpus: 1 << 20,
            memory_mib,
            disk_mib: 1 << 30,
            kvm: true,
        },
    };
    let node = tx.enroll(&secret_hash, key, &request, &cause)?.unwrap();
    tx.conn.execute(
        "INSERT INTO node_image (node_id, name, digest, disk_mib) VALUES (?1, ?2, '00', 1024)",
        (node.node_id.to_string(), IMAGE),
    )?;
    Ok(node.node_id)
}

fn first_sync(node_id: NodeId) -> SyncRequest {
    SyncRequest {
        protocol_version: PROTOCOL_VERSION,
        node_id,
        node_epoch: 1,
        agent_instance_id: AgentInstanceId::generate(),
        boot_id: "boot".to_owned(),
        seq: 0,
        agent_version: "0".to_owned(),
        clock: 0,
        wait_seconds: 0,
        results: Vec::new(),
        vms: Vec::new(),
        slots: Vec::new(),
        receipts: Vec::new(),
        images: vec![
            serde_json::from_value(json!({ "name": IMAGE, "digest": "00", "disk_mib": 1024 }))
                .unwrap(),
        ],
        capacity: Capacity {
            vcpus: 1,
            memory_mib: 1,
            disk_mib: 1 << 30,
            kvm: true,
        },
        log: LogReport::default(),
    }
}

#[test]
fn a_change_takes_no_more_work_for_the_vms_that_are_elsewhere() {
    let mut fleet = Fleet::new();
    let mut measured = Vec::new();
    for vms in [10, 400] {
        for _ in 0..vms {
            fleet.create();
        }
        // Statements are prepared by the first use of each.
        fleet.sync_of_the_idle();
        let mut vm = None;
        measured.push([
            fleet.steps(|fleet| vm = Some(fleet.create())),
            fleet.steps(Fleet::sync_of_the_idle),
            fleet.steps(|fleet| fleet.delete(vm.unwrap())),
        ]);
    }
    let [few, many] = measured[..] else {
        panic!("two fleets");
    };
    for ((what, few), many) in ["create", "sync", "delete"].iter().zip(few).zip(many) {
        assert!(
            few > 0 && many <= few + few / 4,
            "{what}: {few} steps, then {many}"
        );
    }
}
