//! Tokens of what runs in VMs: made for one run of one VM, and ended with it.

use berth_api::ids::{TenantId, TokenId, VmId};
use berth_api::rest::{Vm, VmState};

use crate::error::StoreError;
use crate::ledger::Cause;
use crate::revocations::Revoked;
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tokens::{NewTokenRecord, RecordTokenDenied};
use crate::vms::VmRef;
use crate::writer::WriteTx;

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
        self.conn
            .prepare_cached(
                "INSERT INTO guest_token (token_id, tenant_id, vm_id, generation)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                new.token_id.to_string(),
                tenant.as_str(),
                vm_id.to_string(),
                vm.generation,
            ))?;
        Ok(Ok(()))
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
