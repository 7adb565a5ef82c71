//! ID tokens: their form, their signature, their times, and for whom they were made.
//!
//! A key says by which algorithm it signs, and a token is verified by that one alone: what the token's
//! own header says is compared, never followed. The signatures are ring's, as all others here.

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::signature::{Error as SignatureError, Verifier};
use jsonwebtoken::{
    Algorithm, DecodingKey, DecodingKeyKind, Header, Validation, decode, decode_header,
};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents,
    UnparsedPublicKey,
};
use serde::Deserialize;
use serde_json::Value;

/// Longest token that is read, in bytes.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// Most keys of a provider that are kept.
const MAX_KEYS: usize = 64;
/// How far the provider's clock may be off, in seconds.
const LEEWAY_S: u64 = 30;
/// How long after it was made a token is taken, in seconds, whatever its own end.
const MAX_AGE_S: i64 = 3_600;
/// Longest subject, in characters, as OpenID Connect has it.
const MAX_SUBJECT_CHARS: usize = 255;

/// Why an ID token is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JwtError {
    #[error("it is not an ID token: three parts of base64url with JSON in the first two")]
    Malformed,
    #[error("its header asks for what is not supported")]
    Header,
    #[error("it is signed by a key that the identity provider does not publish")]
    UnknownKey,
    #[error("it is not signed by the algorithm of its key: RS256, ES256 or EdDSA")]
    Algorithm,
    #[error("its signature is wrong")]
    Signature,
    #[error("its time is over")]
    Expired,
    #[error("its time has not begun")]
    NotYetValid,
    #[error("it was made by another issuer")]
    Issuer,
    #[error("it was made for another audience")]
    Audience,
    #[error("it lacks one of `iss`, `sub`, `aud`, `exp` and `iat`, or one of them is not readable")]
    Claims,
}

/// One key of the provider.
#[derive(Clone, Debug)]
struct ProviderKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys that the provider publishes, as far as they can sign what is taken here.
#[derive(Clone, Debug, Default)]
pub(crate) struct ProviderKeys(Vec<ProviderKey>);

/// A JWK set; each key is read by itself, so that one of an unknown kind hides no other.
#[derive(Deserialize)]
struct KeySet {
    keys: Vec<Value>,
}

impl ProviderKeys {
    /// Read a JWK set; `None` if it is none.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let set: KeySet = serde_json::from_slice(text).ok()?;
        let keys = set
            .keys
            .into_iter()
            .take(MAX_KEYS)
            .filter_map(|key| ProviderKey::of(&serde_json::from_value(key).ok()?));
        Some(Self(keys.collect()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the key that a token names is among them.
    pub(crate) fn has(&self, token: &UnverifiedToken<'_>) -> bool {
        self.named(token.header.kid.as_deref()).is_some()
    }

    /// The key of an id; who names none means the only one.
    fn named(&self, id: Option<&str>) -> Option<&ProviderKey> {
        match (id, self.0.as_slice()) {
            (Some(id), keys) => keys.iter().find(|key| key.id.as_deref() == Some(id)),
            (None, [only]) => Some(only),
            (None, _) => None,
        }
    }
}

impl ProviderKey {
    /// `None` for a key that signs nothing that is taken here.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "the library's list is open: a key of any other kind is left out"
    )]
    fn of(key: &Jwk) -> Option<Self> {
        let (algorithm, by_name) = match &key.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(point) if point.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            _ => return None,
        };
        let common = &key.common;
        let is_for_this = common.key_algorithm.is_none_or(|named| named == by_name);
        let is_for_signatures = common
            .public_key_use
            .as_ref()
            .is_none_or(|meant| *meant == PublicKeyUse::Signature);
        (is_for_this && is_for_signatures).then_some(())?;
        Some(Self {
            id: common.key_id.clone(),
            algorithm,
            key: DecodingKey::from_jwk(key).ok()?,
        })
    }
}

/// A token whose header was read and of which nothing is believed.
#[derive(Debug)]
pub(crate) struct UnverifiedToken<'t> {
    text: &'t str,
    header: Header,
}

