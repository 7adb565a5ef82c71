//! The holder's public key, read from the spellings that people have at hand.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

/// Longest accepted spelling, in characters: an OpenSSH line with a long comment.
const MAX_SPELLING_CHARS: usize = 1024;

/// `y` coordinates of the points of small order, without the sign bit, canonical and not
/// (the list of "May the Fourth Be With You", 2017, table 5). A signature by such a key proves
/// nothing: anybody can make one that verifies for many messages.
const SMALL_ORDER_Y: [[u8; 32]; 7] = [
    with_ends(0x00, 0x00, 0x00),
    with_ends(0x01, 0x00, 0x00),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98,
        0xf0, 0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53,
        0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67,
        0x0f, 0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac,
        0x03, 0x7a,
    ],
    with_ends(0xec, 0xff, 0x7f),
    with_ends(0xed, 0xff, 0x7f),
    with_ends(0xee, 0xff, 0x7f),
];

const fn with_ends(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

/// Why a text is no usable public key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSubjectError {
    /// None of the accepted spellings.
    #[error(
        "give 32 bytes in base64, base64url or hex, or an OpenSSH line that begins with `ssh-ed25519`"
    )]
    Spelling,
    /// It decodes to the wrong number of bytes.
    #[error("an Ed25519 public key has 32 bytes, this has {length}")]
    Length {
        /// Bytes found.
        length: usize,
    },
    /// One of the few keys whose signatures prove nothing.
    #[error("this key is one of the small-order points, whose signatures prove nothing")]
    SmallOrder,
}

/// A holder's Ed25519 public key that is not of small order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SubjectKey([u8; 32]);

impl SubjectKey {
    /// The key of 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseSubjectError> {
        let key: [u8; 32] = bytes.try_into().map_err(|_| ParseSubjectError::Length {
            length: bytes.len(),
        })?;
        let mut unsigned = key;
        unsigned[31] &= 0x7f;
        if SMALL_ORDER_Y.contains(&unsigned) {
            return Err(ParseSubjectError::SmallOrder);
        }
        Ok(Self(key))
    }

    /// Read the spelling of tokens alone.
    pub fn from_base64url(text: &str) -> Result<Self, ParseSubjectError> {
        let bytes = URL_SAFE_NO_PAD
            .decode(text)
            .map_err(|_| ParseSubjectError::Spelling)?;
        Self::from_bytes(&bytes)
    }

    /// Read any accepted spelling; see [`ParseSubjectError::Spelling`].
    pub fn parse(text: &str) -> Result<Self, ParseSubjectError> {
        let text = text.trim();
        if text.is_empty() || text.len() > MAX_SPELLING_CHARS {
            return Err(ParseSubjectError::Spelling);
        }
        if let Some(rest) = text.strip_prefix("ssh-ed25519 ") {
            return Self::from_bytes(&openssh_key(rest).ok_or(ParseSubjectError::Spelling)?);
        }
        if text.len() == 64
            && let Ok(bytes) = hex::decode(text)
        {
            return Self::from_bytes(&bytes);
        }
        let bytes = STANDARD
            .decode(text)
            .or_else(|_| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')))
            .map_err(|_| ParseSubjectError::Spelling)?;
        Self::from_bytes(&bytes)
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// base64url without padding: the spelling of tokens and answers.
    #[must_use]
    pub fn to_base64url(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }
}

/// The key inside `<base64> [comment]`: two length-prefixed strings, the type's name and the key
/// (RFC 4253 section 6.6, RFC 8709 section 4).
fn openssh_key(rest: &str) -> Option<Vec<u8>> {
    let blob = STANDARD.decode(rest.split_whitespace().next()?).ok()?;
    let (name, after) = length_prefixed(&blob)?;
    let (key, end) = length_prefixed(after)?;
    (name == b"ssh-ed25519" && end.is_empty()).then(|| key.to_vec())
}

fn length_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8032 section 7.1, test 1.
    const KEY_HEX: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";

    #[test]
    fn all_spellings_give_the_same_key() {
        let bytes = hex::decode(KEY_HEX).unwrap();
        let mut blob = vec![0, 0, 0, 11];
        blob.extend(b"ssh-ed25519");
        blob.extend([0, 0, 0, 32]);
        blob.extend(&bytes);
        let key = SubjectKey::from_bytes(&bytes).unwrap();
        for spelling in [
            KEY_HEX.to_owned(),
            KEY_HEX.to_ascii_uppercase(),
            STANDARD.encode(&bytes),
            URL_SAFE_NO_PAD.encode(&bytes),
            format!("ssh-ed25519 {} someone@host", STANDARD.encode(&blob)),
            format!("  {}\n", key.to_base64url()),
        ] {
            assert_eq!(SubjectKey::parse(&spelling), Ok(key), "{spelling}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        for (text, error) in [
            ("", ParseSubjectError::Spelling),
            ("<tenant-admin-pubkey>", ParseSubjectError::Spelling),
            ("ssh-rsa AAAA", ParseSubjectError::Spelling),
            ("ssh-ed25519 AAAAC3Nz", ParseSubjectError::Spelling),
            ("AAAA", ParseSubjectError::Length { length: 3 }),
            (&"a".repeat(2000), ParseSubjectError::Spelling),
        ] {
            assert_eq!(SubjectKey::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn keys_of_small_order_are_refused_with_either_sign() {
        for y in SMALL_ORDER_Y {
            for sign in [0, 0x80] {
                let mut bytes = y;
                bytes[31] |= sign;
                assert_eq!(
                    SubjectKey::from_bytes(&bytes),
                    Err(ParseSubjectError::SmallOrder)
                );
            }
        }
    }
}
