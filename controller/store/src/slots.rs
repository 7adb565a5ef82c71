//! Slots as they are stored, and how operators and tenants are shown them.
//!
//! A slot's row holds what its host says beside what the controller adds. What both mean together is
//! `berth_controller_core::slot`'s to say.

use std::collections::BTreeMap;

use berth_api::ids::{ClaimId, NodeId, SlotId, TaskId, TenantId, VmId};
use berth_api::rest::{Slot, SlotAdmission, SlotClaim, SlotClass, SlotQuarantine, VmSlot};
use berth_api::slot::{Claim, ObservedSlot, SlotHolder, SlotProblem, SlotState};
use berth_controller_core::placement::SlotCandidate;
use berth_controller_core::slot::{Admission, LiveClaim, SlotFacts};
use serde_json::{Value, json};

use crate::error::StoreError;
use crate::rows::{parsed, parsed_option, rfc3339};
use crate::sql::{OptionalExtension as _, Row};
use crate::store::Db;

const SELECT: &str =
    "SELECT slot.slot_id, slot.node_id, name, slot.class, host_state, problem_code,
    problem_message, slot.generation, host_epoch, own_epoch, progress_percent, holder, devices,
    identity, is_reported, reported_at, admitted_identity, admitted_at, admitted_by,
    quarantined_at, quarantined_by, quarantine_reason, wipe_required_after,
    claim_id, claim.vm_id, claim.tenant_id, claim.fencing_epoch, claimed_at, charged,
    seen_generation, wiped_by IS NOT NULL AS is_wipe_proved,
    (SELECT vm.state = 'deleted' FROM vm WHERE vm.vm_id = claim.vm_id) AS is_vm_gone,
    (SELECT task_id FROM slot_task WHERE slot_task.slot_id = slot.slot_id
      AND slot_task.state = 'pending') AS pending_task
    FROM slot LEFT JOIN claim ON claim.slot_id = slot.slot_id AND claim.state = 'live'";

/// What decides whether a slot can be claimed, without what only people read.
const SELECT_FACTS: &str = "SELECT slot.slot_id, slot.node_id, slot.class, numa_node, host_state,
    problem_code, is_reported,
    CASE WHEN admitted_identity IS NULL THEN 0 WHEN admitted_identity = identity THEN 1 ELSE 2 END
      AS admission,
    quarantined_at IS NOT NULL AS is_quarantined,
    wipe_required_after IS NOT NULL OR EXISTS (SELECT 1 FROM slot_task
      WHERE slot_task.slot_id = slot.slot_id AND slot_task.state = 'pending') AS awaits_wipe,
    claim.claim_id IS NOT NULL AS is_claimed,
    EXISTS (SELECT 1 FROM vm WHERE vm.vm_id = claim.vm_id AND vm.state = 'deleted') AS is_vm_gone
    FROM slot LEFT JOIN claim ON claim.slot_id = slot.slot_id AND claim.state = 'live'";

/// Which slots to list.
#[derive(Clone, Debug, Default)]
pub struct SlotFilter {
    /// Only those that stand here, all considered.
    pub state: Option<SlotState>,
    /// Only this class.
    pub class: Option<String>,
    /// Only this node's.
    pub node_id: Option<NodeId>,
    /// After this id.
    pub after: String,
    /// At most so many.
    pub limit: u32,
}

/// A slot as stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredSlot {
    pub(crate) slot_id: SlotId,
    pub(crate) node_id: NodeId,
    pub(crate) name: String,
    pub(crate) class: String,
    pub(crate) host_state: SlotState,
    pub(crate) problem: Option<SlotProblem>,
    pub(crate) generation: u64,
    pub(crate) host_epoch: u64,
    pub(crate) own_epoch: u64,
    pub(crate) progress_percent: Option<u8>,
    /// JSON as stored.
    pub(crate) holder: Option<String>,
    /// JSON as stored.
    pub(crate) devices: String,
    /// JSON of what an admission holds for.
    pub(crate) identity: String,
    pub(crate) is_reported: bool,
    reported_at: i64,
    admission: Option<(String, i64, String)>,
    quarantine: Option<(i64, String, String)>,
    pub(crate) wipe_required_after: Option<u64>,
    pub(crate) pending_task: Option<TaskId>,
    pub(crate) claim: Option<StoredClaim>,
}

/// A live claim as stored.
#[derive(Clone, Debug)]
pub(crate) struct StoredClaim {
    pub(crate) live: LiveClaim,
    pub(crate) charged: bool,
    claimed_at: i64,
}

