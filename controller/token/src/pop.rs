//! Proof of possession: a request signed by the key that its token is made out to.
//!
//! One fixed profile of RFC 9421. Covered, in this order: `"@method" "@authority" "@path" "@query"
//! "authorization"`, and `"content-digest"` (RFC 9530, SHA-256) where there is a body; parameters
//! `created`, `nonce`, `keyid`, `alg`, `tag` in this order; one signature under the label `pop`.
//! Anything else is refused: what is received must be the very text that this profile gives. Whether
//! a nonce was seen before is the caller's to know.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use berth_ledger::keys::{PublicKey, SigningKey};
use ring::digest::{SHA256, digest};

use crate::subject::SubjectKey;

/// How old a signed request may be, in seconds.
pub const MAX_AGE_SECONDS: i64 = 60;
/// How far a signed request may come from the future, in seconds.
pub const MAX_AHEAD_SECONDS: i64 = 10;
/// For how long after `created` a nonce must be remembered, in seconds.
pub const NONCE_KEPT_SECONDS: i64 = MAX_AGE_SECONDS + MAX_AHEAD_SECONDS;

const TAG: &str = "berth-pop-v1";
/// 16 bytes in base64url are 22 characters.
const NONCE_CHARS: std::ops::RangeInclusive<usize> = 22..=64;
const MAX_CREATED_DIGITS: usize = 12;

/// What is signed of a request.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// Host and port, as in `Host`.
    pub authority: &'a str,
    /// The path, as sent.
    pub path: &'a str,
    /// The query without its question mark, as sent.
    pub query: Option<&'a str>,
    /// The value of `Authorization`.
    pub authorization: &'a str,
    /// The body; empty if there is none.
    pub body: &'a [u8],
}

/// The headers that carry the proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ProofHeaders {
    /// `Signature-Input`
    pub signature_input: String,
    /// `Signature`
    pub signature: String,
    /// `Content-Digest`, where there is a body.
    pub content_digest: Option<String>,
}

/// A proof that holds, if its nonce is new.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proof {
    /// Never used before by this holder.
    pub nonce: String,
    /// Seconds since the epoch.
    pub created: i64,
}

/// Why a proof does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PopError {
    /// Not this profile: other components, parameters, label, order or spelling.
    #[error("the request's signature is not of the profile {TAG}")]
    Profile,
    /// Too old, or from the future.
    #[error("the request was signed at another time")]
    Time,
    /// The digest is not that of the body.
    #[error("the content digest is not that of the body")]
    Digest,
    /// The signature is by another key or of another request.
    #[error("the request's signature is wrong")]
    Signature,
}

/// The proof for a request, by the holder's key. `nonce` has 22 to 64 characters of base64url.
#[must_use]
pub fn sign(
    request: &SignedRequest<'_>,
    key: &SigningKey,
    nonce: &str,
    created: i64,
) -> ProofHeaders {
    let keyid = base64url(key.public().as_bytes());
    let content_digest = content_digest(request.body);
    let parameters = parameters(content_digest.is_some(), created, nonce, &keyid);
    let base = base(request, content_digest.as_deref(), &parameters);
    ProofHeaders {
        signature_input: format!("pop={parameters}"),
        signature: format!("pop=:{}:", STANDARD.encode(key.sign(base.as_bytes()))),
        content_digest,
    }
}

/// Check the proof of a request at `now` (seconds since the epoch).
pub fn verify(
    request: &SignedRequest<'_>,
    headers: &ProofHeaders,
    holder: &SubjectKey,
    now: i64,
) -> Result<Proof, PopError> {
    let expected_digest = content_digest(request.body);
    let (created, nonce) = created_and_nonce(&headers.signature_input)?;
    let keyid = holder.to_base64url();
    let parameters = parameters(expected_digest.is_some(), created, nonce, &keyid);
    if headers.signature_input.strip_prefix("pop=") != Some(parameters.as_str()) {
        return Err(PopError::Profile);
    }
    let oldest = now.saturating_sub(MAX_AGE_SECONDS);
    let newest = now.saturating_add(MAX_AHEAD_SECONDS);
    if !(oldest..=newest).contains(&created) {
        return Err(PopError::Time);
    }
    if expected_digest.is_some() && headers.content_digest != expected_digest {
        return Err(PopError::Digest);
    }
    let signature = headers
        .signature
        .strip_prefix("pop=:")
        .and_then(|rest| rest.strip_suffix(':'))
        .and_then(|text| STANDARD.decode(text).ok())
        .ok_or(PopError::Profile)?;
    let base = base(request, expected_digest.as_deref(), &parameters);
    PublicKey::from_bytes(holder.as_bytes())
        .ok()
        .and_then(|key| key.verify(base.as_bytes(), &signature).ok())
        .ok_or(PopError::Signature)?;
    Ok(Proof {
        nonce: nonce.to_owned(),
        created,
    })
}

