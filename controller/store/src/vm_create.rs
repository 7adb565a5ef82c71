//! Accepting a new VM: name, quota, placement, charges, ledger entry and signed task, at once.

use std::collections::BTreeMap;

use berth_api::ids::{NodeId, SlotId, TenantId, VmId};
use berth_api::rest::{Vm, VmState};
use berth_controller_core::placement::{Decision, Demand, Placement, Reasons, SlotWish};
use berth_controller_core::quota::{QuotaDenied, Resource, admit};
use berth_controller_core::shape::Shape;
use berth_controller_core::slot::Obstacle;
use berth_controller_core::vm::{Event, TaskKind};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::state_text;
use crate::tenants::object;
use crate::vms::VmRef;
use crate::writer::WriteTx;

/// Why a VM was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateVmDenied {
    /// The tenant is gone.
    #[error("the tenant does not exist")]
    NoTenant,
    /// A live VM of the tenant has the name.
    #[error("a VM named {name} exists already")]
    NameTaken {
        /// Which name.
        name: String,
    },
    /// Over a ceiling.
    #[error(transparent)]
    Quota(#[from] QuotaDenied),
    /// The disk would be smaller than the image.
    #[error("the image needs a root disk of at least {least_gb} GiB")]
    DiskTooSmall {
        /// What it needs, in GiB.
        least_gb: u32,
    },
    /// There is no such slot, or none that the tenant may know of.
    #[error("there is no slot {0}")]
    NoSlot(SlotId),
    /// The tenant has no ceiling for slots of this class.
    #[error("the tenant may not use slots of class {class}")]
    SlotClass {
        /// Which class.
        class: String,
    },
    /// A slot that was named cannot be claimed.
    #[error("slot {slot_id} cannot be claimed: {}", obstacle.code())]
    Slot {
        /// Which slot.
        slot_id: SlotId,
        /// Its class.
        class: String,
        /// Why not.
        obstacle: Obstacle,
    },
    /// No node could ever take it.
    #[error("no node could take it even if it were empty")]
    Impossible(Reasons),
    /// All nodes that could take it are full.
    #[error("all nodes that could take it are full")]
    NoCapacity(Reasons),
}

impl CreateVmDenied {
    /// The error code in the ledger; the same that the caller is told.
    fn code(&self) -> &'static str {
        match self {
            Self::NoTenant => "not_found",
            Self::NameTaken { .. } => "already_exists",
            Self::Quota(_) => "quota_exceeded",
            Self::DiskTooSmall { .. } => "invalid_request",
            Self::NoSlot(_) => "not_found",
            Self::SlotClass { .. } => "slot_class_not_allowed",
            Self::Slot { obstacle, .. } => match obstacle {
                Obstacle::Unapproved | Obstacle::NotAdmitted => "slot_not_approved",
                Obstacle::IommuGroupUnsafe => "iommu_group_unsafe",
                Obstacle::DeviceIdentityChanged => "device_identity_changed",
                Obstacle::Claimed => "claim_conflict",
                Obstacle::Wiping
                | Obstacle::Quarantined
                | Obstacle::Missing
                | Obstacle::Retired => "no_capacity",
            },
            Self::Impossible(_) => "placement_impossible",
            Self::NoCapacity(_) => "no_capacity",
        }
    }

    fn detail(&self) -> serde_json::Value {
        match self {
            Self::Quota(denied) => json!({ "quota": denied.to_detail() }),
            Self::Impossible(reasons) | Self::NoCapacity(reasons) => json!({ "reasons": reasons }),
            Self::NoSlot(slot_id) => json!({ "slot_id": slot_id }),
            Self::SlotClass { class } => json!({ "class": class }),
            Self::Slot {
                slot_id, obstacle, ..
            } => json!({ "slot_id": slot_id, "obstacle": obstacle.code() }),
            Self::NoTenant | Self::NameTaken { .. } | Self::DiskTooSmall { .. } => json!({}),
        }
    }
}

/// A VM just accepted.
#[derive(Clone, Debug)]
pub struct CreatedVm {
    /// The VM.
    pub vm: Vm,
    /// The node that has work now.
    pub wake: Option<NodeId>,
}

