//! What guests are given: the keys, user data and tokens of VMs, as their next message to the node
//! carries them. Tokens are not here, only what they are minted from.

use std::fmt;

use berth_api::ids::{NodeId, TaskId, TenantId, TokenId, VmId};
use berth_api::rest::Vm;
use berth_controller_core::seed::key_blob;
use berth_ledger::merkle::Hash;
use serde_json::json;

use crate::error::StoreError;
use crate::ledger::{Cause, NewEvent};
use crate::rows::parsed;
use crate::sql::OptionalExtension as _;
use crate::store::Db;
use crate::tenants::object;
use crate::writer::WriteTx;

/// What the guest of one run is given.
#[derive(Clone, PartialEq, Eq)]
pub struct SeedOrder {
    /// The task that orders the run.
    pub task_id: TaskId,
    /// Who gets it.
    pub node_id: NodeId,
    /// Which VM.
    pub vm_id: VmId,
    /// Which run.
    pub generation: u64,
    /// The VM's name.
    pub name: String,
    /// OpenSSH public keys.
    pub ssh_keys: Vec<String>,
    /// User data.
    pub user_data: Option<String>,
    /// The token, if it gets one.
    pub token: Option<GivenToken>,
}

/// All that a given token is minted from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenToken {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for.
    pub tenant_id: TenantId,
    /// base64url of the holder's public key.
    pub holder: String,
    /// Seconds since the epoch.
    pub issued_at_s: i64,
    /// Seconds since the epoch.
    pub expires_at_s: i64,
}

impl fmt::Debug for SeedOrder {
    /// Without the user data, which is nobody's business but the guest's.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeedOrder")
            .field("task_id", &self.task_id)
            .field("vm_id", &self.vm_id)
            .field("generation", &self.generation)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}

struct OrderRow {
    vm_id: String,
    tenant_id: String,
    node_id: String,
    generation: u64,
    name: String,
    ssh_keys: String,
    has_user_data: bool,
    has_token: bool,
}

/// A hash of user data as it is shown: lower-case hex.
pub(crate) fn user_data_hash(text: &str) -> String {
    Hash::of_bytes(text.as_bytes()).to_string()
}

/// What `ssh-keygen -l` says of each key.
pub(crate) fn fingerprints(keys: &[String]) -> Vec<String> {
    let fingerprint = |blob: Vec<u8>| {
        let hash = Hash::of_bytes(&blob).to_base64();
        format!("SHA256:{}", hash.trim_end_matches('='))
    };
    keys.iter()
        .filter_map(|key| key_blob(key).map(fingerprint))
        .collect()
}

impl Db<'_> {
    /// What the guest is given at the start that an unanswered task orders; `None` if nothing.
    pub fn seed_of_task(&self, task_id: TaskId) -> Result<Option<SeedOrder>, StoreError> {
        let row = self
            .conn
            .prepare_cached(
                "SELECT task.vm_id, task.tenant_id, task.node_id, task.generation, vm.name, vm.ssh_keys,
                   vm.user_data_sha256 IS NOT NULL, vm.guest_holder IS NOT NULL
                 FROM task JOIN vm ON vm.vm_id = task.vm_id
                 WHERE task.task_id = ?1 AND task.state = 'pending'
                 AND task.kind IN ('create', 'start')",
            )?
            .query_row((task_id.to_string(),), |row| {
                Ok(OrderRow {
                    vm_id: row.get(0)?,
                    tenant_id: row.get(1)?,
                    node_id: row.get(2)?,
                    generation: row.get(3)?,
                    name: row.get(4)?,
                    ssh_keys: row.get(5)?,
                    has_user_data: row.get(6)?,
                    has_token: row.get(7)?,
                })
            })
            .optional()?;
        let Some(row) = row else {
            return Ok(None);
        };
        let ssh_keys = key_list(&row.ssh_keys)?;
        let user_data = match row.has_user_data {
            true => self.user_data(&row)?,
            false => None,
        };
        let token = match row.has_token {
            true => self.given_token(&row)?,
            false => None,
        };
        if ssh_keys.is_empty() && user_data.is_none() && token.is_none() {
            return Ok(None);
        }
        Ok(Some(SeedOrder {
            task_id,
            node_id: parsed(&row.node_id, "node id")?,
            vm_id: parsed(&row.vm_id, "VM id")?,
            generation: row.generation,
            name: row.name,
            ssh_keys,
            user_data,
            token,
        }))
    }

    fn user_data(&self, row: &OrderRow) -> Result<Option<String>, StoreError> {
        Ok(self
            .conn
            .prepare_cached("SELECT content FROM vm_user_data WHERE tenant_id = ?1 AND vm_id = ?2")?
            .query_row((&row.tenant_id, &row.vm_id), |row| row.get(0))
            .optional()?)
    }

    fn given_token(&self, row: &OrderRow) -> Result<Option<GivenToken>, StoreError> {
        let found: Option<(String, String, i64, i64)> = self
            .conn
            .prepare_cached(
                "SELECT t.token_id, t.subject_key, t.issued_at, t.expires_at
                 FROM guest_token g JOIN token t ON t.token_id = g.token_id
                 WHERE g.vm_id = ?1 AND g.tenant_id = ?2 AND g.generation = ?3
                 AND g.is_given = 1 AND g.ended_at IS NULL",
            )?
            .query_row((&row.vm_id, &row.tenant_id, row.generation), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
            })
            .optional()?;
        found
            .map(|(token_id, holder, issued_at, expires_at)| {
                Ok(GivenToken {
                    token_id: parsed(&token_id, "token id")?,
                    tenant_id: parsed(&row.tenant_id, "tenant id")?,
                    holder,
                    issued_at_s: issued_at.div_euclid(1000),
                    expires_at_s: expires_at.div_euclid(1000),
                })
            })
            .transpose()
    }
}

