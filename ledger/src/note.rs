//! Signed notes (C2SP signed-note 1.0.0): a text and the signatures below it.
//!
//! Owns key names, verifier keys, the strict reading of notes, and the rule when a note counts as
//! signed: signatures of unknown keys are passed over, a wrong one of a known key spoils the note, and
//! at least one of a known key is needed. What a text says is `checkpoint`'s affair; the timestamped
//! signatures of witnesses are `cosignature`'s.

mod key;

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::cosignature;

pub(crate) use key::NamedKey;
pub use key::{KeyError, KeyId, KeyKind, KeyName, Signer, Vkey};

/// The longest note that is read, in bytes. Post-quantum signatures have up to 5 KB.
pub const MAX_NOTE_BYTES: usize = 1 << 20;
/// The most signatures that are looked at; the format asks for 16 at least.
pub const MAX_SIGNATURES: usize = 100;

/// One line below a note's text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SignatureLine {
    /// The key's name, as the line has it.
    pub name: KeyName,
    /// The key's id, as the line has it.
    pub key_id: KeyId,
    /// What follows the id: by the key's kind a signature, or a time and a signature.
    pub signature: Vec<u8>,
}

/// A text with signatures. That it was parsed says nothing of who signed it: [`Note::verify`] does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    text: String,
    signatures: Vec<SignatureLine>,
}

/// A signature of a known key that is right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedSignature<'a> {
    /// The key.
    pub vkey: &'a Vkey,
    /// When a witness says that it saw the text, seconds since the epoch. A log's signature has none.
    pub time_s: Option<u64>,
}

/// Why bytes are not a signed note.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ParseNoteError {
    /// Longer than [`MAX_NOTE_BYTES`].
    #[error("a note has at most {MAX_NOTE_BYTES} bytes")]
    TooLong,
    /// Not UTF-8, or with control characters other than the line feed.
    #[error("a note is UTF-8 text without control characters but the line feed")]
    Characters,
    /// Nothing separates a text from signatures.
    #[error("a note is a text, an empty line and signature lines, each ending in a line feed")]
    Shape,
    /// A line below the text is not a signature.
    #[error("signature line {line} is not `— <name> <base64>`")]
    SignatureLine {
        /// Which one, from 1.
        line: usize,
    },
    /// More than [`MAX_SIGNATURES`].
    #[error("a note has at most {MAX_SIGNATURES} signatures")]
    TooManySignatures,
}

/// Why a note does not count as signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyNoteError {
    /// Not by any key that is known.
    #[error("no known key has signed the note")]
    NotSigned,
    /// A known key's name and id are there, with a signature that is not its.
    #[error("the signature of {name} is wrong")]
    WrongSignature {
        /// The key's name.
        name: KeyName,
    },
}

impl Note {
    /// A text without signatures. It must be such that a note with it can be read again.
    ///
    /// # Errors
    /// If the text does not end in a line feed, or has characters that no note has.
    pub fn unsigned(text: String) -> Result<Self, ParseNoteError> {
        if !has_legal_characters(&text) {
            return Err(ParseNoteError::Characters);
        }
        if !text.ends_with('\n') {
            return Err(ParseNoteError::Shape);
        }
        Ok(Self {
            text,
            signatures: Vec::new(),
        })
    }

