//! Proof files (C2SP tlog-proof): one entry's place in a log, to be checked without a network.
//!
//! Owns the text of `.tlog-proof` files and the check that a leaf is where the file says, in a tree
//! that the log has signed. The `extra` bytes are nobody's word; a leaf's hash comes from the caller,
//! who has the entry.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::checkpoint::{OpenCheckpointError, SignedCheckpoint, parse_size};
use crate::merkle::{Hash, VerifyProofError, verify_inclusion};
use crate::note::{Note, ParseNoteError, Vkey};

const FIRST_LINE: &str = "c2sp.org/tlog-proof@v1";
/// As many hashes as a tree of 2^63 - 1 leaves can ask for.
const MAX_HASHES: usize = 63;
/// Extension of proof files.
pub const FILE_EXTENSION: &str = "tlog-proof";

/// A proof file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlogProof {
    /// Whatever its maker put beside, of which nothing is proved.
    pub extra: Option<Vec<u8>>,
    /// The leaf's place, from 0.
    pub index: u64,
    /// The siblings from the leaf to the root.
    pub hashes: Vec<Hash>,
    /// The checkpoint whose tree has the leaf.
    pub checkpoint: Note,
}

/// Why text is not a proof file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseTlogProofError {
    /// Not UTF-8, or the first line is another.
    #[error("a proof file begins with the line `{FIRST_LINE}`")]
    FirstLine,
    /// The extra bytes are not base64.
    #[error("the line `extra` of the proof file is not base64")]
    Extra,
    /// No index, or not a decimal number below 2^63 without leading zeros.
    #[error("the proof file has no line `index` with a decimal number")]
    Index,
    /// A hash is not 32 bytes in base64, or there are more than a proof can have.
    #[error("line {line} of the proof file is not a hash")]
    Hash {
        /// Which one, from 1.
        line: usize,
    },
    /// No empty line ends the hashes.
    #[error("the proof file has no empty line before its checkpoint")]
    NoCheckpoint,
    /// What follows is not a signed note.
    #[error("the proof file does not end in a signed note")]
    Checkpoint(#[source] ParseNoteError),
}

/// Why a proof file shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyTlogProofError {
    /// Its checkpoint is not one, or not signed by a log that the caller believes.
    #[error("the proof's checkpoint is not believed")]
    Checkpoint(#[source] OpenCheckpointError),
    /// The leaf is not there.
    #[error("the proof does not show the entry in the log")]
    Inclusion(#[source] VerifyProofError),
}

impl TlogProof {
    /// Read a proof file.
    ///
    /// # Errors
    /// If it is not one, to the byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseTlogProofError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ParseTlogProofError::FirstLine)?;
        let (head, note) = text
            .split_once("\n\n")
            .ok_or(ParseTlogProofError::NoCheckpoint)?;
        let mut lines = head.split('\n').enumerate();
        if lines.next().is_none_or(|(_, line)| line != FIRST_LINE) {
            return Err(ParseTlogProofError::FirstLine);
        }
        let mut next = lines.next();
        let mut extra = None;
        if let Some(encoded) = next.and_then(|(_, line)| line.strip_prefix("extra ")) {
            let bytes = STANDARD.decode(encoded);
            extra = Some(bytes.map_err(|_| ParseTlogProofError::Extra)?);
            next = lines.next();
        }
        let index = next
            .and_then(|(_, line)| line.strip_prefix("index "))
            .and_then(parse_size)
            .ok_or(ParseTlogProofError::Index)?;
        let hashes = lines
            .enumerate()
            .map(|(count, (number, line))| {
                let error = ParseTlogProofError::Hash { line: number + 1 };
                let hash = Hash::from_base64(line).map_err(|_| error)?;
                (count < MAX_HASHES).then_some(hash).ok_or(error)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            extra,
            index,
            hashes,
            checkpoint: Note::parse(note.as_bytes()).map_err(ParseTlogProofError::Checkpoint)?,
        })
    }

    /// Check that this leaf is where the proof says, in a log of which `log_keys` has a key. The
    /// checkpoint that it is under: ask a policy whether enough witnesses have seen that.
    ///
    /// # Errors
    /// If that is not shown.
    pub fn verify(
        &self,
        leaf: &Hash,
        log_keys: &[Vkey],
    ) -> Result<SignedCheckpoint, VerifyTlogProofError> {
        let signed = SignedCheckpoint::open_note(self.checkpoint.clone(), log_keys)
            .map_err(VerifyTlogProofError::Checkpoint)?;
        let tree = signed.checkpoint();
        verify_inclusion(leaf, self.index, tree.size, &self.hashes, &tree.root)
            .map_err(VerifyTlogProofError::Inclusion)?;
        Ok(signed)
    }
}

/// The file.
impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{FIRST_LINE}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {}", STANDARD.encode(extra))?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.hashes {
            writeln!(f, "{}", hash.to_base64())?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

#[cfg(test)]
mod tests;
