//! Slot passports: what a VM's tenant can show of its slots without knowing who had them before.
//!
//! Owns the file and its check. For each slot it has the claim, which is the tenant's own event, and
//! the event before it that made the slot fit to be claimed: the wipe after the last claim that its
//! host heard of, or the first approval. All are proved in one tree. Claims have rising epochs without
//! gaps, so every epoch between both must be accounted for: claims that ended before their host heard
//! of them. Events before the tenant's own claim name nobody, or the passport is refused. The host's
//! signature is on the receipt whose digest the wipe's event has; that receipt names its last holder,
//! so it is not in here. What the host signed for this very VM, when it gave it the slot, is: the launch.

use berth_api::agent::SignedEnvelope;
use berth_api::ids::{NodeId, ReceiptId, SlotId, VmId};
use berth_api::slot::{Receipt, SlotHolder, Statement};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint};
use crate::entry::{ProvenEntry, VerifyEntryError};
use crate::envelope::payload_sha256;
use crate::note::Vkey;
use crate::receipt::{self, ReceiptError};

/// What a passport says that it is.
pub const FORMAT: &str = "berth-slot-passport/v1";
/// Why a claim ended that never had an effect, as its `SLOT_RELEASED` says it.
pub const NEVER_HEARD: &str = "host_never_heard_of_it";
/// Members of a body that would tell who had a slot before.
const NAMING: [&str; 5] = ["tenant_id", "project_id", "vm_id", "holder", "token_id"];

/// A VM's slots and where they come from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passport {
    /// [`FORMAT`].
    pub format: String,
    /// The checkpoint under which all proofs are, with whatever cosignatures it has.
    pub checkpoint: String,
    /// Verifier keys of the log, for convenience: believing them is believing the file.
    pub log_keys: Vec<String>,
    /// The VM.
    pub vm_id: VmId,
    /// One for each of its slots.
    pub slots: Vec<SlotPassage>,
}

/// One slot on its way to the VM.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlotPassage {
    /// Which slot.
    pub slot_id: SlotId,
    /// `SLOT_CLAIMED` of the VM.
    pub claim: ProvenEntry,
    /// What made the slot fit to be claimed.
    pub before: Before,
    /// `SLOT_RELEASED` of each claim in between, of which the host never heard, oldest first.
    #[serde(default)]
    pub unused: Vec<ProvenEntry>,
    /// `SLOT_RECEIPT_STORED` of the host's receipt that it checked, bound and reset the slot for this
    /// VM; none until the host has got so far.
    #[serde(default)]
    pub launch: Option<ProvenEntry>,
}

/// What makes a slot fit to be claimed. Neither names a tenant.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Before {
    /// `SLOT_WIPED` after the last claim that the host heard of.
    Wiped {
        /// The event.
        event: ProvenEntry,
    },
    /// The host stated an approval (`SLOT_RECEIPT_STORED`), and nobody had the slot yet.
    Approved {
        /// The event.
        event: ProvenEntry,
    },
}

/// What is needed of the bodies of these events.
#[derive(Deserialize)]
struct Body {
    event_type: String,
    #[serde(default)]
    vm_id: Option<VmId>,
    #[serde(default)]
    node_id: Option<NodeId>,
    #[serde(default)]
    actor: Actor,
    detail: Detail,
}

#[derive(Default, Deserialize)]
struct Actor {
    #[serde(default)]
    subject_key: Option<String>,
}

#[derive(Deserialize)]
struct Detail {
    slot_id: SlotId,
    /// The claim's own; of a wipe that of the last claim that the host heard of, 0 if there was none.
    #[serde(default)]
    fencing_epoch: u64,
    /// Digest of the host's receipt, of a wipe and an approval.
    #[serde(default)]
    sha256: Option<String>,
    #[serde(default)]
    because: Option<String>,
    #[serde(default)]
    kind: Option<String>,
    /// What the host signed, in the tenant's own events.
    #[serde(default)]
    envelope: Option<SignedEnvelope>,
}

