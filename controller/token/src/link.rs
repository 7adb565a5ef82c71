//! One link: its bytes, minting, checking.
//!
//! Payload: `{"v":1,"jti","aud","ten","sub","scp":[…],"nbf","exp","dlg"}`, times in seconds since
//! the epoch. An unknown or repeated field is refused. The length is bounded before anything is
//! decoded, the signature is checked before anything is parsed, and the implicit assertion keeps a
//! link from passing for any other PASETO made with the same key.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::ids::{ControllerId, TenantId, TokenId};
use berth_ledger::keys::{PublicKey, SigningKey};
use pasetors::keys::{AsymmetricPublicKey, AsymmetricSecretKey};
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use serde::{Deserialize, Serialize};

use crate::scope::{ScopeSet, ScopeSetError};
use crate::subject::{ParseSubjectError, SubjectKey};

/// Signed with every root link, never transmitted.
pub const IMPLICIT_ASSERTION: &str = "berth-cap-v1";
/// Longest token that is looked at, in characters.
pub const MAX_TOKEN_CHARS: usize = 4096;
/// How far a token's `nbf` may lie in the future, for clocks that differ.
pub const NOT_BEFORE_LEEWAY_SECONDS: i64 = 30;

const LINK_VERSION: u32 = 1;
/// `ten` of an operator's token. No tenant id begins with an underscore.
const PLATFORM: &str = "_platform";
/// How often a root link may be narrowed, once chains are accepted.
const ROOT_DELEGATIONS: u8 = 2;

/// Why a token was not minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A tenant's token with an operator's scope, or the other way round.
    #[error("operators' scopes and tenants' scopes do not go into one token")]
    MixedScopes,
    /// `exp` is not after `nbf`.
    #[error("a token must end after it begins")]
    NoLifetime,
    /// The claims did not serialise.
    #[error("the token's claims could not be written")]
    Claims(#[source] serde_json::Error),
    /// The PASETO library refused.
    #[error("the token could not be signed")]
    Sign(#[source] pasetors::errors::Error),
}

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Not a token of this kind, or a chain.
    #[error("it is not a token of this controller")]
    Malformed,
    /// The signature is not by a root key.
    #[error("the token's signature is wrong")]
    Signature,
    /// Signed, but its claims do not fit this version.
    #[error("the token's claims do not fit this version")]
    Claims,
    /// Made out to another controller.
    #[error("the token is for another controller")]
    Audience,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired {
        /// Which token, for the record.
        token_id: TokenId,
    },
}

/// What a token allows, once its signature and times are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Who holds it.
    pub holder: SubjectKey,
    /// The ids of its links, root first; at least one.
    pub token_ids: Vec<TokenId>,
    /// Seconds since the epoch from which on it is worthless.
    pub expires_at: i64,
}

/// Everything that the controller decides about a new token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewLink {
    /// Its id.
    pub token_id: TokenId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// Who holds it.
    pub holder: SubjectKey,
    /// What it may do.
    pub scopes: ScopeSet,
    /// Seconds since the epoch before which it is not valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is worthless.
    pub expires_at: i64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    v: u32,
    jti: TokenId,
    aud: ControllerId,
    ten: String,
    sub: String,
    scp: Vec<String>,
    nbf: i64,
    exp: i64,
    dlg: u8,
}

/// The key that mints root links. Used for nothing else.
#[derive(Debug)]
pub struct RootKey {
    secret: AsymmetricSecretKey<V4>,
    public: PublicKey,
    controller: ControllerId,
}

impl RootKey {
    /// The root key of one controller.
    pub fn new(key: &SigningKey, controller: ControllerId) -> Result<Self, MintError> {
        let public = key.public();
        let mut bytes = key.seed().to_vec();
        bytes.extend_from_slice(public.as_bytes());
        let secret = AsymmetricSecretKey::<V4>::from(&bytes).map_err(MintError::Sign)?;
        Ok(Self {
            secret,
            public,
            controller,
        })
    }

    /// What checks this key's tokens.
    #[must_use]
    pub fn verifier(&self) -> TokenVerifier {
        TokenVerifier {
            public: self.public,
            controller: self.controller,
        }
    }

    /// Mint a root link. The same claims always give the same text, as Ed25519 is deterministic.
    pub fn mint(&self, link: &NewLink) -> Result<String, MintError> {
        if !scopes_fit(link.tenant.as_ref(), &link.scopes) {
            return Err(MintError::MixedScopes);
        }
        if link.expires_at <= link.not_before {
            return Err(MintError::NoLifetime);
        }
        let claims = Claims {
            v: LINK_VERSION,
            jti: link.token_id,
            aud: self.controller,
            ten: link
                .tenant
                .as_ref()
                .map_or_else(|| PLATFORM.to_owned(), ToString::to_string),
            sub: link.holder.to_base64url(),
            scp: link.scopes.to_texts(),
            nbf: link.not_before,
            exp: link.expires_at,
            dlg: ROOT_DELEGATIONS,
        };
        let message = serde_json::to_vec(&claims).map_err(MintError::Claims)?;
        PublicToken::sign(
            &self.secret,
            &message,
            None,
            Some(IMPLICIT_ASSERTION.as_bytes()),
        )
        .map_err(MintError::Sign)
    }
}

