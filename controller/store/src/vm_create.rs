//! Accepting a new VM: name, quota, placement, charges, ledger entry and signed task, at once.

use std::collections::BTreeMap;

use berth_api::ids::{NodeId, OperationId, ProjectId, SlotId, TenantId, VmId};
use berth_api::rest::{Vm, VmState};
use berth_controller_core::placement::{Decision, Demand, Placement, Reasons, SlotWish};
use berth_controller_core::quota::{QuotaDenied, Resource};
use berth_controller_core::shape::{Shape, wishes_of};
use berth_controller_core::slot::Obstacle;
use berth_controller_core::stop::StopOrder;
use berth_controller_core::vm::{Effect, Event, TaskKind, transition};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::lifetime::expiry_ms;
use crate::quota::{Amounts, running_amounts};
use crate::rows::{rfc3339, state_text};
use crate::seeds::{fingerprints, user_data_hash};
use crate::sql::{ToValue, params_from_iter};
use crate::store::Db;
use crate::tenants::object;
use crate::vm_events::due_ms;
use crate::vms::StoredVm;
use crate::writer::WriteTx;

/// Why a VM was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreateVmDenied {
    /// The tenant is gone.
    #[error("the tenant does not exist")]
    NoTenant,
    /// An operator suspended the tenant.
    #[error("the tenant is suspended")]
    Suspended,
    /// The tenant may not create VMs.
    #[error("the tenant may not create VMs")]
    NotAllowed,
    /// The tenant may not issue tokens, and so cannot have its guests given any.
    #[error("the tenant may not issue tokens")]
    NoTokens,
    /// The tenant has no such project.
    #[error("there is no project {0}")]
    NoProject(ProjectId),
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
            Self::NoTenant | Self::NoProject(_) => "not_found",
            Self::Suspended => "tenant_suspended",
            Self::NotAllowed | Self::NoTokens => "permission_denied",
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
            Self::NoProject(project) => json!({ "project_id": project }),
            Self::NoTenant
            | Self::Suspended
            | Self::NotAllowed
            | Self::NoTokens
            | Self::NameTaken { .. }
            | Self::DiskTooSmall { .. } => json!({}),
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

/// What a request comes to, before anything is charged or placed.
pub(crate) struct Wanted {
    pub(crate) disk_gb: u32,
    /// The image's name; `None` if the tenant may not know of it.
    image: Option<String>,
    /// Least root disk of the image, in GiB, where some node has it.
    image_gb: Option<u32>,
    pub(crate) amounts: Amounts,
    /// SSH keys of its guest.
    pub(crate) ssh_keys: Vec<String>,
}

impl Wanted {
    pub(crate) fn demand(&self, tenant: &TenantId, shape: &Shape) -> Demand {
        Demand {
            tenant: tenant.clone(),
            vcpus: shape.vcpus,
            memory_mib: shape.memory_mb,
            disk_mib: u64::from(self.disk_gb) * 1024,
            slots: shape.slots.clone(),
            wishes: shape.wishes(),
        }
    }

    /// No image has the empty name: one that the tenant may not know of is on no node.
    pub(crate) fn image_or_none(&self) -> &str {
        self.image.as_deref().unwrap_or("")
    }
}