/// Why a passport shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum VerifyPassportError {
    /// Another format, or one of another version.
    #[error("the passport is not of the format {FORMAT}")]
    Format,
    /// What it says of the log's keys is not what the caller knows.
    #[error("the passport names none of the log's keys that are trusted, or names what is no key")]
    Keys,
    /// The checkpoint is not believed.
    #[error("the passport's checkpoint is not believed")]
    Checkpoint(#[source] OpenCheckpointError),
    /// It has no slot, or one twice.
    #[error("a passport has at least one slot, and each once")]
    Slots,
    /// One of its slots.
    #[error("{slot_id}: the {event} does not show what it has to")]
    Slot {
        /// Which slot.
        slot_id: SlotId,
        /// Which event.
        event: &'static str,
        /// Why.
        #[source]
        cause: PassageFault,
    },
}

/// What is wrong with one event of a slot's way.
#[derive(Debug, thiserror::Error)]
pub enum PassageFault {
    /// It is not in the log.
    #[error(transparent)]
    Entry(#[from] VerifyEntryError),
    /// Its body is not of such an event.
    #[error("its body is not that of such an event")]
    Body(#[source] serde_json::Error),
    /// It is of another type, slot, node or VM.
    #[error("its `{field}` is not what belongs there")]
    Field {
        /// Which.
        field: &'static str,
    },
    /// It tells who had the slot before.
    #[error("its `{member}` names somebody, and nothing before the claim may")]
    NamesSomebody {
        /// Which member of the body.
        member: &'static str,
    },
    /// It stands after what it has to come before.
    #[error("entry {index} does not come before entry {before}")]
    Order {
        /// Its place.
        index: u64,
        /// The place that it has to be before.
        before: u64,
    },
    /// A claim in between is not accounted for.
    #[error("it is of epoch {found}, and {expected} is next: somebody had the slot in between")]
    Epoch {
        /// Found.
        found: u64,
        /// Next.
        expected: u64,
    },
    /// The host's receipt in it does not hold.
    #[error("the host's receipt in it does not hold")]
    Receipt(#[source] ReceiptError),
}

/// What a passport shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PassportReport {
    /// The checkpoint under which everything is.
    pub signed: SignedCheckpoint,
    /// One for each slot, in the passport's order.
    pub slots: Vec<ShownPassage>,
}

/// What is shown of one slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ShownPassage {
    /// Which slot.
    pub slot_id: SlotId,
    /// The host that it belongs to.
    pub node_id: NodeId,
    /// Whether it was wiped after somebody else's claim; else nobody had it before.
    pub was_wiped: bool,
    /// The place in the log of the wipe or approval.
    pub before_index: u64,
    /// SHA-256 of the host's receipt for that, lower-case hex.
    pub receipt_sha256: String,
    /// The place in the log of the VM's claim.
    pub claim_index: u64,
    /// That the host gave it to the VM.
    pub launch: Option<ShownLaunch>,
}

/// That a host gave a slot to the VM, by its own signature.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct ShownLaunch {
    /// The place in the log.
    pub index: u64,
    /// The host's receipt.
    pub receipt_id: ReceiptId,
    /// The host's public key, standard base64, as the log has it.
    pub host_key: String,
}

impl Passport {
    /// Check all that it states. `log_keys` are the log's keys as the caller knows them from elsewhere.
    ///
    /// # Errors
    /// The first thing that does not hold.
    pub fn verify(&self, log_keys: &[Vkey]) -> Result<PassportReport, VerifyPassportError> {
        if self.format != FORMAT {
            return Err(VerifyPassportError::Format);
        }
        self.names_keys_of(log_keys)?;
        let signed = SignedCheckpoint::open(self.checkpoint.as_bytes(), log_keys)
            .map_err(VerifyPassportError::Checkpoint)?;
        let mut slots: Vec<ShownPassage> = Vec::new();
        for passage in &self.slots {
            if slots.iter().any(|shown| shown.slot_id == passage.slot_id) {
                return Err(VerifyPassportError::Slots);
            }
            slots.push(passage.verify(self.vm_id, signed.checkpoint())?);
        }
        if slots.is_empty() {
            return Err(VerifyPassportError::Slots);
        }
        Ok(PassportReport { signed, slots })
    }

