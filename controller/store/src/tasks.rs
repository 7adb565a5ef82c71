//! Signed orders to nodes: made here, kept until they are answered.

use berth_api::agent::{SignedEnvelope, StopMode, TASK_PAYLOAD_TYPE, Task, TaskAction, VmSpec};
use berth_api::ids::{NodeId, TaskId, TenantId, VmId};
use berth_api::rest::Vm;
use berth_api::slot::Claim;
use berth_controller_core::liveness::Liveness;
use berth_controller_core::stop::StopOrder;
use berth_controller_core::vm::TaskKind;
use berth_ledger::envelope;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tenants::object;
use crate::vms::{StoredVm, VmRef};
use crate::writer::WriteTx;

/// How long a task may be carried out after it was signed, in seconds. An unanswered task is signed
/// anew when it comes to its end.
pub(crate) const TASK_LIFETIME_S: i64 = 3_600;
/// A task with less than this left is signed anew before it is sent, in seconds.
pub(crate) const TASK_LEAST_LEFT_S: i64 = 300;
/// Most tasks in one answer to a node.
pub(crate) const MAX_TASKS_PER_SYNC: u32 = 64;

/// Where a VM is, for tasks that change nothing and are not kept.
#[derive(Clone, Debug)]
pub struct VmTarget {
    /// The VM.
    pub vm_id: VmId,
    /// Its owner.
    pub tenant_id: TenantId,
    /// Its newest generation.
    pub generation: u64,
    /// Its node, if it has one.
    pub node: Option<(NodeId, u64, Liveness)>,
    /// Index of the entry that accepted the newest wish about it.
    pub ledger_index: u64,
}

impl Db<'_> {
    /// Where a live VM of this tenant is; of any tenant if `tenant` is `None`.
    pub fn vm_target(
        &self,
        tenant: Option<&TenantId>,
        vm: &VmRef,
    ) -> Result<Option<VmTarget>, StoreError> {
        let Some((
            StoredVm {
                vm, audit_index, ..
            },
            last_sync,
        )) = self.find_vm(tenant, vm)?
        else {
            return Ok(None);
        };
        if vm.state == berth_api::rest::VmState::Deleted {
            return Ok(None);
        }
        let node = match vm.node_id {
            None => None,
            Some(node_id) => {
                let liveness = Liveness::judge(last_sync, self.now);
                Some((node_id, self.node_epoch(node_id)?, liveness))
            }
        };
        Ok(Some(VmTarget {
            vm_id: vm.id,
            tenant_id: vm.tenant_id,
            generation: vm.generation,
            node,
            ledger_index: audit_index,
        }))
    }

    /// What a node has not answered, oldest first.
    pub fn pending_tasks(&self, node: NodeId) -> Result<Vec<(TaskId, SignedEnvelope)>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT task_id, envelope FROM task WHERE node_id = ?1 AND state = 'pending'
             ORDER BY task_id LIMIT ?2",
        )?;
        let rows = select
            .query_map((node.to_string(), MAX_TASKS_PER_SYNC), |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
            })?
            .collect::<Result<Vec<_>, _>>()?;
        rows.iter()
            .map(|(id, text)| {
                let envelope = serde_json::from_str(text).map_err(|_| StoreError::Corrupt {
                    what: "task envelope",
                })?;
                Ok((parsed(id, "task id")?, envelope))
            })
            .collect()
    }

    pub(crate) fn has_pending_task(
        &self,
        vm_id: VmId,
        kind: Option<TaskKind>,
    ) -> Result<bool, StoreError> {
        let found = self
            .conn
            .prepare_cached(
                "SELECT EXISTS (SELECT 1 FROM task WHERE vm_id = ?1 AND state = 'pending'
                 AND (?2 IS NULL OR kind = ?2))",
            )?
            .query_row((vm_id.to_string(), kind.map(TaskKind::as_str)), |row| {
                row.get(0)
            })?;
        Ok(found)
    }

    pub(crate) fn node_epoch(&self, node: NodeId) -> Result<u64, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT epoch FROM node WHERE node_id = ?1")?
            .query_row([node.to_string()], |row| row.get(0))?)
    }
}

