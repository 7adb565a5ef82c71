//! A log in memory, to try on it what reads, proves and verifies logs. Feature `model`.
//!
//! It keeps what a log stores, signs checkpoints of any size that it has had, and publishes the
//! resources of any such size. Nothing is durable, and its keys are made from small numbers.

use std::collections::HashMap;
use std::convert::Infallible;

use crate::checkpoint::{Checkpoint, SignedCheckpoint};
use crate::entry::ProvenEntry;
use crate::keys::SigningKey;
use crate::leaf::{Commitment, Leaf, Nonce, ViewKey};
use crate::merkle::{
    Frontier, Hash, Node, consistency_proof, inclusion_proof, leaf_hash, root_from_nodes,
};
use crate::note::{KeyName, Note, Signer, Vkey};
use crate::proof::TlogProof;
use crate::tenant_view::{FIRST_SEQUENCE, NO_PREVIOUS};
use crate::tile::{EntryBundle, Resource, encode_entry};

/// A log in memory.
#[derive(Debug)]
pub struct ModelLog {
    signer: Signer,
    entries: Vec<Vec<u8>>,
    nodes: HashMap<Node, Hash>,
    frontier: Frontier,
    secret: [u8; 32],
    holders: HashMap<Option<String>, (u64, Hash)>,
}

/// Something that the model does not have. A test that meets this asks for what is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the model has no {0:?}")]
pub struct Absent(pub Resource);

#[expect(
    clippy::missing_panics_doc,
    reason = "a model for tests says what is wrong with the test by panicking"
)]
impl ModelLog {
    /// An empty log with this origin and the key of this seed.
    #[must_use]
    pub fn new(origin: &str, seed: u8) -> Self {
        let name = KeyName::new(origin).expect("the test's origin is a name");
        let key = SigningKey::from_seed(&[seed; 32]).expect("any 32 bytes are a seed");
        Self {
            signer: Signer::new(name, key),
            entries: Vec::new(),
            nodes: HashMap::new(),
            frontier: Frontier::new(),
            secret: [seed; 32],
            holders: HashMap::new(),
        }
    }

    /// Append an entry; its index.
    pub fn append(&mut self, entry: &[u8]) -> u64 {
        let index = self.frontier.size();
        let nodes = &mut self.nodes;
        let Ok(()) = self.frontier.append(leaf_hash(entry), |node, hash| {
            nodes.insert(node, hash);
            Ok::<_, Infallible>(())
        });
        self.entries.push(entry.to_vec());
        index
    }

    /// Append an event to a holder's sequence. `members` are put into its body beside those that tie
    /// it to the sequence. The entry has no proof yet.
    pub fn append_event(
        &mut self,
        tenant_id: Option<&str>,
        members: serde_json::Value,
    ) -> ProvenEntry {
        let holder = tenant_id.map(str::to_owned);
        let last = self.holders.get(&holder).copied();
        let (sequence, prev) = last.map_or((FIRST_SEQUENCE, NO_PREVIOUS), |(last, hash)| {
            (last + 1, hash)
        });
        let mut body = serde_json::json!({
            "tenant_id": tenant_id, "tenant_seq": sequence, "prev": prev,
        });
        if let (Some(all), serde_json::Value::Object(members)) = (body.as_object_mut(), members) {
            all.extend(members);
        }
        let body = body.to_string();
        let nonce = Nonce(Hash::of_bytes(format!("nonce {}", self.entries.len()).as_bytes()).0);
        let tag = self.view_key(tenant_id).tag(sequence);
        let commitment = Commitment::of(&nonce, body.as_bytes());
        let leaf = Leaf::of_event(1_700_000_000_000 + self.frontier.size(), tag, commitment);
        let index = self.append(&leaf.to_bytes());
        self.holders
            .insert(holder, (sequence, Hash::of_bytes(body.as_bytes())));
        ProvenEntry {
            index,
            leaf,
            nonce,
            body,
            proof: Vec::new(),
        }
    }

    /// The view key of a holder.
    #[must_use]
    pub fn view_key(&self, tenant_id: Option<&str>) -> ViewKey {
        ViewKey::derive(&self.secret, tenant_id.unwrap_or_default())
    }

    /// Give an entry its proof in the tree of this size.
    #[must_use]
    pub fn prove(&self, entry: &ProvenEntry, size: u64) -> ProvenEntry {
        ProvenEntry {
            proof: self.inclusion(entry.index, size),
            ..entry.clone()
        }
    }

    /// The proof that an entry is in the tree of this size.
    #[must_use]
    pub fn inclusion(&self, index: u64, size: u64) -> Vec<Hash> {
        inclusion_proof(index, size, |node| self.node(node)).expect("the test asks what there is")
    }

    /// The proof that one tree begins with another.
    #[must_use]
    pub fn consistency(&self, from: u64, to: u64) -> Vec<Hash> {
        consistency_proof(from, to, |node| self.node(node)).expect("the test asks what there is")
    }

    /// The proof file of an entry.
    #[must_use]
    pub fn proof_file(&self, index: u64, size: u64) -> TlogProof {
        TlogProof {
            extra: None,
            index,
            hashes: self.inclusion(index, size),
            checkpoint: self.note(size),
        }
    }

    /// Number of entries.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// The log's key.
    #[must_use]
    pub fn signer(&self) -> &Signer {
        &self.signer
    }

    /// What others verify with.
    #[must_use]
    pub fn vkey(&self) -> Vkey {
        self.signer.vkey().clone()
    }

    /// What the log states at this size.
    #[must_use]
    pub fn checkpoint(&self, size: u64) -> Checkpoint {
        let root = root_from_nodes(size, |node| self.node(node));
        Checkpoint {
            origin: self.signer.vkey().name().clone(),
            size,
            root: root.expect("the test asks what there is"),
        }
    }

    /// The signed checkpoint of this size.
    #[must_use]
    pub fn note(&self, size: u64) -> Note {
        self.checkpoint(size).sign(&[&self.signer])
    }

    /// The same, opened.
    #[must_use]
    pub fn signed(&self, size: u64) -> SignedCheckpoint {
        SignedCheckpoint::open_note(self.note(size), &[self.vkey()])
            .expect("the model signs with its own key")
    }

    /// The bytes of a resource. Partial ones of any size that the log has had are there.
    ///
    /// # Errors
    /// If the log does not have it.
    pub fn read(&self, resource: Resource) -> Result<Vec<u8>, Absent> {
        match resource {
            Resource::Checkpoint => Ok(self.note(self.size()).to_string().into_bytes()),
            Resource::Tile(tile) => tile
                .encode(|node| self.node(node))
                .map_err(|_| Absent(resource)),
            Resource::Entries(bundle) => self.bundle(bundle).ok_or(Absent(resource)),
        }
    }

    fn bundle(&self, bundle: EntryBundle) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        for index in bundle.entries() {
            let entry = self.entries.get(usize::try_from(index).ok()?)?;
            encode_entry(&mut bytes, entry).ok()?;
        }
        Some(bytes)
    }

    fn node(&self, node: Node) -> Result<Hash, NoNode> {
        self.nodes.get(&node).copied().ok_or(NoNode)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("the model has no such node")]
struct NoNode;
