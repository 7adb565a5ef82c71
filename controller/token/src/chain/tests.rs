//! Chains made and refused, one rule at a time.

use super::*;
use crate::{MAX_DELEGATIONS, NewLink, Revocations, RootKey, TokenVerifier, derive};

pub(super) const NOW: i64 = 1_800_000_000;

pub(super) fn key(seed: u8) -> SigningKey {
    SigningKey::from_seed(&[seed; 32]).unwrap()
}

pub(super) fn holder(seed: u8) -> SubjectKey {
    SubjectKey::from_bytes(key(seed).public().as_bytes()).unwrap()
}

pub(super) fn controller() -> ControllerId {
    "ctl_01m80z84dd4m7ep9mfv5cx9n06".parse().unwrap()
}

pub(super) fn verifier() -> TokenVerifier {
    TokenVerifier::new(key(1).public(), controller())
}

/// A root link held by key 9.
pub(super) fn new_link(tenant: Option<&str>, scope: Scope) -> NewLink {
    NewLink {
        token_id: TokenId::generate(),
        tenant: tenant.map(|t| t.parse().unwrap()),
        holder: holder(9),
        scopes: ScopeSet::new([scope]).unwrap(),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: MAX_DELEGATIONS,
        requires_pop: false,
    }
}

fn minted(new: &NewLink) -> String {
    let root = RootKey::new(&key(1), controller()).unwrap();
    root.mint(new).unwrap()
}

fn admin() -> String {
    minted(&new_link(Some("acme"), Scope::TenantAdmin))
}

/// A child that any parent of [`new_link`] covers, held by a key.
fn child(seed: u8, delegations: u8) -> Link {
    Link {
        token_id: TokenId::generate(),
        holder: holder(seed),
        scopes: ScopeSet::new([Scope::VmRead]).unwrap(),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations,
        requires_pop: false,
    }
}

/// What a holder who keeps to no rule makes: any claims, signed rightly onto a parent.
fn hang(parent: &str, seed: u8, payload: &str) -> String {
    let last = parent.rsplit(LINK_SEPARATOR).next();
    let link = seal(&secret_key(&key(seed)).unwrap(), payload.as_bytes(), last).unwrap();
    format!("{parent}~{link}")
}

fn payload(link: &Link) -> String {
    String::from_utf8(claims::write_child(link).unwrap()).unwrap()
}

fn refused(token: &str) -> VerifyError {
    verifier().verify(token, NOW).unwrap_err()
}

#[test]
fn a_minted_token_grants_what_was_asked_for() {
    let wanted = new_link(Some("acme-corp"), Scope::TenantAdmin);
    let grant = verifier().verify(&minted(&wanted), NOW).unwrap();
    assert_eq!(grant.tenant, wanted.tenant);
    assert_eq!(grant.scopes, wanted.scopes);
    assert_eq!(grant.holder, wanted.holder);
    assert_eq!(grant.token_ids, [wanted.token_id]);
    assert_eq!(grant.expires_at, NOW + 60);
    assert!(grant.resources.is_none() && !grant.requires_pop);
}

#[test]
fn a_token_is_narrowed_three_times_and_not_a_fourth() {
    let mut token = admin();
    let mut ids = verifier().verify(&token, NOW).unwrap().token_ids;
    for (signer, delegations) in [(9, 2), (10, 1), (11, 0)] {
        let link = child(signer + 1, delegations);
        token = derive(&token, &key(signer), &link).unwrap();
        ids.push(link.token_id);
        let grant = verifier().verify(&token, NOW).unwrap();
        assert_eq!(grant.token_ids, ids);
        assert_eq!(grant.holder, holder(signer + 1));
        assert_eq!(grant.tenant, Some("acme".parse().unwrap()));
        assert_eq!(grant.scopes.to_texts(), ["vm.read"]);
    }
    let fifth = derive(&token, &key(12), &child(13, 0));
    assert!(matches!(
        fifth,
        Err(crate::DeriveError::NotNarrower(NotNarrower::Delegations {
            allowed: 0
        }))
    ));
    // Who makes it all the same is refused before anything is decoded.
    let forced = hang(&token, 12, &payload(&child(13, 0)));
    assert_eq!(refused(&forced), VerifyError::Malformed);
}

