//! Random chains: whatever a holder makes of a token is within it.

use proptest::prelude::*;

use super::tests::{NOW, controller, holder, key, new_link, verifier};
use super::*;
use crate::{RootKey, derive};

/// Ids to be limited to; few, so that subsets are common.
const RESOURCES: [&str; 3] = [
    "vm_01m80z84dd4m7ep9mfv5cx9n06",
    "vm_01m80z84dd4m7ep9mfv5cx9n07",
    "slot_01m80z84dd4m7ep9mfv5cx9n08",
];

fn scopes() -> impl Strategy<Value = ScopeSet> {
    proptest::sample::subsequence(Scope::ALL.to_vec(), 1..4)
        .prop_map(|scopes| ScopeSet::new(scopes).unwrap())
}

fn resources() -> impl Strategy<Value = Option<Resources>> {
    proptest::option::of(
        proptest::sample::subsequence(RESOURCES.to_vec(), 0..=3)
            .prop_map(|ids| Resources::parse(&ids).unwrap()),
    )
}

fn link(seed: u8) -> impl Strategy<Value = Link> {
    (scopes(), resources(), 1..=60i64, 0..4u8, any::<bool>()).prop_map(
        move |(scopes, resources, lifetime, delegations, requires_pop)| Link {
            token_id: TokenId::generate(),
            holder: holder(seed),
            scopes,
            resources,
            not_before: NOW,
            expires_at: NOW + lifetime,
            delegations,
            requires_pop,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Links are hung on by force as well as by the rules: what is accepted is within its parent,
    /// and it is accepted exactly if the rules let it be made.
    #[test]
    fn what_a_child_grants_its_parent_grants(
        first in scopes(),
        limit in resources(),
        links in (link(10), link(11), link(12)),
    ) {
        let mut new = new_link(Some("acme"), Scope::TenantAdmin);
        if first.iter().all(|scope| !scope.is_platform()) {
            new.scopes = first;
        }
        new.resources = limit;
        let mut token = RootKey::new(&key(1), controller()).unwrap().mint(&new).unwrap();
        let mut grant = verifier().verify(&token, NOW).unwrap();
        for (signer, child) in [(9, links.0), (10, links.1), (11, links.2)] {
            let payload = claims::write_child(&child).unwrap();
            let last = token.rsplit(LINK_SEPARATOR).next();
            let hung = seal(&secret_key(&key(signer)).unwrap(), &payload, last).unwrap();
            let forced = format!("{token}~{hung}");
            let accepted = verifier().verify(&forced, NOW);
            let made = derive(&token, &key(signer), &child);
            prop_assert_eq!(accepted.is_ok(), made.is_ok());
            let Ok(narrowed) = accepted else { break };
            prop_assert_eq!(made.unwrap(), forced.clone());
            prop_assert!(narrowed.is_within(&grant));
            prop_assert_eq!(&narrowed.token_ids[..grant.token_ids.len()], &grant.token_ids[..]);
            prop_assert_eq!(narrowed.holder, child.holder);
            // Without its last link it is its parent again, in the hands of the parent's holder.
            let (shorter, _) = forced.rsplit_once(LINK_SEPARATOR).unwrap();
            prop_assert_eq!(verifier().verify(shorter, NOW).unwrap(), grant);
            (token, grant) = (forced, narrowed);
        }
    }
}