/// What checks tokens of one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenVerifier {
    public: PublicKey,
    controller: ControllerId,
}

impl TokenVerifier {
    /// A verifier from its parts.
    #[must_use]
    pub fn new(public: PublicKey, controller: ControllerId) -> Self {
        Self { public, controller }
    }

    /// Check a token at `now` (seconds since the epoch). Whether it is revoked is not known here.
    pub fn verify(&self, token: &str, now: i64) -> Result<Grant, VerifyError> {
        let payload = self.open(token)?;
        let claims: Claims = serde_json::from_str(&payload).map_err(|_| VerifyError::Claims)?;
        if claims.v != LINK_VERSION {
            return Err(VerifyError::Claims);
        }
        if claims.aud != self.controller {
            return Err(VerifyError::Audience);
        }
        let grant = grant_of(&claims)?;
        if claims.nbf > now.saturating_add(NOT_BEFORE_LEEWAY_SECONDS) {
            return Err(VerifyError::NotYetValid);
        }
        if now >= claims.exp {
            return Err(VerifyError::Expired {
                token_id: claims.jti,
            });
        }
        Ok(grant)
    }

    fn open(&self, token: &str) -> Result<String, VerifyError> {
        let body = token
            .strip_prefix(PublicToken::HEADER)
            .filter(|_| token.len() <= MAX_TOKEN_CHARS)
            .ok_or(VerifyError::Malformed)?;
        let in_alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !body.chars().all(in_alphabet) {
            return Err(VerifyError::Malformed);
        }
        let untrusted = UntrustedToken::try_from(token).map_err(|_| VerifyError::Malformed)?;
        let public = AsymmetricPublicKey::<V4>::from(self.public.as_bytes())
            .map_err(|_| VerifyError::Signature)?;
        let implicit = Some(IMPLICIT_ASSERTION.as_bytes());
        let trusted = PublicToken::verify(&public, &untrusted, None, implicit)
            .map_err(|_| VerifyError::Signature)?;
        Ok(trusted.payload().to_owned())
    }
}

fn grant_of(claims: &Claims) -> Result<Grant, VerifyError> {
    let tenant = match claims.ten.as_str() {
        PLATFORM => None,
        tenant => Some(tenant.parse().map_err(|_| VerifyError::Claims)?),
    };
    let scopes = ScopeSet::parse(&claims.scp).map_err(|_: ScopeSetError| VerifyError::Claims)?;
    if !scopes_fit(tenant.as_ref(), &scopes) {
        return Err(VerifyError::Claims);
    }
    let holder = URL_SAFE_NO_PAD
        .decode(&claims.sub)
        .map_err(|_| VerifyError::Claims)?;
    let holder =
        SubjectKey::from_bytes(&holder).map_err(|_: ParseSubjectError| VerifyError::Claims)?;
    Ok(Grant {
        tenant,
        scopes,
        holder,
        token_ids: vec![claims.jti],
        expires_at: claims.exp,
    })
}

