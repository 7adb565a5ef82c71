//! Logs as folders of files, as they are published.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::model::ModelLog;
use berth_ledger::note::{KeyName, Vkey};
use berth_ledger::tile::Resource;
use serde_json::json;

/// When the test's witness says that it saw a checkpoint.
const SEEN_AT_S: u64 = 1_750_000_000;

/// A witness whose key the verifiers know.
pub(crate) fn witness() -> Cosigner {
    let name = KeyName::new("witness.example/w1").expect("it is a name");
    let key = SigningKey::from_seed(&[77; 32]).expect("any 32 bytes are a seed");
    Cosigner::new(name, key)
}

/// A log of events of three tenants.
pub(crate) fn model_of(size: u64) -> ModelLog {
    let mut log = ModelLog::new("ledger.example/d/e1", 7);
    for number in 0..size {
        let tenant = ["acme", "globex", "initech"][usize::try_from(number % 3).unwrap_or(0)];
        log.append_event(
            Some(tenant),
            json!({ "event_type": "VM_STARTED", "detail": { "number": number } }),
        );
    }
    log
}

/// A log's files, and what a stranger needs to know of it beside them.
#[derive(Debug)]
pub(crate) struct LogFiles {
    folder: PathBuf,
    /// The log's key.
    pub(crate) log_key: Vkey,
    /// The key of a witness that has cosigned the checkpoint.
    pub(crate) witness_key: Vkey,
}

impl LogFiles {
    /// Writes a log of this size below `folder`: checkpoint, tiles, bundles, and proof files of some
    /// of its entries. `read` gets each resource's bytes from whatever has the log.
    pub(crate) fn write(
        folder: &Path,
        checkpoint: &SignedCheckpoint,
        log_key: Vkey,
        proofs: &[(u64, String)],
        mut read: impl FnMut(Resource) -> Result<Vec<u8>>,
    ) -> Result<Self> {
        let witness = witness();
        let mut note = checkpoint.note().clone();
        note.add(witness.sign(note.text(), SEEN_AT_S));
        write(&folder.join("checkpoint"), note.to_string().as_bytes())?;
        for resource in Resource::all(checkpoint.checkpoint().size) {
            write(&folder.join(resource.to_string()), &read(resource)?)?;
        }
        for (index, proof) in proofs {
            let path = folder.join(format!("proofs/{index}.tlog-proof"));
            write(&path, proof.as_bytes())?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            log_key,
            witness_key: witness.vkey().clone(),
        })
    }

    /// Writes a model's whole log.
    pub(crate) fn of_model(folder: &Path, log: &ModelLog) -> Result<Self> {
        let size = log.size();
        let witness = witness();
        let proofs: Vec<(u64, String)> = [0, 1, size / 2, size - 1]
            .into_iter()
            .map(|index| {
                let mut proof = log.proof_file(index, size);
                let line = witness.sign(proof.checkpoint.text(), SEEN_AT_S);
                proof.checkpoint.add(line);
                (index, proof.to_string())
            })
            .collect();
        Self::write(folder, &log.signed(size), log.vkey(), &proofs, |resource| {
            Ok(log.read(resource)?)
        })
    }

    /// Where they are.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Changes one bit of a file while `look` runs.
    pub(crate) fn with_changed_bit<T>(
        &self,
        path: &str,
        byte: usize,
        look: impl FnOnce() -> T,
    ) -> Result<T> {
        let file = self.folder.join(path);
        let sound = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let mut changed = sound.clone();
        let byte = changed.get_mut(byte).context("the file is not that long")?;
        *byte ^= 1;
        fs::write(&file, changed)?;
        let result = look();
        fs::write(&file, sound)?;
        Ok(result)
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}
