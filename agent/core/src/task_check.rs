//! Whether a task is obeyed.
//!
//! The controller may be stolen: a task counts only with a trusted key's signature, for this node
//! and epoch, newer than everything seen of its VM, from the VM's own owner, within its time, and
//! inside the host's policy. Whatever fails is answered with a code, and changes nothing.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::agent::{
    CLOCK_SKEW_SECONDS, MAX_CONSOLE_BYTES, RefusalCode, SEED_PAYLOAD_TYPE, Seed, SignedEnvelope,
    TASK_PAYLOAD_TYPE, Task, TaskAction, VmSpec,
};
use berth_api::ids::{NodeId, TaskId, TenantId};
use berth_api::slot::{Claim, SLOT_TASK_PAYLOAD_TYPE, SlotTask};
use berth_ledger::envelope::{OpenError, open};
use berth_ledger::keys::PublicKey;
use serde::de::DeserializeOwned;

use crate::policy::Policy;

/// What the node was told at enrolment, and what its owner allows.
#[derive(Debug, Clone)]
pub struct Trust {
    /// This node.
    pub node_id: NodeId,
    /// Its epoch.
    pub node_epoch: u64,
    /// The keys that may sign tasks.
    pub task_keys: Vec<PublicKey>,
    /// The host's own limits.
    pub policy: Policy,
}

/// What the host has persisted about a task's VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownVm {
    /// Its owner.
    pub tenant_id: TenantId,
    /// The last generation.
    pub generation: u64,
    /// What it is made of, unless it is a tombstone.
    pub spec: Option<VmSpec>,
    /// The slots of its guest.
    pub claims: Vec<Claim>,
}

/// Why a task is not obeyed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TaskRefused {
    /// The code for the report.
    pub code: RefusalCode,
    /// In words.
    pub message: String,
}

fn refuse<T>(code: RefusalCode, message: impl Into<String>) -> Result<T, TaskRefused> {
    Err(TaskRefused {
        code,
        message: message.into(),
    })
}

/// The id that an envelope claims, without any trust in it: good for a report and nothing else.
#[must_use]
pub fn claimed_task_id(envelope: &SignedEnvelope) -> Option<TaskId> {
    #[derive(serde::Deserialize)]
    struct Claim {
        task_id: TaskId,
    }
    let payload = STANDARD.decode(&envelope.payload).ok()?;
    let claim: Claim = serde_json::from_slice(&payload).ok()?;
    Some(claim.task_id)
}

impl Trust {
    /// Check the signature and read the task.
    pub fn open(&self, envelope: &SignedEnvelope) -> Result<Task, TaskRefused> {
        self.open_as(TASK_PAYLOAD_TYPE, envelope)
    }

    /// Check the signature and read what the guest of a task is given.
    pub fn open_seed(&self, envelope: &SignedEnvelope) -> Result<Seed, TaskRefused> {
        self.open_as(SEED_PAYLOAD_TYPE, envelope)
    }

