//! May a tenant, or a project of it, be charged this much more? And which marks does a charge pass?
//!
//! The gate itself is the store's conditional update. What stands here explains it, decides for plans
//! that change nothing, and names what is counted.

use std::collections::BTreeMap;

use berth_api::ids::{ProjectId, TenantId};
use berth_api::rest::{QuotaDetail, Usage};

/// Most that a ceiling can be: what every reader of JSON can hold exactly.
pub const MAX_CEILING: u64 = 1 << 53;

/// Shares of a ceiling, in percent, whose crossing is told.
const MARKS_PERCENT: [u64; 3] = [80, 95, 100];

/// What tenants are charged for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// VMs that exist, in whatever state.
    Vms,
    /// VMs that are not stopped.
    RunningVms,
    /// vCPUs of VMs that are not stopped.
    Vcpus,
    /// Memory of VMs that are not stopped, in MiB.
    MemoryMb,
    /// Root disks, in GiB.
    StorageGb,
    /// Images of its own.
    Images,
    /// Tokens that are neither expired nor revoked.
    Tokens,
    /// VMs accepted since midnight UTC.
    CreatesPerDay,
    /// Slots of a class that VMs hold.
    Slots(String),
}

impl Resource {
    /// Everything but slots, whose classes operators name.
    pub const FIXED: [Self; 8] = [
        Self::Vms,
        Self::RunningVms,
        Self::Vcpus,
        Self::MemoryMb,
        Self::StorageGb,
        Self::Images,
        Self::Tokens,
        Self::CreatesPerDay,
    ];

    /// What a VM is charged for while it is not stopped.
    pub const OF_RUNNING: [Self; 3] = [Self::RunningVms, Self::Vcpus, Self::MemoryMb];

    /// The name in bodies and in the database.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Vms => "vms".to_owned(),
            Self::RunningVms => "running_vms".to_owned(),
            Self::Vcpus => "vcpus".to_owned(),
            Self::MemoryMb => "memory_mb".to_owned(),
            Self::StorageGb => "storage_gb".to_owned(),
            Self::Images => "images".to_owned(),
            Self::Tokens => "tokens".to_owned(),
            Self::CreatesPerDay => "creates_per_day".to_owned(),
            Self::Slots(class) => format!("slots.{class}"),
        }
    }

    /// The resource of a name.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        match name.strip_prefix("slots.") {
            Some(class) if crate::slot::is_class_name(class) => Some(Self::Slots(class.to_owned())),
            Some(_) => None,
            None => Self::FIXED
                .into_iter()
                .find(|resource| resource.name() == name),
        }
    }

    /// What the ceiling is called in a tenant's record.
    #[must_use]
    pub fn limit_field(&self) -> String {
        match self {
            Self::Vms => "max_vms".to_owned(),
            Self::RunningVms => "max_running_vms".to_owned(),
            Self::Vcpus => "max_vcpus".to_owned(),
            Self::MemoryMb => "max_memory_mb".to_owned(),
            Self::StorageGb => "storage_quota_gb".to_owned(),
            Self::Images => "max_images".to_owned(),
            Self::Tokens => "max_tokens".to_owned(),
            Self::CreatesPerDay => "max_creates_per_day".to_owned(),
            Self::Slots(class) => format!("slot_limits.{class}"),
        }
    }
}

/// Ceilings by resource; `None` is no ceiling of its own.
pub type Ceilings = BTreeMap<Resource, Option<u64>>;

/// Whose ceiling: a tenant's, or that of one of its projects.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct QuotaScope {
    /// The tenant.
    pub tenant: TenantId,
    /// Its project, if the ceiling is one of a project.
    pub project: Option<ProjectId>,
}

impl QuotaScope {
    /// As bodies name it: `tenant/acme`, `project/acme/web`.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.project {
            None => format!("tenant/{}", self.tenant),
            Some(project) => format!("project/{}/{project}", self.tenant),
        }
    }
}

/// A resource's ceiling and what is charged against it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counter {
    /// Which resource.
    pub resource: Resource,
    /// The ceiling, if there is one. It may lie below `used` after it was lowered.
    pub limit: Option<u64>,
    /// Charged.
    pub used: u64,
}

impl Counter {
    /// What may still be charged; `None` without a ceiling.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.used))
    }

    /// Whether more is charged than the ceiling, as after it was lowered.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.limit.is_some_and(|limit| self.used > limit)
    }

    /// The counter as `GET /v1/usage` shows it. `reserved` is how much of it is for VMs on their way.
    #[must_use]
    pub fn to_usage(&self, reserved: u64) -> Usage {
        Usage {
            resource: self.resource.name(),
            limit: self.limit,
            used: self.used,
            reserved,
            remaining: self.remaining(),
            over_limit: self.is_over(),
        }
    }
}

/// A charge over the ceiling.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{} may have {} {} and has {}", scope_in_words(scope), counter.limit.unwrap_or(MAX_CEILING), counter.resource.name(), counter.used)]
pub struct QuotaDenied {
    /// Whose ceiling.
    pub scope: QuotaScope,
    /// The ceiling and what is charged.
    pub counter: Counter,
    /// Asked for.
    pub requested: u64,
    /// What is charged, by the states of the VMs that it is for.
    pub counted: BTreeMap<String, u64>,
}