impl WriteTx<'_> {
    /// Keep the user data of a VM. Part of its creation, whose event the caller appends.
    pub(crate) fn keep_user_data(&mut self, vm: &Vm, content: &str) -> Result<(), StoreError> {
        self.conn
            .prepare_cached(
                "INSERT INTO vm_user_data (tenant_id, vm_id, content) VALUES (?1, ?2, ?3)",
            )?
            .send((vm.tenant_id.as_str(), vm.id.to_string(), content))?;
        Ok(())
    }

    /// The guest of a VM's present run says that it is set up. Its VM's user data is needed no more, and is
    /// gone from here; what the guest has of it and all else that it was given is to go from its host.
    /// Repeatable: the first report of a run counts, and no other is an event. Returns the node that has
    /// work now.
    pub fn report_boot(&mut self, vm: &Vm, cause: &Cause) -> Result<Option<NodeId>, StoreError> {
        let is_first = vm.booted_at.is_none();
        let has_data = is_first && vm.user_data_sha256.is_some();
        let has_medium = has_data || vm.guest_token || !vm.ssh_keys.is_empty();
        let ejects = has_medium && !self.has_ejection(vm)?;
        if !is_first && !ejects {
            return Ok(None);
        }
        let index = self.append(
            NewEvent {
                event_type: "VM_BOOT_REPORTED",
                tenant_id: Some(vm.tenant_id.clone()),
                vm_id: Some(vm.id),
                node_id: vm.node_id,
                outcome: "completed",
                detail: object(json!({ "generation": vm.generation })),
                ..NewEvent::default()
            },
            cause,
        )?;
        if is_first {
            self.conn
                .prepare_cached("UPDATE vm SET booted_at = ?2 WHERE vm_id = ?1")?
                .send((vm.id.to_string(), self.now))?;
            self.forget_user_data(vm)?;
        }
        if !ejects {
            return Ok(None);
        }
        self.eject_seed(vm, index)?;
        Ok(vm.node_id)
    }

    /// Nothing of a VM's user data is needed any more. Part of the change that says so.
    pub(crate) fn forget_user_data(&mut self, vm: &Vm) -> Result<(), StoreError> {
        if vm.user_data_sha256.is_some() {
            self.conn
                .prepare_cached("DELETE FROM vm_user_data WHERE tenant_id = ?1 AND vm_id = ?2")?
                .send((vm.tenant_id.as_str(), vm.id.to_string()))?;
        }
        Ok(())
    }
}

/// The keys of a VM's row.
pub(crate) fn key_list(text: &str) -> Result<Vec<String>, StoreError> {
    serde_json::from_str(text).map_err(|_| StoreError::Corrupt {
        what: "VM's SSH keys",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_what_ssh_keygen_prints() {
        let key =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f ops";
        assert_eq!(
            fingerprints(&[key.to_owned()]),
            ["SHA256:ZkAslGjFiUHdGf/WUL8rQvkib4PTvQatUV0OUQSncCA"]
        );
    }
}