/// An operator's token carries operators' scopes alone, a tenant's none of them.
fn scopes_fit(tenant: Option<&TenantId>, scopes: &ScopeSet) -> bool {
    scopes
        .iter()
        .all(|scope| scope.is_platform() == tenant.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scope::Scope;

    const NOW: i64 = 1_800_000_000;

    fn signing_key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32]).unwrap()
    }

    fn link(tenant: Option<&str>, scope: Scope) -> NewLink {
        NewLink {
            token_id: TokenId::generate(),
            tenant: tenant.map(|t| t.parse().unwrap()),
            holder: SubjectKey::from_bytes(signing_key(9).public().as_bytes()).unwrap(),
            scopes: ScopeSet::new([scope]).unwrap(),
            not_before: NOW,
            expires_at: NOW + 60,
        }
    }

    fn root() -> RootKey {
        RootKey::new(&signing_key(1), ControllerId::generate()).unwrap()
    }

    /// Sign any claims with the right key, as a careless mint would.
    fn sign_raw(root: &RootKey, claims: &str, implicit: &str) -> String {
        PublicToken::sign(
            &root.secret,
            claims.as_bytes(),
            None,
            Some(implicit.as_bytes()),
        )
        .unwrap()
    }

    fn claims_text(root: &RootKey) -> String {
        format!(
            r#"{{"v":1,"jti":"{}","aud":"{}","ten":"acme","sub":"{}","scp":["vm.read"],"nbf":{NOW},"exp":{},"dlg":2}}"#,
            TokenId::generate(),
            root.controller,
            SubjectKey::from_bytes(signing_key(9).public().as_bytes())
                .unwrap()
                .to_base64url(),
            NOW + 60
        )
    }

    #[test]
    fn a_minted_token_grants_what_was_asked_for() {
        let root = root();
        let wanted = link(Some("acme-corp"), Scope::TenantAdmin);
        let grant = root
            .verifier()
            .verify(&root.mint(&wanted).unwrap(), NOW)
            .unwrap();
        assert_eq!(grant.tenant, wanted.tenant);
        assert_eq!(grant.scopes, wanted.scopes);
        assert_eq!(grant.holder, wanted.holder);
        assert_eq!(grant.token_ids, [wanted.token_id]);
        assert_eq!(grant.expires_at, NOW + 60);
    }

    #[test]
    fn a_token_is_valid_from_its_leeway_until_just_before_its_end() {
        let root = root();
        let new = link(Some("acme"), Scope::VmRead);
        let token = root.mint(&new).unwrap();
        let at = |now| root.verifier().verify(&token, now).map(|_| ());
        assert_eq!(at(NOW - 31), Err(VerifyError::NotYetValid));
        assert_eq!(at(NOW - 30), Ok(()));
        assert_eq!(at(NOW + 59), Ok(()));
        let token_id = new.token_id;
        assert_eq!(at(NOW + 60), Err(VerifyError::Expired { token_id }));
    }

    #[test]
    fn another_key_another_controller_and_a_changed_byte_are_refused() {
        let root = root();
        let token = root.mint(&link(None, Scope::PlatformAdmin)).unwrap();
        let thief = RootKey::new(&signing_key(2), root.controller).unwrap();
        let forged = thief.mint(&link(None, Scope::PlatformAdmin)).unwrap();
        assert_eq!(
            root.verifier().verify(&forged, NOW),
            Err(VerifyError::Signature)
        );
        let elsewhere = TokenVerifier::new(root.public, ControllerId::generate());
        assert_eq!(elsewhere.verify(&token, NOW), Err(VerifyError::Audience));
        for position in [12, token.len() / 2, token.len() - 3] {
            let mut changed = token.clone().into_bytes();
            changed[position] = if changed[position] == b'A' {
                b'B'
            } else {
                b'A'
            };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(
                root.verifier().verify(&changed, NOW),
                Err(VerifyError::Signature)
            );
        }
    }

    #[test]
    fn what_is_no_single_link_is_malformed() {
        let root = root();
        let token = root.mint(&link(None, Scope::PlatformAdmin)).unwrap();
        for bad in [
            String::new(),
            "v4.public.".to_owned(),
            "v4.public.AAAA".to_owned(),
            "v4.local.AAAA".to_owned(),
            format!("{token}~{token}"),
            format!("{token}.Zm9vdGVy"),
            format!("{token} "),
            format!("v4.public.{}", "A".repeat(1 << 20)),
        ] {
            let shown = bad.get(..20).unwrap_or(&bad).to_owned();
            assert_eq!(
                root.verifier().verify(&bad, NOW),
                Err(VerifyError::Malformed),
                "{shown}"
            );
        }
    }

    #[test]
    fn claims_are_read_strictly() {
        let root = root();
        let good = claims_text(&root);
        let check = |claims: &str| {
            let token = sign_raw(&root, claims, IMPLICIT_ASSERTION);
            root.verifier().verify(&token, NOW).map(|_| ())
        };
        assert_eq!(check(&good), Ok(()));
        for (from, to) in [
            (r#""dlg":2"#, r#""dlg":2,"extra":1"#),
            (r#""dlg":2"#, r#""dlg":2,"ten":"other""#),
            (r#""dlg":2"#, r#""dlg":2.0"#),
            (r#""v":1"#, r#""v":2"#),
            (r#"["vm.read"]"#, "[]"),
            (r#"["vm.read"]"#, r#"["vm.*"]"#),
            (r#"["vm.read"]"#, r#"["service:platform-admin"]"#),
            (r#""acme""#, r#""_platform""#),
            (r#""acme""#, r#""Acme""#),
            (r#""sub":""#, r#""sub":"AA"#),
        ] {
            assert_eq!(
                check(&good.replace(from, to)),
                Err(VerifyError::Claims),
                "{to}"
            );
        }
    }

    #[test]
    fn a_paseto_of_the_same_key_for_another_purpose_is_no_token() {
        let root = root();
        let other = sign_raw(&root, &claims_text(&root), "something-else");
        assert_eq!(
            root.verifier().verify(&other, NOW),
            Err(VerifyError::Signature)
        );
    }

    #[test]
    fn operators_and_tenants_scopes_do_not_mix() {
        let root = root();
        for new in [
            link(Some("acme"), Scope::PlatformAdmin),
            link(None, Scope::TenantAdmin),
        ] {
            assert!(matches!(root.mint(&new), Err(MintError::MixedScopes)));
        }
    }
}
