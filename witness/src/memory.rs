//! What the witness has cosigned: one file for each log, changed before a signature leaves.
//!
//! Deciding and remembering are one step under the log's lock. The file is the newest cosigned
//! checkpoint itself, so that what readers get is what is remembered. After a failed write nobody knows
//! what the disk has: the log is not served until the next start, which reads it again.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::cosignature::Cosigner;
use berth_ledger::merkle::Hash;
use berth_ledger::note::{KeyName, Note, SignatureLine, Vkey};
use berth_ledger::witness::{AddCheckpoint, Refusal, Seen};

/// The logs that the witness knows, and what it has seen of each.
#[derive(Debug)]
pub(crate) struct Memory {
    cosigner: Cosigner,
    keys: Vec<Vkey>,
    logs: HashMap<KeyName, Log>,
}

#[derive(Debug)]
struct Log {
    /// The folder of its file.
    folder: PathBuf,
    /// `None` after a write whose outcome is not known.
    seen: Mutex<Option<Seen>>,
}

/// Why the witness cannot begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// Its folder cannot be made or read.
    #[error("{} cannot be used", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        #[source]
        cause: io::Error,
    },
    /// What it remembers is not a checkpoint of that log. Going on would be forgetting.
    #[error("{} is not a checkpoint that its log has signed; restore it from a copy", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
    },
}

/// Why a checkpoint is not cosigned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CosignError {
    /// The protocol's own reasons.
    #[error("refused")]
    Refused(#[from] Refusal),
    /// It could not be remembered.
    #[error(
        "what was seen of the log cannot be written, so nothing of it is signed until a restart"
    )]
    Memory(#[source] io::Error),
    /// An earlier write failed.
    #[error("an earlier write failed, so nothing of this log is signed until a restart")]
    Unsure,
}

impl Memory {
    /// Read what is remembered.
    pub(crate) fn open(
        state_dir: &Path,
        cosigner: Cosigner,
        keys: Vec<Vkey>,
    ) -> Result<Self, OpenError> {
        let mut logs = HashMap::new();
        for key in &keys {
            let folder = state_dir.join(name_of(key.name()));
            let io = |cause| OpenError::Io {
                path: folder.clone(),
                cause,
            };
            fs::create_dir_all(&folder).map_err(io)?;
            File::open(state_dir)
                .and_then(|dir| dir.sync_all())
                .map_err(io)?;
            let seen = read_seen(&folder.join("checkpoint"), &keys)?;
            logs.insert(
                key.name().clone(),
                Log {
                    folder,
                    seen: Mutex::new(Some(seen)),
                },
            );
        }
        Ok(Self {
            cosigner,
            keys,
            logs,
        })
    }

    /// Decide on a request, remember, and cosign; blocks while the disk writes.
    pub(crate) fn cosign(
        &self,
        request: &AddCheckpoint,
        now_s: u64,
    ) -> Result<SignatureLine, CosignError> {
        let signed = request.authenticate(&self.keys)?;
        let checkpoint = signed.checkpoint();
        let log = self
            .logs
            .get(&checkpoint.origin)
            .ok_or(Refusal::UnknownLog)?;
        // A panic under the lock comes before the write or after it; what is there is either way true.
        let mut seen = log.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let last = seen.as_ref().ok_or(CosignError::Unsure)?;
        let next = request.admit(checkpoint, last)?;
        let line = self.cosigner.sign(signed.note().text(), now_s);
        let note = self.own_lines(&signed, line.clone());
        *seen = None;
        write_durably(&log.folder, note.to_string().as_bytes()).map_err(CosignError::Memory)?;
        *seen = Some(next);
        Ok(line)
    }

    /// The newest checkpoint that was cosigned, for readers, by the hash of its origin.
    pub(crate) fn newest(&self, name: &str) -> Option<Vec<u8>> {
        let log = self
            .logs
            .iter()
            .find(|(origin, _)| name_of(origin) == name)?
            .1;
        fs::read(log.folder.join("checkpoint")).ok()
    }

    /// The checkpoint with its log's signatures and ours, without what strangers have put below it.
    fn own_lines(&self, signed: &SignedCheckpoint, line: SignatureLine) -> Note {
        let mut note = signed.note().clone();
        let is_known = |line: &SignatureLine| {
            let mut keys = self.keys.iter();
            keys.any(|key| key.name() == &line.name && key.id() == line.key_id)
        };
        note.retain(is_known);
        note.add(line);
        note
    }
}

/// How a log's folder is called, and its address for readers.
pub(crate) fn name_of(origin: &KeyName) -> String {
    Hash::of_bytes(origin.as_str().as_bytes()).to_string()
}

fn read_seen(path: &Path, keys: &[Vkey]) -> Result<Seen, OpenError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Seen::default()),
        Err(cause) => {
            let path = path.to_owned();
            return Err(OpenError::Io { path, cause });
        }
    };
    let signed = SignedCheckpoint::open(&bytes, keys).map_err(|_| OpenError::Damaged {
        path: path.to_owned(),
    })?;
    Ok(Seen::of(signed.checkpoint()))
}

/// The folder is opened before the file is written, so that an error that the kernel keeps with it is
/// seen by its `fsync`.
fn write_durably(folder: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = File::open(folder)?;
    let new = folder.join("checkpoint.new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, folder.join("checkpoint"))?;
    dir.sync_all()
}

#[cfg(test)]
mod tests;
