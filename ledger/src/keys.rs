//! Ed25519 keys (RFC 8032) on `ring`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// A key that can sign. `Debug` shows the public half alone.
pub struct SigningKey {
    seed: [u8; 32],
    pair: Ed25519KeyPair,
}

/// A key that can verify.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey([u8; 32]);

/// Why bytes or text are not a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadKeyError {
    /// The text is not base64.
    #[error("a key is written in standard base64")]
    NotBase64,
    /// The wrong number of bytes.
    #[error("an Ed25519 key has 32 bytes, this has {length}")]
    Length {
        /// Bytes found.
        length: usize,
    },
    /// `ring` refuses the seed.
    #[error("the seed is not an Ed25519 key")]
    Refused,
}

/// No random bytes were to be had, or the library refused its own key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the system's random source failed")]
pub struct GenerateKeyError;

/// The signature does not belong to this key and message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not belong to this key and message")]
pub struct BadSignature;

impl SigningKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, GenerateKeyError> {
        let seed: [u8; 32] = ring::rand::generate(&SystemRandom::new())
            .map_err(|_| GenerateKeyError)?
            .expose();
        Self::from_seed(&seed).map_err(|_| GenerateKeyError)
    }

    /// The key of a 32-byte seed.
    pub fn from_seed(seed: &[u8]) -> Result<Self, ReadKeyError> {
        let seed: [u8; 32] = seed
            .try_into()
            .map_err(|_| ReadKeyError::Length { length: seed.len() })?;
        let pair = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_| ReadKeyError::Refused)?;
        Ok(Self { seed, pair })
    }

    /// The seed, for the key file and nothing else.
    #[must_use]
    pub fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        let mut bytes = [0; 32];
        bytes.copy_from_slice(self.pair.public_key().as_ref());
        PublicKey(bytes)
    }

    /// Sign a message.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.pair.sign(message).as_ref());
        signature
    }
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SigningKey").field(&self.public()).finish()
    }
}

impl PublicKey {
    /// The key of 32 bytes. That they are a point of the curve is checked when verifying.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReadKeyError> {
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| ReadKeyError::Length {
                length: bytes.len(),
            })
    }

    /// The key of a standard base64 text.
    pub fn from_base64(text: &str) -> Result<Self, ReadKeyError> {
        Self::from_bytes(&STANDARD.decode(text).map_err(|_| ReadKeyError::NotBase64)?)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Standard base64.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Check a signature.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), BadSignature> {
        UnparsedPublicKey::new(&ED25519, &self.0)
            .verify(message, signature)
            .map_err(|_| BadSignature)
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.to_base64())
    }
}
