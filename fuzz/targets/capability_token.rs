//! Capability tokens and the holders' keys in all their spellings. The first byte chooses.
//!
//! Holds: a token is accepted only as it was signed, in its time, for this controller, and with
//! scopes of its kind.
#![no_main]

use berth_fuzz::input::Input;
use berth_fuzz::seed_values::{NOW, ROOT_KEY_SEED, controller_id};
use berth_ledger::keys::SigningKey;
use berth_token::{IMPLICIT_ASSERTION, MAX_TOKEN_CHARS, ScopeSet, SubjectKey, TokenVerifier};
use libfuzzer_sys::fuzz_target;
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::{PublicToken, V4};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let rest = input.rest();
    match choice % 4 {
        0 => untrusted(rest),
        1 => signed(rest),
        2 => subject(rest),
        _ => scopes(rest),
    }
});

fn verifier() -> (SigningKey, TokenVerifier) {
    let key = SigningKey::from_seed(&ROOT_KEY_SEED).expect("a seed is a key");
    let verifier = TokenVerifier::new(key.public(), controller_id());
    (key, verifier)
}

fn untrusted(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let (_, verifier) = verifier();
    if check(&verifier, text) {
        // The last character can hold bits that no byte has; all before it are signed.
        for position in (0..text.len() - 1).step_by(7) {
            let mut changed = text.as_bytes().to_vec();
            changed[position] = if changed[position] == b'A' {
                b'B'
            } else {
                b'A'
            };
            let changed = String::from_utf8(changed).expect("a token is ASCII");
            assert!(
                !check(&verifier, &changed),
                "character {position} is not signed"
            );
        }
    }
}

/// Any claims with the right key, as a careless mint would sign them.
fn signed(claims: &[u8]) {
    let (key, verifier) = verifier();
    let secret = [key.seed().as_slice(), key.public().as_bytes()].concat();
    let secret = AsymmetricSecretKey::<V4>::from(&secret).expect("the halves belong together");
    let implicit = Some(IMPLICIT_ASSERTION.as_bytes());
    if let Ok(token) = PublicToken::sign(&secret, claims, None, implicit) {
        check(&verifier, &token);
    }
}

fn check(verifier: &TokenVerifier, token: &str) -> bool {
    let Ok(grant) = verifier.verify(token, NOW) else {
        return false;
    };
    assert!(token.len() <= MAX_TOKEN_CHARS);
    assert!(grant.expires_at > NOW && !grant.token_ids.is_empty());
    assert!(
        grant
            .scopes
            .iter()
            .all(|scope| scope.is_platform() == grant.tenant.is_none())
    );
    // Its time does not come back.
    assert!(verifier.verify(token, grant.expires_at).is_err());
    assert!(verifier.verify(token, i64::MAX).is_err());
    true
}

fn subject(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(key) = SubjectKey::parse(text) {
        assert!(SubjectKey::parse(&key.to_base64url()).is_ok_and(|again| again == key));
    }
}

fn scopes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let texts: Vec<String> = text.split(' ').map(str::to_owned).collect();
    if let Ok(scopes) = ScopeSet::parse(&texts) {
        assert_eq!(scopes.to_texts().len(), texts.len());
    }
}
