//! Hanging one more link on a token: what its holder can do without asking anybody.

use berth_ledger::keys::SigningKey;

use crate::chain::{
    Chain, LINK_SEPARATOR, Link, MAX_LINKS, MAX_TOKEN_CHARS, NotNarrower, must_be_narrower, seal,
    secret_key,
};
use crate::claims;
use crate::verify::VerifyError;

/// Why a token was not narrowed.
#[derive(Debug, thiserror::Error)]
pub enum DeriveError {
    /// The parent is no token.
    #[error("the parent is not a token that can be narrowed")]
    Parent(#[source] VerifyError),
    /// The key is not that of the parent's holder.
    #[error("the key is not the one that the parent is made out to")]
    NotHolder,
    /// The child would allow more than its parent.
    #[error("the token can only be narrowed")]
    NotNarrower(#[source] NotNarrower),
    /// It would end before it begins.
    #[error("a token must end after it begins")]
    NoLifetime,
    /// No controller reads so long a token.
    #[error("the token would be longer than {MAX_TOKEN_CHARS} characters or {MAX_LINKS} links")]
    TooLong,
    /// The claims did not serialise.
    #[error("the token's claims could not be written")]
    Claims(#[source] serde_json::Error),
    /// The PASETO library refused.
    #[error("the token could not be signed")]
    Sign(#[source] pasetors::errors::Error),
}

/// The parent with one more link. Whether the parent is genuine, in time and not revoked, is not
/// known offline; a controller checks all of it when the child is used.
pub fn derive(parent: &str, key: &SigningKey, child: &Link) -> Result<String, DeriveError> {
    let chain = Chain::read_unverified(parent).map_err(DeriveError::Parent)?;
    if key.public().as_bytes() != chain.last().holder.as_bytes() {
        return Err(DeriveError::NotHolder);
    }
    must_be_narrower(chain.last(), child).map_err(DeriveError::NotNarrower)?;
    if child.expires_at <= child.not_before {
        return Err(DeriveError::NoLifetime);
    }
    let payload = claims::write_child(child).map_err(DeriveError::Claims)?;
    let last = parent.rsplit(LINK_SEPARATOR).next();
    let link = secret_key(key)
        .and_then(|secret| seal(&secret, &payload, last))
        .map_err(DeriveError::Sign)?;
    let token = format!("{parent}{LINK_SEPARATOR}{link}");
    if token.len() > MAX_TOKEN_CHARS || chain.children.len() + 2 > MAX_LINKS {
        return Err(DeriveError::TooLong);
    }
    Ok(token)
}