/// The two parameters that a sender chooses.
fn created_and_nonce(input: &str) -> Result<(i64, &str), PopError> {
    let (_, after) = input.split_once(");created=").ok_or(PopError::Profile)?;
    let (created, after) = after.split_once(";nonce=\"").ok_or(PopError::Profile)?;
    let (nonce, _) = after.split_once('"').ok_or(PopError::Profile)?;
    let in_alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !NONCE_CHARS.contains(&nonce.len())
        || !nonce.chars().all(in_alphabet)
        || created.len() > MAX_CREATED_DIGITS
    {
        return Err(PopError::Profile);
    }
    let created = created.parse().map_err(|_| PopError::Profile)?;
    Ok((created, nonce))
}

fn parameters(with_digest: bool, created: i64, nonce: &str, keyid: &str) -> String {
    let digest = if with_digest {
        r#" "content-digest""#
    } else {
        ""
    };
    format!(
        r#"("@method" "@authority" "@path" "@query" "authorization"{digest});created={created};nonce="{nonce}";keyid="{keyid}";alg="ed25519";tag="{TAG}""#
    )
}

/// The signature base (RFC 9421 section 2.5).
fn base(request: &SignedRequest<'_>, digest: Option<&str>, parameters: &str) -> String {
    let mut lines = vec![
        ("@method", request.method.to_owned()),
        ("@authority", authority(request.authority)),
        ("@path", request.path.to_owned()),
        ("@query", format!("?{}", request.query.unwrap_or_default())),
        ("authorization", request.authorization.trim().to_owned()),
    ];
    lines.extend(digest.map(|digest| ("content-digest", digest.to_owned())));
    lines.push(("@signature-params", parameters.to_owned()));
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, value)| format!("\"{name}\": {value}"))
        .collect();
    lines.join("\n")
}

/// Lower case, without the port that goes without saying (RFC 9421 section 2.2.3).
fn authority(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let host = lower
        .strip_suffix(":80")
        .or_else(|| lower.strip_suffix(":443"));
    host.map_or_else(|| lower.clone(), str::to_owned)
}

fn content_digest(body: &[u8]) -> Option<String> {
    (!body.is_empty()).then(|| format!("sha-256=:{}:", STANDARD.encode(digest(&SHA256, body))))
}

