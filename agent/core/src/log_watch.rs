//! What this host has seen of its controller's ledger, and what it makes of what it is shown.
//!
//! A host is a witness of the log. It keeps the newest checkpoint that it verified; every next one has
//! to have grown out of that. A controller that was restored from an old copy, or shows another history,
//! cannot prove it, and then the host does nothing that could not be undone until the log continues, or
//! until an operator has said on the host itself that the other one is to be followed. Running VMs are
//! not touched by any of it.
//!
//! Pure: the caller writes a changed watch to the disk before it acts by it.

use berth_api::agent::{
    ACCEPT_ROLLBACK_PAYLOAD_TYPE, AcceptRollback, CheckpointOffer, FreezeCode, LogFreeze,
    LogReport, MAX_LEDGER_KEY_CHANGES, SignedEnvelope, TaskAction, TreeHead,
};
use berth_api::ids::NodeId;
use berth_api::slot::SlotAction;
use berth_ledger::checkpoint::{Checkpoint, SignedCheckpoint};
use berth_ledger::cosignature::Cosigner;
use berth_ledger::envelope::{OpenError, open};
use berth_ledger::keys::PublicKey;
use berth_ledger::merkle::{Hash, verify_consistency};
use serde::{Deserialize, Serialize};

use crate::log_keys::LogKeys;

/// The version of the file's layout.
const FORMAT: u32 = 1;

/// What a host has seen of one ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogWatch {
    keys: LogKeys,
    seen: Option<SignedCheckpoint>,
    frozen: Option<Frozen>,
    accepted: Option<SignedEnvelope>,
    /// The last reply showed nothing. Not kept: the next one may.
    is_withheld: bool,
    /// What an operator gave up. Not kept: replies to requests that named it end with this agent.
    given_up: Option<TreeHead>,
}

/// Why destructive work is refused, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Frozen {
    code: FreezeCode,
    /// The note that does not fit, if it is one by the ledger's key.
    shown: Option<String>,
    since: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    seen: Option<String>,
    frozen: Option<Frozen>,
    accepted: Option<SignedEnvelope>,
    #[serde(default)]
    key_changes: Vec<SignedEnvelope>,
}

/// Destructive work is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogRefusal {
    /// What was shown does not continue what was seen.
    #[error(
        "{}; what runs goes on. Restore the controller's newest database; if its newer entries are \
         lost for good, run `berth-agent accept-rollback` on this host", why(*code)
    )]
    Frozen {
        /// Why.
        code: FreezeCode,
    },
    /// Nothing was shown.
    #[error("the controller does not show its ledger")]
    Withheld,
}

fn why(code: FreezeCode) -> &'static str {
    match code {
        FreezeCode::RolledBack => {
            "the controller's ledger has fewer entries than this host has seen"
        }
        FreezeCode::Forked => "the controller's ledger does not begin with what this host has seen",
        FreezeCode::OtherLog => {
            "the controller shows another log than the one that this host has seen"
        }
        FreezeCode::NotSigned => "what the controller shows is not signed by its ledger's key",
        FreezeCode::MemoryLost => "this host does not know any more what it has seen of the ledger",
    }
}

/// Why an operator's word is not followed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptDenied {
    /// Nothing is refused, or nothing was shown that could be followed.
    #[error("there is no other ledger to follow")]
    NothingToAccept,
    /// It is not signed by this node, or cannot be read.
    #[error("it is not signed by this node's key")]
    Envelope(#[source] OpenError),
    /// It is for another node, or about other trees.
    #[error("it is about another node or other trees than those of this host")]
    OtherTrees,
}

impl LogWatch {
    /// Of a ledger of which nothing was seen yet.
    #[must_use]
    pub fn new(key: PublicKey) -> Self {
        Self {
            keys: LogKeys::new(key),
            seen: None,
            frozen: None,
            accepted: None,
            is_withheld: false,
            given_up: None,
        }
    }

    /// As it was written down. What cannot be read is not forgotten silently: the host refuses
    /// destructive work until an operator has decided. `now` in seconds since the epoch.
    #[must_use]
    pub fn read(key: PublicKey, text: &[u8], now: i64) -> Self {
        Self::parse(key, text).unwrap_or_else(|| Self {
            frozen: Some(Frozen {
                code: FreezeCode::MemoryLost,
                shown: None,
                since: now,
            }),
            ..Self::new(key)
        })
    }

