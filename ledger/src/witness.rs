//! The witness protocol (C2SP tlog-witness 1.0.0): what a log asks, and what a witness decides.
//!
//! Owns the body of `add-checkpoint`, the decision on it, and how a log reads the answer. A witness
//! has to remember what it has cosigned before it answers, and to decide and remember as one step:
//! that is for `berth-witness`, and for agents, which keep the same memory.

use std::fmt;

use crate::checkpoint::{Checkpoint, OpenCheckpointError, SignedCheckpoint, parse_size};
use crate::merkle::{Hash, VerifyProofError, verify_consistency};
use crate::note::{Note, ParseNoteError, SignatureLine, Vkey};

/// As many hashes as the protocol allows in a request.
const MAX_HASHES: usize = 63;
/// The longest request that is read, in bytes: a note and 63 hashes.
pub const MAX_REQUEST_BYTES: usize = crate::note::MAX_NOTE_BYTES + 4096;
/// Content type of the answer 409.
pub const SIZE_CONTENT_TYPE: &str = "text/x.tlog.size";

/// The body of `POST …/add-checkpoint`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddCheckpoint {
    /// The size that the log believes the witness to have seen last.
    pub old_size: u64,
    /// That the checkpoint's tree begins with the tree of that size.
    pub proof: Vec<Hash>,
    /// The checkpoint.
    pub checkpoint: Note,
}

/// Why a body is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseRequestError {
    /// The first line is not `old <size>`.
    #[error("the first line is not `old <size>` with a decimal number")]
    OldSize,
    /// A line is not a hash, or one too many.
    #[error("line {line} is not one of at most {MAX_HASHES} hashes in base64")]
    Hash {
        /// Which one, from 1.
        line: usize,
    },
    /// No empty line ends the hashes.
    #[error("no empty line separates the proof from the checkpoint")]
    NoCheckpoint,
    /// What follows is not a signed note.
    #[error("the checkpoint is not a signed note")]
    Checkpoint(#[source] ParseNoteError),
}

/// What a witness has seen of one log: the newest tree that it cosigned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Number of entries; 0 if it has cosigned nothing.
    pub size: u64,
    /// The root.
    pub root: Hash,
}

/// Why a witness does not cosign.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// 400: the checkpoint cannot be read.
    #[error("the checkpoint cannot be read")]
    Malformed(#[source] OpenCheckpointError),
    /// 404: of that log no key is known.
    #[error("the checkpoint is of a log that is not known here")]
    UnknownLog,
    /// 403: the log has not signed it.
    #[error("the checkpoint is not signed by its log")]
    NotSigned(#[source] OpenCheckpointError),
    /// 400: the old size is above the new one.
    #[error("the old size {old_size} is above the checkpoint's {size}")]
    Shrinks {
        /// The old size.
        old_size: u64,
        /// The checkpoint's.
        size: u64,
    },
    /// 409: the witness has seen another size.
    #[error("the newest tree that was cosigned has {seen} entries, not {old_size}")]
    OtherSize {
        /// The size that the witness has seen.
        seen: u64,
        /// The one that the log believed.
        old_size: u64,
    },
    /// 422: the new tree does not begin with the old one. Proof of a fork, if the log signed it.
    #[error("the checkpoint's tree does not grow out of the tree that was cosigned")]
    Inconsistent(#[source] VerifyProofError),
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            size: 0,
            root: Hash::of_empty_tree(),
        }
    }
}

impl Seen {
    /// A checkpoint that was cosigned.
    #[must_use]
    pub fn of(checkpoint: &Checkpoint) -> Self {
        Self {
            size: checkpoint.size,
            root: checkpoint.root,
        }
    }
}

impl Refusal {
    /// The HTTP status that the protocol has for it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed(_) | Self::Shrinks { .. } => 400,
            Self::NotSigned(_) => 403,
            Self::UnknownLog => 404,
            Self::OtherSize { .. } => 409,
            Self::Inconsistent(_) => 422,
        }
    }
}

impl AddCheckpoint {
    /// Read a request's body. A body that is none is answered with 400.
    ///
    /// # Errors
    /// If it is not one, to the byte.
    pub fn parse(body: &[u8]) -> Result<Self, ParseRequestError> {
        let text = std::str::from_utf8(body).map_err(|_| ParseRequestError::OldSize)?;
        let (head, note) = text
            .split_once("\n\n")
            .ok_or(ParseRequestError::NoCheckpoint)?;
        let mut lines = head.split('\n');
        let old_size = lines
            .next()
            .and_then(|line| line.strip_prefix("old "))
            .and_then(parse_size)
            .ok_or(ParseRequestError::OldSize)?;
        let proof = lines
            .enumerate()
            .map(|(number, line)| {
                let error = ParseRequestError::Hash { line: number + 2 };
                let hash = Hash::from_base64(line).map_err(|_| error)?;
                (number < MAX_HASHES).then_some(hash).ok_or(error)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            old_size,
            proof,
            checkpoint: Note::parse(note.as_bytes()).map_err(ParseRequestError::Checkpoint)?,
        })
    }

