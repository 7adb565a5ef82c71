//! DSSE envelopes with one Ed25519 signature: make, open.
//!
//! `PAE(type, body) = "DSSEv1" SP len(type) SP type SP len(body) SP body`, lengths in ASCII decimal
//! (DSSE protocol 1.0.2). The payload type is signed, so a sync can never pass for a task.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_api::agent::{EnvelopeSignature, SignedEnvelope};
use ring::digest::{SHA256, digest};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::keys::{PublicKey, SigningKey};

/// Why an envelope was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It holds something else.
    #[error("the envelope holds another payload type")]
    PayloadType,
    /// Not exactly one signature, or one that is not base64.
    #[error("the envelope does not carry exactly one readable signature")]
    Malformed,
    /// The signer is not among the trusted keys.
    #[error("the envelope's key is not trusted")]
    UnknownKey,
    /// The signature is wrong.
    #[error("the envelope's signature is wrong")]
    BadSignature,
    /// The signature is right, the content is not of this contract.
    #[error("the envelope's payload does not fit this version of the contract")]
    Payload(#[source] serde_json::Error),
}

fn pre_authentication_encoding(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        payload.len()
    )
    .into_bytes();
    bytes.extend_from_slice(payload);
    bytes
}

/// Sign a value's JSON.
pub fn seal<T: Serialize>(
    key: &SigningKey,
    payload_type: &str,
    value: &T,
) -> Result<SignedEnvelope, serde_json::Error> {
    let payload = serde_json::to_vec(value)?;
    let signature = key.sign(&pre_authentication_encoding(payload_type, &payload));
    Ok(SignedEnvelope {
        payload_type: payload_type.to_owned(),
        payload: STANDARD.encode(&payload),
        signatures: vec![EnvelopeSignature {
            keyid: key.public().to_base64(),
            sig: STANDARD.encode(signature),
        }],
    })
}

/// Check an envelope against the trusted keys, then read it.
pub fn open<T: DeserializeOwned>(
    trusted: &[PublicKey],
    payload_type: &str,
    envelope: &SignedEnvelope,
) -> Result<T, OpenError> {
    if envelope.payload_type != payload_type {
        return Err(OpenError::PayloadType);
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(OpenError::Malformed);
    };
    let key = PublicKey::from_base64(&signature.keyid).map_err(|_| OpenError::Malformed)?;
    let bytes = STANDARD
        .decode(&signature.sig)
        .map_err(|_| OpenError::Malformed)?;
    let payload = STANDARD
        .decode(&envelope.payload)
        .map_err(|_| OpenError::Malformed)?;
    if !trusted.contains(&key) {
        return Err(OpenError::UnknownKey);
    }
    key.verify(&pre_authentication_encoding(payload_type, &payload), &bytes)
        .map_err(|_| OpenError::BadSignature)?;
    serde_json::from_slice(&payload).map_err(OpenError::Payload)
}

/// SHA-256 of the signed bytes, lower-case hex; `None` if they are not base64.
#[must_use]
pub fn payload_sha256(envelope: &SignedEnvelope) -> Option<String> {
    let payload = STANDARD.decode(&envelope.payload).ok()?;
    let sum = digest(&SHA256, &payload);
    Some(
        sum.as_ref()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// What an envelope holds by its own word. Proves nothing: for naming what is refused.
#[must_use]
pub fn read_unverified<T: DeserializeOwned>(envelope: &SignedEnvelope) -> Option<T> {
    let payload = STANDARD.decode(&envelope.payload).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// Open an envelope whose signer is named in its own payload, as an enrolment's is: the caller must
/// compare the returned key with the payload's.
pub fn open_self_signed<T: DeserializeOwned>(
    payload_type: &str,
    envelope: &SignedEnvelope,
) -> Result<(PublicKey, T), OpenError> {
    let [signature] = envelope.signatures.as_slice() else {
        return Err(OpenError::Malformed);
    };
    let key = PublicKey::from_base64(&signature.keyid).map_err(|_| OpenError::Malformed)?;
    Ok((key, open(&[key], payload_type, envelope)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_alone() {
        let envelope = seal(&key(1), "t", &"hello").unwrap();
        let opened: String = open(&[key(2).public(), key(1).public()], "t", &envelope).unwrap();
        assert_eq!(opened, "hello");
        assert!(matches!(
            open::<String>(&[key(2).public()], "t", &envelope),
            Err(OpenError::UnknownKey)
        ));
    }

    #[test]
    fn another_type_or_a_changed_byte_is_refused() {
        let mut envelope = seal(&key(1), "t", &"hello").unwrap();
        let trusted = [key(1).public()];
        assert!(matches!(
            open::<String>(&trusted, "u", &envelope),
            Err(OpenError::PayloadType)
        ));
        envelope.payload_type = "u".to_owned();
        assert!(matches!(
            open::<String>(&trusted, "u", &envelope),
            Err(OpenError::BadSignature)
        ));
        envelope.payload_type = "t".to_owned();
        envelope.payload = STANDARD.encode(b"\"hellO\"");
        assert!(matches!(
            open::<String>(&trusted, "t", &envelope),
            Err(OpenError::BadSignature)
        ));
    }

    #[test]
    fn the_published_vector_of_the_encoding_holds() {
        assert_eq!(
            pre_authentication_encoding("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}