    /// Read a signed note. Whoever signed it is not looked at.
    ///
    /// # Errors
    /// If it is not one, to the byte.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseNoteError> {
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(ParseNoteError::TooLong);
        }
        let whole = std::str::from_utf8(bytes).map_err(|_| ParseNoteError::Characters)?;
        if !has_legal_characters(whole) {
            return Err(ParseNoteError::Characters);
        }
        // The text may have empty lines of its own: the last one separates.
        let end = whole.rfind("\n\n").ok_or(ParseNoteError::Shape)? + 1;
        let (text, rest) = whole.split_at(end);
        let lines = rest
            .strip_prefix('\n')
            .and_then(|lines| lines.strip_suffix('\n'))
            .ok_or(ParseNoteError::Shape)?;
        let mut signatures = Vec::new();
        for line in lines.split('\n') {
            if signatures.len() == MAX_SIGNATURES {
                return Err(ParseNoteError::TooManySignatures);
            }
            let number = signatures.len() + 1;
            let signature = SignatureLine::parse(line);
            signatures.push(signature.ok_or(ParseNoteError::SignatureLine { line: number })?);
        }
        Ok(Self {
            text: text.to_owned(),
            signatures,
        })
    }

    /// What is signed, with its last line feed.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The lines below the text.
    #[must_use]
    pub fn signatures(&self) -> &[SignatureLine] {
        &self.signatures
    }

    /// Add a log's signature.
    pub fn sign(&mut self, signer: &Signer) {
        self.add(signer.sign(&self.text));
    }

    /// Add a signature line, such as a witness's answer. A line that is there already is not doubled.
    pub fn add(&mut self, line: SignatureLine) {
        if !self.signatures.contains(&line) {
            self.signatures.push(line);
        }
    }

    /// Keep those lines alone that are wanted.
    pub fn retain(&mut self, is_wanted: impl FnMut(&SignatureLine) -> bool) {
        self.signatures.retain(is_wanted);
    }

    /// Which of these keys have signed the text, in the order of the lines.
    ///
    /// # Errors
    /// If none has, or if one is named whose signature is wrong.
    pub fn verify<'a>(
        &self,
        known: &'a [Vkey],
    ) -> Result<Vec<VerifiedSignature<'a>>, VerifyNoteError> {
        let mut verified: Vec<VerifiedSignature<'a>> = Vec::new();
        for line in &self.signatures {
            let is_of = |key: &&Vkey| key.name() == &line.name && key.id() == line.key_id;
            for vkey in known.iter().filter(is_of) {
                let time_s = verify_line(vkey, &self.text, line)?;
                if verified.iter().all(|found| found.vkey != vkey) {
                    verified.push(VerifiedSignature { vkey, time_s });
                }
            }
        }
        if verified.is_empty() {
            return Err(VerifyNoteError::NotSigned);
        }
        Ok(verified)
    }
}

/// The note as it is stored and served; what [`Note::parse`] reads, if it has a signature.
impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| line.fmt(f))
    }
}

/// The time of a right signature, if it is of a kind that has one.
fn verify_line(
    vkey: &Vkey,
    text: &str,
    line: &SignatureLine,
) -> Result<Option<u64>, VerifyNoteError> {
    let wrong = || VerifyNoteError::WrongSignature {
        name: line.name.clone(),
    };
    match vkey.kind() {
        KeyKind::Ed25519 => vkey
            .public_key()
            .verify(text.as_bytes(), &line.signature)
            .map(|()| None)
            .map_err(|_| wrong()),
        KeyKind::Cosignature => cosignature::verify(vkey.public_key(), text, &line.signature)
            .map(Some)
            .map_err(|_| wrong()),
    }
}

impl SignatureLine {
    /// Read one line, without its line feed.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix("— ")?.split_once(' ')?;
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_id, signature) = bytes.split_first_chunk()?;
        // A key name has no space, so a second one cannot hide in it; an empty signature is none.
        if signature.is_empty() {
            return None;
        }
        Some(Self {
            name: KeyName::new(name).ok()?,
            key_id: KeyId(*key_id),
            signature: signature.to_vec(),
        })
    }
}

/// The line with its line feed.
impl fmt::Display for SignatureLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.key_id.0[..], &self.signature].concat();
        writeln!(f, "— {} {}", self.name, STANDARD.encode(bytes))
    }
}

fn has_legal_characters(text: &str) -> bool {
    text.bytes().all(|byte| byte >= b' ' || byte == b'\n')
}

#[cfg(test)]
mod tests;
