//! How long one request's token takes to check: every link, what it allows, whether it was revoked.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use berth_api::ids::{ControllerId, TenantId, TokenId};
use berth_ledger::keys::SigningKey;
use berth_token::{
    Grant, Link, MAX_DELEGATIONS, MAX_LINKS, NewLink, Revocations, RootKey, Scope, ScopeSet,
    SubjectKey, TokenVerifier, derive,
};
use serde::Serialize;

/// Any moment, in seconds since the epoch.
const NOW: i64 = 1_800_000_000;
/// Revocations that are in force meanwhile, all of the tenant that asks.
const REVOKED: usize = 10_000;

/// Tokens of one depth, checked.
#[derive(Clone, Debug, Serialize)]
pub struct TokenChecks {
    /// Links of each token.
    pub links: usize,
    /// How often one was checked.
    pub checks: usize,
    /// Half of the checks took at most so long, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 took at most so long, in microseconds.
    pub p99_us: f64,
}

/// Check tokens of one to [`MAX_LINKS`] links, each depth so often.
///
/// # Errors
/// If no key can be made, or a token is not accepted.
pub fn measure(checks: usize) -> Result<Vec<TokenChecks>> {
    ensure!(checks > 0, "there is nothing to measure");
    let root = SigningKey::generate()?;
    let controller = ControllerId::generate();
    let tenant: TenantId = "acme".parse().context("a tenant id")?;
    let verifier = TokenVerifier::new(root.public(), controller);
    let mut revoked = Revocations::default();
    for _ in 0..REVOKED {
        revoked.add_link(Some(tenant.clone()), TokenId::generate());
    }
    let mut holder = SigningKey::generate()?;
    let mut token = RootKey::new(&root, controller)?.mint(&NewLink {
        token_id: TokenId::generate(),
        tenant: Some(tenant),
        holder: subject(&holder)?,
        scopes: ScopeSet::new([Scope::TenantAdmin])?,
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: MAX_DELEGATIONS,
        requires_pop: false,
    })?;
    let mut measured = Vec::new();
    for links in 1..=MAX_LINKS {
        measured.push(of_depth(links, &token, checks, &verifier, &revoked)?);
        if let Some(left) = (MAX_LINKS - links).checked_sub(1) {
            let next = SigningKey::generate()?;
            token = derive(&token, &holder, &child(&next, left)?)?;
            holder = next;
        }
    }
    Ok(measured)
}

fn subject(key: &SigningKey) -> Result<SubjectKey> {
    Ok(SubjectKey::from_bytes(key.public().as_bytes())?)
}

fn child(holder: &SigningKey, delegations: usize) -> Result<Link> {
    Ok(Link {
        token_id: TokenId::generate(),
        holder: subject(holder)?,
        scopes: ScopeSet::new([Scope::VmRead, Scope::VmControl])?,
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: u8::try_from(delegations)?,
        requires_pop: false,
    })
}

fn of_depth(
    links: usize,
    token: &str,
    checks: usize,
    verifier: &TokenVerifier,
    revoked: &Revocations,
) -> Result<TokenChecks> {
    let mut times = Vec::with_capacity(checks);
    for _ in 0..checks {
        let begun = Instant::now();
        let grant = verifier.verify(token, NOW)?;
        let passes = may_read(&grant) && !revoked.refuse(&grant);
        times.push(begun.elapsed());
        ensure!(passes, "a good token was refused");
    }
    times.sort_unstable();
    let at = |share: usize| {
        let position = (times.len() * share / 100).min(times.len() - 1);
        times.get(position).copied().unwrap_or_default()
    };
    Ok(TokenChecks {
        links,
        checks,
        p50_us: microseconds(at(50)),
        p99_us: microseconds(at(99)),
    })
}

fn may_read(grant: &Grant) -> bool {
    grant.scopes.covers(Scope::VmRead)
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_every_depth_are_measured() {
        let measured = measure(3).unwrap();
        let depths: Vec<usize> = measured.iter().map(|one| one.links).collect();
        assert_eq!(depths, [1, 2, 3, 4]);
        assert!(
            measured
                .iter()
                .all(|one| one.checks == 3 && one.p50_us > 0.0)
        );
    }
}
