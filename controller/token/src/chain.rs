//! A chain of links: how one is written, how the next hangs on it, and what makes it narrower.
//!
//! A link is a PASETO v4.public without a footer. Its implicit assertion is [`IMPLICIT_ASSERTION`]
//! for the root link, and that followed by the SHA-256 of the parent link's text for every other, so
//! that a link belongs to one parent alone. Reading bounds first and decodes later.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use berth_api::ids::{ControllerId, TenantId, TokenId};
use berth_ledger::keys::{PublicKey, SigningKey};
use pasetors::keys::{AsymmetricPublicKey, AsymmetricSecretKey};
use pasetors::token::UntrustedToken;
use pasetors::version4::{PublicToken, V4};
use ring::digest::{SHA256, digest};

use crate::claims;
use crate::grant::Grant;
use crate::resources::Resources;
use crate::scope::{Scope, ScopeSet};
use crate::subject::SubjectKey;
use crate::verify::VerifyError;

/// Signed with every link, never transmitted.
pub const IMPLICIT_ASSERTION: &str = "berth-cap-v1";
/// Longest token that is looked at, in characters.
pub const MAX_TOKEN_CHARS: usize = 4096;
/// Most links of a token.
pub const MAX_LINKS: usize = 4;
/// Between two links; not in the alphabet of a PASETO.
pub const LINK_SEPARATOR: char = '~';

const SIGNATURE_BYTES: usize = 64;

/// What one link says, whether it is the first or hangs on another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its id.
    pub token_id: TokenId,
    /// Who holds it.
    pub holder: SubjectKey,
    /// What it may do.
    pub scopes: ScopeSet,
    /// To which VMs and slots it is limited; `None` where it is not.
    pub resources: Option<Resources>,
    /// Seconds since the epoch before which it is not valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is worthless.
    pub expires_at: i64,
    /// How many links may follow.
    pub delegations: u8,
    /// Whether it or a link before it is good with a signed request alone.
    pub requires_pop: bool,
}

/// How a link would allow more than the one that it hangs on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNarrower {
    /// A scope that the parent does not cover.
    #[error("the parent does not cover `{0}`")]
    Scope(Scope),
    /// A VM or slot that the parent does not name, or no limit where the parent has one.
    #[error("the parent is limited to certain VMs or slots, and a child must name some of them")]
    Resources,
    /// It would outlive its parent.
    #[error("it would be valid after its parent has expired")]
    Outlives,
    /// The parent may not be narrowed further, or not as often.
    #[error("the parent allows {allowed} more links, and this one must allow fewer")]
    Delegations {
        /// Links that may follow the parent.
        allowed: u8,
    },
}

/// Whether `child` allows no more than `parent` does.
pub fn must_be_narrower(parent: &Link, child: &Link) -> Result<(), NotNarrower> {
    if child.delegations >= parent.delegations {
        return Err(NotNarrower::Delegations {
            allowed: parent.delegations,
        });
    }
    if let Some(wider) = child
        .scopes
        .iter()
        .find(|wanted| !parent.scopes.covers(*wanted))
    {
        return Err(NotNarrower::Scope(wider));
    }
    if let Some(limit) = &parent.resources
        && !child
            .resources
            .as_ref()
            .is_some_and(|own| own.is_subset(limit))
    {
        return Err(NotNarrower::Resources);
    }
    if child.expires_at > parent.expires_at {
        return Err(NotNarrower::Outlives);
    }
    Ok(())
}

/// All links of a token, root first, each narrower than the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chain {
    /// Whom the token is made out to.
    pub controller: ControllerId,
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// The first link.
    pub root: Link,
    /// Those that hang on it, in their order.
    pub children: Vec<Link>,
}

impl Chain {
    /// Read a token **without checking a signature**: what its text claims, for its holder's own
    /// eyes. Whoever decides something by it uses [`crate::TokenVerifier`].
    pub fn read_unverified(token: &str) -> Result<Self, VerifyError> {
        Self::read(token, |link, _, _| payload_unverified(link))
    }