    fn open_as<T: DeserializeOwned>(
        &self,
        payload_type: &str,
        envelope: &SignedEnvelope,
    ) -> Result<T, TaskRefused> {
        open(&self.task_keys, payload_type, envelope).map_err(|error| {
            let code = match &error {
                OpenError::PayloadType | OpenError::Payload(_) => RefusalCode::Unsupported,
                OpenError::Malformed | OpenError::UnknownKey | OpenError::BadSignature => {
                    RefusalCode::BadSignature
                }
            };
            let message = match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            };
            TaskRefused { code, message }
        })
    }

    /// Check what a signed task says against this node, its memory of the VM, the clock (`now` in
    /// seconds since the epoch) and the policy.
    pub fn check(&self, task: &Task, known: Option<&KnownVm>, now: i64) -> Result<(), TaskRefused> {
        self.check_node(task.node_id, task.node_epoch)?;
        check_time(task.not_before, task.expires_at, now)?;
        if let Some(known) = known {
            check_history(task, known)?;
        }
        match &task.action {
            TaskAction::VmCreate { spec, claims } => {
                self.check_spec(spec, known)?;
                self.check_claims(claims, known)
            }
            TaskAction::VmConsoleRead { tail_bytes } if *tail_bytes > MAX_CONSOLE_BYTES => refuse(
                RefusalCode::Unsupported,
                format!("tail_bytes is {tail_bytes}, at most {MAX_CONSOLE_BYTES} are sent"),
            ),
            TaskAction::VmConsoleRead { .. }
            | TaskAction::VmEjectSeed {}
            | TaskAction::VmStop { .. }
            | TaskAction::VmStart {}
            | TaskAction::VmDelete {} => Ok(()),
        }
    }

    /// Check the signature and read the task of a slot.
    pub fn open_slot_task(&self, envelope: &SignedEnvelope) -> Result<SlotTask, TaskRefused> {
        self.open_as(SLOT_TASK_PAYLOAD_TYPE, envelope)
    }

    /// Check what a slot's signed task says against this node, the highest claim that it has seen of
    /// the slot, and the clock.
    pub fn check_slot_task(
        &self,
        task: &SlotTask,
        fencing_epoch: u64,
        now: i64,
    ) -> Result<(), TaskRefused> {
        self.check_node(task.node_id, task.node_epoch)?;
        check_time(task.not_before, task.expires_at, now)?;
        if task.fencing_epoch < fencing_epoch {
            return refuse(
                RefusalCode::OldEpoch,
                format!(
                    "the task has the slot's epoch {}, this host has seen {fencing_epoch}",
                    task.fencing_epoch
                ),
            );
        }
        Ok(())
    }

    fn check_node(&self, node_id: NodeId, node_epoch: u64) -> Result<(), TaskRefused> {
        if node_id != self.node_id {
            return refuse(
                RefusalCode::WrongNode,
                format!("the task is for {node_id}, this is {}", self.node_id),
            );
        }
        if node_epoch != self.node_epoch {
            return refuse(
                RefusalCode::OldEpoch,
                format!(
                    "the task is from epoch {node_epoch}, this node is in epoch {}",
                    self.node_epoch
                ),
            );
        }
        Ok(())
    }

    fn check_claims(&self, claims: &[Claim], known: Option<&KnownVm>) -> Result<(), TaskRefused> {
        if let Some(known) = known
            && known.spec.is_some()
            && known.claims != claims
        {
            return refuse(
                RefusalCode::Unsupported,
                "the VM exists with other claims, which cannot be changed",
            );
        }
        self.policy
            .check_claims(claims)
            .map_err(|denied| TaskRefused {
                code: RefusalCode::Policy,
                message: denied.to_string(),
            })
    }

    fn check_spec(&self, spec: &VmSpec, known: Option<&KnownVm>) -> Result<(), TaskRefused> {
        if let Some(other) = known.and_then(|known| known.spec.as_ref())
            && other != spec
        {
            return refuse(
                RefusalCode::Unsupported,
                "the VM exists with another specification, which cannot be changed",
            );
        }
        self.policy.check(spec).map_err(|denied| TaskRefused {
            code: RefusalCode::Policy,
            message: denied.to_string(),
        })
    }
}

fn check_time(not_before: i64, expires_at: i64, now: i64) -> Result<(), TaskRefused> {
    if now.saturating_add(CLOCK_SKEW_SECONDS) < not_before {
        return refuse(
            RefusalCode::ClockSkew,
            format!("the task is valid from {not_before}, this host has {now}"),
        );
    }
    if now.saturating_sub(CLOCK_SKEW_SECONDS) >= expires_at {
        return refuse(
            RefusalCode::ClockSkew,
            format!("the task expired at {expires_at}, this host has {now}"),
        );
    }
    Ok(())
}

fn check_history(task: &Task, known: &KnownVm) -> Result<(), TaskRefused> {
    if task.tenant_id != known.tenant_id {
        return refuse(
            RefusalCode::WrongOwner,
            "the VM belongs to another tenant on this host",
        );
    }
    let repeats = matches!(
        task.action,
        TaskAction::VmConsoleRead { .. } | TaskAction::VmEjectSeed {}
    );
    if task.generation < known.generation || (task.generation == known.generation && !repeats) {
        return refuse(
            RefusalCode::OldGeneration,
            format!(
                "the task has generation {}, this host has seen {}",
                task.generation, known.generation
            ),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests;