#[test]
fn a_token_is_valid_from_its_leeway_until_just_before_its_end() {
    let new = new_link(Some("acme"), Scope::VmRead);
    let token = minted(&new);
    let at = |token: &str, now| verifier().verify(token, now).map(|_| ());
    assert_eq!(at(&token, NOW - 31), Err(VerifyError::NotYetValid));
    assert_eq!(at(&token, NOW - 30), Ok(()));
    assert_eq!(at(&token, NOW + 59), Ok(()));
    let token_id = new.token_id;
    assert_eq!(at(&token, NOW + 60), Err(VerifyError::Expired { token_id }));
    // A child's times are its own, inside its parent's.
    let mut short = child(10, 0);
    (short.not_before, short.expires_at) = (NOW + 20, NOW + 40);
    let narrowed = derive(&token, &key(9), &short).unwrap();
    assert_eq!(at(&narrowed, NOW - 11), Err(VerifyError::NotYetValid));
    assert_eq!(at(&narrowed, NOW + 39), Ok(()));
    let token_id = short.token_id;
    assert_eq!(
        at(&narrowed, NOW + 40),
        Err(VerifyError::Expired { token_id })
    );
}

#[test]
fn another_key_another_controller_and_a_changed_byte_are_refused() {
    let token = minted(&new_link(None, Scope::PlatformAdmin));
    let thief = RootKey::new(&key(2), controller()).unwrap();
    let forged = thief.mint(&new_link(None, Scope::PlatformAdmin)).unwrap();
    assert_eq!(refused(&forged), VerifyError::Signature);
    let elsewhere = TokenVerifier::new(key(1).public(), ControllerId::generate());
    assert_eq!(elsewhere.verify(&token, NOW), Err(VerifyError::Audience));
    let narrowed = derive(&admin(), &key(9), &child(10, 0)).unwrap();
    for text in [token, narrowed] {
        for position in [12, text.len() / 3, text.len() - 3] {
            let mut changed = text.clone().into_bytes();
            changed[position] = if changed[position] == b'A' {
                b'B'
            } else {
                b'A'
            };
            let changed = String::from_utf8(changed).unwrap();
            assert_eq!(refused(&changed), VerifyError::Signature, "{position}");
        }
    }
}

#[test]
fn the_root_key_before_this_one_counts_until_it_is_dropped() {
    let old = admin();
    let rotated = RootKey::new(&key(2), controller()).unwrap();
    let new = rotated
        .mint(&new_link(Some("acme"), Scope::TenantAdmin))
        .unwrap();
    let narrowed = derive(&old, &key(9), &child(10, 0)).unwrap();
    let overlap = rotated.verifier().with_previous(Some(key(1).public()));
    let dropped = rotated.verifier();
    for (token, afterwards) in [(&old, false), (&narrowed, false), (&new, true)] {
        overlap.verify(token, NOW).unwrap();
        assert_eq!(dropped.verify(token, NOW).is_ok(), afterwards);
    }
}

#[test]
fn what_is_no_token_is_malformed() {
    let token = minted(&new_link(None, Scope::PlatformAdmin));
    for bad in [
        String::new(),
        "~".to_owned(),
        "v4.public.".to_owned(),
        "v4.public.AAAA".to_owned(),
        "v4.local.AAAA".to_owned(),
        format!("{token}~"),
        format!("~{token}"),
        format!("{token}~~{token}"),
        format!("{token}.Zm9vdGVy"),
        format!("{token} "),
        [token.as_str(); 5].join("~"),
        format!("v4.public.{}", "A".repeat(1 << 20)),
        "~".repeat(1 << 20),
    ] {
        let shown = bad.get(..20).unwrap_or(&bad).to_owned();
        assert_eq!(refused(&bad), VerifyError::Malformed, "{shown}");
        assert!(Chain::read_unverified(&bad).is_err(), "{shown}");
    }
}