impl Db<'_> {
    /// Check what can be checked without a charge.
    pub(crate) fn wanted(
        &self,
        tenant: &TenantId,
        shape: &Shape,
    ) -> Result<Result<Wanted, CreateVmDenied>, StoreError> {
        let Some(standing) = self.tenant_standing(tenant)? else {
            return Ok(Err(CreateVmDenied::NoTenant));
        };
        if standing.is_suspended {
            return Ok(Err(CreateVmDenied::Suspended));
        }
        if !standing.allows("vm.create") {
            return Ok(Err(CreateVmDenied::NotAllowed));
        }
        if shape.guest_token && !standing.allows("token.issue") {
            return Ok(Err(CreateVmDenied::NoTokens));
        }
        if !self.has_project(tenant, &shape.project)? {
            return Ok(Err(CreateVmDenied::NoProject(shape.project.clone())));
        }
        if let Some(name) = &shape.name
            && self.is_name_taken(tenant, name)?
        {
            return Ok(Err(CreateVmDenied::NameTaken { name: name.clone() }));
        }
        let image = standing
            .allows_image(&shape.image)
            .then(|| shape.image.clone());
        let image_gb = match &image {
            Some(image) => self.image_disk_gb(tenant, image)?,
            None => None,
        };
        let disk_gb = shape.disk_gb.or(image_gb).unwrap_or(1);
        let classes = match self.wanted_classes(tenant, &shape.slots)? {
            Ok(classes) => classes,
            Err(denied) => return Ok(Err(denied)),
        };
        let mut amounts = running_amounts(shape.vcpus, shape.memory_mb);
        amounts.insert(Resource::Vms, 1);
        amounts.insert(Resource::StorageGb, disk_gb.into());
        amounts.insert(Resource::CreatesPerDay, 1);
        for (class, count) in classes {
            amounts.insert(Resource::Slots(class), count);
        }
        Ok(Ok(Wanted {
            disk_gb,
            image,
            image_gb,
            amounts,
            ssh_keys: shape.ssh_keys.clone().unwrap_or(standing.default_ssh_keys),
        }))
    }

    /// Where the VM goes; `None` if it waits for a node that is silent.
    pub(crate) fn place_now(
        &self,
        tenant: &TenantId,
        shape: &Shape,
        wanted: &Wanted,
    ) -> Result<Result<Option<Placement>, CreateVmDenied>, StoreError> {
        if let Some(least_gb) = wanted.image_gb.filter(|least| wanted.disk_gb < *least) {
            return Ok(Err(CreateVmDenied::DiskTooSmall { least_gb }));
        }
        if let Some(denied) = self.obstacle_of(&shape.slots)? {
            return Ok(Err(denied));
        }
        let demand = wanted.demand(tenant, shape);
        Ok(
            match self.decide_placement(wanted.image_or_none(), &demand)? {
                Decision::Chosen(placement) => Ok(Some(placement)),
                Decision::Wait(_) => Ok(None),
                Decision::NoCapacity(reasons) => Err(CreateVmDenied::NoCapacity(reasons)),
                Decision::Impossible(reasons) => Err(CreateVmDenied::Impossible(reasons)),
            },
        )
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
}