    /// The checkpoint, if a log that the witness knows has signed it. Does not depend on what the
    /// witness has seen.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn authenticate(&self, log_keys: &[Vkey]) -> Result<SignedCheckpoint, Refusal> {
        SignedCheckpoint::open_note(self.checkpoint.clone(), log_keys).map_err(
            |error| match error {
                OpenCheckpointError::Note(_) | OpenCheckpointError::Text(_) => {
                    Refusal::Malformed(error)
                }
                OpenCheckpointError::UnknownOrigin { .. } => Refusal::UnknownLog,
                OpenCheckpointError::Signature(_) => Refusal::NotSigned(error),
            },
        )
    }

    /// Whether an authentic checkpoint may be cosigned by a witness that has seen this; what it has
    /// seen from then on. The caller keeps that durably before it signs, and lets nobody decide in
    /// between.
    ///
    /// # Errors
    /// The refusal to answer with.
    pub fn admit(&self, checkpoint: &Checkpoint, seen: &Seen) -> Result<Seen, Refusal> {
        let old_size = self.old_size;
        if old_size > checkpoint.size {
            let size = checkpoint.size;
            return Err(Refusal::Shrinks { old_size, size });
        }
        if old_size != seen.size {
            let seen = seen.size;
            return Err(Refusal::OtherSize { seen, old_size });
        }
        verify_consistency(
            old_size,
            checkpoint.size,
            &seen.root,
            &checkpoint.root,
            &self.proof,
        )
        .map_err(Refusal::Inconsistent)?;
        Ok(Seen::of(checkpoint))
    }
}

/// The body.
impl fmt::Display for AddCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "old {}", self.old_size)?;
        for hash in &self.proof {
            writeln!(f, "{}", hash.to_base64())?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

/// What a witness's answer means for the log that asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// It has cosigned: the line belongs below the checkpoint.
    Cosigned {
        /// The cosignature.
        line: SignatureLine,
        /// When the witness says that was, seconds since the epoch.
        time_s: u64,
    },
    /// It has seen an older tree than the log believed, or a newer one: ask again from this size.
    OtherSize {
        /// What it has seen, at most the size that was sent.
        size: u64,
    },
    /// It has seen more of this log than the log has: the log was rolled back. Stop signing.
    RolledBack {
        /// What it has seen.
        size: u64,
    },
    /// What it has seen is not in this log: the log was forked. Stop signing.
    Forked,
}

/// Why an answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadAnswerError {
    /// The witness did not take the request: not this log's key, not this protocol, not now.
    #[error("the witness answered {status}")]
    Status {
        /// HTTP status.
        status: u16,
    },
    /// No line is the witness's signature of what was sent.
    #[error("the answer has no right cosignature of this witness")]
    NoCosignature,
    /// A 409 without a size.
    #[error("the witness answered 409 without the size that it has seen")]
    NoSize,
}

/// Read the answer to a request.
///
/// # Errors
/// If it is not one of the protocol's, or not signed by `witness`.
pub fn read_answer(
    status: u16,
    body: &str,
    sent: &SignedCheckpoint,
    witness: &Vkey,
) -> Result<Answer, ReadAnswerError> {
    match status {
        200 => {
            let mut seen = Note::unsigned(sent.note().text().to_owned())
                .map_err(|_| ReadAnswerError::NoCosignature)?;
            body.lines()
                .filter_map(SignatureLine::parse)
                .filter(|line| &line.name == witness.name() && line.key_id == witness.id())
                .for_each(|line| seen.add(line));
            let keys = std::slice::from_ref(witness);
            let time_s = seen
                .verify(keys)
                .ok()
                .and_then(|verified| verified.first()?.time_s);
            match (seen.signatures().first(), time_s) {
                (Some(line), Some(time_s)) => Ok(Answer::Cosigned {
                    line: line.clone(),
                    time_s,
                }),
                (None, _) | (_, None) => Err(ReadAnswerError::NoCosignature),
            }
        }
        409 => {
            let size = body.strip_suffix('\n').and_then(parse_size);
            match size.ok_or(ReadAnswerError::NoSize)? {
                size if size > sent.checkpoint().size => Ok(Answer::RolledBack { size }),
                size => Ok(Answer::OtherSize { size }),
            }
        }
        422 => Ok(Answer::Forked),
        status => Err(ReadAnswerError::Status { status }),
    }
}

#[cfg(test)]
mod tests;