impl StoredSlot {
    pub(crate) fn facts(&self) -> SlotFacts {
        let problem = self.problem.as_ref().map(|problem| problem.code);
        let admission = match &self.admission {
            None => Admission::None,
            Some((identity, _, _)) if *identity == self.identity => Admission::Holds,
            Some(_) => Admission::Void,
        };
        let claim = self.claim.as_ref();
        SlotFacts {
            host_state: self.host_state,
            problem,
            is_reported: self.is_reported,
            admission,
            is_quarantined: self.is_quarantined(),
            awaits_wipe: self.wipe_required_after.is_some() || self.pending_task.is_some(),
            is_claimed: claim.is_some(),
            is_vm_gone: claim.is_some_and(|claim| claim.live.is_vm_gone),
        }
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantine.is_some()
    }

    pub(crate) fn live_claim(&self) -> Option<&LiveClaim> {
        self.claim.as_ref().map(|claim| &claim.live)
    }

    /// The epoch under which an order about the slot is taken by its host.
    pub(crate) fn epoch(&self) -> u64 {
        self.host_epoch.max(self.own_epoch)
    }

    fn into_view(self) -> Result<Slot, StoreError> {
        let facts = self.facts();
        let obstacle = facts.obstacle();
        let corrupt = |_| StoreError::Corrupt {
            what: "slot's devices",
        };
        let admission = self.admission.map(|(_, at, by)| SlotAdmission {
            at: rfc3339(at),
            by,
            holds: facts.admission == Admission::Holds,
        });
        let quarantine = self.quarantine.map(|(at, by, reason)| SlotQuarantine {
            at: rfc3339(at),
            by,
            reason,
        });
        let claim = self.claim.map(|claim| SlotClaim {
            claim_id: claim.live.holder.claim.claim_id,
            vm_id: claim.live.holder.vm_id,
            tenant_id: claim.live.holder.tenant_id,
            fencing_epoch: claim.live.holder.claim.fencing_epoch,
            claimed_at: rfc3339(claim.claimed_at),
            charged: claim.charged,
        });
        Ok(Slot {
            id: self.slot_id,
            name: self.name,
            class: self.class,
            node_id: self.node_id,
            state: facts.shown_state(),
            host_state: self.host_state,
            claimable: obstacle.is_none(),
            obstacle: obstacle.map(|obstacle| obstacle.code().to_owned()),
            problem: self.problem,
            progress_percent: self.progress_percent,
            admission,
            quarantine,
            wipe_required: self.wipe_required_after.is_some(),
            claim,
            generation: self.generation,
            fencing_epoch: self.host_epoch,
            devices: serde_json::from_str(&self.devices).map_err(corrupt)?,
            reported_at: rfc3339(self.reported_at),
            pending_task: self.pending_task,
            receipts: Vec::new(),
        })
    }
}

