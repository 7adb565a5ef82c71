//! A published log as a folder of files: every entry, every tile and the root, without a controller.

use std::fs;
use std::io;
use std::path::Path;

use berth_ledger::audit::{EntryProblem, Observer, Progress, verify_log};
use berth_ledger::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint};
use berth_ledger::keys::PublicKey;
use berth_ledger::note::{KeyKind, Note, Vkey};
use berth_ledger::tile::Resource;

use crate::failure::Failure;

/// What was found right.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct VerifiedFolder {
    /// The log.
    pub(crate) origin: String,
    /// Number of entries, all of which were checked.
    pub(crate) entries: u64,
    /// Number of tiles, all of which were checked.
    pub(crate) tiles: u64,
    /// The root, lower-case hex.
    pub(crate) root: String,
    /// The key that signed, standard base64.
    pub(crate) public_key: String,
}

impl VerifiedFolder {
    /// For people.
    #[must_use]
    pub(crate) fn sentence(&self) -> String {
        format!(
            "verified: {} entries, {} tiles, root {}\nlog: {}\nkey: {} (the key that you gave)",
            self.entries, self.tiles, self.root, self.origin, self.public_key
        )
    }
}

/// Who is told how far it is.
struct Tell<F>(F);

impl<F: FnMut(u64, u64)> Observer for Tell<F> {
    fn entry(&mut self, _: u64, _: &[u8]) -> Result<(), EntryProblem> {
        Ok(())
    }

    fn progress(&mut self, progress: Progress) {
        (self.0)(progress.entries, progress.size);
    }
}

/// Check a folder with the log's key, which must not come from the folder. `progress` is told how many
/// entries were right so far, and of how many.
pub(crate) fn verify(
    folder: &Path,
    key: &PublicKey,
    progress: impl FnMut(u64, u64),
) -> Result<VerifiedFolder, Failure> {
    let read = |resource: Resource| fs::read(folder.join(resource.to_string()));
    let note = read(Resource::Checkpoint).map_err(|cause| Failure::File {
        doing: "reading",
        path: folder.join("checkpoint"),
        cause,
    })?;
    let signed = open(&note, key).map_err(Failure::Checkpoint)?;
    let checkpoint = signed.checkpoint();
    let report = verify_log::<io::Error>(checkpoint, read, &mut Tell(progress))
        .map_err(|cause| Failure::PublishedLog(Box::new(cause)))?;
    Ok(VerifiedFolder {
        origin: checkpoint.origin.to_string(),
        entries: report.entries,
        tiles: report.tiles,
        root: checkpoint.root.to_string(),
        public_key: key.to_base64(),
    })
}

/// The checkpoint, if this key has signed it under the name that it has.
fn open(note: &[u8], key: &PublicKey) -> Result<SignedCheckpoint, OpenCheckpointError> {
    let note = Note::parse(note).map_err(OpenCheckpointError::Note)?;
    let said = Checkpoint::parse(note.text()).map_err(OpenCheckpointError::Text)?;
    let vkey = Vkey::new(said.origin, KeyKind::Ed25519, *key);
    SignedCheckpoint::open_note(note, &[vkey])
}

#[cfg(test)]
mod tests {
    use berth_ledger::model::ModelLog;
    use serde_json::json;

    use super::*;

    const SIZE: u64 = 300;

    /// A log's folder, and its key.
    fn published() -> (tempfile::TempDir, PublicKey) {
        let mut log = ModelLog::new("ledger.example/d/e1", 7);
        for number in 0..SIZE {
            log.append_event(Some("acme"), json!({ "detail": { "number": number } }));
        }
        let folder = tempfile::tempdir().unwrap();
        let write = |path: String, bytes: &[u8]| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        for resource in Resource::all(SIZE) {
            write(resource.to_string(), &log.read(resource).unwrap());
        }
        let note = log.signed(SIZE).note().to_string();
        write("checkpoint".to_owned(), note.as_bytes());
        (folder, *log.vkey().public_key())
    }

    #[test]
    fn a_published_folder_is_verified_with_nothing_but_the_logs_key() {
        let (folder, key) = published();
        let mut last = (0, 0);
        let found = verify(folder.path(), &key, |done, all| last = (done, all)).unwrap();
        assert_eq!((found.entries, found.tiles), (SIZE, 3));
        assert_eq!(last, (SIZE, SIZE));
        let other = berth_ledger::keys::SigningKey::from_seed(&[9; 32]).unwrap();
        let refused = verify(folder.path(), &other.public(), |_, _| {}).unwrap_err();
        assert!(matches!(refused, Failure::Checkpoint(_)), "{refused:?}");
    }

    #[test]
    fn a_published_folder_with_a_changed_bit_or_without_a_tile_is_refused() {
        let (folder, key) = published();
        for path in ["tile/entries/000", "tile/0/001.p/44", "tile/1/000.p/1"] {
            let path = folder.path().join(path);
            let sound = fs::read(&path).unwrap();
            let mut changed = sound.clone();
            changed[10] ^= 1;
            fs::write(&path, changed).unwrap();
            let refused = verify(folder.path(), &key, |_, _| {}).unwrap_err();
            assert!(matches!(refused, Failure::PublishedLog(_)), "{refused:?}");
            fs::remove_file(&path).unwrap();
            let refused = verify(folder.path(), &key, |_, _| {}).unwrap_err();
            assert!(matches!(refused, Failure::PublishedLog(_)), "{refused:?}");
            fs::write(&path, sound).unwrap();
        }
        verify(folder.path(), &key, |_, _| {}).unwrap();
    }
}