    /// So that no part of the file can be changed unseen, though nothing is believed for it.
    fn names_keys_of(&self, log_keys: &[Vkey]) -> Result<(), VerifyPassportError> {
        let named: Vec<Vkey> = self
            .log_keys
            .iter()
            .map(|text| text.parse())
            .collect::<Result<_, _>>()
            .map_err(|_| VerifyPassportError::Keys)?;
        if named.iter().any(|key| log_keys.contains(key)) {
            return Ok(());
        }
        Err(VerifyPassportError::Keys)
    }
}

impl SlotPassage {
    fn verify(&self, vm_id: VmId, tree: &Checkpoint) -> Result<ShownPassage, VerifyPassportError> {
        let fault = |event| {
            move |cause| VerifyPassportError::Slot {
                slot_id: self.slot_id,
                event,
                cause,
            }
        };
        let claim = self.claim(vm_id, tree).map_err(fault("claim"))?;
        let (was_wiped, event) = match &self.before {
            Before::Wiped { event } => (true, event),
            Before::Approved { event } => (false, event),
        };
        let name = if was_wiped { "wipe" } else { "approval" };
        let before = self.made_fit(was_wiped, event, tree).map_err(fault(name))?;
        let mut last = (before.detail.fencing_epoch, event.index);
        for unused in &self.unused {
            last = self
                .unheard(unused, last, tree)
                .map_err(fault("release of an unused claim"))?;
        }
        follows(last, claim.detail.fencing_epoch, self.claim.index).map_err(fault("claim"))?;
        let node_id = before.node_id.filter(|node| Some(*node) == claim.node_id);
        let node_id = node_id.ok_or(PassageFault::Field { field: "node_id" });
        let sha256 = before.detail.sha256.ok_or(PassageFault::Field {
            field: "detail.sha256",
        });
        let launch = self.launch.as_ref();
        let launch = launch.map(|event| self.launched(event, vm_id, &claim, tree));
        Ok(ShownPassage {
            slot_id: self.slot_id,
            node_id: node_id.map_err(fault(name))?,
            launch: launch.transpose().map_err(fault("launch"))?,
            was_wiped,
            before_index: event.index,
            receipt_sha256: sha256.map_err(fault(name))?,
            claim_index: self.claim.index,
        })
    }

    fn claim(&self, vm_id: VmId, tree: &Checkpoint) -> Result<Body, PassageFault> {
        let body = self.body_of(&self.claim, "SLOT_CLAIMED", tree)?;
        if body.vm_id != Some(vm_id) {
            return Err(PassageFault::Field { field: "vm_id" });
        }
        Ok(body)
    }

    /// A wipe or an approval.
    fn made_fit(
        &self,
        is_wipe: bool,
        event: &ProvenEntry,
        tree: &Checkpoint,
    ) -> Result<Body, PassageFault> {
        let event_type = if is_wipe {
            "SLOT_WIPED"
        } else {
            "SLOT_RECEIPT_STORED"
        };
        let body = self.body_of(event, event_type, tree)?;
        names_nobody(event)?;
        let kind = if is_wipe { "wipe" } else { "approval" };
        if body.detail.kind.as_deref() != Some(kind) {
            return Err(PassageFault::Field {
                field: "detail.kind",
            });
        }
        if let Some(envelope) = &body.detail.envelope {
            let receipt = receipt_in(envelope, &body)?.receipt;
            if receipt.holder.is_some() {
                let member = "holder";
                return Err(PassageFault::NamesSomebody { member });
            }
        }
        if !is_wipe && body.detail.fencing_epoch != 0 {
            return Err(PassageFault::Epoch {
                found: body.detail.fencing_epoch,
                expected: 0,
            });
        }
        Ok(body)
    }

    /// A claim that ended before its host heard of it; the epoch and place that come last with it.
    fn unheard(
        &self,
        event: &ProvenEntry,
        last: (u64, u64),
        tree: &Checkpoint,
    ) -> Result<(u64, u64), PassageFault> {
        let body = self.body_of(event, "SLOT_RELEASED", tree)?;
        names_nobody(event)?;
        if body.detail.because.as_deref() != Some(NEVER_HEARD) {
            return Err(PassageFault::Field {
                field: "detail.because",
            });
        }
        follows(last, body.detail.fencing_epoch, event.index)?;
        Ok((body.detail.fencing_epoch, event.index))
    }

