//! Minting root links, with the controller's key and for nothing else.

use berth_api::ids::{ControllerId, TenantId, TokenId};
use berth_ledger::keys::{PublicKey, SigningKey};
use pasetors::keys::AsymmetricSecretKey;
use pasetors::version4::V4;

use crate::chain::{Chain, Link, MAX_LINKS, MAX_TOKEN_CHARS, seal, secret_key};
use crate::claims;
use crate::grant::scopes_fit;
use crate::resources::Resources;
use crate::scope::ScopeSet;
use crate::subject::SubjectKey;
use crate::verify::TokenVerifier;

/// How many links may follow a root link, if nobody wants fewer.
pub const MAX_DELEGATIONS: u8 = 3;

/// Why a token was not minted.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// A tenant's token with an operator's scope, or the other way round.
    #[error("operators' scopes and tenants' scopes do not go into one token")]
    MixedScopes,
    /// `exp` is not after `nbf`.
    #[error("a token must end after it begins")]
    NoLifetime,
    /// More links may follow than a token has.
    #[error("at most {MAX_DELEGATIONS} links may follow")]
    Delegations,
    /// Too many VMs and slots to name in one token.
    #[error("the token would be longer than {MAX_TOKEN_CHARS} characters")]
    TooLong,
    /// The claims did not serialise.
    #[error("the token's claims could not be written")]
    Claims(#[source] serde_json::Error),
    /// The PASETO library refused.
    #[error("the token could not be signed")]
    Sign(#[source] pasetors::errors::Error),
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
    /// To which VMs and slots it is limited; `None` for no limit.
    pub resources: Option<Resources>,
    /// Seconds since the epoch before which it is not valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is worthless.
    pub expires_at: i64,
    /// How many links may follow, at most [`MAX_DELEGATIONS`].
    pub delegations: u8,
    /// Whether it is good with a signed request alone.
    pub requires_pop: bool,
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
        Ok(Self {
            secret: secret_key(key).map_err(MintError::Sign)?,
            public: key.public(),
            controller,
        })
    }

    /// What checks this key's tokens.
    #[must_use]
    pub fn verifier(&self) -> TokenVerifier {
        TokenVerifier::new(self.public, self.controller)
    }

    /// Mint a root link. The same claims always give the same text, as Ed25519 is deterministic.
    pub fn mint(&self, new: &NewLink) -> Result<String, MintError> {
        if !scopes_fit(new.tenant.as_ref(), &new.scopes) {
            return Err(MintError::MixedScopes);
        }
        if new.expires_at <= new.not_before {
            return Err(MintError::NoLifetime);
        }
        if usize::from(new.delegations) >= MAX_LINKS {
            return Err(MintError::Delegations);
        }
        let chain = Chain {
            controller: self.controller,
            tenant: new.tenant.clone(),
            root: Link {
                token_id: new.token_id,
                holder: new.holder,
                scopes: new.scopes.clone(),
                resources: new.resources.clone(),
                not_before: new.not_before,
                expires_at: new.expires_at,
                delegations: new.delegations,
                requires_pop: new.requires_pop,
            },
            children: Vec::new(),
        };
        let payload = claims::write_root(&chain).map_err(MintError::Claims)?;
        let token = seal(&self.secret, &payload, None).map_err(MintError::Sign)?;
        if token.len() > MAX_TOKEN_CHARS {
            return Err(MintError::TooLong);
        }
        Ok(token)
    }
}
