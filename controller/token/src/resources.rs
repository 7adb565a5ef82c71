//! The VMs and slots that a token is limited to.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use berth_api::ids::{SlotId, VmId};

/// One thing that a token can be limited to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Resource {
    /// A VM.
    Vm(VmId),
    /// A slot.
    Slot(SlotId),
}

/// Why a text names nothing that a token can be limited to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseResourcesError {
    /// Neither a VM's id nor a slot's.
    #[error("a token is limited to VMs and slots by their ids, `vm_…` and `slot_…`")]
    Unknown,
    /// The same id twice.
    #[error("`{0}` is given twice")]
    Repeated(Resource),
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm(id) => id.fmt(f),
            Self::Slot(id) => id.fmt(f),
        }
    }
}

impl FromStr for Resource {
    type Err = ParseResourcesError;

    fn from_str(text: &str) -> Result<Self, ParseResourcesError> {
        text.parse()
            .map(Self::Vm)
            .or_else(|_| text.parse().map(Self::Slot))
            .map_err(|_| ParseResourcesError::Unknown)
    }
}

/// A closed list. An empty one is nothing at all, not everything.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Resources(BTreeSet<Resource>);

impl Resources {
    /// A list from its texts; none may be there twice.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, ParseResourcesError> {
        let mut set = BTreeSet::new();
        for text in texts {
            let one = text.as_ref().parse()?;
            if !set.insert(one) {
                return Err(ParseResourcesError::Repeated(one));
            }
        }
        Ok(Self(set))
    }

    /// Whether it is on the list.
    #[must_use]
    pub fn contains(&self, one: Resource) -> bool {
        self.0.contains(&one)
    }

    /// Whether nothing is on this list that is not on the other.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }

    /// The VMs on the list, in their order.
    pub fn vms(&self) -> impl Iterator<Item = VmId> + '_ {
        self.0.iter().filter_map(|one| match one {
            Resource::Vm(id) => Some(*id),
            Resource::Slot(_) => None,
        })
    }

    /// The ids in a fixed order.
    #[must_use]
    pub fn to_texts(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_ids_of_vms_and_slots_once_each() {
        let vm = VmId::generate().to_string();
        let slot = SlotId::generate().to_string();
        let list = Resources::parse(&[&vm, &slot]).unwrap();
        assert!(list.contains(vm.parse().unwrap()) && list.contains(slot.parse().unwrap()));
        assert_eq!(list.vms().count(), 1);
        assert!(Resources::default().is_subset(&list));
        assert!(!list.is_subset(&Resources::default()));
        for bad in ["", "web-1", "*", "vm_", "op_01m80z84dd4m7ep9mfv5cx9n06"] {
            assert_eq!(
                Resources::parse(&[bad]),
                Err(ParseResourcesError::Unknown),
                "{bad}"
            );
        }
        let twice = Resources::parse(&[&vm, &vm]);
        assert!(matches!(twice, Err(ParseResourcesError::Repeated(_))));
    }
}
