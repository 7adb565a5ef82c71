//! Checking tokens: cost first, then each link's signature and what it says, then the times.

use berth_api::ids::{ControllerId, TokenId};
use berth_ledger::keys::PublicKey;

use crate::chain::{Chain, NotNarrower, open};
use crate::grant::Grant;
use crate::subject::SubjectKey;

/// How far a token's `nbf` may lie in the future, for clocks that differ.
pub const NOT_BEFORE_LEEWAY_SECONDS: i64 = 30;

/// Why a token is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Too long, too many links, or not made of PASETO v4.public links.
    #[error("it is not a token of this controller")]
    Malformed,
    /// A signature is not by the key that had to make it, or was made for another place.
    #[error("the token's signature is wrong")]
    Signature,
    /// Signed, but a link's claims do not fit this version.
    #[error("the token's claims do not fit this version")]
    Claims,
    /// A link that allows more than the one before it.
    #[error("a link of the token allows more than the one before it")]
    NotNarrower(#[source] NotNarrower),
    /// Made out to another controller.
    #[error("the token is for another controller")]
    Audience,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Its time is over.
    #[error("the token has expired")]
    Expired {
        /// Which link, for the record.
        token_id: TokenId,
    },
}

/// What checks tokens of one controller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenVerifier {
    current: PublicKey,
    previous: Option<PublicKey>,
    controller: ControllerId,
}

impl TokenVerifier {
    /// A verifier of what one root key signs.
    #[must_use]
    pub fn new(current: PublicKey, controller: ControllerId) -> Self {
        Self {
            current,
            previous: None,
            controller,
        }
    }

    /// The same, and what the root key before it signed counts too.
    #[must_use]
    pub fn with_previous(self, previous: Option<PublicKey>) -> Self {
        Self { previous, ..self }
    }

    /// Check a token at `now` (seconds since the epoch). Whether it is revoked, and whether the
    /// request is signed where the token demands it, is not known here.
    pub fn verify(&self, token: &str, now: i64) -> Result<Grant, VerifyError> {
        let chain = self.read(token)?;
        if chain.controller != self.controller {
            return Err(VerifyError::Audience);
        }
        for link in chain.links() {
            if link.not_before > now.saturating_add(NOT_BEFORE_LEEWAY_SECONDS) {
                return Err(VerifyError::NotYetValid);
            }
            if now >= link.expires_at {
                return Err(VerifyError::Expired {
                    token_id: link.token_id,
                });
            }
        }
        Ok(chain.grant())
    }

    fn read(&self, token: &str) -> Result<Chain, VerifyError> {
        Chain::read(token, |link, parent, holder| match holder {
            Some(holder) => open(&public(holder)?, link, parent),
            None => self.open_root(link),
        })
    }

    fn open_root(&self, link: &str) -> Result<String, VerifyError> {
        let opened = open(&self.current, link, None);
        match (&opened, &self.previous) {
            (Err(VerifyError::Signature), Some(previous)) => open(previous, link, None),
            _ => opened,
        }
    }
}

fn public(holder: &SubjectKey) -> Result<PublicKey, VerifyError> {
    PublicKey::from_bytes(holder.as_bytes()).map_err(|_| VerifyError::Signature)
}