    /// The host's own statement that it gave the slot to this VM under this claim.
    fn launched(
        &self,
        event: &ProvenEntry,
        vm_id: VmId,
        claim: &Body,
        tree: &Checkpoint,
    ) -> Result<ShownLaunch, PassageFault> {
        let body = self.body_of(event, "SLOT_RECEIPT_STORED", tree)?;
        let wrong = |field| PassageFault::Field { field };
        let envelope = body.detail.envelope.as_ref();
        let signed = receipt_in(envelope.ok_or(wrong("detail.envelope"))?, &body)?;
        let epoch = claim.detail.fencing_epoch;
        let is_holder =
            |holder: &SlotHolder| holder.vm_id == vm_id && holder.claim.fencing_epoch == epoch;
        if body.vm_id != Some(vm_id) || !signed.receipt.holder.as_ref().is_some_and(is_holder) {
            return Err(wrong("vm_id"));
        }
        if Some(signed.receipt.node_id) != claim.node_id {
            return Err(wrong("node_id"));
        }
        if !matches!(signed.receipt.statement, Statement::Claim { .. }) {
            return Err(wrong("detail.kind"));
        }
        if event.index <= self.claim.index {
            return Err(PassageFault::Order {
                index: self.claim.index,
                before: event.index,
            });
        }
        Ok(ShownLaunch {
            index: event.index,
            receipt_id: signed.receipt.receipt_id,
            host_key: signed.host_key,
        })
    }

    fn body_of(
        &self,
        event: &ProvenEntry,
        event_type: &str,
        tree: &Checkpoint,
    ) -> Result<Body, PassageFault> {
        event.verify(tree)?;
        let body: Body = serde_json::from_str(&event.body).map_err(PassageFault::Body)?;
        if body.event_type != event_type {
            return Err(PassageFault::Field {
                field: "event_type",
            });
        }
        if body.detail.slot_id != self.slot_id {
            return Err(PassageFault::Field {
                field: "detail.slot_id",
            });
        }
        Ok(body)
    }
}

/// A host's receipt inside an event that is of this receipt.
struct Signed {
    receipt: Receipt,
    host_key: String,
}

/// Open what a host signed, and see that the event around it says the same of it.
fn receipt_in(envelope: &SignedEnvelope, body: &Body) -> Result<Signed, PassageFault> {
    let (key, receipt) = receipt::verify(envelope, None).map_err(PassageFault::Receipt)?;
    let host_key = key.to_base64();
    let wrong = |field| Err(PassageFault::Field { field });
    if body.actor.subject_key.as_ref() != Some(&host_key) {
        return wrong("actor.subject_key");
    }
    if body.detail.sha256 != payload_sha256(envelope) {
        return wrong("detail.sha256");
    }
    if receipt.slot_id != body.detail.slot_id || Some(receipt.node_id) != body.node_id {
        return wrong("detail.envelope");
    }
    Ok(Signed { receipt, host_key })
}

/// Whether an epoch and place come right after the last ones.
fn follows(last: (u64, u64), epoch: u64, index: u64) -> Result<(), PassageFault> {
    let (last_epoch, last_index) = last;
    let expected = last_epoch.saturating_add(1);
    if epoch != expected {
        return Err(PassageFault::Epoch {
            found: epoch,
            expected,
        });
    }
    if last_index >= index {
        return Err(PassageFault::Order {
            index: last_index,
            before: index,
        });
    }
    Ok(())
}

fn names_nobody(event: &ProvenEntry) -> Result<(), PassageFault> {
    let body: Value = serde_json::from_str(&event.body).map_err(PassageFault::Body)?;
    match naming_member(&body) {
        Some(member) => Err(PassageFault::NamesSomebody { member }),
        None => Ok(()),
    }
}

/// The first member anywhere in a body that tells of somebody. The parser bounds the depth.
fn naming_member(value: &Value) -> Option<&'static str> {
    match value {
        Value::Object(members) => members.iter().find_map(|(name, value)| {
            let naming = NAMING.into_iter().find(|naming| naming == name);
            naming
                .filter(|_| !value.is_null())
                .or_else(|| naming_member(value))
        }),
        Value::Array(items) => items.iter().find_map(naming_member),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

#[cfg(test)]
mod tests;
