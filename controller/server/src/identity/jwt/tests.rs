//! Tokens by real keys, good and in every way wrong.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RsaKeyPair,
};
use ring::{hmac, signature};
use serde_json::{Value, json};

use super::*;

const ISSUER: &str = "https://login.example";
const AUDIENCE: &str = "berth";
/// Made for these tests and used nowhere else.
const RSA_KEY: &[u8] = include_bytes!("test-rsa-2048.pk8");

enum Signer {
    Rsa(Box<RsaKeyPair>),
    P256(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
    /// Whoever knows these bytes.
    Secret(Vec<u8>),
    /// Nobody.
    None,
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Signer {
    fn rsa() -> Self {
        Self::Rsa(Box::new(RsaKeyPair::from_pkcs8(RSA_KEY).unwrap()))
    }

    fn p256() -> Self {
        let (random, rules) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let key = EcdsaKeyPair::generate_pkcs8(rules, &random).unwrap();
        Self::P256(EcdsaKeyPair::from_pkcs8(rules, key.as_ref(), &random).unwrap())
    }

    fn ed25519() -> Self {
        let key = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(key.as_ref()).unwrap())
    }

    fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "RS256",
            Self::P256(_) => "ES256",
            Self::Ed25519(_) => "EdDSA",
            Self::Secret(_) => "HS256",
            Self::None => "none",
        }
    }

    fn public(&self, id: &str) -> Value {
        match self {
            Self::Rsa(key) => {
                let parts = signature::RsaPublicKeyComponents::<Vec<u8>>::from(key.public());
                json!({ "kty": "RSA", "kid": id, "use": "sig", "alg": "RS256",
                    "n": b64(parts.n), "e": b64(parts.e) })
            }
            Self::P256(key) => {
                let point = key.public_key().as_ref();
                json!({ "kty": "EC", "kid": id, "crv": "P-256",
                    "x": b64(&point[1..33]), "y": b64(&point[33..]) })
            }
            Self::Ed25519(key) => {
                json!({ "kty": "OKP", "kid": id, "crv": "Ed25519", "x": b64(key.public_key()) })
            }
            Self::Secret(_) | Self::None => panic!("nothing of it is public"),
        }
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Rsa(key) => {
                let mut signature = vec![0; key.public().modulus_len()];
                key.sign(
                    &RSA_PKCS1_SHA256,
                    &SystemRandom::new(),
                    message,
                    &mut signature,
                )
                .unwrap();
                signature
            }
            Self::P256(key) => {
                let signature = key.sign(&SystemRandom::new(), message).unwrap();
                signature.as_ref().to_vec()
            }
            Self::Ed25519(key) => key.sign(message).as_ref().to_vec(),
            Self::Secret(bytes) => {
                let key = hmac::Key::new(hmac::HMAC_SHA256, bytes);
                hmac::sign(&key, message).as_ref().to_vec()
            }
            Self::None => Vec::new(),
        }
    }

    fn token(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
        let signature = self.sign(message.as_bytes());
        format!("{message}.{}", b64(signature))
    }

    fn good(&self, id: &str) -> String {
        let header = json!({ "alg": self.algorithm(), "kid": id, "typ": "JWT" });
        self.token(&header, &claims())
    }
}

fn now_s() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "sub": "somebody", "aud": AUDIENCE, "iat": now_s(),
        "exp": now_s() + 300, "scope": "service:platform-admin" })
}

fn keys(set: &[Value]) -> ProviderKeys {
    use_ring();
    let text = json!({ "keys": set }).to_string();
    ProviderKeys::parse(text.as_bytes()).unwrap()
}

fn subject(token: &str, keys: &ProviderKeys) -> Result<String, JwtError> {
    let expected = Expected {
        issuer: ISSUER,
        audience: AUDIENCE,
        now_s: now_s(),
    };
    UnverifiedToken::read(token)?.subject(keys, &expected)
}

#[test]
fn a_token_of_each_algorithm_is_taken_and_a_bent_one_is_not() {
    let all = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    let set: Vec<Value> = all.iter().map(|one| one.public(one.algorithm())).collect();
    let set = keys(&set);
    for one in &all {
        let good = one.good(one.algorithm());
        assert_eq!(subject(&good, &set), Ok("somebody".to_owned()));
        let (message, signature) = good.rsplit_once('.').unwrap();
        let mut bent = URL_SAFE_NO_PAD.decode(signature).unwrap();
        bent[7] ^= 1;
        let bent = format!("{message}.{}", b64(bent));
        assert_eq!(subject(&bent, &set), Err(JwtError::Signature));
        let other = json!({ "iss": ISSUER, "sub": "admin", "aud": AUDIENCE, "iat": now_s(),
            "exp": now_s() + 300 });
        let (header, _) = message.split_once('.').unwrap();
        let swapped = format!("{header}.{}.{signature}", b64(other.to_string()));
        assert_eq!(subject(&swapped, &set), Err(JwtError::Signature));
    }
}

