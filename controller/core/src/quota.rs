//! May a tenant be charged this much more?

use berth_api::ids::TenantId;
use berth_api::rest::{QuotaDetail, Usage};

/// What tenants are charged for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// VMs that exist, in whatever state.
    Vms,
    /// Root disks, in GiB.
    StorageGb,
    /// Slots of a class that VMs hold.
    Slots(String),
}

impl Resource {
    /// The name in bodies.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Vms => "vms".to_owned(),
            Self::StorageGb => "storage_gb".to_owned(),
            Self::Slots(class) => format!("slots.{class}"),
        }
    }

    /// What the ceiling is called in a tenant's record.
    #[must_use]
    pub fn limit_field(&self) -> String {
        match self {
            Self::Vms => "max_vms".to_owned(),
            Self::StorageGb => "storage_quota_gb".to_owned(),
            Self::Slots(class) => format!("slot_limits.{class}"),
        }
    }
}

/// A resource's ceiling and what is charged against it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Which resource.
    pub resource: Resource,
    /// The ceiling. It may lie below `used` after it was lowered.
    pub limit: u64,
    /// Charged.
    pub used: u64,
}

impl Counter {
    /// What may still be charged.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.used)
    }

    /// The counter as `GET /v1/usage` shows it.
    #[must_use]
    pub fn to_usage(&self) -> Usage {
        Usage {
            resource: self.resource.name(),
            limit: self.limit,
            used: self.used,
            remaining: self.remaining(),
        }
    }
}

/// A charge over the ceiling.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("tenant {tenant} may have {} {} and has {}", counter.limit, counter.resource.name(), counter.used)]
pub struct QuotaDenied {
    /// Whose ceiling.
    pub tenant: TenantId,
    /// The ceiling and what is charged.
    pub counter: Counter,
    /// Asked for.
    pub requested: u64,
}

impl QuotaDenied {
    /// The numbers as an error body carries them.
    #[must_use]
    pub fn to_detail(&self) -> QuotaDetail {
        QuotaDetail {
            resource: self.counter.resource.name(),
            limit: self.counter.limit,
            used: self.counter.used,
            requested: self.requested,
            remaining: self.counter.remaining(),
            scope: format!("tenant/{}", self.tenant),
        }
    }
}

/// Whether `requested` more fits under the ceiling.
pub fn admit(tenant: &TenantId, counter: Counter, requested: u64) -> Result<(), QuotaDenied> {
    if counter
        .used
        .checked_add(requested)
        .is_some_and(|sum| sum <= counter.limit)
    {
        Ok(())
    } else {
        Err(QuotaDenied {
            tenant: tenant.clone(),
            counter,
            requested,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_charge_fits_up_to_the_ceiling_and_not_above() {
        let tenant: TenantId = "acme".parse().unwrap();
        for (limit, used, requested, fits) in [
            (10, 9, 1, true),
            (10, 10, 1, false),
            (10, 10, 0, true),
            (10, 11, 0, false),
            (0, 0, 1, false),
            (u64::MAX, u64::MAX, 1, false),
        ] {
            let counter = Counter {
                resource: Resource::Vms,
                limit,
                used,
            };
            assert_eq!(
                admit(&tenant, counter, requested).is_ok(),
                fits,
                "{used}+{requested}/{limit}"
            );
        }
    }

    #[test]
    fn a_denial_carries_its_numbers() {
        let tenant: TenantId = "acme".parse().unwrap();
        let counter = Counter {
            resource: Resource::Vms,
            limit: 10,
            used: 10,
        };
        let denied = admit(&tenant, counter, 1).unwrap_err();
        assert_eq!(denied.to_string(), "tenant acme may have 10 vms and has 10");
        assert_eq!(denied.to_detail().remaining, 0);
        assert_eq!(denied.to_detail().scope, "tenant/acme");
    }
}
