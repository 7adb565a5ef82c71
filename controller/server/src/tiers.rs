//! Tiers: the operator's named ceilings, from `[tiers.NAME]` in the configuration.
//!
//! What a tenant's record does not set itself is its tier's. `standard` is always there and sets
//! nothing; `default_tier` says which one a tenant gets that names none.

use std::collections::BTreeMap;

use berth_controller_core::quota::{Ceilings, Resource};
use berth_controller_core::slot::is_class_name;
use berth_controller_store::Tier;
use serde::Deserialize;

const STANDARD: &str = "standard";

/// One `[tiers.NAME]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TierSettings {
    max_running_vms: Option<u32>,
    max_vcpus: Option<u32>,
    max_memory_mb: Option<u32>,
    max_images: Option<u32>,
    max_tokens: Option<u32>,
    max_creates_per_day: Option<u32>,
    #[serde(default)]
    slot_limits: BTreeMap<String, u32>,
}

/// Why the configuration's tiers are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TiersError {
    /// The default is not among them.
    #[error("default_tier names {name}, which is no tier; add [tiers.{name}] or name another one")]
    Default {
        /// Which.
        name: String,
    },
    /// A class that no slot can have.
    #[error("[tiers.{tier}] slot_limits names {class}, which is no class of slots")]
    Class {
        /// In which tier.
        tier: String,
        /// Which class.
        class: String,
    },
}

/// All tiers.
#[derive(Clone, Debug)]
pub(crate) struct Tiers {
    by_name: BTreeMap<String, Tier>,
    default: String,
}

impl Tiers {
    pub(crate) fn new(
        settings: BTreeMap<String, TierSettings>,
        default: Option<String>,
    ) -> Result<Self, TiersError> {
        let mut by_name = BTreeMap::new();
        by_name.insert(
            STANDARD.to_owned(),
            Tier {
                name: STANDARD.to_owned(),
                ceilings: Ceilings::new(),
            },
        );
        for (name, settings) in settings {
            let tier = settings.into_tier(&name)?;
            by_name.insert(name, tier);
        }
        let default = default.unwrap_or_else(|| STANDARD.to_owned());
        if !by_name.contains_key(&default) {
            return Err(TiersError::Default { name: default });
        }
        Ok(Self { by_name, default })
    }

    /// The tier of this name, or the default.
    pub(crate) fn named(&self, name: Option<&str>) -> Option<&Tier> {
        self.by_name.get(name.unwrap_or(&self.default))
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.by_name.keys().map(String::as_str).collect()
    }
}

impl TierSettings {
    fn into_tier(self, name: &str) -> Result<Tier, TiersError> {
        let fixed = [
            (Resource::RunningVms, self.max_running_vms),
            (Resource::Vcpus, self.max_vcpus),
            (Resource::MemoryMb, self.max_memory_mb),
            (Resource::Images, self.max_images),
            (Resource::Tokens, self.max_tokens),
            (Resource::CreatesPerDay, self.max_creates_per_day),
        ];
        let mut ceilings: Ceilings = fixed
            .into_iter()
            .filter_map(|(resource, ceiling)| Some((resource, Some(ceiling?.into()))))
            .collect();
        for (class, ceiling) in self.slot_limits {
            if !is_class_name(&class) {
                let tier = name.to_owned();
                return Err(TiersError::Class { tier, class });
            }
            ceilings.insert(Resource::Slots(class), Some(ceiling.into()));
        }
        Ok(Tier {
            name: name.to_owned(),
            ceilings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> BTreeMap<String, TierSettings> {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_tenant_that_names_no_tier_gets_the_default() {
        let small = "[small]\nmax_vcpus = 4\nslot_limits = { nvme = 1 }\n";
        let tiers = Tiers::new(settings(small), Some("small".to_owned())).unwrap();
        let tier = tiers.named(None).unwrap();
        assert_eq!(tier.name, "small");
        assert_eq!(tier.ceilings[&Resource::Vcpus], Some(4));
        assert_eq!(tier.ceilings[&Resource::Slots("nvme".to_owned())], Some(1));
        assert!(tiers.named(Some("standard")).unwrap().ceilings.is_empty());
        assert_eq!(tiers.named(Some("gold")), None);
    }

    #[test]
    fn tiers_that_cannot_be_are_refused_at_the_start() {
        let gold = Tiers::new(BTreeMap::new(), Some("gold".to_owned())).unwrap_err();
        assert!(gold.to_string().contains("[tiers.gold]"), "{gold}");
        let class = "[small]\nslot_limits = { NVMe = 1 }\n";
        let bad = Tiers::new(settings(class), None).unwrap_err();
        assert!(matches!(bad, TiersError::Class { .. }), "{bad}");
        toml::from_str::<BTreeMap<String, TierSettings>>("[small]\nmax_vmz = 1").unwrap_err();
    }
}