impl Db<'_> {
    /// Slots in the order of their ids.
    pub fn slots(&self, filter: &SlotFilter) -> Result<Vec<Slot>, StoreError> {
        let sql = format!(
            "{SELECT} WHERE slot.slot_id > ?1 AND (?2 IS NULL OR slot.class = ?2)
             AND (?3 IS NULL OR slot.node_id = ?3) ORDER BY slot.slot_id"
        );
        let node = filter.node_id.map(|node| node.to_string());
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select.query_map((&filter.after, &filter.class, node), |row| {
            Ok(stored_slot(row))
        })?;
        let limit = usize::try_from(filter.limit).unwrap_or(usize::MAX);
        let mut slots = Vec::new();
        for row in rows {
            if slots.len() >= limit {
                break;
            }
            let slot = row??.into_view()?;
            if filter.state.is_none_or(|state| state == slot.state) {
                slots.push(slot);
            }
        }
        Ok(slots)
    }

    /// One slot, without its receipts.
    pub fn slot(&self, id: SlotId) -> Result<Option<Slot>, StoreError> {
        self.stored_slot(id)?.map(StoredSlot::into_view).transpose()
    }

    pub(crate) fn stored_slot(&self, id: SlotId) -> Result<Option<StoredSlot>, StoreError> {
        let sql = format!("{SELECT} WHERE slot.slot_id = ?1");
        self.conn
            .prepare_cached(&sql)?
            .query_row([id.to_string()], |row| Ok(stored_slot(row)))
            .optional()?
            .transpose()
    }

    /// All slots of one node by id.
    pub(crate) fn slots_on(
        &self,
        node: NodeId,
    ) -> Result<BTreeMap<SlotId, StoredSlot>, StoreError> {
        let sql = format!("{SELECT} WHERE slot.node_id = ?1");
        let mut select = self.conn.prepare_cached(&sql)?;
        let rows = select.query_map([node.to_string()], |row| Ok(stored_slot(row)))?;
        rows.map(|row| row?.map(|slot| (slot.slot_id, slot)))
            .collect()
    }

    /// Slots as placement sees them, by node: those of which `condition` is true, where `?1` is `text`.
    pub(crate) fn slot_candidates(
        &self,
        condition: &'static str,
        text: &str,
    ) -> Result<BTreeMap<NodeId, Vec<SlotCandidate>>, StoreError> {
        let mut candidates: BTreeMap<NodeId, Vec<SlotCandidate>> = BTreeMap::new();
        let sql = format!("{SELECT_FACTS} WHERE {condition}");
        let mut select = self.conn.prepare_cached(&sql)?;
        for row in select.query_map([text], |row| Ok(slot_with_facts(row)))? {
            let (node, slot, facts) = row??;
            candidates.entry(node).or_default().push(SlotCandidate {
                obstacle: facts.obstacle(),
                ..slot
            });
        }
        Ok(candidates)
    }

    /// How many slots of each class a node has, by state.
    pub(crate) fn slot_counts(
        &self,
        node: NodeId,
    ) -> Result<BTreeMap<String, BTreeMap<String, u32>>, StoreError> {
        let mut counts: BTreeMap<String, BTreeMap<String, u32>> = BTreeMap::new();
        let sql = format!("{SELECT_FACTS} WHERE slot.node_id = ?1");
        let mut select = self.conn.prepare_cached(&sql)?;
        for row in select.query_map([node.to_string()], |row| Ok(slot_with_facts(row)))? {
            let (_, slot, facts) = row??;
            let of_class = counts.entry(slot.class).or_default();
            let count = of_class.entry(text_of(&facts.shown_state())).or_default();
            *count = count.saturating_add(1);
        }
        Ok(counts)
    }

    /// Classes after a name, in the order of their names: those that a tenant may use, or all of
    /// them with exact numbers.
    pub fn slot_classes(
        &self,
        tenant: Option<&TenantId>,
        after: &str,
        limit: u32,
    ) -> Result<Vec<SlotClass>, StoreError> {
        // Free and all slots of each class.
        let mut classes: BTreeMap<String, (u32, u32)> = match tenant {
            None => BTreeMap::new(),
            Some(tenant) => self
                .slot_limits(tenant)?
                .into_keys()
                .map(|class| (class, (0, 0)))
                .collect(),
        };
        let slots = self.slot_candidates("slot.slot_id > ?1", "")?;
        for slot in slots.into_values().flatten() {
            let counts = match tenant {
                None => Some(classes.entry(slot.class).or_default()),
                Some(_) => classes.get_mut(&slot.class),
            };
            if let Some((free, total)) = counts {
                *free = free.saturating_add(slot.obstacle.is_none().into());
                *total = total.saturating_add(1);
            }
        }
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let exact = tenant.is_none();
        Ok(classes
            .into_iter()
            .filter(|(class, _)| class.as_str() > after)
            .take(limit)
            .map(|(class, (free, total))| SlotClass {
                class,
                available: bucket(free).to_owned(),
                free: exact.then_some(free),
                total: exact.then_some(total),
                price: None,
            })
            .collect())
    }

    /// The slots that a VM holds, or left and are not proved clean yet.
    pub(crate) fn vm_slots(&self, vm_id: VmId) -> Result<Vec<VmSlot>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT slot.slot_id, slot.class, claim_id, host_state, problem_code, problem_message
             FROM claim JOIN slot ON slot.slot_id = claim.slot_id
             WHERE claim.vm_id = ?1 AND claim.state = 'live' ORDER BY slot.slot_id",
        )?;
        let rows = select.query_map([vm_id.to_string()], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, String>(2)?,
                row.get::<_, String>(3)?,
                row.get::<_, Option<String>>(4)?,
                row.get::<_, Option<String>>(5)?,
            ))
        })?;
        rows.map(|row| {
            let (slot_id, class, claim_id, state, code, message) = row?;
            Ok(VmSlot {
                slot_id: parsed(&slot_id, "slot id")?,
                class,
                claim_id: parsed(&claim_id, "claim id")?,
                state: word(&state, "slot state")?,
                problem: problem_of(code, message)?,
            })
        })
        .collect()
    }
}

/// What tenants are told of a number that would tell of others' use.
fn bucket(free: u32) -> &'static str {
    match free {
        0 => "0",
        1..=3 => "1-3",
        _ => "4+",
    }
}

