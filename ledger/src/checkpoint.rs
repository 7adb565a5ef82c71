//! Checkpoints (C2SP tlog-checkpoint 1.0.0): a log's signed statement of its size and root.
//!
//! Owns the three lines and their strict reading. Signatures are `note`'s; whoever signs must never
//! sign two that contradict each other, which no function here can see.

use std::fmt;

use crate::merkle::{Hash, MAX_SIZE};
use crate::note::{KeyKind, KeyName, Note, ParseNoteError, Signer, VerifyNoteError, Vkey};

/// What a log states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Which log: its address without the scheme. Also the name of its key.
    pub origin: KeyName,
    /// Number of entries.
    pub size: u64,
    /// Root of the tree over them.
    pub root: Hash,
}

/// A checkpoint whose signature by its log is right, with the note that it came in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    note: Note,
}

/// Why text is not a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseCheckpointError {
    /// Fewer than three lines, or an empty one.
    #[error("a checkpoint has the lines origin, size and root, and none is empty")]
    Lines,
    /// The origin is not such that a key can be called so.
    #[error("the checkpoint's origin cannot be a key's name")]
    Origin,
    /// Not a decimal number below 2^63 without leading zeros.
    #[error("the checkpoint's size is not a decimal number below 2^63 without leading zeros")]
    Size,
    /// Not 32 bytes in base64.
    #[error("the checkpoint's root is not 32 bytes in base64")]
    Root,
}

/// Why a checkpoint is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenCheckpointError {
    /// The bytes are not a signed note.
    #[error("the checkpoint is not a signed note")]
    Note(#[source] ParseNoteError),
    /// The note's text is not a checkpoint.
    #[error("the signed note is not a checkpoint")]
    Text(#[source] ParseCheckpointError),
    /// It is another log's.
    #[error("the checkpoint is of the log {origin}, of which no key is known")]
    UnknownOrigin {
        /// Whose it is by its own word.
        origin: KeyName,
    },
    /// Its log has not signed it.
    #[error("the checkpoint is not signed by its log")]
    Signature(#[source] VerifyNoteError),
}

impl Checkpoint {
    /// Read a checkpoint's text. Lines after the third, which logs are advised against, say nothing
    /// to us and are passed over; they are signed all the same.
    ///
    /// # Errors
    /// If it is not one, to the byte.
    pub fn parse(text: &str) -> Result<Self, ParseCheckpointError> {
        let lines = text.strip_suffix('\n').ok_or(ParseCheckpointError::Lines)?;
        let mut lines = lines.split('\n');
        if lines.clone().any(str::is_empty) {
            return Err(ParseCheckpointError::Lines);
        }
        let mut next = || lines.next().ok_or(ParseCheckpointError::Lines);
        let (origin, size, root) = (next()?, next()?, next()?);
        Ok(Self {
            origin: KeyName::new(origin).map_err(|_| ParseCheckpointError::Origin)?,
            size: parse_size(size).ok_or(ParseCheckpointError::Size)?,
            root: Hash::from_base64(root).map_err(|_| ParseCheckpointError::Root)?,
        })
    }

    /// The note with this checkpoint as its text, and a signature of each of these keys. Several are
    /// for the time while a key is being replaced.
    #[must_use]
    pub fn sign(&self, signers: &[&Signer]) -> Note {
        let note = Note::unsigned(self.to_string());
        let mut note = note.expect("a checkpoint's lines have no control characters");
        for signer in signers {
            note.sign(signer);
        }
        note
    }
}

/// The note's text: three lines.
impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.root.to_base64();
        write!(f, "{}\n{}\n{root}\n", self.origin, self.size)
    }
}

impl SignedCheckpoint {
    /// Read a checkpoint and check its log's signature. `log_keys` are the keys of all logs that the
    /// caller believes; those of witnesses are not asked here.
    ///
    /// # Errors
    /// If it is not a checkpoint, or of none of these logs, or not signed by it.
    pub fn open(bytes: &[u8], log_keys: &[Vkey]) -> Result<Self, OpenCheckpointError> {
        Self::open_note(
            Note::parse(bytes).map_err(OpenCheckpointError::Note)?,
            log_keys,
        )
    }

    /// The same for a note that has been read.
    ///
    /// # Errors
    /// As [`SignedCheckpoint::open`].
    pub fn open_note(note: Note, log_keys: &[Vkey]) -> Result<Self, OpenCheckpointError> {
        let checkpoint = Checkpoint::parse(note.text()).map_err(OpenCheckpointError::Text)?;
        // A log's key bears the log's origin as its name: one log cannot sign for another.
        let is_own =
            |key: &&Vkey| key.kind() == KeyKind::Ed25519 && key.name() == &checkpoint.origin;
        let own: Vec<Vkey> = log_keys.iter().filter(is_own).cloned().collect();
        if own.is_empty() {
            let origin = checkpoint.origin;
            return Err(OpenCheckpointError::UnknownOrigin { origin });
        }
        note.verify(&own).map_err(OpenCheckpointError::Signature)?;
        Ok(Self { checkpoint, note })
    }

    /// What it states.
    #[must_use]
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The note, with all its signatures.
    #[must_use]
    pub fn note(&self) -> &Note {
        &self.note
    }
}

/// A decimal number that a log can have as its size, without leading zeros.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let is_decimal = text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_decimal || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok().filter(|size| *size <= MAX_SIZE)
}

#[cfg(test)]
mod tests;
