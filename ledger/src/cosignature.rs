//! Timestamped cosignatures (C2SP tlog-cosignature 1.0.1, Ed25519, kind 0x04).
//!
//! Owns what a witness signs: that it saw a checkpoint's text at a time, and that the log had shown
//! it nothing that contradicts. The name of the witness is not signed, so one key serves one witness
//! alone. Whether to sign is decided in `witness`.

use std::fmt;

use berth_api::ids::NodeId;

use crate::keys::{BadSignature, PublicKey, SigningKey};
use crate::note::{KeyError, KeyKind, KeyName, NamedKey, SignatureLine, Vkey};

/// A witness's private key with its name. `Debug` shows the public half alone.
pub struct Cosigner(NamedKey);

impl Cosigner {
    /// A witness's private key.
    #[must_use]
    pub fn new(name: KeyName, key: SigningKey) -> Self {
        Self(NamedKey::new(name, KeyKind::Cosignature, key))
    }

    /// Read what [`Cosigner::to_private_text`] writes.
    ///
    /// # Errors
    /// If it is anything else, a log's key included.
    pub fn from_private_text(text: &str) -> Result<Self, KeyError> {
        NamedKey::from_private_text(text, KeyKind::Cosignature).map(Self)
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

    /// The signature line for a checkpoint's text that was seen at `time_s`, seconds since the epoch.
    #[must_use]
    pub fn sign(&self, text: &str, time_s: u64) -> SignatureLine {
        let signature = self.0.key().sign(&signed_message(text, time_s));
        self.0
            .line([&time_s.to_be_bytes()[..], &signature].concat())
    }
}

impl fmt::Debug for Cosigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cosigner").field(&self.0).finish()
    }
}

/// How a host's key is called where the host is a witness. The same key signs the host's envelopes,
/// whose signed bytes begin otherwise, so neither can pass for the other.
#[must_use]
pub fn node_witness_name(node: NodeId) -> KeyName {
    KeyName::new(&format!("berth-node/{node}")).expect("an id has letters, digits and underscores")
}

/// Check what follows the key's id in a witness's line; the time that it names.
pub(crate) fn verify(key: &PublicKey, text: &str, bytes: &[u8]) -> Result<u64, BadSignature> {
    let (time, signature) = bytes.split_first_chunk().ok_or(BadSignature)?;
    let time_s = u64::from_be_bytes(*time);
    key.verify(&signed_message(text, time_s), signature)?;
    Ok(time_s)
}

fn signed_message(text: &str, time_s: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time_s}\n{text}").into_bytes()
}