#[test]
fn claims_are_read_strictly() {
    let sub = holder(9).to_base64url();
    let root = format!(
        r#"{{"v":1,"jti":"{}","aud":"{}","ten":"acme","sub":"{sub}","scp":["vm.read"],"nbf":{NOW},"exp":{},"dlg":2}}"#,
        TokenId::generate(),
        controller(),
        NOW + 60
    );
    let signed =
        |claims: &str| seal(&secret_key(&key(1)).unwrap(), claims.as_bytes(), None).unwrap();
    verifier().verify(&signed(&root), NOW).unwrap();
    let last = payload(&child(10, 0));
    let parent = admin();
    verifier().verify(&hang(&parent, 9, &last), NOW).unwrap();
    for (from, to) in [
        (r#""dlg":"#, r#""extra":1,"dlg":"#),
        (r#""dlg":"#, r#""dlg":0,"dlg":"#),
        (r#""dlg":"#, r#""res":null,"dlg":"#),
        (r#""dlg":"#, r#""res":[7],"dlg":"#),
        (r#""dlg":"#, r#""res":["web-1"],"dlg":"#),
        (r#""dlg":"#, r#""pop":false,"dlg":"#),
        (r#""dlg":"#, r#""pop":null,"dlg":"#),
        (r#""dlg":"#, r#""pop":1,"dlg":"#),
        (r#""dlg":"#, r#""dlg":-"#),
        (r#""dlg":"#, r#""dlg":25"#),
        (r#""nbf":1"#, r#""nbf":1.0e9,"x":1"#),
        (r#""v":1"#, r#""v":2"#),
        (r#""v":1"#, r#""v":1.0"#),
        (r#"["vm.read"]"#, "[]"),
        (r#"["vm.read"]"#, r#"["vm.*"]"#),
        (r#"["vm.read"]"#, r#"["vm.read","vm.read"]"#),
        (r#""sub":""#, r#""sub":"AA"#),
        (r#""exp":1"#, r#""exp":1.5,"y":1"#),
    ] {
        let (bad_root, bad_child) = (root.replacen(from, to, 1), last.replacen(from, to, 1));
        assert!(bad_root != root && bad_child != last, "{from}");
        assert_eq!(refused(&signed(&bad_root)), VerifyError::Claims, "{to}");
        assert_eq!(
            refused(&hang(&parent, 9, &bad_child)),
            VerifyError::Claims,
            "{to}"
        );
    }
    for (from, to) in [
        (r#"["vm.read"]"#, r#"["service:platform-admin"]"#),
        (r#""acme""#, r#""_platform""#),
        (r#""acme""#, r#""Acme""#),
    ] {
        assert_eq!(
            refused(&signed(&root.replace(from, to))),
            VerifyError::Claims,
            "{to}"
        );
    }
    // A child says neither for whom nor where, not even the same.
    for member in [r#""ten":"acme","#, &format!(r#""aud":"{}","#, controller())] {
        let restated = last.replacen(r#""sub""#, &format!(r#"{member}"sub""#), 1);
        assert_eq!(
            refused(&hang(&parent, 9, &restated)),
            VerifyError::Claims,
            "{member}"
        );
    }
}

#[test]
fn a_key_of_small_order_holds_no_link() {
    let zero = URL_SAFE_NO_PAD.encode([0; 32]);
    let sub = holder(10).to_base64url();
    let bad = payload(&child(10, 0)).replace(&sub, &zero);
    assert_eq!(refused(&hang(&admin(), 9, &bad)), VerifyError::Claims);
}

#[test]
fn a_paseto_of_the_same_key_for_another_purpose_is_no_token() {
    let new = new_link(Some("acme"), Scope::VmRead);
    let token = minted(&new);
    let claims = payload_unverified(&token).unwrap();
    let secret = secret_key(&key(1)).unwrap();
    let other = PublicToken::sign(&secret, claims.as_bytes(), None, Some(b"something-else"));
    assert_eq!(refused(&other.unwrap()), VerifyError::Signature);
    // Nor is a root link one that hangs on another, or the other way round.
    let parent = admin();
    let bound = hang(&parent, 1, &claims);
    let bound = bound.rsplit('~').next().unwrap();
    assert_eq!(refused(bound), VerifyError::Signature);
}

#[test]
fn operators_and_tenants_scopes_do_not_mix() {
    let root = RootKey::new(&key(1), controller()).unwrap();
    for new in [
        new_link(Some("acme"), Scope::PlatformAdmin),
        new_link(None, Scope::TenantAdmin),
    ] {
        assert!(matches!(
            root.mint(&new),
            Err(crate::MintError::MixedScopes)
        ));
    }
}

/// A change that makes a child allow more than its parent.
type Widen = fn(&mut Link);

#[test]
fn a_child_that_allows_more_is_neither_made_nor_accepted() {
    let vm = "vm_01m80z84dd4m7ep9mfv5cx9n06";
    let mut new = new_link(Some("acme"), Scope::VmRead);
    new.resources = Some(Resources::parse(&[vm]).unwrap());
    new.delegations = 1;
    let parent = minted(&new);
    let mut good = child(10, 0);
    good.resources.clone_from(&new.resources);
    let narrowed = derive(&parent, &key(9), &good).unwrap();
    verifier().verify(&narrowed, NOW).unwrap();
    let widenings: [Widen; 8] = [
        |link| link.scopes = ScopeSet::new([Scope::VmControl]).unwrap(),
        |link| link.scopes = ScopeSet::new([Scope::VmRead, Scope::LedgerRead]).unwrap(),
        |link| link.scopes = ScopeSet::new([Scope::TenantAdmin]).unwrap(),
        |link| link.scopes = ScopeSet::new([Scope::PlatformAdmin]).unwrap(),
        |link| link.expires_at += 1,
        |link| link.delegations = 1,
        |link| link.resources = None,
        |link| link.resources = Some(Resources::parse(&["vm_01m80z84dd4m7ep9mfv5cx9n07"]).unwrap()),
    ];
    for (position, widen) in widenings.into_iter().enumerate() {
        let mut wide = good.clone();
        widen(&mut wide);
        let made = derive(&parent, &key(9), &wide);
        assert!(
            matches!(made, Err(crate::DeriveError::NotNarrower(_))),
            "{position}"
        );
        let forced = refused(&hang(&parent, 9, &payload(&wide)));
        assert!(
            matches!(forced, VerifyError::NotNarrower(_)),
            "{position}: {forced:?}"
        );
    }
}

#[test]
fn an_empty_list_of_resources_is_nothing_and_not_everything() {
    let mut none = child(10, 1);
    none.resources = Some(Resources::default());
    let narrowed = derive(&admin(), &key(9), &none).unwrap();
    let grant = verifier().verify(&narrowed, NOW).unwrap();
    let vm = "vm_01m80z84dd4m7ep9mfv5cx9n06";
    assert!(!grant.resources.unwrap().contains(vm.parse().unwrap()));
    let mut more = child(11, 0);
    more.resources = Some(Resources::parse(&[vm]).unwrap());
    derive(&narrowed, &key(10), &more).unwrap_err();
}

#[test]
fn a_stolen_token_is_not_narrowed_without_its_key() {
    let stolen = admin();
    let made = derive(&stolen, &key(66), &child(66, 0));
    assert!(matches!(made, Err(crate::DeriveError::NotHolder)));
    let forced = hang(&stolen, 66, &payload(&child(66, 0)));
    assert_eq!(refused(&forced), VerifyError::Signature);
}

#[test]
fn a_link_belongs_to_one_parent() {
    // Both are held by the same key, and one allows more.
    let small = minted(&new_link(Some("acme"), Scope::VmRead));
    let large = admin();
    let narrowed = derive(&small, &key(9), &child(10, 0)).unwrap();
    let link = narrowed.rsplit('~').next().unwrap();
    assert_eq!(refused(&format!("{large}~{link}")), VerifyError::Signature);
    // Nor does it stand where another stood, or twice.
    let third = derive(&narrowed.replace("dlg\":0", ""), &key(10), &child(11, 0));
    third.unwrap_err();
    assert!(matches!(
        refused(&format!("{narrowed}~{link}")),
        VerifyError::Signature
    ));
    assert_eq!(refused(link), VerifyError::Signature);
    assert_eq!(refused(&format!("{link}~{small}")), VerifyError::Signature);
}

#[test]
fn what_demands_a_signed_request_demands_it_of_every_child() {
    let mut new = new_link(Some("acme"), Scope::TenantAdmin);
    new.requires_pop = true;
    let parent = minted(&new);
    assert!(verifier().verify(&parent, NOW).unwrap().requires_pop);
    // The child's own text says nothing of it.
    let silent = derive(&parent, &key(9), &child(10, 1)).unwrap();
    let grandchild = derive(&silent, &key(10), &child(11, 0)).unwrap();
    for token in [silent, grandchild] {
        assert!(verifier().verify(&token, NOW).unwrap().requires_pop);
    }
    // And a holder can demand it where its parent does not.
    let mut strict = child(10, 1);
    strict.requires_pop = true;
    let narrowed = derive(&admin(), &key(9), &strict).unwrap();
    assert!(verifier().verify(&narrowed, NOW).unwrap().requires_pop);
}

#[test]
fn a_token_longer_than_any_controller_reads_is_not_made() {
    let many: Vec<String> = (0..200)
        .map(|_| berth_api::ids::VmId::generate().to_string())
        .collect();
    let mut long = child(10, 0);
    long.resources = Some(Resources::parse(&many).unwrap());
    let made = derive(&admin(), &key(9), &long);
    assert!(matches!(made, Err(crate::DeriveError::TooLong)));
    let mut new = new_link(Some("acme"), Scope::VmRead);
    new.resources.clone_from(&long.resources);
    let root = RootKey::new(&key(1), controller()).unwrap();
    assert!(matches!(root.mint(&new), Err(crate::MintError::TooLong)));
}

#[test]
fn a_revocation_takes_what_hangs_on_it_and_nothing_of_another_tenant() {
    let acme: Option<TenantId> = Some("acme".parse().unwrap());
    let other: Option<TenantId> = Some("other".parse().unwrap());
    let parent = admin();
    let narrowed = derive(&parent, &key(9), &child(10, 0)).unwrap();
    let parent = verifier().verify(&parent, NOW).unwrap();
    let narrowed = verifier().verify(&narrowed, NOW).unwrap();
    let none = Revocations::default();
    assert!(!none.refuse(&parent) && !none.refuse(&narrowed));
    let mut of_root = none.clone();
    of_root.add_link(acme.clone(), parent.token_ids[0]);
    assert!(of_root.refuse(&parent) && of_root.refuse(&narrowed));
    let mut of_child = none.clone();
    of_child.add_link(acme.clone(), narrowed.token_ids[1]);
    assert!(!of_child.refuse(&parent) && of_child.refuse(&narrowed));
    let mut of_holder = none.clone();
    of_holder.add_holder(acme.clone(), holder(9));
    assert!(of_holder.refuse(&parent) && of_holder.refuse(&narrowed));
    let mut of_all = none.clone();
    of_all.raise_epoch(acme.clone(), NOW + 1);
    assert!(of_all.refuse(&parent) && of_all.refuse(&narrowed));
    of_all.raise_epoch(acme.clone(), NOW);
    assert_eq!(of_all.epoch(acme.as_ref()), NOW + 1, "it never falls");
    let mut foreign = none;
    foreign.add_link(other.clone(), parent.token_ids[0]);
    foreign.add_link(None, parent.token_ids[0]);
    foreign.add_holder(other.clone(), holder(9));
    foreign.raise_epoch(other.clone(), NOW + 100);
    assert!(!foreign.refuse(&parent) && !foreign.refuse(&narrowed));
}
