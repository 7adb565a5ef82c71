//! Logs as folders of files, as they are published, for programs that are not ours to look at.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use berth_ledger::checkpoint::SignedCheckpoint;
use berth_ledger::cosignature::Cosigner;
use berth_ledger::keys::SigningKey;
use berth_ledger::note::{KeyName, Vkey};
use berth_ledger::proof::TlogProof;
use berth_ledger::tile::Resource;

use crate::simulated_agent::http_client;

/// When the test's witness says that it saw a checkpoint.
const SEEN_AT_S: u64 = 1_750_000_000;
/// Entries for which proof files are fetched: the ends, one beside an end, and the middle.
const PROVEN: usize = 4;

/// A witness whose key the verifiers know.
fn witness() -> Cosigner {
    let name = KeyName::new("witness.example/w1").expect("it is a name");
    let key = SigningKey::from_seed(&[77; 32]).expect("any 32 bytes are a seed");
    Cosigner::new(name, key)
}

/// A log's files, and what a stranger needs to know of it beside them.
#[derive(Debug)]
pub struct PublishedLog {
    folder: PathBuf,
    /// The log's key.
    pub log_key: Vkey,
    /// The key of a witness that has cosigned the checkpoint.
    pub witness_key: Vkey,
    /// Number of entries.
    pub size: u64,
}

impl PublishedLog {
    /// Fetches a controller's whole log over HTTP into `folder`, as anybody can: checkpoint, tiles and
    /// bundles. Proof files of some entries need the token of somebody who may read the ledger; they
    /// come first, as the controller then shows a checkpoint that covers all that it has answered.
    /// `log_key` comes by another way.
    ///
    /// # Errors
    /// If the controller does not answer as it should, or its checkpoint is not by that key.
    pub fn fetch(url: &str, token: &str, log_key: Vkey, folder: &Path) -> Result<Self> {
        let witness = witness();
        let http = http_client();
        let get = |path: &str| -> Result<Vec<u8>> {
            let request = http.get(format!("{url}/v1/audit/{path}"));
            let authorization = format!("Bearer {}", token.trim());
            let mut answer = request.header("authorization", authorization).call()?;
            let status = answer.status();
            let body = answer.body_mut().read_to_vec()?;
            let text = || String::from_utf8_lossy(&body).into_owned();
            ensure!(status == 200, "GET {path}: {status} {}", text());
            Ok(body)
        };
        let head: serde_json::Value = serde_json::from_slice(&get("head")?)?;
        let size = head["size"].as_u64().context("the head has a size")?;
        ensure!(size >= 2, "there is nothing to check in {size} entries");
        let indices: [u64; PROVEN] = [0, 1, size / 2, size - 1];
        for index in indices {
            let path = format!("proof/inclusion?index={index}&size={size}");
            let answer: serde_json::Value = serde_json::from_slice(&get(&path)?)?;
            let text = answer["tlog_proof"].as_str();
            let text = text.context("the log has grown while it was fetched")?;
            let mut proof = TlogProof::parse(text.as_bytes())?;
            let line = witness.sign(proof.checkpoint.text(), SEEN_AT_S);
            proof.checkpoint.add(line);
            let place = folder.join(format!("proofs/{index}.tlog-proof"));
            write(&place, proof.to_string().as_bytes())?;
        }
        let note = get("checkpoint")?;
        let signed = SignedCheckpoint::open(&note, std::slice::from_ref(&log_key))?;
        ensure!(
            signed.checkpoint().size == size,
            "the log has grown while it was fetched"
        );
        let mut note = signed.note().clone();
        note.add(witness.sign(note.text(), SEEN_AT_S));
        write(&folder.join("checkpoint"), note.to_string().as_bytes())?;
        for resource in Resource::all(size) {
            let path = resource.to_string();
            write(&folder.join(&path), &get(&path)?)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            log_key,
            witness_key: witness.vkey().clone(),
            size,
        })
    }

    /// Where they are.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Changes one bit of a file while `look` runs.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is not that long.
    pub fn with_changed_bit<T>(
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