fn base64url(bytes: &[u8]) -> String {
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;
    const NONCE: &str = "AAAAAAAAAAAAAAAAAAAAAA";

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn holder(seed: u8) -> SubjectKey {
        SubjectKey::from_bytes(key(seed).public().as_bytes()).unwrap()
    }

    fn request(body: &[u8]) -> SignedRequest<'_> {
        SignedRequest {
            method: "POST",
            authority: "Controller.example:9221",
            path: "/v1/vms",
            query: Some("wait=running"),
            authorization: "Bearer v4.public.AAAA",
            body,
        }
    }

    #[test]
    fn a_signed_request_proves_its_key() {
        for body in [b"".as_slice(), b"{}"] {
            let headers = sign(&request(body), &key(3), NONCE, NOW);
            assert_eq!(headers.content_digest.is_some(), !body.is_empty());
            let proof = verify(&request(body), &headers, &holder(3), NOW).unwrap();
            assert_eq!((proof.nonce.as_str(), proof.created), (NONCE, NOW));
        }
    }

    #[test]
    fn the_base_is_the_published_one() {
        let headers = sign(&request(b"{}"), &key(3), NONCE, NOW);
        let parameters = headers.signature_input.strip_prefix("pop=").unwrap();
        let keyid = holder(3).to_base64url();
        assert_eq!(
            base(
                &request(b"{}"),
                headers.content_digest.as_deref(),
                parameters
            ),
            format!(
                "\"@method\": POST\n\"@authority\": controller.example:9221\n\"@path\": /v1/vms\n\
                 \"@query\": ?wait=running\n\"authorization\": Bearer v4.public.AAAA\n\
                 \"content-digest\": sha-256=:RBNvo1WzZ4oRRq0W9+hknpT7T8If536DEMBg9hyq/4o=:\n\
                 \"@signature-params\": (\"@method\" \"@authority\" \"@path\" \"@query\" \
                 \"authorization\" \"content-digest\");created={NOW};nonce=\"{NONCE}\";\
                 keyid=\"{keyid}\";alg=\"ed25519\";tag=\"berth-pop-v1\""
            )
        );
        for (given, normal) in [("A:80", "a"), ("a:443", "a"), ("[::1]:9221", "[::1]:9221")] {
            assert_eq!(authority(given), normal);
        }
    }

    /// RFC 9421 appendix B.2.6: the library's signatures are those of the standard.
    #[test]
    fn the_standards_own_ed25519_vector_verifies() {
        let base = "\"date\": Tue, 20 Apr 2021 02:07:55 GMT\n\"@method\": POST\n\"@path\": /foo\n\
            \"@authority\": example.com\n\"content-type\": application/json\n\"content-length\": 18\n\
            \"@signature-params\": (\"date\" \"@method\" \"@path\" \"@authority\" \"content-type\" \
            \"content-length\");created=1618884473;keyid=\"test-key-ed25519\"";
        let public =
            PublicKey::from_base64("JrQLj5P/89iXES9+vFgrIy29clF9CC/oPPsw3c5D0bs=").unwrap();
        let signature = STANDARD
            .decode("wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==")
            .unwrap();
        public.verify(base.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn a_proof_holds_for_one_request_by_one_key_and_no_other() {
        let good = request(b"{}");
        let headers = sign(&good, &key(3), NONCE, NOW);
        for other in [
            SignedRequest {
                method: "PUT",
                ..good
            },
            SignedRequest {
                authority: "elsewhere:9221",
                ..good
            },
            SignedRequest {
                path: "/v1/vms/x",
                ..good
            },
            SignedRequest {
                query: None,
                ..good
            },
            SignedRequest {
                authorization: "Bearer v4.public.AAAB",
                ..good
            },
        ] {
            let refused = verify(&other, &headers, &holder(3), NOW);
            assert_eq!(refused, Err(PopError::Signature), "{other:?}");
        }
        let body = SignedRequest {
            body: b"[]",
            ..good
        };
        assert_eq!(
            verify(&body, &headers, &holder(3), NOW),
            Err(PopError::Digest)
        );
        let bare = SignedRequest { body: b"", ..good };
        assert_eq!(
            verify(&bare, &headers, &holder(3), NOW),
            Err(PopError::Profile)
        );
        // By another key, and by another key that calls itself the holder's.
        let thief = sign(&good, &key(4), NONCE, NOW);
        assert_eq!(
            verify(&good, &thief, &holder(3), NOW),
            Err(PopError::Profile)
        );
        let liar = ProofHeaders {
            signature: thief.signature,
            ..headers.clone()
        };
        assert_eq!(
            verify(&good, &liar, &holder(3), NOW),
            Err(PopError::Signature)
        );
        // A body that is not covered.
        let unsigned = sign(&bare, &key(3), NONCE, NOW);
        assert_eq!(
            verify(&good, &unsigned, &holder(3), NOW),
            Err(PopError::Profile)
        );
    }

    #[test]
    fn a_proof_holds_from_ten_seconds_before_until_a_minute_after() {
        let good = request(b"");
        let headers = sign(&good, &key(3), NONCE, NOW);
        for (now, held) in [
            (NOW - 11, false),
            (NOW - 10, true),
            (NOW + 60, true),
            (NOW + 61, false),
        ] {
            let proof = verify(&good, &headers, &holder(3), now);
            assert_eq!(
                proof.map(drop),
                if held { Ok(()) } else { Err(PopError::Time) },
                "{now}"
            );
        }
    }

    #[test]
    fn every_other_spelling_is_refused() {
        let good = request(b"");
        let headers = sign(&good, &key(3), NONCE, NOW);
        let input = &headers.signature_input;
        for (from, to) in [
            ("pop=", "sig1="),
            ("pop=", "pop= "),
            ("\"@method\" ", ""),
            ("\"@method\" \"@authority\"", "\"@authority\" \"@method\""),
            (" \"authorization\"", ""),
            (";alg=\"ed25519\"", ""),
            ("alg=\"ed25519\"", "alg=\"hmac-sha256\""),
            ("berth-pop-v1", "berth-pop-v2"),
            ("created=1", "created=01"),
            ("created=1", "created=+1"),
            ("created=1", "created=-1"),
            ("created=1", "created=99999999999999999999991"),
            (NONCE, "short"),
            (NONCE, "AAAAAAAAAAAAAAAAAAAAA="),
            (";tag=", ";expires=9999999999;tag="),
        ] {
            let changed = ProofHeaders {
                signature_input: input.replacen(from, to, 1),
                ..headers.clone()
            };
            assert_ne!(changed, headers, "{from}");
            let refused = verify(&good, &changed, &holder(3), NOW);
            assert!(
                matches!(refused, Err(PopError::Profile | PopError::Time)),
                "{to}: {refused:?}"
            );
        }
        for signature in ["", "pop=", "pop=::", "pop=:AAAA:", "sig1=:AAAA:"] {
            let changed = ProofHeaders {
                signature: signature.to_owned(),
                ..headers.clone()
            };
            assert!(
                verify(&good, &changed, &holder(3), NOW).is_err(),
                "{signature}"
            );
        }
    }
}