    fn parse(key: PublicKey, text: &[u8]) -> Option<Self> {
        let file: File = serde_json::from_slice(text).ok()?;
        let keys = LogKeys::new(key).follow(&file.key_changes);
        let seen = match &file.seen {
            Some(note) => Some(keys.open_seen(note)?),
            None => None,
        };
        (file.format == FORMAT).then_some(Self {
            keys,
            seen,
            frozen: file.frozen,
            accepted: file.accepted,
            ..Self::new(key)
        })
    }

    /// For the disk.
    ///
    /// # Errors
    /// If it does not become JSON.
    pub fn to_text(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(&File {
            format: FORMAT,
            seen: self.seen.as_ref().map(|seen| seen.note().to_string()),
            frozen: self.frozen.clone(),
            accepted: self.accepted.clone(),
            key_changes: self.keys.changes().to_vec(),
        })
    }

    /// The ledger's key by now.
    #[must_use]
    pub fn key(&self) -> &PublicKey {
        self.keys.newest()
    }

    /// The newest tree that was verified.
    #[must_use]
    pub fn seen(&self) -> Option<&Checkpoint> {
        self.seen.as_ref().map(SignedCheckpoint::checkpoint)
    }

    /// Why destructive work is refused, for the report.
    #[must_use]
    pub fn freeze(&self) -> Option<LogFreeze> {
        self.frozen.as_ref().map(|frozen| LogFreeze {
            code: frozen.code,
            shown: self.refused().map(|shown| head_of(shown.checkpoint())),
            since: frozen.since,
        })
    }

    fn refused(&self) -> Option<SignedCheckpoint> {
        let note = self.frozen.as_ref()?.shown.as_ref()?;
        self.keys.open_seen(note)
    }

    /// What the next sync says, cosigned at `now`, seconds since the epoch.
    #[must_use]
    pub fn report(&self, cosigner: &Cosigner, now: u64) -> LogReport {
        LogReport {
            seen: self.seen().map(head_of),
            cosignature: self.seen.as_ref().map(|seen| {
                let line = cosigner.sign(seen.note().text(), now).to_string();
                line.trim_end().to_owned()
            }),
            frozen: self.freeze(),
            accepted: self.accepted.clone(),
        }
    }

    /// What becomes of it by what a reply showed. `asked` is what the request said was seen: another
    /// reply may have come meanwhile, and then this one only has to hold against what was asked.
    #[must_use]
    pub fn shown(
        &self,
        asked: Option<&TreeHead>,
        offer: Option<&CheckpointOffer>,
        now: i64,
    ) -> Self {
        let is_current = asked == self.seen().map(head_of).as_ref();
        if !is_current && asked.is_some() && asked == self.given_up.as_ref() {
            return self.clone();
        }
        let Some(offer) = offer else {
            return Self {
                is_withheld: true,
                ..self.clone()
            };
        };
        // A new key counts once the old one has said so and the new one has signed.
        let told = offer.key_changes.iter().take(MAX_LEDGER_KEY_CHANGES);
        let followed = self.keys.follow(told);
        let keys = match followed.open(&offer.note) {
            Some(_) => followed,
            None => self.keys.clone(),
        };
        let judged = judge(asked, offer, &keys);
        let watch = Self {
            keys,
            is_withheld: false,
            ..self.clone()
        };
        match judged {
            Err((code, shown)) => watch.refuse(code, shown, now),
            Ok(offered) if is_current => watch.advance(offered),
            Ok(_) => watch,
        }
    }

    /// What was found first stays, so that an operator can name it, unless something worse follows.
    fn refuse(self, code: FreezeCode, shown: Option<SignedCheckpoint>, now: i64) -> Self {
        let stays = |frozen: &Frozen| frozen.code == code || is_for_an_operator(frozen.code);
        if self.frozen.as_ref().is_some_and(stays) {
            return self;
        }
        Self {
            frozen: Some(Frozen {
                code,
                shown: shown.map(|shown| shown.note().to_string()),
                since: now,
            }),
            ..self
        }
    }

    fn advance(self, offered: SignedCheckpoint) -> Self {
        match &self.frozen {
            // It may be followed once an operator has said so.
            Some(frozen) if is_for_an_operator(frozen.code) => {
                let shown = frozen.shown.clone();
                let shown = shown.or_else(|| Some(offered.note().to_string()));
                let frozen = Some(Frozen {
                    shown,
                    ..frozen.clone()
                });
                Self { frozen, ..self }
            }
            Some(_) | None => Self {
                seen: match self.seen {
                    Some(seen) if seen.checkpoint() == offered.checkpoint() => Some(seen),
                    Some(_) | None => Some(offered),
                },
                frozen: None,
                ..self
            },
        }
    }