fn slot_with_facts(row: &Row<'_>) -> Result<(NodeId, SlotCandidate, SlotFacts), StoreError> {
    let problem: Option<String> = row.get("problem_code")?;
    let admission = match row.get::<_, u8>("admission")? {
        0 => Admission::None,
        1 => Admission::Holds,
        _ => Admission::Void,
    };
    let slot = SlotCandidate {
        slot_id: parsed(&row.get::<_, String>("slot_id")?, "slot id")?,
        class: row.get("class")?,
        numa_node: row.get("numa_node")?,
        obstacle: None,
    };
    let facts = SlotFacts {
        host_state: word(&row.get::<_, String>("host_state")?, "slot state")?,
        problem: problem
            .map(|code| word(&code, "slot problem"))
            .transpose()?,
        is_reported: row.get("is_reported")?,
        admission,
        is_quarantined: row.get("is_quarantined")?,
        awaits_wipe: row.get("awaits_wipe")?,
        is_claimed: row.get("is_claimed")?,
        is_vm_gone: row.get("is_vm_gone")?,
    };
    let node = parsed(&row.get::<_, String>("node_id")?, "node id")?;
    Ok((node, slot, facts))
}

fn stored_slot(row: &Row<'_>) -> Result<StoredSlot, StoreError> {
    let slot_id: SlotId = parsed(&row.get::<_, String>("slot_id")?, "slot id")?;
    let admission = match row.get("admitted_identity")? {
        None => None,
        Some(identity) => Some((identity, row.get("admitted_at")?, row.get("admitted_by")?)),
    };
    let quarantine = match row.get("quarantined_at")? {
        None => None,
        Some(at) => Some((
            at,
            row.get("quarantined_by")?,
            row.get("quarantine_reason")?,
        )),
    };
    Ok(StoredSlot {
        slot_id,
        node_id: parsed(&row.get::<_, String>("node_id")?, "node id")?,
        name: row.get("name")?,
        class: row.get("class")?,
        host_state: word(&row.get::<_, String>("host_state")?, "slot state")?,
        problem: problem_of(row.get("problem_code")?, row.get("problem_message")?)?,
        generation: row.get("generation")?,
        host_epoch: row.get("host_epoch")?,
        own_epoch: row.get("own_epoch")?,
        progress_percent: row.get("progress_percent")?,
        holder: row.get("holder")?,
        devices: row.get("devices")?,
        identity: row.get("identity")?,
        is_reported: row.get("is_reported")?,
        reported_at: row.get("reported_at")?,
        admission,
        quarantine,
        wipe_required_after: row.get("wipe_required_after")?,
        pending_task: parsed_option(row.get("pending_task")?, "task id")?,
        claim: stored_claim(slot_id, row)?,
    })
}

fn stored_claim(slot_id: SlotId, row: &Row<'_>) -> Result<Option<StoredClaim>, StoreError> {
    let claim_id: Option<ClaimId> = parsed_option(row.get("claim_id")?, "claim id")?;
    let Some(claim_id) = claim_id else {
        return Ok(None);
    };
    Ok(Some(StoredClaim {
        live: LiveClaim {
            holder: SlotHolder {
                claim: Claim {
                    slot_id,
                    claim_id,
                    fencing_epoch: row.get("fencing_epoch")?,
                },
                vm_id: parsed(&row.get::<_, String>("vm_id")?, "VM id")?,
                tenant_id: parsed(&row.get::<_, String>("tenant_id")?, "tenant id")?,
            },
            seen_generation: row.get("seen_generation")?,
            is_wipe_proved: row.get("is_wipe_proved")?,
            is_vm_gone: row.get("is_vm_gone")?,
        },
        charged: row.get("charged")?,
        claimed_at: row.get("claimed_at")?,
    }))
}

fn problem_of(
    code: Option<String>,
    message: Option<String>,
) -> Result<Option<SlotProblem>, StoreError> {
    code.map(|code| {
        Ok(SlotProblem {
            code: word(&code, "slot problem")?,
            message: message.unwrap_or_default(),
        })
    })
    .transpose()
}

/// A stored word of the contract.
pub(crate) fn word<T: serde::de::DeserializeOwned>(
    text: &str,
    what: &'static str,
) -> Result<T, StoreError> {
    serde_json::from_value(Value::String(text.to_owned())).map_err(|_| StoreError::Corrupt { what })
}

/// A word of the contract as its own wire text.
pub(crate) fn text_of(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

/// What an admission holds for: class and devices, without where they are now.
pub(crate) fn identity_of(slot: &ObservedSlot) -> String {
    let mut devices: Vec<_> = slot
        .devices
        .iter()
        .map(|device| json!({ "kind": device.kind, "identity": device.identity }))
        .collect();
    devices.sort_by_key(Value::to_string);
    json!({ "class": slot.class, "devices": devices }).to_string()
}
