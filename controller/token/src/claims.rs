//! A link's payload, byte by byte.
//!
//! Root: `{"v":1,"jti","aud","ten","sub","scp":[…],"res"?:[…],"nbf","exp","dlg","pop"?}`; a child has
//! neither `aud` nor `ten`. Times are whole seconds since the epoch. An unknown, repeated or null
//! member is refused, and so is a number that is no integer.

use berth_api::ids::{ControllerId, TokenId};
use serde::{Deserialize, Deserializer, Serialize};

use crate::chain::{Chain, Link, MAX_LINKS};
use crate::grant::scopes_fit;
use crate::resources::Resources;
use crate::scope::ScopeSet;
use crate::subject::SubjectKey;
use crate::verify::VerifyError;

const LINK_VERSION: u32 = 1;
/// `ten` of an operator's token. No tenant id begins with an underscore.
const PLATFORM: &str = "_platform";

/// A link as it stands.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkClaims {
    v: u32,
    jti: TokenId,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    aud: Option<ControllerId>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    ten: Option<String>,
    sub: String,
    scp: Vec<String>,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    res: Option<Vec<String>>,
    nbf: i64,
    exp: i64,
    dlg: u8,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "present"
    )]
    pop: Option<bool>,
}

/// A member that may be absent, and is never null.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl LinkClaims {
    fn into_link(self) -> Result<Link, VerifyError> {
        let furthest = usize::from(self.dlg) < MAX_LINKS;
        if self.v != LINK_VERSION || self.pop == Some(false) || self.exp <= self.nbf || !furthest {
            return Err(VerifyError::Claims);
        }
        Ok(Link {
            token_id: self.jti,
            holder: SubjectKey::from_base64url(&self.sub).map_err(|_| VerifyError::Claims)?,
            scopes: ScopeSet::parse(&self.scp).map_err(|_| VerifyError::Claims)?,
            resources: self
                .res
                .map(|ids| Resources::parse(&ids))
                .transpose()
                .map_err(|_| VerifyError::Claims)?,
            not_before: self.nbf,
            expires_at: self.exp,
            delegations: self.dlg,
            requires_pop: self.pop.is_some(),
        })
    }

    /// What both kinds of link have.
    fn of(link: &Link) -> Self {
        Self {
            v: LINK_VERSION,
            jti: link.token_id,
            aud: None,
            ten: None,
            sub: link.holder.to_base64url(),
            scp: link.scopes.to_texts(),
            res: link.resources.as_ref().map(Resources::to_texts),
            nbf: link.not_before,
            exp: link.expires_at,
            dlg: link.delegations,
            pop: link.requires_pop.then_some(true),
        }
    }
}

/// A root link's payload.
pub(crate) fn read_root(payload: &str) -> Result<Chain, VerifyError> {
    let mut claims: LinkClaims = serde_json::from_str(payload).map_err(|_| VerifyError::Claims)?;
    let (Some(controller), Some(tenant)) = (claims.aud.take(), claims.ten.take()) else {
        return Err(VerifyError::Claims);
    };
    let tenant = match tenant.as_str() {
        PLATFORM => None,
        tenant => Some(tenant.parse().map_err(|_| VerifyError::Claims)?),
    };
    let root = claims.into_link()?;
    if !scopes_fit(tenant.as_ref(), &root.scopes) {
        return Err(VerifyError::Claims);
    }
    Ok(Chain {
        controller,
        tenant,
        root,
        children: Vec::new(),
    })
}

/// The payload of a link that hangs on another.
pub(crate) fn read_child(payload: &str) -> Result<Link, VerifyError> {
    let claims: LinkClaims = serde_json::from_str(payload).map_err(|_| VerifyError::Claims)?;
    if claims.aud.is_some() || claims.ten.is_some() {
        return Err(VerifyError::Claims);
    }
    claims.into_link()
}

/// The payload of a root link.
pub(crate) fn write_root(chain: &Chain) -> Result<Vec<u8>, serde_json::Error> {
    let tenant = chain.tenant.as_ref();
    serde_json::to_vec(&LinkClaims {
        aud: Some(chain.controller),
        ten: Some(tenant.map_or_else(|| PLATFORM.to_owned(), ToString::to_string)),
        ..LinkClaims::of(&chain.root)
    })
}

/// The payload of a link that hangs on another.
pub(crate) fn write_child(link: &Link) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&LinkClaims::of(link))
}