impl WriteTx<'_> {
    /// A VM's next order is another than those before. Their guest is over, and so is what it was given.
    pub(crate) fn begin_generation(&mut self, stored: &mut StoredVm) -> Result<(), StoreError> {
        let (tenant, vm_id) = (&stored.vm.tenant_id, stored.vm.id);
        // Before its first order a VM has no run, and so no guest.
        if stored.vm.generation > 0 {
            self.end_guest_tokens(tenant, vm_id)?;
            self.forget_ejection(vm_id)?;
        }
        stored.vm.generation = stored.vm.generation.saturating_add(1);
        self.conn
            .prepare_cached("UPDATE vm SET generation = ?2 WHERE vm_id = ?1")?
            .send((vm_id.to_string(), stored.vm.generation))?;
        Ok(())
    }

    /// Sign an order about a placed VM under its generation, and keep it. `stop` says how, if it is a
    /// stop.
    pub(crate) fn sign_task(
        &mut self,
        stored: &StoredVm,
        kind: TaskKind,
        stop: StopOrder,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let vm = &stored.vm;
        let Some(node_id) = vm.node_id else {
            return Err(StoreError::Corrupt { what: "VM's node" });
        };
        let now_s = self.now.div_euclid(1000);
        let generation = vm.generation;
        let task = Task {
            task_id: TaskId::generate(),
            node_id,
            node_epoch: self.node_epoch(node_id)?,
            vm_id: vm.id,
            tenant_id: vm.tenant_id.clone(),
            generation,
            not_before: now_s,
            expires_at: now_s.saturating_add(TASK_LIFETIME_S),
            ledger_index: stored.audit_index,
            action: action(kind, vm, self.claims_of(vm.id)?, stop),
        };
        let (envelope, signature) = self.seal(&task)?;
        if let (TaskKind::Create | TaskKind::Start, Some(holder)) = (kind, &stored.guest_holder) {
            self.give_guest_token(vm, generation, holder, cause)?;
        }
        self.conn
            .prepare_cached(
                "INSERT INTO task (task_id, tenant_id, vm_id, node_id, kind, generation, state,
                 envelope, expires_at_s, created_at)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, 'pending', ?7, ?8, ?9)",
            )?
            .send((
                task.task_id.to_string(),
                vm.tenant_id.as_str(),
                vm.id.to_string(),
                node_id.to_string(),
                kind.as_str(),
                generation,
                envelope,
                task.expires_at,
                self.now,
            ))?;
        let detail = object(json!({
            "task_id": task.task_id,
            "kind": kind.as_str(),
            "generation": generation,
            "signature": signature,
        }));
        self.append(
            NewEvent {
                event_type: "TASK_SIGNED",
                tenant_id: Some(vm.tenant_id.clone()),
                vm_id: Some(vm.id),
                node_id: Some(node_id),
                outcome: "accepted",
                detail,
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(())
    }

    /// Sign anew what a node has not answered and will soon not be allowed to do.
    pub(crate) fn refresh_tasks(&mut self, node: NodeId) -> Result<(), StoreError> {
        let now_s = self.now.div_euclid(1000);
        let ending: Vec<String> = self
            .conn
            .prepare_cached(
                "SELECT envelope FROM task WHERE node_id = ?1 AND state = 'pending' AND expires_at_s < ?2",
            )?
            .query_map((node.to_string(), now_s.saturating_add(TASK_LEAST_LEFT_S)), |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for text in ending {
            let mut task = self.unseal(&text)?;
            task.not_before = now_s;
            task.expires_at = now_s.saturating_add(TASK_LIFETIME_S);
            let (envelope, _) = self.seal(&task)?;
            self.conn
                .prepare_cached(
                    "UPDATE task SET envelope = ?2, expires_at_s = ?3 WHERE task_id = ?1",
                )?
                .send((task.task_id.to_string(), envelope, task.expires_at))?;
        }
        Ok(())
    }

    /// How a VM was told to stop, if its node has not answered.
    pub(crate) fn unanswered_stop(&self, vm_id: VmId) -> Result<Option<StopMode>, StoreError> {
        let text: Option<String> = self
            .conn
            .prepare_cached(
                "SELECT envelope FROM task WHERE vm_id = ?1 AND state = 'pending' AND kind = ?2
                 ORDER BY generation DESC LIMIT 1",
            )?
            .query_row((vm_id.to_string(), TaskKind::Stop.as_str()), |row| {
                row.get(0)
            })
            .optional()?;
        let task = text.map(|text| self.unseal(&text)).transpose()?;
        Ok(task.and_then(|task| match task.action {
            TaskAction::VmStop { mode, .. } => Some(mode),
            TaskAction::VmCreate { .. }
            | TaskAction::VmStart {}
            | TaskAction::VmDelete {}
            | TaskAction::VmEjectSeed {}
            | TaskAction::VmConsoleRead { .. } => None,
        }))
    }

    /// The task in an envelope's JSON.
    fn unseal(&self, text: &str) -> Result<Task, StoreError> {
        let trusted = [self.keys.task.public()];
        serde_json::from_str(text)
            .ok()
            .and_then(|sealed| envelope::open(&trusted, TASK_PAYLOAD_TYPE, &sealed).ok())
            .ok_or(StoreError::Corrupt {
                what: "task envelope",
            })
    }

    /// The envelope's JSON and its signature.
    fn seal(&self, task: &Task) -> Result<(String, String), StoreError> {
        let unstorable = |_| StoreError::Unstorable { what: "task" };
        let sealed =
            envelope::seal(&self.keys.task, TASK_PAYLOAD_TYPE, task).map_err(unstorable)?;
        let signature = sealed
            .signatures
            .first()
            .map(|signature| signature.sig.clone())
            .unwrap_or_default();
        let text = serde_json::to_string(&sealed).map_err(unstorable)?;
        Ok((text, signature))
    }
}

fn action(kind: TaskKind, vm: &Vm, claims: Vec<Claim>, stop: StopOrder) -> TaskAction {
    match kind {
        TaskKind::Create => TaskAction::VmCreate {
            spec: VmSpec {
                name: vm.name.clone(),
                vcpus: vm.vcpus,
                memory_mib: vm.memory_mb,
                disk_mib: u64::from(vm.disk_gb) * 1024,
                image: vm.image.clone(),
            },
            claims,
        },
        TaskKind::Start => TaskAction::VmStart {},
        TaskKind::Stop => TaskAction::VmStop {
            mode: stop.mode(),
            timeout_s: stop.timeout_s(),
        },
        TaskKind::Delete => TaskAction::VmDelete {},
    }
}
