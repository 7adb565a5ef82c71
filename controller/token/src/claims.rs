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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RootClaims {
    v: u32,
    jti: TokenId,
    aud: ControllerId,
    ten: String,
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

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChildClaims {
    v: u32,
    jti: TokenId,
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

/// The members that both kinds of link have, as they stand.
struct Common {
    v: u32,
    jti: TokenId,
    sub: String,
    scp: Vec<String>,
    res: Option<Vec<String>>,
    nbf: i64,
    exp: i64,
    dlg: u8,
    pop: Option<bool>,
}

impl Common {
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
}

/// A root link's payload.
pub(crate) fn read_root(payload: &str) -> Result<Chain, VerifyError> {
    let claims: RootClaims = serde_json::from_str(payload).map_err(|_| VerifyError::Claims)?;
    let tenant = match claims.ten.as_str() {
        PLATFORM => None,
        tenant => Some(tenant.parse().map_err(|_| VerifyError::Claims)?),
    };
    let root = Common {
        v: claims.v,
        jti: claims.jti,
        sub: claims.sub,
        scp: claims.scp,
        res: claims.res,
        nbf: claims.nbf,
        exp: claims.exp,
        dlg: claims.dlg,
        pop: claims.pop,
    }
    .into_link()?;
    if !scopes_fit(tenant.as_ref(), &root.scopes) {
        return Err(VerifyError::Claims);
    }
    Ok(Chain {
        controller: claims.aud,
        tenant,
        root,
        children: Vec::new(),
    })
}

/// The payload of a link that hangs on another.
pub(crate) fn read_child(payload: &str) -> Result<Link, VerifyError> {
    let claims: ChildClaims = serde_json::from_str(payload).map_err(|_| VerifyError::Claims)?;
    Common {
        v: claims.v,
        jti: claims.jti,
        sub: claims.sub,
        scp: claims.scp,
        res: claims.res,
        nbf: claims.nbf,
        exp: claims.exp,
        dlg: claims.dlg,
        pop: claims.pop,
    }
    .into_link()
}

/// The payload of a root link.
pub(crate) fn write_root(chain: &Chain) -> Result<Vec<u8>, serde_json::Error> {
    let root = &chain.root;
    serde_json::to_vec(&RootClaims {
        v: LINK_VERSION,
        jti: root.token_id,
        aud: chain.controller,
        ten: chain
            .tenant
            .as_ref()
            .map_or_else(|| PLATFORM.to_owned(), ToString::to_string),
        sub: root.holder.to_base64url(),
        scp: root.scopes.to_texts(),
        res: root.resources.as_ref().map(Resources::to_texts),
        nbf: root.not_before,
        exp: root.expires_at,
        dlg: root.delegations,
        pop: root.requires_pop.then_some(true),
    })
}

/// The payload of a link that hangs on another.
pub(crate) fn write_child(link: &Link) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&ChildClaims {
        v: LINK_VERSION,
        jti: link.token_id,
        sub: link.holder.to_base64url(),
        scp: link.scopes.to_texts(),
        res: link.resources.as_ref().map(Resources::to_texts),
        nbf: link.not_before,
        exp: link.expires_at,
        dlg: link.delegations,
        pop: link.requires_pop.then_some(true),
    })
}