impl WriteTx<'_> {
    /// Accept a VM or say why not. A refusal charges nothing and is in the ledger.
    pub fn create_vm(
        &mut self,
        tenant: &TenantId,
        shape: Shape,
        cause: &Cause,
    ) -> Result<Result<CreatedVm, CreateVmDenied>, StoreError> {
        let denied = match self.try_create(tenant, shape, cause)? {
            Ok(created) => return Ok(Ok(created)),
            Err(CreateVmDenied::NoTenant) => return Ok(Err(CreateVmDenied::NoTenant)),
            Err(denied) => denied,
        };
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

    /// Charge first and place then: a charge is the gate, and is given back if no node takes the VM.
    fn try_create(
        &mut self,
        tenant: &TenantId,
        shape: Shape,
        cause: &Cause,
    ) -> Result<Result<CreatedVm, CreateVmDenied>, StoreError> {
        let wanted = match self.wanted(tenant, &shape)? {
            Ok(wanted) => wanted,
            Err(denied) => return Ok(Err(denied)),
        };
        let marks = match self.charge(tenant, &shape.project, &wanted.amounts)? {
            Ok(marks) => marks,
            Err(denied) => return Ok(Err(denied.into())),
        };
        if shape.guest_token
            && let Err(denied) = self.would_admit_token(tenant)?
        {
            self.uncharge(tenant, &shape.project, &wanted.amounts)?;
            return Ok(Err(denied.into()));
        }
        match self.place_now(tenant, &shape, &wanted)? {
            Ok(placement) => {
                let created = self.accept(tenant, &shape, &wanted, placement, cause)?;
                self.note_marks(tenant, marks, cause)?;
                Ok(Ok(created))
            }
            Err(denied) => {
                self.uncharge(tenant, &shape.project, &wanted.amounts)?;
                Ok(Err(denied))
            }
        }
    }

    fn accept(
        &mut self,
        tenant: &TenantId,
        shape: &Shape,
        wanted: &Wanted,
        placement: Option<Placement>,
        cause: &Cause,
    ) -> Result<CreatedVm, StoreError> {
        let node = placement.as_ref().map(|placement| placement.node_id);
        let slots = placement
            .map(|placement| placement.slots)
            .unwrap_or_default();
        // A VM whose node is known is written down once, as it is when it is placed.
        let (state, order) = match (node, transition(VmState::Pending, Event::Placed)) {
            (None, _) => (VmState::Pending, None),
            (Some(node), Ok((state, [Effect::SignTask(kind)]))) => (state, Some((node, *kind))),
            (Some(_), _) => return Err(StoreError::Corrupt { what: "pending VM" }),
        };
        let vm_id = VmId::generate();
        let operation = OperationId::generate();
        let expires_at = shape.ttl_s.map(|ttl_s| expiry_ms(self.now, ttl_s));
        let holder = cause.actor.subject_key.clone();
        let holder = holder.filter(|_| shape.guest_token);
        let mut vm = Vm {
            id: vm_id,
            name: shape.name.clone().unwrap_or_else(|| made_up_name(vm_id)),
            tenant_id: tenant.clone(),
            project_id: shape.project.clone(),
            state,
            state_reason: None,
            state_since: rfc3339(self.now),
            state_deadline: due_ms(self.now, state, 0).map(rfc3339),
            overdue: false,
            desired_state: VmState::Running,
            generation: u64::from(order.is_some()),
            size: shape.size.clone(),
            vcpus: shape.vcpus,
            memory_mb: shape.memory_mb,
            disk_gb: wanted.disk_gb,
            image: shape.image.clone(),
            node_id: node,
            slots: Vec::new(),
            placement: shape.placement.clone(),
            ssh_keys: wanted.ssh_keys.clone(),
            user_data_sha256: shape.user_data.as_deref().map(user_data_hash),
            guest_token: holder.is_some(),
            booted_at: None,
            expires_at: expires_at.map(rfc3339),
            auto_delete_on_stop: shape.is_deleted_on_stop,
            labels: shape.labels.clone(),
            created_at: rfc3339(self.now),
            operation: Some(operation),
        };
        let audit_index = self.append(
            NewEvent {
                event_type: "VM_CREATE_ACCEPTED",
                tenant_id: Some(tenant.clone()),
                vm_id: Some(vm_id),
                node_id: node,
                outcome: "accepted",
                detail: object(json!({
                    "name": vm.name,
                    "project_id": vm.project_id,
                    "size": vm.size,
                    "vcpus": vm.vcpus,
                    "memory_mb": vm.memory_mb,
                    "disk_gb": vm.disk_gb,
                    "image": vm.image,
                    "slots": slots,
                    "placement": vm.placement,
                    "ssh_keys": fingerprints(&vm.ssh_keys),
                    "user_data_sha256": vm.user_data_sha256,
                    "guest_token": shape.guest_token,
                    "expires_at": vm.expires_at,
                    "auto_delete_on_stop": vm.auto_delete_on_stop,
                })),
                ..NewEvent::default()
            },
            cause,
        )?;
        let stored = StoredVm {
            vm: vm.clone(),
            audit_index,
            guest_holder: holder,
        };
        self.insert_vm(&stored, expires_at)?;
        if let Some(content) = &shape.user_data {
            self.keep_user_data(&vm, content)?;
        }
        self.note_charges(tenant, &shape.project, vm_id, &wanted.amounts)?;
        self.claim_slots(tenant, &shape.project, vm_id, &slots, cause)?;
        let phase = match order {
            Some(_) => state_text(state),
            None => "placing",
        };
        self.insert_operation(operation, &vm, TaskKind::Create, phase)?;
        debug_assert_eq!(self.stored_vm(vm_id)?.as_ref(), Some(&stored));
        if let Some((node, kind)) = order {
            self.take_room(node, &vm)?;
            self.sign_task(&stored, kind, StopOrder::default(), cause)?;
        }
        if !slots.is_empty() {
            vm.slots = self.vm_slots(vm_id)?;
        }
        Ok(CreatedVm { vm, wake: node })
    }

    fn insert_vm(&mut self, new: &StoredVm, expires_at: Option<i64>) -> Result<(), StoreError> {
        let vm = &new.vm;
        let unstorable = |what| move |_| StoreError::Unstorable { what };
        let labels = serde_json::to_string(&vm.labels).map_err(unstorable("label list"))?;
        let ssh_keys = serde_json::to_string(&vm.ssh_keys).map_err(unstorable("SSH keys"))?;
        let placement = vm.placement.as_ref().map(serde_json::to_string).transpose();
        let placement = placement.map_err(unstorable("placement"))?;
        let apart = wishes_of(vm.placement.as_ref()).apart;
        let values: [&dyn ToValue; 27] = [
            &vm.id.to_string(),
            &vm.tenant_id.as_str(),
            &vm.project_id.as_str(),
            &vm.name,
            &state_text(vm.state),
            &self.now,
            &due_ms(self.now, vm.state, 0),
            &state_text(vm.desired_state),
            &vm.generation,
            &vm.size,
            &vm.vcpus,
            &vm.memory_mb,
            &vm.disk_gb,
            &vm.image,
            &vm.node_id.map(|node| node.to_string()),
            &placement,
            &apart.as_ref().map(|apart| &apart.group),
            &apart.as_ref().is_some_and(|apart| apart.is_required),
            &ssh_keys,
            &vm.user_data_sha256,
            &new.guest_holder,
            &expires_at,
            &vm.auto_delete_on_stop,
            &labels,
            &self.now,
            &new.audit_index,
            &vm.operation.map(|operation| operation.to_string()),
        ];
        self.conn
            .prepare_cached(
                "INSERT INTO vm (vm_id, tenant_id, project_id, name, state, state_since, state_deadline,
                 desired_state, generation, size, vcpus, memory_mb, disk_gb, image, node_id, placement,
                 apart_group, is_apart_required, ssh_keys, user_data_sha256, guest_holder, expires_at,
                 is_deleted_on_stop, labels, created_at, audit_index, operation_id)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18,
                 ?19, ?20, ?21, ?22, ?23, ?24, ?25, ?26, ?27)",
            )?
            .send(params_from_iter(values))?;
        Ok(())
    }

    /// Find nodes for VMs that wait for one; the nodes that have work now. Tenants take turns, so that one
    /// with many that wait holds up no other.
    pub(crate) fn place_waiting(&mut self) -> Result<Vec<NodeId>, StoreError> {
        let waiting: Vec<String> = self
            .conn
            .prepare_cached(
                "SELECT vm_id FROM (SELECT vm_id,
                   ROW_NUMBER() OVER (PARTITION BY tenant_id ORDER BY vm_id) AS turn FROM vm
                   WHERE state = 'pending' AND NOT EXISTS
                     (SELECT 1 FROM tenant WHERE tenant.tenant_id = vm.tenant_id
                        AND suspended_at IS NOT NULL)) AS waiting
                 ORDER BY turn, vm_id LIMIT 32",
            )?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        let mut woken = Vec::new();
        for text in waiting {
            let vm_id = crate::rows::parsed(&text, "VM id")?;
            let Some(mut stored) = self.stored_vm(vm_id)? else {
                continue;
            };
            let demand = Demand {
                tenant: stored.vm.tenant_id.clone(),
                vcpus: stored.vm.vcpus,
                memory_mib: stored.vm.memory_mb,
                disk_mib: u64::from(stored.vm.disk_gb) * 1024,
                // A VM with slots was placed when it was accepted.
                slots: Vec::new(),
                wishes: wishes_of(stored.vm.placement.as_ref()),
            };
            let decision = self.decide_placement(&stored.vm.image, &demand)?;
            if let Decision::Chosen(placement) = decision {
                let node = placement.node_id;
                self.place_on(&mut stored, node)?;
                woken.push(node);
            }
        }
        Ok(woken)
    }
}

fn made_up_name(vm_id: VmId) -> String {
    let bare = vm_id.bare();
    format!("vm-{}", bare.get(16..).unwrap_or(&bare))
}