    /// Read a token, each link's payload by `open`, which gets the link, the one before it, and that
    /// one's holder.
    pub(crate) fn read(
        token: &str,
        open: impl Fn(&str, Option<&str>, Option<&SubjectKey>) -> Result<String, VerifyError>,
    ) -> Result<Self, VerifyError> {
        let texts = split(token)?;
        let mut texts = texts.iter().copied();
        let mut parent = texts.next().ok_or(VerifyError::Malformed)?;
        let mut chain = claims::read_root(&open(parent, None, None)?)?;
        for text in texts {
            let payload = open(text, Some(parent), Some(&chain.last().holder))?;
            let mut child = claims::read_child(&payload)?;
            must_be_narrower(chain.last(), &child).map_err(VerifyError::NotNarrower)?;
            child.requires_pop |= chain.last().requires_pop;
            chain.children.push(child);
            parent = text;
        }
        Ok(chain)
    }

    /// The last link: the one that counts.
    #[must_use]
    pub fn last(&self) -> &Link {
        self.children.last().unwrap_or(&self.root)
    }

    /// Every link, root first.
    pub fn links(&self) -> impl Iterator<Item = &Link> {
        std::iter::once(&self.root).chain(&self.children)
    }

    /// What the whole chain allows.
    #[must_use]
    pub fn grant(&self) -> Grant {
        let last = self.last();
        Grant {
            tenant: self.tenant.clone(),
            scopes: last.scopes.clone(),
            resources: last.resources.clone(),
            holder: last.holder,
            token_ids: self.links().map(|link| link.token_id).collect(),
            holders: self.links().map(|link| link.holder).collect(),
            not_before: self.root.not_before,
            expires_at: last.expires_at,
            delegations: last.delegations,
            requires_pop: last.requires_pop,
        }
    }
}

/// The links of a token as they stand; bounded before anything is decoded.
fn split(token: &str) -> Result<Vec<&str>, VerifyError> {
    if token.len() > MAX_TOKEN_CHARS || token.matches(LINK_SEPARATOR).count() >= MAX_LINKS {
        return Err(VerifyError::Malformed);
    }
    let in_alphabet = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let links: Vec<&str> = token.split(LINK_SEPARATOR).collect();
    let well_formed = links.iter().all(|link| {
        link.strip_prefix(PublicToken::HEADER)
            .is_some_and(|body| !body.is_empty() && body.chars().all(in_alphabet))
    });
    if well_formed {
        Ok(links)
    } else {
        Err(VerifyError::Malformed)
    }
}

/// What is signed with a link and not in it.
#[must_use]
pub fn implicit_assertion(parent: Option<&str>) -> Vec<u8> {
    let mut bytes = IMPLICIT_ASSERTION.as_bytes().to_vec();
    if let Some(parent) = parent {
        bytes.extend_from_slice(digest(&SHA256, parent.as_bytes()).as_ref());
    }
    bytes
}

/// A key as the PASETO library takes it.
pub(crate) fn secret_key(
    key: &SigningKey,
) -> Result<AsymmetricSecretKey<V4>, pasetors::errors::Error> {
    AsymmetricSecretKey::from(&[key.seed().as_slice(), key.public().as_bytes()].concat())
}

/// Sign a payload as a link.
pub(crate) fn seal(
    secret: &AsymmetricSecretKey<V4>,
    payload: &[u8],
    parent: Option<&str>,
) -> Result<String, pasetors::errors::Error> {
    PublicToken::sign(secret, payload, None, Some(&implicit_assertion(parent)))
}

/// The payload of a link that this key signed.
pub(crate) fn open(
    key: &PublicKey,
    link: &str,
    parent: Option<&str>,
) -> Result<String, VerifyError> {
    let untrusted = UntrustedToken::try_from(link).map_err(|_| VerifyError::Malformed)?;
    let public = AsymmetricPublicKey::<V4>::from(key.as_bytes().as_slice())
        .map_err(|_| VerifyError::Signature)?;
    let assertion = implicit_assertion(parent);
    let trusted = PublicToken::verify(&public, &untrusted, None, Some(&assertion))
        .map_err(|_| VerifyError::Signature)?;
    Ok(trusted.payload().to_owned())
}

fn payload_unverified(link: &str) -> Result<String, VerifyError> {
    let body = link
        .strip_prefix(PublicToken::HEADER)
        .ok_or(VerifyError::Malformed)?;
    let mut bytes = URL_SAFE_NO_PAD
        .decode(body)
        .map_err(|_| VerifyError::Malformed)?;
    let length = bytes
        .len()
        .checked_sub(SIGNATURE_BYTES)
        .filter(|length| *length > 0)
        .ok_or(VerifyError::Malformed)?;
    bytes.truncate(length);
    String::from_utf8(bytes).map_err(|_| VerifyError::Malformed)
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
