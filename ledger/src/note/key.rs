//! Names, ids and encodings of the keys that sign notes.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};

use super::SignatureLine;
use crate::keys::{PublicKey, SigningKey};

/// What a private key's text begins with, as the reference implementation writes it.
const PRIVATE_PREFIX: &str = "PRIVATE+KEY+";

/// The name of a key: not empty, without Unicode spaces, plus signs and control characters.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct KeyName(String);

/// The first four bytes of the hash of a key's name, kind and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub [u8; 4]);

/// What a key signs, and how.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum KeyKind {
    /// 0x01: the note's text. A log's key.
    Ed25519,
    /// 0x04: the text with the time at which it was seen. A witness's key.
    Cosignature,
}

/// A verifier key: what somebody must have, from elsewhere, to believe a signature.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Vkey {
    name: KeyName,
    id: KeyId,
    kind: KeyKind,
    key: PublicKey,
}

/// A log's private key with its name. `Debug` shows the public half alone.
#[derive(Debug)]
pub struct Signer(NamedKey);

/// A private key of either kind.
pub(crate) struct NamedKey {
    vkey: Vkey,
    key: SigningKey,
}

/// Why text is not a key or a key's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A name that no key can have.
    #[error("a key's name is not empty and has no spaces, `+` or control characters")]
    Name,
    /// Not `<name>+<8 hex digits>+<base64>`.
    #[error("a verifier key is `<name>+<8 lower-case hex digits>+<base64>`")]
    Shape,
    /// Another kind than Ed25519 (0x01) and timestamped cosignatures (0x04), or not 32 bytes.
    #[error("the key is not an Ed25519 key of kind 0x01 or 0x04")]
    Kind,
    /// The id does not belong to name, kind and key.
    #[error("the key's id does not belong to its name and bytes: a part was mistyped")]
    Id,
}

impl KeyName {
    /// A name.
    ///
    /// # Errors
    /// If no key can be called so.
    pub fn new(name: &str) -> Result<Self, KeyError> {
        let is_bad = |c: char| c.is_whitespace() || c < ' ' || c == '+';
        if name.is_empty() || name.contains(is_bad) {
            return Err(KeyError::Name);
        }
        Ok(Self(name.to_owned()))
    }

    /// As text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for KeyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyId({self})")
    }
}

impl KeyKind {
    fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::Cosignature => 0x04,
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ed25519, Self::Cosignature]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }
}

impl Vkey {
    /// The verifier key of this name, kind and public key.
    #[must_use]
    pub fn new(name: KeyName, kind: KeyKind, key: PublicKey) -> Self {
        let mut hashed = format!("{name}\n").into_bytes();
        hashed.push(kind.byte());
        hashed.extend_from_slice(key.as_bytes());
        let mut id = [0; 4];
        for (byte, hashed) in id.iter_mut().zip(digest(&SHA256, &hashed).as_ref()) {
            *byte = *hashed;
        }
        Self {
            name,
            id: KeyId(id),
            kind,
            key,
        }
    }

    /// Its name; for a log's key the log's origin.
    #[must_use]
    pub fn name(&self) -> &KeyName {
        &self.name
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What it signs.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The bare key.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }
}

/// `<name>+<id>+<base64>`.
impl fmt::Display for Vkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let encoded = encode(self.kind, self.key.as_bytes());
        write!(f, "{}+{}+{encoded}", self.name, self.id)
    }
}

impl FromStr for Vkey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, id, kind, bytes) = decode(text)?;
        let key = PublicKey::from_bytes(&bytes).map_err(|_| KeyError::Kind)?;
        let vkey = Self::new(name, kind, key);
        if vkey.id.to_string() != id {
            return Err(KeyError::Id);
        }
        Ok(vkey)
    }
}

impl Signer {
    /// A log's private key; the name is the log's origin.
    #[must_use]
    pub fn new(name: KeyName, key: SigningKey) -> Self {
        Self(NamedKey::new(name, KeyKind::Ed25519, key))
    }

    /// Read what [`Signer::to_private_text`] writes.
    ///
    /// # Errors
    /// If it is anything else, a witness's key included.
    pub fn from_private_text(text: &str) -> Result<Self, KeyError> {
        NamedKey::from_private_text(text, KeyKind::Ed25519).map(Self)
    }

    /// `PRIVATE+KEY+<name>+<id>+<base64>`, for the key file and nothing else.
    #[must_use]
    pub fn to_private_text(&self) -> String {
        self.0.to_private_text()
    }

    /// What others verify with.
    #[must_use]
    pub fn vkey(&self) -> &Vkey {
        self.0.vkey()
    }

    /// The signature line for a note's text.
    #[must_use]
    pub fn sign(&self, text: &str) -> SignatureLine {
        self.0.line(self.0.key.sign(text.as_bytes()).to_vec())
    }
}

impl NamedKey {
    pub(crate) fn new(name: KeyName, kind: KeyKind, key: SigningKey) -> Self {
        let vkey = Vkey::new(name, kind, key.public());
        Self { vkey, key }
    }

    pub(crate) fn from_private_text(text: &str, wanted: KeyKind) -> Result<Self, KeyError> {
        let public_form = text.strip_prefix(PRIVATE_PREFIX).ok_or(KeyError::Shape)?;
        let (name, id, kind, seed) = decode(public_form)?;
        if kind != wanted {
            return Err(KeyError::Kind);
        }
        let key = SigningKey::from_seed(&seed).map_err(|_| KeyError::Kind)?;
        let named = Self::new(name, kind, key);
        if named.vkey.id.to_string() != id {
            return Err(KeyError::Id);
        }
        Ok(named)
    }

    pub(crate) fn to_private_text(&self) -> String {
        let encoded = encode(self.vkey.kind, self.key.seed());
        format!(
            "{PRIVATE_PREFIX}{}+{}+{encoded}",
            self.vkey.name, self.vkey.id
        )
    }

    pub(crate) fn vkey(&self) -> &Vkey {
        &self.vkey
    }

    pub(crate) fn key(&self) -> &SigningKey {
        &self.key
    }

    pub(crate) fn line(&self, signature: Vec<u8>) -> SignatureLine {
        SignatureLine {
            name: self.vkey.name.clone(),
            key_id: self.vkey.id,
            signature,
        }
    }
}

impl fmt::Debug for NamedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.vkey)
    }
}

fn encode(kind: KeyKind, key: &[u8; 32]) -> String {
    STANDARD.encode([&[kind.byte()][..], key].concat())
}

fn decode(text: &str) -> Result<(KeyName, &str, KeyKind, Vec<u8>), KeyError> {
    let (name, rest) = text.split_once('+').ok_or(KeyError::Shape)?;
    // Base64 has plus signs of its own: the id ends at the next one.
    let (id, encoded) = rest.split_once('+').ok_or(KeyError::Shape)?;
    let bytes = STANDARD.decode(encoded).map_err(|_| KeyError::Shape)?;
    let (kind, key) = bytes.split_first().ok_or(KeyError::Kind)?;
    let kind = KeyKind::from_byte(*kind).ok_or(KeyError::Kind)?;
    Ok((KeyName::new(name)?, id, kind, key.to_vec()))
}
