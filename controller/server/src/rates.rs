//! The token buckets of everybody who calls, in memory: the hard limits are the quotas in the
//! database. Who has which bucket is decided here, when one is asked is the gate's.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use berth_api::ids::TenantId;
use berth_controller_core::rate::{Buckets, MAX_KEYS, Standing};
use berth_token::{Grant, SubjectKey};
use serde::Deserialize;

/// How many requests are taken, in requests per minute. A tenant's rate is its own.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RateLimits {
    /// Of one operator's token holder.
    operator_rpm: u32,
    /// Of one source address, before its token is looked at.
    address_rpm: u32,
    /// Tokens of one source address that are refused.
    failed_auth_rpm: u32,
    /// Whether this machine's own addresses are limited like others. On the default listener
    /// everybody is there: other users, SSH tunnels, a proxy.
    limit_loopback: bool,
}

impl Default for RateLimits {
    fn default() -> Self {
        Self {
            operator_rpm: 60_000,
            address_rpm: 6_000,
            failed_auth_rpm: 60,
            limit_loopback: false,
        }
    }
}

/// What kind of request it is: those that end something have buckets of their own, so that a flood
/// of others never keeps anybody from stopping what runs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Kind {
    /// Stops, deletes, revokes or wipes.
    Ends,
    /// Everything else.
    Other,
}

/// One request taken from a bucket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// The policy's name.
    pub(crate) policy: &'static str,
    /// Requests per minute.
    pub(crate) rpm: u32,
    /// How the bucket stands.
    pub(crate) standing: Standing,
}

#[derive(Debug)]
struct All {
    known: HashMap<TenantId, u32>,
    tenants: Buckets<(TenantId, Kind)>,
    holders: Buckets<(SubjectKey, Kind)>,
    guests: Buckets<(TenantId, Kind)>,
    addresses: Buckets<IpAddr>,
    failures: Buckets<IpAddr>,
}

/// All buckets.
#[derive(Debug)]
pub(crate) struct Rates {
    start: Instant,
    limits: RateLimits,
    all: Mutex<All>,
}

impl Rates {
    pub(crate) fn new(limits: RateLimits) -> Self {
        Self {
            start: Instant::now(),
            limits,
            all: Mutex::new(All {
                known: HashMap::new(),
                tenants: Buckets::new(MAX_KEYS),
                holders: Buckets::new(MAX_KEYS),
                guests: Buckets::new(MAX_KEYS),
                addresses: Buckets::new(MAX_KEYS),
                failures: Buckets::new(MAX_KEYS),
            }),
        }
    }

    /// Take one request of a token's. `None` if its tenant's rate is not known yet.
    ///
    /// Who holds a link that another holder derived gets half of the tenant's rate, and is asked
    /// first: one leaked session's flood leaves the other half to everybody else. So do all guests
    /// of a tenant together, as what runs in a guest is nobody's friend.
    pub(crate) fn take(&self, grant: &Grant, kind: Kind) -> Option<Taken> {
        let now = self.now_ms();
        let mut all = self.lock();
        let Some(tenant) = &grant.tenant else {
            let rpm = self.limits.operator_rpm;
            let standing = all.holders.take(&(grant.holder, kind), rpm, now);
            return Some(taken("operator", rpm, standing));
        };
        let rpm = all.known.get(tenant).copied()?;
        if grant.is_guests() {
            let half = rpm.div_ceil(2);
            let standing = all.guests.take(&(tenant.clone(), kind), half, now);
            if !standing.allowed {
                return Some(taken("guests", half, standing));
            }
        } else if grant.token_ids.len() > 1 {
            let half = rpm.div_ceil(2);
            let standing = all.holders.take(&(grant.holder, kind), half, now);
            if !standing.allowed {
                return Some(taken("holder", half, standing));
            }
        }
        let standing = all.tenants.take(&(tenant.clone(), kind), rpm, now);
        let policy = match kind {
            Kind::Ends => "tenant-end",
            Kind::Other => "tenant",
        };
        Some(taken(policy, rpm, standing))
    }

    /// Take one request of an address, whoever it turns out to be.
    pub(crate) fn take_address(&self, address: IpAddr) -> Option<Taken> {
        let key = self.key_of(address)?;
        let rpm = self.limits.address_rpm;
        let standing = self.lock().addresses.take(&key, rpm, self.now_ms());
        Some(taken("address", rpm, standing))
    }

    /// Take one refused token of an address.
    pub(crate) fn take_failure(&self, address: IpAddr) -> Option<Taken> {
        let key = self.key_of(address)?;
        let rpm = self.limits.failed_auth_rpm;
        let standing = self.lock().failures.take(&key, rpm, self.now_ms());
        Some(taken("failed-auth", rpm, standing))
    }

    /// Make a tenant known, or give it another rate.
    pub(crate) fn set(&self, tenant: &TenantId, rpm: u32) {
        self.lock().known.insert(tenant.clone(), rpm);
    }

