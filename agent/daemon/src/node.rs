//! `node.json` and `node.key`: who this host is to its controller.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::ids::NodeId;
use berth_ledger::keys::{PublicKey, SigningKey};
use serde::{Deserialize, Serialize};

const NODE_FILE: &str = "node.json";
const KEY_FILE: &str = "node.key";
/// The version of `node.json`'s layout.
const NODE_FORMAT: u32 = 1;

/// What `node.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Always 1.
    pub format: u32,
    /// The node's id.
    pub node_id: NodeId,
    /// The name that it enrolled under.
    pub node_name: String,
    /// Its epoch.
    pub node_epoch: u64,
    /// Where the controller answers.
    pub controller_url: String,
    /// The keys that may sign tasks, standard base64.
    pub task_public_keys: Vec<String>,
    /// The ledger's key, standard base64.
    pub ledger_public_key: String,
}

/// Why the node's files could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum NodeFileError {
    /// There is no such file: the host has not joined.
    #[error("this host has not joined a controller; run: berth-agent join <token>")]
    NotJoined,
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
    /// The file is damaged.
    #[error("{} is damaged; move it away and join again with a new token", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
}

impl Node {
    /// The record of a fresh enrolment.
    #[must_use]
    pub fn new(
        reply: berth_api::agent::EnrollReply,
        node_name: String,
        controller_url: String,
    ) -> Self {
        Self {
            format: NODE_FORMAT,
            node_id: reply.node_id,
            node_name,
            node_epoch: reply.node_epoch,
            controller_url,
            task_public_keys: reply.task_public_keys,
            ledger_public_key: reply.ledger_public_key,
        }
    }

    /// Read `node.json`.
    pub fn load(state: &Path) -> Result<Self, NodeFileError> {
        let path = state.join(NODE_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(NodeFileError::NotJoined);
            }
            Err(cause) => return Err(io_error("read", path)(cause)),
        };
        serde_json::from_slice(&text).map_err(|_| NodeFileError::Damaged { path })
    }

    /// Write `node.json`.
    pub fn save(&self, state: &Path) -> Result<(), NodeFileError> {
        let path = state.join(NODE_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(io::Error::from);
        text.and_then(|text| write_new(state, NODE_FILE, &text))
            .map_err(io_error("write", path))
    }

    /// The keys that may sign tasks; `None` if one is not a key.
    #[must_use]
    pub fn task_keys(&self) -> Option<Vec<PublicKey>> {
        self.task_public_keys
            .iter()
            .map(|text| PublicKey::from_base64(text).ok())
            .collect()
    }

    /// The ledger's key; `None` if it is not a key.
    #[must_use]
    pub fn ledger_key(&self) -> Option<PublicKey> {
        PublicKey::from_base64(&self.ledger_public_key).ok()
    }
}

/// Read the node's key.
pub fn load_key(state: &Path) -> Result<SigningKey, NodeFileError> {
    let path = state.join(KEY_FILE);
    let mut text = String::new();
    match File::open(&path).and_then(|mut file| file.read_to_string(&mut text)) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(NodeFileError::NotJoined);
        }
        Err(cause) => return Err(io_error("read", path)(cause)),
    }
    STANDARD
        .decode(text.trim())
        .ok()
        .and_then(|seed| SigningKey::from_seed(&seed).ok())
        .ok_or(NodeFileError::Damaged { path })
}

/// Write a fresh key.
pub fn save_key(state: &Path, key: &SigningKey) -> Result<(), NodeFileError> {
    let text = format!("{}\n", STANDARD.encode(key.seed()));
    write_new(state, KEY_FILE, text.as_bytes()).map_err(io_error("write", state.join(KEY_FILE)))
}

fn io_error(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> NodeFileError {
    move |cause| NodeFileError::Io {
        action,
        path,
        cause,
    }
}

/// Replace a file as a whole, readable by its owner alone, on the disk when this returns.
pub(crate) fn write_new(state: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    let temporary = state.join(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, state.join(name))?;
    File::open(state)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_key_is_private_and_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            load_key(folder.path()),
            Err(NodeFileError::NotJoined)
        ));
        let key = SigningKey::generate().unwrap();
        save_key(folder.path(), &key).unwrap();
        assert_eq!(load_key(folder.path()).unwrap().public(), key.public());
        let mode = std::fs::metadata(folder.path().join(KEY_FILE)).unwrap();
        assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_damaged_file_is_told_from_a_missing_one() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            Node::load(folder.path()),
            Err(NodeFileError::NotJoined)
        ));
        std::fs::write(folder.path().join(NODE_FILE), "{").unwrap();
        assert!(matches!(
            Node::load(folder.path()),
            Err(NodeFileError::Damaged { .. })
        ));
    }
}
