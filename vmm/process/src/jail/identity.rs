//! Whether the process is nobody in particular: no root, no further groups, no capabilities.

use std::io;

use berth_vmm_sys::identity::Identity;
use rustix::process::getgroups;
use rustix::thread::{CapabilitySet, capabilities, capability_is_in_bounding_set};

use super::Gap;

/// What the process has that it should not have.
pub(super) fn gaps() -> Vec<Gap> {
    let mut gaps = Vec::new();
    for (what, found) in [
        ("the identity", identity()),
        ("the capabilities", own_capabilities()),
        ("the bounding set", bounding_set()),
    ] {
        match found {
            Ok(found) => gaps.extend(found),
            Err(error) => gaps.push(Gap::Unknown(what, error)),
        }
    }
    gaps
}

fn identity() -> io::Result<Vec<Gap>> {
    let identity = Identity::current()?;
    let groups = getgroups()?.into_iter().map(|group| group.as_raw());
    Ok(judge_identity(identity, groups))
}

fn judge_identity(identity: Identity, further: impl Iterator<Item = u32>) -> Vec<Gap> {
    let mut gaps = Vec::new();
    let Identity { users, groups } = identity;
    if users.contains(&0) || groups.contains(&0) {
        gaps.push(Gap::RootIdentity);
    }
    let further: Vec<u32> = further.filter(|group| !groups.contains(group)).collect();
    if !further.is_empty() {
        gaps.push(Gap::Groups(further));
    }
    gaps
}

/// An ambient capability is always a permitted one, too.
fn own_capabilities() -> io::Result<Vec<Gap>> {
    let sets = capabilities(None)?;
    let named = [
        ("effective", sets.effective),
        ("permitted", sets.permitted),
        ("inheritable", sets.inheritable),
    ];
    Ok(named
        .into_iter()
        .filter(|(_, set)| !set.is_empty())
        .map(|(name, _)| Gap::Capabilities(name))
        .collect())
}

fn bounding_set() -> io::Result<Vec<Gap>> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(false) => {}
            Ok(true) => return Ok(vec![Gap::Capabilities("bounding")]),
            // One more than the kernel knows.
            Err(rustix::io::Errno::INVAL) if number > 0 => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Vec::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(users: [u32; 3], groups: [u32; 3], further: &[u32], expected: &[&str]) {
        let gaps = judge_identity(Identity { users, groups }, further.iter().copied());
        let texts: Vec<String> = gaps.iter().map(Gap::to_string).collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_user_of_its_own_has_no_root_id_and_no_further_group() {
        let root = &["the user or the group is root"];
        check([61184; 3], [61184; 3], &[61184], &[]);
        check([0; 3], [0; 3], &[], root);
        check([61184, 61184, 0], [61184; 3], &[], root);
        check([61184; 3], [61184, 0, 61184], &[], root);
        check(
            [61184; 3],
            [61184; 3],
            &[61184, 36],
            &["the user is in further groups: [36]"],
        );
    }
}