    /// Forget a deleted tenant.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        let mut all = self.lock();
        all.known.remove(tenant);
        for kind in [Kind::Ends, Kind::Other] {
            all.tenants.forget(&(tenant.clone(), kind));
            all.guests.forget(&(tenant.clone(), kind));
        }
    }

    /// `None` for addresses that are not limited.
    fn key_of(&self, address: IpAddr) -> Option<IpAddr> {
        let address = address.to_canonical();
        (self.limits.limit_loopback || !address.is_loopback()).then(|| network_of(address))
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn taken(policy: &'static str, rpm: u32, standing: Standing) -> Taken {
    Taken {
        policy,
        rpm,
        standing,
    }
}

/// An IPv4 address is one source; of IPv6 it is the /64, of which anybody has all addresses.
fn network_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(long) => {
            let network = u128::from(long) >> 64 << 64;
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::ids::TokenId;
    use berth_token::{Scope, ScopeSet};

    fn grant(tenant: Option<&str>, holder: u8, links: usize) -> Grant {
        let key = berth_ledger::keys::SigningKey::from_seed(&[holder; 32]).unwrap();
        let holder = SubjectKey::from_bytes(key.public().as_bytes()).unwrap();
        Grant {
            tenant: tenant.map(|text| text.parse().unwrap()),
            scopes: ScopeSet::new([Scope::VmRead]).unwrap(),
            resources: None,
            holder,
            token_ids: vec![TokenId::generate(); links],
            holders: vec![holder; links],
            not_before: 0,
            expires_at: i64::MAX,
            delegations: 0,
            requires_pop: false,
        }
    }

    /// Requests that pass before one is refused; at a rate that refills nothing meanwhile.
    fn passed(rates: &Rates, grant: &Grant, kind: Kind) -> usize {
        (0..10_000)
            .take_while(|_| rates.take(grant, kind).unwrap().standing.allowed)
            .count()
    }

    fn rates() -> Rates {
        let rates = Rates::new(RateLimits {
            operator_rpm: 1,
            address_rpm: 1,
            failed_auth_rpm: 1,
            limit_loopback: false,
        });
        for tenant in ["acme", "other"] {
            rates.set(&tenant.parse().unwrap(), 1);
        }
        rates
    }

    #[test]
    fn a_flood_of_one_takes_nothing_from_any_other() {
        let rates = rates();
        let acme = grant(Some("acme"), 1, 1);
        assert_eq!(passed(&rates, &acme, Kind::Other), 10);
        // Whoever holds a token of it, the tenant has one bucket.
        assert_eq!(passed(&rates, &grant(Some("acme"), 2, 1), Kind::Other), 0);
        // What ends something passes still, and so does everybody else.
        assert_eq!(passed(&rates, &acme, Kind::Ends), 10);
        assert_eq!(passed(&rates, &grant(Some("other"), 1, 1), Kind::Other), 10);
        assert_eq!(passed(&rates, &grant(None, 3, 1), Kind::Other), 10);
        assert_eq!(passed(&rates, &grant(None, 4, 1), Kind::Other), 10);
    }

    #[test]
    fn a_derived_tokens_holder_leaves_half_to_the_others() {
        let rates = rates();
        rates.set(&"acme".parse().unwrap(), 1200);
        let session = grant(Some("acme"), 5, 2);
        let flooded = passed(&rates, &session, Kind::Other);
        assert!((100..=110).contains(&flooded), "{flooded}");
        let refused = rates.take(&session, Kind::Other).unwrap();
        assert_eq!((refused.policy, refused.rpm), ("holder", 600));
        let left = passed(&rates, &grant(Some("acme"), 1, 1), Kind::Other);
        assert!(left >= 95, "{left}");
    }

    #[test]
    fn all_guests_of_a_tenant_together_leave_half_to_their_tenant() {
        let rates = rates();
        rates.set(&"acme".parse().unwrap(), 1200);
        let guest = |holder| Grant {
            scopes: ScopeSet::new([Scope::VmGuest]).unwrap(),
            ..grant(Some("acme"), holder, 1)
        };
        let flooded = passed(&rates, &guest(6), Kind::Other);
        assert!((100..=110).contains(&flooded), "{flooded}");
        let refused = rates.take(&guest(7), Kind::Other).unwrap();
        assert_eq!((refused.policy, refused.rpm), ("guests", 600));
        let left = passed(&rates, &grant(Some("acme"), 1, 1), Kind::Other);
        assert!(left >= 95, "{left}");
    }

    #[test]
    fn an_unknown_tenant_has_no_bucket_until_its_rate_is_known() {
        let rates = rates();
        let new = grant(Some("new"), 1, 1);
        assert!(rates.take(&new, Kind::Other).is_none());
        rates.set(&"new".parse().unwrap(), 60);
        assert!(rates.take(&new, Kind::Other).is_some());
        rates.forget(&"new".parse().unwrap());
        assert!(rates.take(&new, Kind::Other).is_none());
    }

    #[test]
    fn an_address_is_its_network_and_this_machine_is_not_limited() {
        let rates = rates();
        let flood = |text: &str| {
            let address = text.parse().unwrap();
            (0..100)
                .take_while(|_| {
                    rates
                        .take_failure(address)
                        .is_some_and(|t| t.standing.allowed)
                })
                .count()
        };
        assert_eq!(flood("192.0.2.1"), 10);
        assert_eq!(
            flood("::ffff:192.0.2.1"),
            0,
            "the same address in IPv6's clothes"
        );
        assert_eq!(flood("192.0.2.2"), 10);
        assert_eq!(flood("2001:db8::1"), 10);
        assert_eq!(flood("2001:db8::ffff:1"), 0, "the same /64");
        assert_eq!(flood("2001:db8:0:1::1"), 10);
        for own in ["127.0.0.1", "::1", "127.9.9.9"] {
            assert!(rates.take_failure(own.parse().unwrap()).is_none(), "{own}");
        }
        // Failures and requests are counted apart.
        let address = "192.0.2.1".parse().unwrap();
        assert!(rates.take_address(address).unwrap().standing.allowed);
    }
}