    /// What an operator has to sign so that this host follows what it was shown.
    ///
    /// # Errors
    /// If there is nothing to follow.
    pub fn acceptance(
        &self,
        node_id: NodeId,
        reason: String,
        at: i64,
    ) -> Result<AcceptRollback, AcceptDenied> {
        let shown = self.refused().ok_or(AcceptDenied::NothingToAccept)?;
        Ok(AcceptRollback {
            node_id,
            seen: self.seen().map(head_of),
            shown: head_of(shown.checkpoint()),
            reason,
            at,
        })
    }

    /// Follow an operator's word, signed by this node's key.
    ///
    /// # Errors
    /// If it is not that, or not about what this host has seen and was shown.
    pub fn accept(
        &self,
        envelope: &SignedEnvelope,
        (node_id, node_key): (NodeId, PublicKey),
    ) -> Result<Self, AcceptDenied> {
        let word: AcceptRollback = open(&[node_key], ACCEPT_ROLLBACK_PAYLOAD_TYPE, envelope)
            .map_err(AcceptDenied::Envelope)?;
        let wanted = self.acceptance(node_id, word.reason.clone(), word.at)?;
        if word != wanted {
            return Err(AcceptDenied::OtherTrees);
        }
        Ok(Self {
            seen: self.refused(),
            frozen: None,
            accepted: Some(envelope.clone()),
            given_up: self.seen().map(head_of),
            ..self.clone()
        })
    }

    /// Whether work on a VM may be begun.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, action: &TaskAction) -> Result<(), LogRefusal> {
        match action {
            // Its guest has said that it needs it no more, and nothing else is touched.
            TaskAction::VmConsoleRead { .. } | TaskAction::VmEjectSeed {} => Ok(()),
            TaskAction::VmCreate { .. }
            | TaskAction::VmStart {}
            | TaskAction::VmStop { .. }
            | TaskAction::VmDelete {} => self.check_destructive(),
        }
    }

    /// Whether work on a slot may be begun. Giving it to nobody harms nobody.
    ///
    /// # Errors
    /// Why not.
    pub fn check_slot(&self, action: &SlotAction) -> Result<(), LogRefusal> {
        match action {
            SlotAction::Quarantine { .. } => Ok(()),
            SlotAction::Wipe {} => self.check_destructive(),
        }
    }

    fn check_destructive(&self) -> Result<(), LogRefusal> {
        match &self.frozen {
            Some(Frozen { code, .. }) => Err(LogRefusal::Frozen { code: *code }),
            None if self.is_withheld => Err(LogRefusal::Withheld),
            None => Ok(()),
        }
    }

    /// Whether the file of another would be the same.
    #[must_use]
    pub fn is_same_on_disk(&self, other: &Self) -> bool {
        (&self.keys, &self.seen, &self.frozen, &self.accepted)
            == (&other.keys, &other.seen, &other.frozen, &other.accepted)
    }
}

/// Whether it takes more than the right log to end it: two histories that contradict each other were
/// shown, or nothing is known that another one could be compared with.
fn is_for_an_operator(code: FreezeCode) -> bool {
    match code {
        FreezeCode::Forked | FreezeCode::MemoryLost => true,
        FreezeCode::RolledBack | FreezeCode::OtherLog | FreezeCode::NotSigned => false,
    }
}

/// A tree by name.
#[must_use]
pub fn head_of(checkpoint: &Checkpoint) -> TreeHead {
    TreeHead {
        origin: checkpoint.origin.to_string(),
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
    }
}

fn judge(
    asked: Option<&TreeHead>,
    offer: &CheckpointOffer,
    keys: &LogKeys,
) -> Result<SignedCheckpoint, (FreezeCode, Option<SignedCheckpoint>)> {
    let Some(offered) = keys.open(&offer.note) else {
        return Err((FreezeCode::NotSigned, None));
    };
    let Some(asked) = asked else {
        return Ok(offered);
    };
    let new = offered.checkpoint();
    if new.origin.as_str() != asked.origin {
        return Err((FreezeCode::OtherLog, Some(offered)));
    }
    if new.size < asked.size {
        return Err((FreezeCode::RolledBack, Some(offered)));
    }
    let proof: Option<Vec<Hash>> = offer
        .consistency
        .iter()
        .map(|text| Hash::from_base64(text).ok())
        .collect();
    let root = Hash::from_hex(&asked.root).ok();
    let holds = root.zip(proof).is_some_and(|(root, proof)| {
        verify_consistency(asked.size, new.size, &root, &new.root, &proof).is_ok()
    });
    if holds {
        Ok(offered)
    } else {
        Err((FreezeCode::Forked, Some(offered)))
    }
}

#[cfg(test)]
mod tests;