impl WriteTx<'_> {
    /// Accept a VM or say why not. A refusal charges nothing and is in the ledger.
    pub fn create_vm(
        &mut self,
        tenant: &TenantId,
        shape: Shape,
        cause: &Cause,
    ) -> Result<Result<CreatedVm, CreateVmDenied>, StoreError> {
        match self.decide(tenant, &shape)? {
            Ok((disk_gb, placement)) => self
                .accept(tenant, shape, disk_gb, placement, cause)
                .map(Ok),
            Err(CreateVmDenied::NoTenant) => Ok(Err(CreateVmDenied::NoTenant)),
            Err(denied) => {
                self.append(
                    NewEvent {
                        event_type: "VM_CREATE_DENIED",
                        tenant_id: Some(tenant.clone()),
                        outcome: "denied",
                        code: Some(denied.code().to_owned()),
                        detail: object(denied.detail()),
                        ..NewEvent::default()
                    },
                    cause,
                )?;
                Ok(Err(denied))
            }
        }
    }

    /// The disk's size and the node; quota is asked before placement.
    fn decide(
        &self,
        tenant: &TenantId,
        shape: &Shape,
    ) -> Result<Result<(u32, Option<Placement>), CreateVmDenied>, StoreError> {
        if self.tenant(tenant)?.is_none() {
            return Ok(Err(CreateVmDenied::NoTenant));
        }
        if let Some(name) = &shape.name
            && self
                .find_vm(Some(tenant), &VmRef::Name(name.clone()))?
                .is_some()
        {
            return Ok(Err(CreateVmDenied::NameTaken { name: name.clone() }));
        }
        let image_gb = self.image_disk_gb(&shape.image)?;
        let disk_gb = shape.disk_gb.or(image_gb).unwrap_or(1);
        let classes = match self.wanted_classes(tenant, &shape.slots)? {
            Ok(classes) => classes,
            Err(denied) => return Ok(Err(denied)),
        };
        for counter in self.counters(tenant)? {
            let requested = match &counter.resource {
                Resource::Vms => 1,
                Resource::StorageGb => u64::from(disk_gb),
                Resource::Slots(class) => classes.get(class).copied().unwrap_or(0),
            };
            if let Err(denied) = admit(tenant, counter, requested) {
                return Ok(Err(denied.into()));
            }
        }
        if let Some(least_gb) = image_gb.filter(|least| disk_gb < *least) {
            return Ok(Err(CreateVmDenied::DiskTooSmall { least_gb }));
        }
        if let Some(denied) = self.obstacle_of(&shape.slots)? {
            return Ok(Err(denied));
        }
        let demand = Demand {
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mb,
            disk_mib: u64::from(disk_gb) * 1024,
            slots: shape.slots.clone(),
        };
        Ok(match self.decide_placement(&shape.image, &demand)? {
            Decision::Chosen(placement) => Ok((disk_gb, Some(placement))),
            Decision::Wait(_) => Ok((disk_gb, None)),
            Decision::NoCapacity(reasons) => Err(CreateVmDenied::NoCapacity(reasons)),
            Decision::Impossible(reasons) => Err(CreateVmDenied::Impossible(reasons)),
        })
    }

    /// How many slots of each class are wanted; the tenant may use them all. A slot of a class that
    /// it may not use is one that it does not know of.
    fn wanted_classes(
        &self,
        tenant: &TenantId,
        wishes: &[SlotWish],
    ) -> Result<Result<BTreeMap<String, u64>, CreateVmDenied>, StoreError> {
        let mut wanted = BTreeMap::new();
        if wishes.is_empty() {
            return Ok(Ok(wanted));
        }
        let limits = self.slot_limits(tenant)?;
        for wish in wishes {
            let (class, count) = match wish {
                SlotWish::Class { class, .. } if !limits.contains_key(class) => {
                    let class = class.clone();
                    return Ok(Err(CreateVmDenied::SlotClass { class }));
                }
                SlotWish::Class { class, count } => (class.clone(), u64::from(*count)),
                SlotWish::One(id) => match self.stored_slot(*id)? {
                    Some(slot) if limits.contains_key(&slot.class) => (slot.class, 1),
                    Some(_) | None => return Ok(Err(CreateVmDenied::NoSlot(*id))),
                },
            };
            let sum: &mut u64 = wanted.entry(class).or_default();
            *sum = sum.saturating_add(count);
        }
        Ok(Ok(wanted))
    }

    /// Why a slot that is wished for by its id cannot be had.
    fn obstacle_of(&self, wishes: &[SlotWish]) -> Result<Option<CreateVmDenied>, StoreError> {
        for wish in wishes {
            let SlotWish::One(slot_id) = wish else {
                continue;
            };
            let Some(slot) = self.stored_slot(*slot_id)? else {
                return Ok(Some(CreateVmDenied::NoSlot(*slot_id)));
            };
            if let Some(obstacle) = slot.facts().obstacle() {
                return Ok(Some(CreateVmDenied::Slot {
                    slot_id: *slot_id,
                    class: slot.class,
                    obstacle,
                }));
            }
        }
        Ok(None)
    }

    fn accept(
        &mut self,
        tenant: &TenantId,
        shape: Shape,
        disk_gb: u32,
        placement: Option<Placement>,
        cause: &Cause,
    ) -> Result<CreatedVm, StoreError> {
        let node = placement.as_ref().map(|placement| placement.node_id);
        let slots = placement
            .map(|placement| placement.slots)
            .unwrap_or_default();
        let vm_id = VmId::generate();
        let name = shape.name.clone().unwrap_or_else(|| made_up_name(vm_id));
        let audit_index = self.append(
            NewEvent {
                event_type: "VM_CREATE_ACCEPTED",
                tenant_id: Some(tenant.clone()),
                vm_id: Some(vm_id),
                node_id: node,
                outcome: "accepted",
                detail: object(json!({
                    "name": name,
                    "vcpus": shape.vcpus,
                    "memory_mb": shape.memory_mb,
                    "disk_gb": disk_gb,
                    "image": shape.image,
                    "slots": slots,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        self.insert_vm(tenant, vm_id, &name, &shape, disk_gb, audit_index)?;
        self.charge(tenant, vm_id, Resource::Vms, 1)?;
        self.charge(tenant, vm_id, Resource::StorageGb, disk_gb.into())?;
        self.claim_slots(tenant, vm_id, &slots, cause)?;
        self.begin_operation(tenant, vm_id, TaskKind::Create, "placing")?;
        if let Some(node) = node {
            self.put_on_node(vm_id, node, cause)?;
        }
        let mut vm = self
            .stored_vm(vm_id)?
            .ok_or(StoreError::Corrupt { what: "new VM" })?
            .vm;
        vm.slots = self.vm_slots(vm_id)?;
        Ok(CreatedVm { vm, wake: node })
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the row of one VM, made in one place"
    )]
    fn insert_vm(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
        name: &str,
        shape: &Shape,
        disk_gb: u32,
        audit_index: u64,
    ) -> Result<(), StoreError> {
        let labels = serde_json::to_string(&shape.labels)
            .map_err(|_| StoreError::Unstorable { what: "label list" })?;
        self.conn
            .prepare_cached(
                "INSERT INTO vm (vm_id, tenant_id, name, state, state_since, desired_state, generation,
                 vcpus, memory_mb, disk_gb, image, labels, created_at, audit_index)
                 VALUES (?1, ?2, ?3, ?4, ?5, 'running', 0, ?6, ?7, ?8, ?9, ?10, ?5, ?11)",
            )?
            .execute((
                vm_id.to_string(),
                tenant.as_str(),
                name,
                state_text(VmState::Pending),
                self.now,
                shape.vcpus,
                shape.memory_mb,
                disk_gb,
                &shape.image,
                labels,
                audit_index,
            ))?;
        Ok(())
    }

    /// The conditional update is the gate: it holds for any number of controllers.
    fn charge(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
        resource: Resource,
        amount: u64,
    ) -> Result<(), StoreError> {
        let changed = self
            .conn
            .prepare_cached(
                "UPDATE quota SET used = used + ?3
                 WHERE tenant_id = ?1 AND resource = ?2 AND used + ?3 <= ceiling",
            )?
            .execute((tenant.as_str(), resource.name(), amount))?;
        if changed != 1 {
            return Err(StoreError::Corrupt {
                what: "quota that was admitted",
            });
        }
        self.conn
            .prepare_cached(
                "INSERT INTO charge (tenant_id, vm_id, resource, amount) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((tenant.as_str(), vm_id.to_string(), resource.name(), amount))?;
        Ok(())
    }

    /// Promise a node's room to a pending VM and order its making.
    pub(crate) fn put_on_node(
        &mut self,
        vm_id: VmId,
        node: NodeId,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached("UPDATE vm SET node_id = ?2 WHERE vm_id = ?1")?
            .execute((vm_id.to_string(), node.to_string()))?;
        self.conn
            .prepare_cached(
                "UPDATE node SET vms = vms + 1,
                 vcpus_used = vcpus_used + (SELECT vcpus FROM vm WHERE vm_id = ?1),
                 memory_used_mib = memory_used_mib + (SELECT memory_mb FROM vm WHERE vm_id = ?1)
                 WHERE node_id = ?2",
            )?
            .execute((vm_id.to_string(), node.to_string()))?;
        self.show_phase(vm_id, "scheduled")?;
        self.apply_event(vm_id, Event::Placed, None, cause)?
            .map_err(|_| StoreError::Corrupt { what: "pending VM" })?;
        Ok(())
    }

    /// Find nodes for VMs that wait for one; the nodes that have work now.
    pub(crate) fn place_waiting(&mut self) -> Result<Vec<NodeId>, StoreError> {
        let waiting: Vec<String> = self
            .conn
            .prepare_cached("SELECT vm_id FROM vm WHERE state = 'pending' ORDER BY vm_id LIMIT 32")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut woken = Vec::new();
        for text in waiting {
            let vm_id = crate::rows::parsed(&text, "VM id")?;
            let Some(stored) = self.stored_vm(vm_id)? else {
                continue;
            };
            let demand = Demand {
                vcpus: stored.vm.vcpus,
                memory_mib: stored.vm.memory_mb,
                disk_mib: u64::from(stored.vm.disk_gb) * 1024,
                // A VM with slots was placed when it was accepted.
                slots: Vec::new(),
            };
            let decision = self.decide_placement(&stored.vm.image, &demand)?;
            if let Decision::Chosen(placement) = decision {
                self.put_on_node(vm_id, placement.node_id, &Cause::controller())?;
                woken.push(placement.node_id);
            }
        }
        Ok(woken)
    }
}

fn made_up_name(vm_id: VmId) -> String {
    let bare = vm_id.bare();
    format!("vm-{}", bare.get(16..).unwrap_or(&bare))
}
