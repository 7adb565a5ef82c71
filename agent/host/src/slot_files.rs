//! The files of each slot: `slots/<bare id>/{record.json,receipts/<receipt id>.json}`.
//!
//! Owns their layout and durability. A record is replaced as one; one that cannot be read is set
//! aside and never silently replaced. Receipts are kept for the host's owner, the newest of them.
//! Calls block. What a record means is `berth-agent-core`'s.

use std::io;
use std::path::PathBuf;

use berth_agent_core::slot::record::SlotRecord;
use berth_api::agent::SignedEnvelope;
use berth_api::ids::{ReceiptId, SlotId};

use crate::folder::Folder;

const RECORD: &str = "record.json";
const DAMAGED_RECORD: &str = "record.json.damaged";
const RECEIPTS: &str = "receipts";
/// Longest record that is read: the receipts that a controller may leave unanswered.
const MAX_RECORD_BYTES: u64 = 16 * 1024 * 1024;
/// Receipts that are kept of each slot.
pub const RECEIPTS_KEPT: usize = 256;

/// Why a slot's files could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum SlotFilesError {
    /// The file system failed.
    #[error("could not {action} {subject}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The slot or folder.
        subject: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// The record is not one of this version's.
    #[error("the record of {slot_id} is not readable by this version")]
    Record {
        /// Whose.
        slot_id: SlotId,
        /// Where it does not fit.
        #[source]
        cause: serde_json::Error,
    },
    /// There are traces of a slot that has no record.
    #[error("the record of {slot_id} is missing, but there are traces of it")]
    Missing {
        /// Whose.
        slot_id: SlotId,
    },
    /// A test told the fake to fail.
    #[error("the fake was told to fail")]
    Injected,
}

/// What the daemon needs of the file system for its slots.
pub trait SlotFiles: Send + Sync + 'static {
    /// All slots that have a folder.
    ///
    /// # Errors
    /// If the folder cannot be read.
    fn list(&self) -> Result<Vec<SlotId>, SlotFilesError>;
    /// A slot's record; `None` where it never had one.
    ///
    /// # Errors
    /// If it cannot be read, or is gone.
    fn read_record(&self, slot_id: SlotId) -> Result<Option<SlotRecord>, SlotFilesError>;
    /// Keep a record that cannot be read under another name.
    ///
    /// # Errors
    /// If the file system fails.
    fn set_record_aside(&self, slot_id: SlotId) -> Result<(), SlotFilesError>;
    /// Replace a slot's record. It is on the disk when this returns.
    ///
    /// # Errors
    /// If the file system fails.
    fn write_record(&self, record: &SlotRecord) -> Result<(), SlotFilesError>;
    /// Ensure that a receipt is on the disk, and that no more than [`RECEIPTS_KEPT`] are.
    ///
    /// # Errors
    /// If the file system fails.
    fn ensure_receipt(
        &self,
        slot_id: SlotId,
        receipt_id: ReceiptId,
        receipt: &SignedEnvelope,
    ) -> Result<(), SlotFilesError>;
}

/// The files of this host, below one folder.
#[derive(Debug, Clone)]
pub struct LinuxSlotFiles {
    root: PathBuf,
}

fn failed(
    action: &'static str,
    subject: &dyn ToString,
) -> impl FnOnce(io::Error) -> SlotFilesError {
    let subject = subject.to_string();
    move |cause| SlotFilesError::Io {
        action,
        subject,
        cause,
    }
}

impl LinuxSlotFiles {
    /// The files below `root`, which is made where it is missing.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(root: PathBuf) -> Result<Self, SlotFilesError> {
        Folder::ensure(&root).map_err(failed("open", &root.display()))?;
        Ok(Self { root })
    }

    fn path(&self, slot_id: SlotId) -> PathBuf {
        self.root.join(slot_id.bare())
    }

    fn folder(&self, slot_id: SlotId) -> io::Result<Folder> {
        Folder::ensure(&self.path(slot_id))
    }

    /// The receipts' names, oldest first: their ids begin with the time.
    fn receipts(&self, slot_id: SlotId) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.path(slot_id).join(RECEIPTS)) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".json") {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Whether there are traces of a record: receipts, or one that was set aside.
    fn had_record(&self, slot_id: SlotId) -> io::Result<bool> {
        let damaged = self.path(slot_id).join(DAMAGED_RECORD);
        Ok(damaged.try_exists()? || !self.receipts(slot_id)?.is_empty())
    }

    fn write_receipt(&self, slot_id: SlotId, name: &str, content: &[u8]) -> io::Result<()> {
        self.folder(slot_id)?;
        let folder = Folder::ensure(&self.path(slot_id).join(RECEIPTS))?;
        if folder.has(name)? {
            return Ok(());
        }
        folder.replace(name, content)?;
        let names = self.receipts(slot_id)?;
        let superfluous = names.len().saturating_sub(RECEIPTS_KEPT);
        for old in names.iter().take(superfluous) {
            folder.remove(old)?;
        }
        Ok(())
    }
}

impl SlotFiles for LinuxSlotFiles {
    fn list(&self) -> Result<Vec<SlotId>, SlotFilesError> {
        let listed = || -> io::Result<Vec<SlotId>> {
            let mut all = Vec::new();
            for entry in std::fs::read_dir(&self.root)? {
                let name = entry?.file_name();
                let id = format!("{}_{}", SlotId::PREFIX, name.to_string_lossy());
                all.extend(id.parse::<SlotId>());
            }
            Ok(all)
        };
        listed().map_err(failed("list", &self.root.display()))
    }

