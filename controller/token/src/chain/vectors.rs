//! `vectors/chains.json`: tokens that any implementation accepts or refuses alike. The same file is
//! checked link by link with a PASETO library that is not ours. `BERTH_BLESS=1` writes it anew.

use serde_json::{Value, json};

use super::tests::{NOW, controller, holder, key, verifier};
use super::*;
use crate::{MAX_DELEGATIONS, NewLink, RootKey};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors/chains.json");

/// Ids that are the same at every run.
fn id(position: u8) -> TokenId {
    format!("tok_01m80z84dd4m7ep9mfv5cx9n{position:02}")
        .parse()
        .unwrap()
}

fn vm(position: u8) -> String {
    format!("vm_01m80z84dd4m7ep9mfv5cx9n{position:02}")
}

fn root(scope: Scope, change: impl FnOnce(&mut NewLink)) -> String {
    let mut new = NewLink {
        token_id: id(1),
        tenant: Some("acme-corp".parse().unwrap()),
        holder: holder(9),
        scopes: ScopeSet::new([scope]).unwrap(),
        resources: None,
        not_before: NOW - 10,
        expires_at: NOW + 3600,
        delegations: MAX_DELEGATIONS,
        requires_pop: false,
    };
    change(&mut new);
    RootKey::new(&key(1), controller())
        .unwrap()
        .mint(&new)
        .unwrap()
}

/// The next link's claims, as JSON: the holder is the key after the signer's.
fn claims(signer: u8, delegations: u8) -> String {
    let link = Link {
        token_id: id(signer),
        holder: holder(signer + 1),
        scopes: ScopeSet::new([Scope::VmRead]).unwrap(),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 600,
        delegations,
        requires_pop: false,
    };
    String::from_utf8(claims::write_child(&link).unwrap()).unwrap()
}

fn hang(parent: &str, signer: u8, claims: &str) -> String {
    let last = parent.rsplit(LINK_SEPARATOR).next();
    let link = seal(&secret_key(&key(signer)).unwrap(), claims.as_bytes(), last).unwrap();
    format!("{parent}~{link}")
}