#[test]
fn no_header_chooses_the_algorithm_of_a_key() {
    let all = [Signer::rsa(), Signer::p256(), Signer::ed25519()];
    for owner in &all {
        let public = owner.public("one");
        let set = keys(std::slice::from_ref(&public));
        // Whoever takes a public key for a secret is signed for by everybody.
        let mut forgers = vec![
            Signer::None,
            Signer::Secret(public.to_string().into_bytes()),
        ];
        for member in ["n", "x"] {
            if let Some(text) = public[member].as_str() {
                forgers.push(Signer::Secret(text.as_bytes().to_vec()));
                forgers.push(Signer::Secret(URL_SAFE_NO_PAD.decode(text).unwrap()));
            }
        }
        for forger in &forgers {
            for algorithm in ["none", "None", "HS256", "HS384", "HS512"] {
                let header = json!({ "alg": algorithm, "kid": "one" });
                let refused = subject(&forger.token(&header, &claims()), &set).unwrap_err();
                assert!(
                    matches!(refused, JwtError::Algorithm | JwtError::Malformed),
                    "{algorithm}: {refused}"
                );
            }
        }
        for algorithm in [
            "RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA",
        ] {
            if algorithm != owner.algorithm() {
                let header = json!({ "alg": algorithm, "kid": "one" });
                let refused = subject(&owner.token(&header, &claims()), &set);
                assert_eq!(refused, Err(JwtError::Algorithm), "{algorithm}");
            }
        }
    }
}

#[test]
fn each_claim_is_looked_at() {
    let signer = Signer::ed25519();
    let set = keys(&[signer.public("one")]);
    let header = json!({ "alg": "EdDSA", "kid": "one" });
    let says = |name: &str, value: Value| {
        let mut claims = claims();
        claims[name] = value;
        subject(&signer.token(&header, &claims), &set)
    };
    let now = now_s();
    for (name, value) in [
        ("aud", json!(["elsewhere", AUDIENCE])),
        ("nbf", json!(now)),
        ("nbf", json!(now + 20)),
        ("exp", json!(now - 20)),
        ("iat", json!(now + 20)),
    ] {
        let taken = says(name, value.clone());
        assert_eq!(taken, Ok("somebody".to_owned()), "{name}: {value}");
    }
    for (name, value, expected) in [
        ("exp", json!(now - 60), JwtError::Expired),
        ("exp", json!("tomorrow"), JwtError::Claims),
        ("exp", json!(null), JwtError::Claims),
        ("exp", json!(-1), JwtError::Claims),
        ("nbf", json!(now + 60), JwtError::NotYetValid),
        ("nbf", json!("yesterday"), JwtError::Claims),
        ("iat", json!(now + 60), JwtError::NotYetValid),
        ("iat", json!(now - 4000), JwtError::Expired),
        ("iat", json!(i64::MIN), JwtError::Expired),
        ("iat", json!(null), JwtError::Claims),
        ("aud", json!("elsewhere"), JwtError::Audience),
        ("aud", json!(["elsewhere"]), JwtError::Audience),
        ("aud", json!([]), JwtError::Audience),
        ("aud", json!(null), JwtError::Claims),
        ("aud", json!(7), JwtError::Claims),
        ("iss", json!("https://login.example/"), JwtError::Issuer),
        ("iss", json!([ISSUER]), JwtError::Claims),
        ("iss", json!(null), JwtError::Claims),
        ("sub", json!(""), JwtError::Claims),
        ("sub", json!(null), JwtError::Claims),
        ("sub", json!(7), JwtError::Claims),
        ("sub", json!("x".repeat(256)), JwtError::Claims),
    ] {
        assert_eq!(says(name, value.clone()), Err(expected), "{name}: {value}");
    }
}

#[test]
fn a_header_that_asks_for_more_is_refused() {
    let (one, two) = (Signer::ed25519(), Signer::ed25519());
    let both = keys(&[one.public("one"), two.public("two")]);
    let only = keys(&[one.public("one")]);
    let says = |header: Value, set: &ProviderKeys| subject(&one.token(&header, &claims()), set);
    says(json!({ "alg": "EdDSA", "kid": "one" }), &both).unwrap();
    says(json!({ "alg": "EdDSA" }), &only).unwrap();
    for (header, expected) in [
        (json!({ "alg": "EdDSA" }), JwtError::UnknownKey),
        (
            json!({ "alg": "EdDSA", "kid": "six" }),
            JwtError::UnknownKey,
        ),
        (json!({ "alg": "EdDSA", "kid": "two" }), JwtError::Signature),
        (
            json!({ "alg": "EdDSA", "kid": "one", "typ": "at+jwt" }),
            JwtError::Header,
        ),
        (
            json!({ "alg": "EdDSA", "kid": "one", "crit": ["b64"], "b64": false }),
            JwtError::Header,
        ),
        (json!({ "kid": "one" }), JwtError::Malformed),
    ] {
        assert_eq!(says(header.clone(), &both), Err(expected), "{header}");
    }
    // A key that comes with the token is nobody's.
    let brought = json!({ "alg": "EdDSA", "kid": "one", "jwk": two.public("one") });
    let forged = two.token(&brought, &claims());
    assert_eq!(subject(&forged, &both), Err(JwtError::Signature));
    let good = one.good("one");
    for text in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        good.replace('.', ""),
        format!("{good}.{good}"),
        format!("{good}="),
        "a".repeat(20_000),
    ] {
        assert!(subject(&text, &both).is_err(), "{text}");
    }
}

#[test]
fn keys_for_other_uses_sign_nothing() {
    let signer = Signer::rsa();
    let with = |name: &str, value: Value| {
        let mut key = signer.public("one");
        key[name] = value;
        keys(&[key, json!({ "kty": "from the future" }), json!(7)])
    };
    assert!(!with("use", json!("sig")).is_empty());
    for (name, value) in [
        ("use", json!("enc")),
        ("alg", json!("RS512")),
        ("alg", json!("RSA-OAEP")),
        ("kty", json!("oct")),
    ] {
        assert!(with(name, value.clone()).is_empty(), "{name}: {value}");
    }
    let short = json!({ "kty": "RSA", "kid": "one", "n": b64([0xff; 128]), "e": "AQAB" });
    let refused = subject(&signer.good("one"), &keys(&[short]));
    assert_eq!(refused, Err(JwtError::Signature));
}
