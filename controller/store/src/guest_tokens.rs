//! Tokens of what runs in VMs: made for one run of one VM, and ended with it.

use berth_api::ids::{TenantId, TokenId, VmId};
use berth_api::rest::{Vm, VmState};
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::revocations::Revoked;
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tenants::object;
use crate::tokens::{NewTokenRecord, RecordTokenDenied};
use crate::vms::VmRef;
use crate::writer::WriteTx;

/// What a guest's token may do.
const GUEST_SCOPE: &str = "vm.guest";
/// How long a token is good that a guest is given, if its run does not end before, in seconds.
const GIVEN_LIFETIME_S: i64 = 86_400;

/// Why a guest's token was not recorded, and so must not be handed out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestTokenDenied {
    /// There is no such VM in this namespace.
    #[error("there is no such VM")]
    NoVm,
    /// Nothing runs in it, or is about to.
    #[error("no guest runs in the VM, nor is one on its way")]
    NoGuest,
    /// As any token.
    #[error(transparent)]
    Token(#[from] RecordTokenDenied),
}

/// Whether something runs in a VM, as far as is known, or is on its way there.
fn has_guest(vm: &Vm) -> bool {
    let is_up = match vm.state {
        VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Running
        // It may well run.
        | VmState::Unreachable => true,
        VmState::Pending
        | VmState::Stopping
        | VmState::Stopped
        | VmState::Failed
        | VmState::Deleting
        | VmState::Deleted => false,
    };
    is_up && vm.desired_state == VmState::Running && vm.generation > 0
}

impl Db<'_> {
    /// The VM for whose present run a token of this tenant was made; `None` once that run is over.
    pub fn vm_of_guest_token(
        &self,
        tenant: &TenantId,
        token: TokenId,
    ) -> Result<Option<Vm>, StoreError> {
        let row: Option<(String, u64)> = self
            .conn
            .prepare_cached(
                "SELECT vm_id, generation FROM guest_token
                 WHERE token_id = ?1 AND tenant_id = ?2 AND ended_at IS NULL",
            )?
            .query_row((token.to_string(), tenant.as_str()), |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?;
        let Some((vm_id, generation)) = row else {
            return Ok(None);
        };
        let vm = self.vm(Some(tenant), &VmRef::Id(parsed(&vm_id, "VM id")?))?;
        Ok(vm.filter(|vm| vm.generation == generation && has_guest(vm)))
    }
}

impl WriteTx<'_> {
    /// Record a token for the present run of a VM of this tenant, and charge it like any other.
    pub fn record_guest_token(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
        new: &NewTokenRecord,
        cause: &Cause,
    ) -> Result<Result<(), GuestTokenDenied>, StoreError> {
        let Some(vm) = self.vm(Some(tenant), &VmRef::Id(vm_id))? else {
            return Ok(Err(GuestTokenDenied::NoVm));
        };
        if !has_guest(&vm) {
            return Ok(Err(GuestTokenDenied::NoGuest));
        }
        if let Err(denied) = self.record_token(new, cause)? {
            return Ok(Err(denied.into()));
        }
        let is_given = false;
        self.bind_guest_token(tenant, vm_id, vm.generation, new.token_id, is_given)?;
        Ok(Ok(()))
    }

    fn bind_guest_token(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
        generation: u64,
        token_id: TokenId,
        is_given: bool,
    ) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO guest_token (token_id, tenant_id, vm_id, generation, is_given)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .send((
                token_id.to_string(),
                tenant.as_str(),
                vm_id.to_string(),
                generation,
                is_given,
            ))?;
        Ok(())
    }

    /// Record the token that the guest of a VM's next run is given: it hangs on the key of whoever made
    /// the VM. Part of the order of that run. A guest whose token is refused, as its maker was revoked, or
    /// its tenant has too many or may issue none by the time of the order, runs without, and the refusal is
    /// in the ledger.
    pub(crate) fn give_guest_token(
        &mut self,
        vm: &Vm,
        generation: u64,
        holder: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        let now_s = self.now.div_euclid(1000);
        let standing = self.tenant_standing(&vm.tenant_id)?;
        if !standing.is_some_and(|standing| standing.allows("token.issue")) {
            return self.give_none(vm, holder, "permission_denied", cause);
        }
        let Some(begins_at_s) = self.revoked_at(&vm.tenant_id)?.begin(holder, now_s) else {
            return self.give_none(vm, holder, "token_revoked", cause);
        };
        let new = NewTokenRecord {
            token_id: TokenId::generate(),
            tenant_id: Some(vm.tenant_id.clone()),
            scope: vec![GUEST_SCOPE.to_owned()],
            resources: Some(vec![vm.id.to_string()]),
            requires_pop: false,
            subject_pubkey: holder.to_owned(),
            label: None,
            issued_at_s: begins_at_s,
            expires_at_s: begins_at_s.saturating_add(GIVEN_LIFETIME_S),
            vm_id: Some(vm.id),
        };
        if self.record_token(&new, cause)?.is_ok() {
            let is_given = true;
            self.bind_guest_token(&vm.tenant_id, vm.id, generation, new.token_id, is_given)?;
        }
        Ok(())
    }

    fn give_none(
        &mut self,
        vm: &Vm,
        holder: &str,
        code: &str,
        cause: &Cause,
    ) -> Result<(), StoreError> {
        self.append(
            NewEvent {
                event_type: "TOKEN_ISSUE_DENIED",
                tenant_id: Some(vm.tenant_id.clone()),
                vm_id: Some(vm.id),
                outcome: "denied",
                code: Some(code.to_owned()),
                detail: object(json!({ "subject_pubkey": holder })),
                ..NewEvent::default()
            },
            cause,
        )?;
        Ok(())
    }

    /// The run of a VM is over: its guest's tokens count no longer and are charged no longer. Part of
    /// the order that ends it, whose event the caller appends.
    pub(crate) fn end_guest_tokens(
        &mut self,
        tenant: &TenantId,
        vm_id: VmId,
    ) -> Result<(), StoreError> {
        let ended: Vec<String> = self
            .conn
            .prepare_cached(
                "UPDATE guest_token SET ended_at = ?2 WHERE vm_id = ?1 AND ended_at IS NULL
                 RETURNING token_id",
            )?
            .query_map((vm_id.to_string(), self.now), |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for token in ended {
            let token = Revoked::Link(parsed(&token, "token id")?);
            self.end_token_charges(tenant, &token)?;
        }
        Ok(())
    }
}