/// For whom tokens have to be made, and by whom.
#[derive(Clone, Debug)]
pub(crate) struct Expected<'e> {
    pub(crate) issuer: &'e str,
    pub(crate) audience: &'e str,
    /// Seconds since the epoch.
    pub(crate) now_s: i64,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    iat: i64,
}

impl<'t> UnverifiedToken<'t> {
    pub(crate) fn read(text: &'t str) -> Result<Self, JwtError> {
        if text.len() > MAX_TOKEN_BYTES {
            return Err(JwtError::Malformed);
        }
        let header = decode_header(text).map_err(|_| JwtError::Malformed)?;
        // A token of another kind is not taken for an ID token, nor one that may only be read by who
        // understands more.
        let is_plain = header
            .typ
            .as_deref()
            .is_none_or(|kind| kind.eq_ignore_ascii_case("JWT"));
        if !is_plain || header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
            return Err(JwtError::Header);
        }
        Ok(Self { text, header })
    }

    /// Who the token is about, if it is good.
    pub(crate) fn subject(
        &self,
        keys: &ProviderKeys,
        expected: &Expected<'_>,
    ) -> Result<String, JwtError> {
        let key = keys
            .named(self.header.kid.as_deref())
            .ok_or(JwtError::UnknownKey)?;
        if self.header.alg != key.algorithm {
            return Err(JwtError::Algorithm);
        }
        let mut rules = Validation::new(key.algorithm);
        rules.leeway = LEEWAY_S;
        rules.validate_nbf = true;
        rules.set_issuer(&[expected.issuer]);
        rules.set_audience(&[expected.audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = decode::<Claims>(self.text, &key.key, &rules)
            .map_err(|error| reason(error.kind()))?
            .claims;
        check(claims, expected)
    }
}

/// What the library does not look at.
fn check(claims: Claims, expected: &Expected<'_>) -> Result<String, JwtError> {
    if claims.iss != expected.issuer {
        return Err(JwtError::Issuer);
    }
    let leeway = i64::try_from(LEEWAY_S).unwrap_or(0);
    let age = expected.now_s.saturating_sub(claims.iat);
    if age < -leeway {
        return Err(JwtError::NotYetValid);
    }
    if age > MAX_AGE_S + leeway {
        return Err(JwtError::Expired);
    }
    if !(1..=MAX_SUBJECT_CHARS).contains(&claims.sub.chars().count()) {
        return Err(JwtError::Claims);
    }
    Ok(claims.sub)
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library's list is open: what is not told apart is a claim that is not readable"
)]
fn reason(kind: &ErrorKind) -> JwtError {
    match kind {
        ErrorKind::InvalidSignature => JwtError::Signature,
        ErrorKind::InvalidAlgorithm | ErrorKind::UnsupportedAlgorithm => JwtError::Algorithm,
        ErrorKind::ExpiredSignature => JwtError::Expired,
        ErrorKind::ImmatureSignature => JwtError::NotYetValid,
        ErrorKind::InvalidIssuer => JwtError::Issuer,
        ErrorKind::InvalidAudience => JwtError::Audience,
        ErrorKind::InvalidToken | ErrorKind::Base64(_) => JwtError::Malformed,
        _ => JwtError::Claims,
    }
}

/// Signatures by ring, and none made.
static RING: CryptoProvider = CryptoProvider {
    signer_factory: |_, _| Err(ErrorKind::UnsupportedAlgorithm.into()),
    verifier_factory: |algorithm, key| {
        Ok(Box::new(RingVerifier {
            algorithm: *algorithm,
            key: key.clone(),
        }))
    },
    key_utils: KeyUtils::new_unimplemented(),
};

/// Have signatures checked by ring in this process.
pub(crate) fn use_ring() {
    // Refused if it is there already, and then it is this one: nobody else sets any.
    RING.install_default().ok();
}

struct RingVerifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl Verifier<Vec<u8>> for RingVerifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), SignatureError> {
        let verified = match (self.algorithm, self.key.kind()) {
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let key = RsaPublicKeyComponents { n, e };
                key.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => {
                UnparsedPublicKey::new(&ED25519, point).verify(message, signature)
            }
            _ => Err(ring::error::Unspecified),
        };
        verified.map_err(|_| SignatureError::new())
    }
}

impl JwtVerifier for RingVerifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests;
