//! Chains of links, of up to 64 KiB: as texts of strangers, and as whatever a holder signs rightly.
//!
//! Holds: what is accepted is within its parent and no longer or deeper than a token may be; without
//! its last link it is its parent again; what the rules let a holder make is accepted.
#![no_main]

use berth_fuzz::input::Input;
use berth_fuzz::seed_values::{HOLDER_SEEDS, NOW, ROOT_KEY_SEED, controller_id, root_token};
use berth_ledger::keys::SigningKey;
use berth_token::{
    Chain, DeriveError, Grant, LINK_SEPARATOR, MAX_LINKS, MAX_TOKEN_CHARS, TokenVerifier, VerifyError, derive,
    implicit_assertion,
};
use libfuzzer_sys::fuzz_target;
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::{PublicToken, V4};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input::new(bytes);
    let choice = input.byte();
    let rest = input.rest();
    if choice % 2 == 0 {
        text_of_a_stranger(rest);
    } else {
        hung_by_force(rest);
    }
});

fn verify(token: &str) -> Result<Grant, VerifyError> {
    let key = SigningKey::from_seed(&ROOT_KEY_SEED).expect("a seed is a key");
    let grant = TokenVerifier::new(key.public(), controller_id()).verify(token, NOW)?;
    assert!(token.len() <= MAX_TOKEN_CHARS);
    assert!((1..=MAX_LINKS).contains(&grant.token_ids.len()));
    assert_eq!(grant.token_ids.len(), grant.holders.len());
    assert_eq!(grant.holders.last(), Some(&grant.holder));
    assert!(grant.expires_at > NOW);
    Ok(grant)
}

fn text_of_a_stranger(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let claimed = Chain::read_unverified(text);
    if let Ok(grant) = verify(text) {
        assert!(claimed.is_ok_and(|chain| chain.grant() == grant));
    }
}

/// Payloads, one on each line, hung on a good token by the holders' keys.
fn hung_by_force(bytes: &[u8]) {
    let mut token = root_token();
    let mut grant = verify(&token).expect("the root is good");
    for (seed, payload) in HOLDER_SEEDS.iter().zip(bytes.split(|byte| *byte == b'\n')) {
        let key = SigningKey::from_seed(seed).expect("a seed is a key");
        let secret = [key.seed().as_slice(), key.public().as_bytes()].concat();
        let secret = AsymmetricSecretKey::<V4>::from(&secret).expect("the halves belong together");
        let parent = token.rsplit(LINK_SEPARATOR).next();
        let assertion = implicit_assertion(parent);
        let Ok(link) = PublicToken::sign(&secret, payload, None, Some(&assertion)) else {
            return;
        };
        let forced = format!("{token}{LINK_SEPARATOR}{link}");
        let Ok(narrowed) = verify(&forced) else {
            return;
        };
        assert!(narrowed.is_within(&grant));
        assert!(narrowed.token_ids.starts_with(&grant.token_ids));
        let (shorter, _) = forced.rsplit_once(LINK_SEPARATOR).expect("it has two links");
        assert!(verify(shorter).is_ok_and(|parent| parent == grant));
        let chain = Chain::read_unverified(&forced).expect("it was verified");
        // Spelled as we spell it, it may be too long.
        match derive(&token, &key, chain.last()) {
            Ok(own) => assert!(verify(&own).is_ok_and(|made| made == narrowed)),
            Err(error) => assert!(matches!(error, DeriveError::TooLong)),
        }
        (token, grant) = (forced, narrowed);
    }
}
