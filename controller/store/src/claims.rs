//! Claims: made with their VM, ended by their host's proof.
//!
//! The partial unique index on live claims and the condition in [`WriteTx::claim_slots`] are what keeps
//! two VMs off one slot, whatever anybody decided before.

use berth_api::ids::{ClaimId, EventId, NodeId, ProjectId, SlotId, TenantId, VmId};
use berth_api::slot::Claim;
use berth_controller_core::quota::Resource;
use berth_controller_core::slot::ClaimStep;
use berth_ledger::passport::NEVER_HEARD;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::passports::SlotMark;
use crate::quota::Amounts;
use crate::rows::parsed;
use crate::slot_sync::slot_event;
use crate::slots::StoredSlot;
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// That nothing stands against a claim of a slot: in SQL what `SlotFacts::obstacle` says, for a moment
/// when somebody else may have been quicker.
pub(crate) const CLAIMABLE: &str =
    "host_state = 'free' AND problem_code IS NULL AND is_reported = 1
    AND quarantined_at IS NULL AND wipe_required_after IS NULL AND admitted_identity = identity
    AND NOT EXISTS (SELECT 1 FROM claim WHERE claim.slot_id = slot.slot_id AND claim.state = 'live')
    AND NOT EXISTS (SELECT 1 FROM slot_task
      WHERE slot_task.slot_id = slot.slot_id AND slot_task.state = 'pending')";

impl Db<'_> {
    /// The claims that a VM's creation carries.
    pub(crate) fn claims_of(&self, vm_id: VmId) -> Result<Vec<Claim>, StoreError> {
        let mut select = self.conn.prepare_cached(
            "SELECT slot_id, claim_id, fencing_epoch FROM claim
             WHERE vm_id = ?1 AND state = 'live' ORDER BY slot_id",
        )?;
        let rows = select.query_map([vm_id.to_string()], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, String>(1)?,
                row.get::<_, u64>(2)?,
            ))
        })?;
        rows.map(|row| {
            let (slot_id, claim_id, fencing_epoch) = row?;
            Ok(Claim {
                slot_id: parsed(&slot_id, "slot id")?,
                claim_id: parsed(&claim_id, "claim id")?,
                fencing_epoch,
            })
        })
        .collect()
    }
}