fn scope_in_words(scope: &QuotaScope) -> String {
    match &scope.project {
        None => format!("tenant {}", scope.tenant),
        Some(project) => format!("project {project} of tenant {}", scope.tenant),
    }
}

impl QuotaDenied {
    /// The numbers as an error body carries them.
    #[must_use]
    pub fn to_detail(&self) -> QuotaDetail {
        QuotaDetail {
            resource: self.counter.resource.name(),
            limit: self.counter.limit.unwrap_or(MAX_CEILING),
            used: self.counter.used,
            requested: self.requested,
            remaining: self.counter.remaining().unwrap_or(MAX_CEILING),
            scope: self.scope.name(),
            counted: self.counted.clone(),
        }
    }
}

/// Whether `requested` more fits under the ceiling.
pub fn admit(scope: &QuotaScope, counter: Counter, requested: u64) -> Result<(), Box<QuotaDenied>> {
    let fits = match counter.limit {
        None => true,
        Some(limit) => counter
            .used
            .checked_add(requested)
            .is_some_and(|sum| sum <= limit),
    };
    if fits || requested == 0 {
        Ok(())
    } else {
        Err(Box::new(QuotaDenied {
            scope: scope.clone(),
            counter,
            requested,
            counted: BTreeMap::new(),
        }))
    }
}

/// The highest mark that a charge from `before` to `after` reaches, in percent; `None` if it reaches
/// none anew.
#[must_use]
pub fn crossed(limit: u64, before: u64, after: u64) -> Option<u64> {
    let share = |used: u64| u128::from(used) * 100;
    MARKS_PERCENT.into_iter().rev().find(|mark| {
        let mark = u128::from(limit) * u128::from(*mark);
        limit > 0 && share(before) < mark && share(after) >= mark
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> QuotaScope {
        QuotaScope {
            tenant: "acme".parse().unwrap(),
            project: None,
        }
    }

    fn vms(limit: Option<u64>, used: u64) -> Counter {
        Counter {
            resource: Resource::Vms,
            limit,
            used,
        }
    }

    #[test]
    fn a_charge_fits_up_to_the_ceiling_and_not_above() {
        for (limit, used, requested, fits) in [
            (Some(10), 9, 1, true),
            (Some(10), 10, 1, false),
            (Some(10), 10, 0, true),
            // What asks for nothing is not refused for what others took.
            (Some(10), 11, 0, true),
            (Some(0), 0, 1, false),
            (Some(u64::MAX), u64::MAX, 1, false),
            (None, u64::MAX, 1, true),
        ] {
            assert_eq!(
                admit(&scope(), vms(limit, used), requested).is_ok(),
                fits,
                "{used}+{requested}/{limit:?}"
            );
        }
    }

    #[test]
    fn a_denial_carries_its_numbers() {
        let denied = admit(&scope(), vms(Some(10), 10), 1).unwrap_err();
        assert_eq!(denied.to_string(), "tenant acme may have 10 vms and has 10");
        assert_eq!(denied.to_detail().remaining, 0);
        assert_eq!(denied.to_detail().scope, "tenant/acme");
        let of_project = QuotaScope {
            project: Some("web".parse().unwrap()),
            ..scope()
        };
        let denied = admit(&of_project, vms(Some(1), 1), 1).unwrap_err();
        assert_eq!(denied.to_detail().scope, "project/acme/web");
    }

    #[test]
    fn a_ceiling_below_the_use_is_shown_as_that() {
        let usage = vms(Some(1), 3).to_usage(1);
        assert_eq!(
            (usage.over_limit, usage.remaining, usage.reserved),
            (true, Some(0), 1)
        );
        assert!(!vms(None, 3).to_usage(0).over_limit);
        assert!(!vms(Some(3), 3).to_usage(0).over_limit);
    }

    #[test]
    fn each_mark_is_told_when_it_is_reached_and_not_again_above_it() {
        for (limit, before, after, expected) in [
            (100, 0, 79, None),
            (100, 79, 80, Some(80)),
            (100, 80, 81, None),
            (100, 94, 95, Some(95)),
            (100, 0, 100, Some(100)),
            (100, 100, 101, None),
            (10, 7, 8, Some(80)),
            (10, 8, 9, None),
            (1, 0, 1, Some(100)),
            (0, 0, 1, None),
            (u64::MAX, u64::MAX - 1, u64::MAX, Some(100)),
        ] {
            assert_eq!(
                crossed(limit, before, after),
                expected,
                "{before}->{after}/{limit}"
            );
        }
    }

    #[test]
    fn every_resource_is_found_by_its_name() {
        let slots = Resource::Slots("gpu.h100".to_owned());
        for resource in Resource::FIXED.into_iter().chain([slots]) {
            assert_eq!(Resource::of_name(&resource.name()), Some(resource));
        }
        for bad in ["", "vm", "slots.", "slots.NVMe", "slots"] {
            assert_eq!(Resource::of_name(bad), None, "{bad}");
        }
    }
}
