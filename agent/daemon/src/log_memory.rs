//! `log.json`: what this host has seen of the ledger, on the disk before anybody is told.
//!
//! Decisions are `berth_agent_core::log_watch`'s. Here is the order: judge, write down, act. One write
//! at a time; everybody else reads the copy in memory.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use berth_agent_core::log_watch::{AcceptDenied, LogRefusal, LogWatch};
use berth_api::agent::{
    ACCEPT_ROLLBACK_PAYLOAD_TYPE, AcceptRollback, CheckpointOffer, LogReport, SignedEnvelope,
    TaskAction, TreeHead,
};
use berth_api::ids::NodeId;
use berth_api::slot::SlotAction;
use berth_ledger::cosignature::{Cosigner, node_witness_name};
use berth_ledger::envelope::seal;
use berth_ledger::keys::{PublicKey, ReadKeyError, SigningKey};

use crate::clock;
use crate::launch::in_one_line;
use crate::node::write_new;

const LOG_FILE: &str = "log.json";
/// Where an operator's word is left for the agent.
const ACCEPT_FILE: &str = "accept-rollback.json";

/// What this host has seen, for all of the agent.
#[derive(Debug)]
pub struct LogMemory {
    folder: PathBuf,
    node_id: NodeId,
    node_key: PublicKey,
    cosigner: Cosigner,
    watch: Mutex<LogWatch>,
    writing: Mutex<()>,
}

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogMemoryError {
    /// The file system failed.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The node's key cannot be used.
    #[error("the node's key cannot be used")]
    Key(#[source] ReadKeyError),
    /// Something is to be signed that cannot be.
    #[error("the word could not be signed")]
    Seal(#[source] serde_json::Error),
}

impl LogMemory {
    /// Read what earlier agents have seen of the ledger with this key.
    ///
    /// # Errors
    /// If it is there and cannot be read. What can be read and is damaged freezes destructive work.
    pub fn open(
        folder: &Path,
        (node_id, key): (NodeId, &SigningKey),
        ledger_key: PublicKey,
    ) -> Result<Self, LogMemoryError> {
        let path = folder.join(LOG_FILE);
        let watch = match std::fs::read(&path) {
            Ok(text) => LogWatch::read(ledger_key, &text, clock::now()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => LogWatch::new(ledger_key),
            Err(cause) => return Err(failed("read", path)(cause)),
        };
        let own = SigningKey::from_seed(key.seed()).map_err(LogMemoryError::Key)?;
        let memory = Self {
            folder: folder.to_owned(),
            node_id,
            node_key: key.public(),
            cosigner: Cosigner::new(node_witness_name(node_id), own),
            watch: Mutex::new(watch),
            writing: Mutex::new(()),
        };
        memory.say();
        Ok(memory)
    }

    fn watch(&self) -> MutexGuard<'_, LogWatch> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been seen, as the next sync says it. Blocks: an operator's word may have come.
    pub(crate) fn report(&self) -> LogReport {
        self.follow_operator();
        let now = u64::try_from(clock::now()).unwrap_or(0);
        self.watch().report(&self.cosigner, now)
    }

    /// Take in what a reply showed to a request that said `asked`. Returns whether that froze or thawed
    /// this host. Blocks while the disk writes.
    pub(crate) fn take(&self, asked: Option<&TreeHead>, offer: Option<&CheckpointOffer>) -> bool {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.watch().clone();
        let new = old.shown(asked, offer, clock::now());
        let has_turned = old.freeze().map(|freeze| freeze.code) != new.freeze().map(|f| f.code);
        if !new.is_same_on_disk(&old)
            && let Err(error) = self.write(&new)
        {
            tracing::error!(
                "what was seen of the ledger is not kept: {}",
                in_one_line(&error)
            );
            // A refusal holds without the disk. What is not on it is not cosigned.
            if new.freeze().is_none() {
                return false;
            }
        }
        *self.watch() = new;
        if has_turned {
            self.say();
        }
        has_turned
    }

    fn write(&self, watch: &LogWatch) -> Result<(), LogMemoryError> {
        let path = self.folder.join(LOG_FILE);
        let text = watch.to_text().map_err(io::Error::from);
        text.and_then(|text| write_new(&self.folder, LOG_FILE, &text))
            .map_err(failed("write", path))
    }

    fn say(&self) {
        let watch = self.watch().clone();
        match watch.freeze() {
            Some(freeze) => tracing::error!(
                code = ?freeze.code,
                seen = ?watch.seen().map(|seen| seen.size),
                shown = ?freeze.shown.map(|shown| shown.size),
                "the controller's ledger is not the one that this host has seen: VMs go on, and nothing \
                 is started, stopped, deleted or wiped"
            ),
            None => tracing::debug!("the ledger continues what this host has seen"),
        }
    }

    /// What is known, for people.
    #[must_use]
    pub fn watch_now(&self) -> LogWatch {
        self.watch().clone()
    }

    /// Follow an operator's word, if one was left here. What is not about this moment is left alone.
    fn follow_operator(&self) {
        if self.watch().freeze().is_none() {
            return;
        }
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.folder.join(ACCEPT_FILE);
        let Ok(text) = std::fs::read(&path) else {
            return;
        };
        let Ok(word) = serde_json::from_slice::<SignedEnvelope>(&text) else {
            tracing::warn!("{} is not an operator's word", path.display());
            return;
        };
        let accepted = self.watch().accept(&word, (self.node_id, self.node_key));
        match accepted {
            Ok(new) => {
                if let Err(error) = self.write(&new) {
                    tracing::error!(
                        "an operator's word is not followed: {}",
                        in_one_line(&error)
                    );
                    return;
                }
                *self.watch() = new;
                tracing::warn!("the ledger that is shown is followed, as an operator has said");
                if let Err(error) = std::fs::remove_file(&path) {
                    // It names trees that will not be met again.
                    tracing::warn!(%error, "{} stays", path.display());
                }
            }
            Err(error) => tracing::warn!(
                "{} is not followed: {}",
                path.display(),
                in_one_line(&error)
            ),
        }
    }

    /// What an operator has to confirm.
    ///
    /// # Errors
    /// If there is nothing to follow.
    pub fn acceptance(&self, reason: &str) -> Result<AcceptRollback, AcceptDenied> {
        let watch = self.watch();
        watch.acceptance(self.node_id, reason.to_owned(), clock::now())
    }

    /// Leave an operator's confirmed word for the agent of this host.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn leave_word(
        &self,
        word: &AcceptRollback,
        key: &SigningKey,
    ) -> Result<(), LogMemoryError> {
        let sealed = seal(key, ACCEPT_ROLLBACK_PAYLOAD_TYPE, word).map_err(LogMemoryError::Seal)?;
        let text = serde_json::to_vec_pretty(&sealed).map_err(LogMemoryError::Seal)?;
        let path = self.folder.join(ACCEPT_FILE);
        write_new(&self.folder, ACCEPT_FILE, &text).map_err(failed("write", path))
    }

    /// Whether work on a VM may be begun.
    pub(crate) fn check(&self, action: &TaskAction) -> Result<(), LogRefusal> {
        self.watch().check(action)
    }

    /// Whether work on a slot may be begun.
    pub(crate) fn check_slot(&self, action: &SlotAction) -> Result<(), LogRefusal> {
        self.watch().check_slot(action)
    }
}

fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> LogMemoryError {
    move |cause| LogMemoryError::Io {
        action,
        path,
        cause,
    }
}