fn good() -> Vec<(&'static str, String)> {
    let one = root(Scope::TenantAdmin, |_| {});
    let two = hang(&one, 9, &claims(9, 2));
    let three = hang(&two, 10, &claims(10, 1));
    let four = hang(&three, 11, &claims(11, 0));
    let limited = root(Scope::VmControl, |new| {
        new.resources = Some(Resources::parse(&[vm(1), vm(2)]).unwrap());
        new.requires_pop = true;
    });
    let of_one = claims(9, 0)
        .replace("vm.read", "vm.control")
        .replace(r#""nbf""#, &format!(r#""res":["{}"],"nbf""#, vm(2)));
    let operator = root(Scope::PlatformAdmin, |new| new.tenant = None);
    vec![
        ("a root link", one),
        ("two links", two),
        ("three links", three),
        ("four links", four),
        ("an operator's", operator),
        (
            "limited to one of two VMs, signed requests only",
            hang(&limited, 9, &of_one),
        ),
    ]
}

/// Children of an administrator's token that must be refused, by what is put for what.
const BAD_CHILDREN: &[(&str, &str, &str)] = &[
    ("an unknown member", r#""dlg":2"#, r#""dlg":2,"note":"""#),
    ("a member twice", r#""dlg":2"#, r#""dlg":2,"dlg":2"#),
    (
        "a tenant restated",
        r#""sub""#,
        r#""ten":"acme-corp","sub""#,
    ),
    ("a scope of operators", "vm.read", "service:platform-admin"),
    ("an unknown scope", "vm.read", "vm.*"),
    ("no scope", r#"["vm.read"]"#, "[]"),
    (
        "a time that is no integer",
        r#""nbf":1800000000"#,
        r#""nbf":1800000000.0"#,
    ),
    (
        "longer than its parent",
        r#""exp":1800000600"#,
        r#""exp":1800003601"#,
    ),
    (
        "an end before its beginning",
        r#""exp":1800000600"#,
        r#""exp":1800000000"#,
    ),
    ("as many links as its parent", r#""dlg":2"#, r#""dlg":3"#),
    (
        "possession not demanded",
        r#""dlg":2"#,
        r#""dlg":2,"pop":false"#,
    ),
    ("another version", r#""v":1"#, r#""v":2"#),
];

fn bad() -> Vec<(&'static str, String)> {
    let admin = root(Scope::TenantAdmin, |_| {});
    let reader = root(Scope::VmRead, |new| {
        new.resources = Some(Resources::parse(&[vm(1)]).unwrap());
    });
    let child = claims(9, 2);
    let mut cases: Vec<_> = BAD_CHILDREN
        .iter()
        .map(|(name, from, to)| {
            let changed = child.replacen(from, to, 1);
            assert_ne!(changed, child, "{name}");
            (*name, hang(&admin, 9, &changed))
        })
        .collect();
    let narrowed = hang(&admin, 9, &child);
    let link = narrowed.rsplit('~').next().unwrap();
    let four = good()[3].1.clone();
    let zero = URL_SAFE_NO_PAD.encode([0; 32]);
    let limited = |res: &str| child.replace(r#""nbf""#, &format!(r#"{res}"nbf""#));
    let foreign = limited(&format!(r#""res":["{}"],"#, vm(2)));
    let elsewhere = RootKey::new(&key(1), "ctl_01m80z84dd4m7ep9mfv5cx9n99".parse().unwrap());
    let elsewhere = elsewhere.unwrap().mint(&NewLink {
        token_id: id(1),
        tenant: None,
        holder: holder(9),
        scopes: ScopeSet::new([Scope::PlatformAdmin]).unwrap(),
        resources: None,
        not_before: NOW,
        expires_at: NOW + 60,
        delegations: 0,
        requires_pop: false,
    });
    let unbound = PublicToken::sign(
        &secret_key(&key(9)).unwrap(),
        child.as_bytes(),
        None,
        Some(IMPLICIT_ASSERTION.as_bytes()),
    );
    cases.extend([
        (
            "a wider scope",
            hang(&reader, 9, &foreign.replace("vm.read", "vm.control")),
        ),
        ("another VM than its parent's", hang(&reader, 9, &foreign)),
        ("a limit lifted", hang(&reader, 9, &child)),
        ("a link by a thief", hang(&admin, 66, &child)),
        (
            "a link of another parent",
            format!("{}~{link}", root(Scope::VmRead, |_| {})),
        ),
        (
            "a link bound to no parent",
            format!("{admin}~{}", unbound.unwrap()),
        ),
        ("a link in the middle left out", {
            let links: Vec<&str> = four.split('~').collect();
            [links[0], links[1], links[3]].join("~")
        }),
        ("a child alone", link.to_owned()),
        ("five links", hang(&four, 12, &claims(12, 0))),
        (
            "a holder's key of small order",
            hang(&admin, 9, &child.replace(&holder(10).to_base64url(), &zero)),
        ),
        ("for another controller", elsewhere.unwrap()),
        (
            "not yet valid",
            root(Scope::VmRead, |new| new.not_before = NOW + 31),
        ),
        ("expired", root(Scope::VmRead, |new| new.expires_at = NOW)),
        ("another signer's root", {
            let claims = payload_unverified(&admin).unwrap();
            seal(&secret_key(&key(2)).unwrap(), claims.as_bytes(), None).unwrap()
        }),
        ("a footer", format!("{admin}.AAAA")),
        ("a separator at the end", format!("{admin}~")),
    ]);
    cases
}

fn word(error: &VerifyError) -> &'static str {
    match error {
        VerifyError::Malformed => "malformed",
        VerifyError::Signature => "signature",
        VerifyError::Claims => "claims",
        VerifyError::NotNarrower(_) => "not_narrower",
        VerifyError::Audience => "audience",
        VerifyError::NotYetValid => "not_yet_valid",
        VerifyError::Expired { .. } => "expired",
    }
}

fn verdict(token: &str) -> Value {
    match verifier().verify(token, NOW) {
        Err(error) => json!({ "refused": word(&error) }),
        Ok(grant) => json!({ "granted": {
            "tenant": grant.tenant,
            "scopes": grant.scopes.to_texts(),
            "resources": grant.resources.as_ref().map(Resources::to_texts),
            "holder": grant.holder.to_base64url(),
            "token_ids": grant.token_ids,
            "expires_at": grant.expires_at,
            "requires_pop": grant.requires_pop,
        }}),
    }
}

/// What a PASETO library needs to check each link by itself, and whether it must find it good.
fn links(token: &str) -> Vec<Value> {
    let mut signer = key(1).public();
    let mut parent = None;
    let mut links = Vec::new();
    for text in token.split('~') {
        let Ok(payload) = payload_unverified(text) else {
            break;
        };
        links.push(json!({
            "paseto": text,
            "public_key": hex::encode(signer.as_bytes()),
            "implicit_assertion": hex::encode(implicit_assertion(parent)),
            "payload": payload,
            "is_signed": open(&signer, text, parent).is_ok(),
        }));
        let claims: Value = serde_json::from_str(&payload).unwrap();
        let sub = URL_SAFE_NO_PAD
            .decode(claims["sub"].as_str().unwrap())
            .unwrap();
        signer = PublicKey::from_bytes(&sub).unwrap();
        parent = Some(text);
    }
    links
}

fn document() -> Value {
    let cases: Vec<Value> = good()
        .into_iter()
        .chain(bad())
        .map(|(name, token)| {
            let (links, verdict) = (links(&token), verdict(&token));
            json!({ "name": name, "token": token, "links": links, "verdict": verdict })
        })
        .collect();
    json!({
        "controller": controller(),
        "root_public_key": hex::encode(key(1).public().as_bytes()),
        "now": NOW,
        "cases": cases,
    })
}

#[test]
fn the_published_vectors_are_what_this_code_says() {
    let text = format!("{:#}\n", document());
    if std::env::var_os("BERTH_BLESS").is_some() {
        std::fs::write(FILE, &text).unwrap();
    }
    let published = std::fs::read_to_string(FILE).unwrap();
    assert_eq!(published, text, "BERTH_BLESS=1 writes {FILE} anew");
    for (name, token) in good() {
        assert!(
            verdict(&token)["granted"].is_object(),
            "{name}: {}",
            verdict(&token)
        );
    }
    for (name, token) in bad() {
        assert!(verdict(&token)["refused"].is_string(), "{name}");
    }
}