    fn read_record(&self, slot_id: SlotId) -> Result<Option<SlotRecord>, SlotFilesError> {
        let read = || match Folder::open(&self.path(slot_id)) {
            Ok(folder) => folder.read(RECORD, MAX_RECORD_BYTES),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        };
        let content = read().map_err(failed("read the record of", &slot_id))?;
        let Some(content) = content else {
            let had_one = self.had_record(slot_id);
            return if had_one.map_err(failed("look for traces of", &slot_id))? {
                Err(SlotFilesError::Missing { slot_id })
            } else {
                Ok(None)
            };
        };
        serde_json::from_slice(&content)
            .map(Some)
            .map_err(|cause| SlotFilesError::Record { slot_id, cause })
    }

    fn set_record_aside(&self, slot_id: SlotId) -> Result<(), SlotFilesError> {
        let set_aside = || {
            let folder = self.folder(slot_id)?;
            if folder.has(RECORD)? {
                folder.rename(RECORD, DAMAGED_RECORD)?;
            }
            Ok(())
        };
        set_aside().map_err(failed("set aside the record of", &slot_id))
    }

    fn write_record(&self, record: &SlotRecord) -> Result<(), SlotFilesError> {
        let slot_id = record.slot_id;
        let content = serde_json::to_vec(record)
            .map_err(|cause| SlotFilesError::Record { slot_id, cause })?;
        self.folder(slot_id)
            .and_then(|folder| folder.replace(RECORD, &content))
            .map_err(failed("write the record of", &slot_id))
    }

    fn ensure_receipt(
        &self,
        slot_id: SlotId,
        receipt_id: ReceiptId,
        receipt: &SignedEnvelope,
    ) -> Result<(), SlotFilesError> {
        let content = serde_json::to_vec(receipt)
            .map_err(|cause| SlotFilesError::Record { slot_id, cause })?;
        self.write_receipt(slot_id, &format!("{}.json", receipt_id.bare()), &content)
            .map_err(failed("write a receipt of", &slot_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::{FaultySlotFiles, Fuse};
    use berth_api::agent::EnvelopeSignature;

    fn receipt(payload: &str) -> SignedEnvelope {
        SignedEnvelope {
            payload_type: "t".to_owned(),
            payload: payload.to_owned(),
            signatures: vec![EnvelopeSignature {
                keyid: String::new(),
                sig: String::new(),
            }],
        }
    }

    fn conforms(files: &impl SlotFiles) {
        let slot_id = SlotId::generate();
        assert!(files.list().unwrap().is_empty());
        assert!(files.read_record(slot_id).unwrap().is_none());
        let mut record = SlotRecord::new(slot_id, "boot");
        files.write_record(&record).unwrap();
        record.generation = 2;
        files.write_record(&record).unwrap();
        assert_eq!(files.read_record(slot_id).unwrap(), Some(record));
        assert_eq!(files.list().unwrap(), [slot_id]);
        let id = ReceiptId::generate();
        files.ensure_receipt(slot_id, id, &receipt("one")).unwrap();
        files.ensure_receipt(slot_id, id, &receipt("two")).unwrap();
        files.set_record_aside(slot_id).unwrap();
        files.set_record_aside(slot_id).unwrap();
        assert!(matches!(
            files.read_record(slot_id),
            Err(SlotFilesError::Missing { .. })
        ));
    }

    fn real(folder: &tempfile::TempDir) -> LinuxSlotFiles {
        LinuxSlotFiles::new(folder.path().join("slots")).unwrap()
    }

    #[test]
    fn real_and_faulty_files_conform() {
        let folder = tempfile::tempdir().unwrap();
        conforms(&real(&folder));
        let folder = tempfile::tempdir().unwrap();
        conforms(&FaultySlotFiles::new(real(&folder), Fuse::whole()));
    }

    #[test]
    fn a_damaged_record_is_an_error_and_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let files = real(&folder);
        let slot_id = SlotId::generate();
        files
            .write_record(&SlotRecord::new(slot_id, "boot"))
            .unwrap();
        let path = files.path(slot_id);
        std::fs::write(path.join(RECORD), b"{\"format\":").unwrap();
        assert!(matches!(
            files.read_record(slot_id),
            Err(SlotFilesError::Record { .. })
        ));
        files.set_record_aside(slot_id).unwrap();
        let kept = std::fs::read(path.join(DAMAGED_RECORD)).unwrap();
        assert_eq!(kept, b"{\"format\":");
    }

    #[test]
    fn the_newest_receipts_are_kept_as_they_were_first_written() {
        let folder = tempfile::tempdir().unwrap();
        let files = real(&folder);
        let slot_id = SlotId::generate();
        let id = |number: usize| -> ReceiptId { format!("rcpt_{number:026}").parse().unwrap() };
        for number in 0..RECEIPTS_KEPT + 2 {
            files
                .ensure_receipt(slot_id, id(number), &receipt("first"))
                .unwrap();
        }
        let last = id(RECEIPTS_KEPT + 1);
        files
            .ensure_receipt(slot_id, last, &receipt("second"))
            .unwrap();
        let names = files.receipts(slot_id).unwrap();
        assert_eq!(names.len(), RECEIPTS_KEPT);
        assert_eq!(names[0], format!("{}.json", id(2).bare()));
        let path = files.path(slot_id).join(RECEIPTS);
        let kept = std::fs::read_to_string(path.join(format!("{}.json", last.bare()))).unwrap();
        assert!(kept.contains("first"), "{kept}");
    }
}
