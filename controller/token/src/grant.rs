//! What a checked token allows, and which tokens count no longer.

use std::collections::{HashMap, HashSet};

use berth_api::ids::{TenantId, TokenId};

use crate::resources::Resources;
use crate::scope::{Scope, ScopeSet};
use crate::subject::SubjectKey;

/// What a token allows, once its signatures and times are right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Grant {
    /// The tenant that it speaks for; `None` for an operator.
    pub tenant: Option<TenantId>,
    /// What it may do.
    pub scopes: ScopeSet,
    /// To which VMs and slots it is limited; `None` where it is not.
    pub resources: Option<Resources>,
    /// Who holds it.
    pub holder: SubjectKey,
    /// The ids of its links, root first; at least one.
    pub token_ids: Vec<TokenId>,
    /// The holders of its links, root first.
    pub holders: Vec<SubjectKey>,
    /// Seconds since the epoch from which on its root link is valid.
    pub not_before: i64,
    /// Seconds since the epoch from which on it is worthless.
    pub expires_at: i64,
    /// How many links may follow.
    pub delegations: u8,
    /// Whether it is good with a signed request alone.
    pub requires_pop: bool,
}

impl Grant {
    /// Whether it says that it is a guest's, and so is worth nothing beyond its VM's life.
    #[must_use]
    pub fn is_guests(&self) -> bool {
        self.scopes.iter().any(|scope| scope == Scope::VmGuest)
    }

    /// Whether every request that this allows is allowed by `other` too.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        let resources = match (&self.resources, &other.resources) {
            (_, None) => true,
            (None, Some(_)) => false,
            (Some(own), Some(limit)) => own.is_subset(limit),
        };
        self.tenant == other.tenant
            && other.scopes.covers_all(&self.scopes)
            && resources
            && self.expires_at <= other.expires_at
            && (self.requires_pop || !other.requires_pop)
    }
}

/// An operator's token carries operators' scopes alone, a tenant's none of them.
pub(crate) fn scopes_fit(tenant: Option<&TenantId>, scopes: &ScopeSet) -> bool {
    scopes
        .iter()
        .all(|scope| scope.is_platform() == tenant.is_none())
}

/// What was revoked, tenant by tenant: nobody's revocation touches another's tokens.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Revocations(HashMap<Option<TenantId>, OfTenant>);

#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct OfTenant {
    links: HashSet<TokenId>,
    holders: HashSet<SubjectKey>,
    min_not_before: i64,
}

impl Revocations {
    /// A link counts no longer, nor what hangs on it.
    pub fn add_link(&mut self, tenant: Option<TenantId>, link: TokenId) {
        self.0.entry(tenant).or_default().links.insert(link);
    }

    /// A holder's links count no longer, nor what hangs on them.
    pub fn add_holder(&mut self, tenant: Option<TenantId>, holder: SubjectKey) {
        self.0.entry(tenant).or_default().holders.insert(holder);
    }

    /// Root links from before this second count no longer.
    pub fn raise_epoch(&mut self, tenant: Option<TenantId>, min_not_before: i64) {
        let own = self.0.entry(tenant).or_default();
        own.min_not_before = own.min_not_before.max(min_not_before);
    }

    /// Whether a holder was revoked.
    #[must_use]
    pub fn is_holder_revoked(&self, tenant: Option<&TenantId>, holder: &SubjectKey) -> bool {
        self.of(tenant)
            .is_some_and(|own| own.holders.contains(holder))
    }

    /// The first second at which a root link of the tenant can begin and count; 0 if any.
    #[must_use]
    pub fn epoch(&self, tenant: Option<&TenantId>) -> i64 {
        self.of(tenant).map_or(0, |own| own.min_not_before)
    }

    /// Whether a token counts no longer.
    #[must_use]
    pub fn refuse(&self, grant: &Grant) -> bool {
        self.of(grant.tenant.as_ref()).is_some_and(|own| {
            grant.not_before < own.min_not_before
                || grant.token_ids.iter().any(|id| own.links.contains(id))
                || grant.holders.iter().any(|key| own.holders.contains(key))
        })
    }

    fn of(&self, tenant: Option<&TenantId>) -> Option<&OfTenant> {
        // One clone of a short text for each request is less than a second map to keep in step.
        self.0.get(&tenant.cloned())
    }
}