impl WriteTx<'_> {
    /// Claim chosen slots for a VM whose row is there and whose owner is charged for them.
    pub(crate) fn claim_slots(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        vm_id: VmId,
        slots: &[SlotId],
        cause: &Cause,
    ) -> Result<(), StoreError> {
        for slot_id in slots {
            let raise_epoch = format!(
                "UPDATE slot SET own_epoch =
                 CASE WHEN own_epoch > host_epoch THEN own_epoch ELSE host_epoch END + 1
                 WHERE slot_id = ?1 AND {CLAIMABLE}"
            );
            let raised = self
                .conn
                .prepare_cached(&raise_epoch)?
                .execute([slot_id.to_string()])?;
            let slot =
                self.stored_slot(*slot_id)?
                    .filter(|_| raised == 1)
                    .ok_or(StoreError::Corrupt {
                        what: "slot that was chosen",
                    })?;
            self.claim_slot(tenant, project, vm_id, &slot, cause)?;
        }
        Ok(())
    }

    fn claim_slot(
        &mut self,
        tenant: &TenantId,
        project: &ProjectId,
        vm_id: VmId,
        slot: &StoredSlot,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let claim_id = ClaimId::generate();
        let fencing_epoch = slot.own_epoch;
        self.append_marked(
            NewEvent {
                event_type: "SLOT_CLAIMED",
                tenant_id: Some(tenant.clone()),
                vm_id: Some(vm_id),
                node_id: Some(slot.node_id),
                outcome: "accepted",
                detail: object(json!({
                    "slot_id": slot.slot_id,
                    "class": slot.class,
                    "claim_id": claim_id,
                    "fencing_epoch": fencing_epoch,
                })),
                ..NewEvent::default()
            },
            (slot.slot_id, SlotMark::Claimed(vm_id), fencing_epoch),
            cause,
        )?;
        self.conn
            .prepare_cached(
                "INSERT INTO claim (claim_id, slot_id, tenant_id, project_id, vm_id, class, fencing_epoch,
                 state, charged, claimed_at) VALUES (?1, ?2, ?3, ?8, ?4, ?5, ?6, 'live', 1, ?7)",
            )?
            .send((
                claim_id.to_string(),
                slot.slot_id.to_string(),
                tenant.as_str(),
                vm_id.to_string(),
                &slot.class,
                fencing_epoch,
                self.now,
                project.as_str(),
            ))?;
        Ok(())
    }

    /// The tenant cannot use the slots any more: end the charge, not the claims.
    pub(crate) fn release_slot_charges(&mut self, vm_id: VmId) -> Result<(), StoreError> {
        self.end_slot_charges("vm_id", &vm_id.to_string())
    }

    fn end_slot_charges(&mut self, column: &'static str, id: &str) -> Result<(), StoreError> {
        let ended: Vec<(String, String, String)> = self
            .conn
            .prepare_cached(&format!(
                "UPDATE claim SET charged = 0 WHERE {column} = ?1 AND charged = 1
                 RETURNING tenant_id, project_id, class"
            ))?
            .query_map([id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
            .collect::<Result<_, _>>()?;
        for (tenant, project, class) in ended {
            let one = Amounts::from([(Resource::Slots(class), 1)]);
            let tenant = parsed(&tenant, "tenant id")?;
            self.uncharge(&tenant, &parsed(&project, "project id")?, &one)?;
        }
        Ok(())
    }

    /// See which claims on a node's slots are over, by what its host has shown up to here. A proof is
    /// missed only once the host has told all that it has.
    pub(crate) fn settle_claims(
        &mut self,
        node: NodeId,
        has_told_all: bool,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        for slot in self.slots_on(node)?.into_values() {
            let Some(claim) = slot.live_claim() else {
                continue;
            };
            let how = match claim.judge(slot.host_state, slot.host_epoch) {
                ClaimStep::Keep => continue,
                ClaimStep::EndProved => "wiped",
                ClaimStep::EndUnheard => NEVER_HEARD,
                ClaimStep::OrderWipe => {
                    // Ordered once; if its host refuses, an operator has to look.
                    if has_told_all && slot.wipe_required_after.is_none() {
                        self.order_wipe(&slot, &Cause::controller())?;
                    }
                    continue;
                }
            };
            self.end_claim(&slot, how, cause)?;
        }
        Ok(())
    }

    fn end_claim(
        &mut self,
        slot: &StoredSlot,
        how: &'static str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let Some(claim) = &slot.claim else {
            return Ok(());
        };
        let holder = &claim.live.holder;
        let claim_id = holder.claim.claim_id.to_string();
        let wiped_by: Option<String> = self
            .conn
            .prepare_cached("SELECT wiped_by FROM claim WHERE claim_id = ?1")?
            .query_row([&claim_id], |row| row.get(0))?;
        let event_id = EventId::generate();
        let fencing_epoch = holder.claim.fencing_epoch;
        let bare = json!({ "fencing_epoch": fencing_epoch, "because": how });
        let bare = slot_event("SLOT_RELEASED", slot.node_id, slot.slot_id, bare);
        let mut event = NewEvent {
            event_id: Some(event_id),
            tenant_id: Some(holder.tenant_id.clone()),
            vm_id: Some(holder.vm_id),
            ..bare.clone()
        };
        event.detail.append(&mut object(json!({
            "claim_id": claim_id,
            "wipe_receipt": wiped_by,
        })));
        self.append(event, cause)?;
        // What the next tenant is shown: that this claim is none that could have left anything.
        if how == NEVER_HEARD {
            let at = (slot.slot_id, SlotMark::Unheard, fencing_epoch);
            self.append_bare(bare, at, event_id, cause)?;
        }
        self.end_slot_charges("claim_id", &claim_id)?;
        self.conn
            .prepare_cached("UPDATE claim SET state = 'over', ended_at = ?2 WHERE claim_id = ?1")?
            .send((&claim_id, self.now))?;
        Ok(())
    }
}
