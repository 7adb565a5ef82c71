//! What thieves, liars and bad clocks try with tokens.

use berth_ledger::keys::SigningKey;
use serde_json::json;

use crate::harness::{Controller, audit_bodies, vm_body};
use crate::holders::{Holder, Signed, Wanted, issued, tenant};

/// A token that is good for signed requests alone, and its key.
fn strict(controller: &Controller, scope: &str) -> Holder {
    issued(controller, "acme", scope, &json!({ "require_pop": true }))
}

#[test]
fn attack_12_a_token_reaches_no_other_tenant_by_any_way_in() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let acme = tenant(&controller, "acme");
    let other = tenant(&controller, "other");
    let vm = acme.client(&controller).post("/v1/vms", &vm_body("web"));
    let vm = vm.expect(201).json()["id"].as_str().unwrap().to_owned();
    agent.settle().unwrap();
    // A link that names the other tenant's VM is a link to nothing.
    let limited = other.narrowed(&Wanted {
        scope: "service:tenant-admin",
        resources: Some(&[vm.as_str()]),
        ..Wanted::default()
    });
    let before = audit_bodies(&acme.client(&controller), "").len();
    for thief in [&other, &limited] {
        let client = thief.client(&controller);
        for (method, path, body) in [
            ("GET", format!("/v1/vms/{vm}"), None),
            ("DELETE", format!("/v1/vms/{vm}"), None),
            ("POST", format!("/v1/vms/{vm}/stop"), Some("{}")),
            ("GET", format!("/v1/vms/{vm}/console/log"), None),
            ("DELETE", format!("/v1/tokens/{}", acme.id), None),
            ("GET", "/v1/tenants/acme/tokens".to_owned(), None),
        ] {
            let reply = client.send(method, &path, &[], body);
            assert!(
                matches!(reply.status, 403 | 404),
                "{method} {path}: {}",
                reply.text
            );
        }
        let list = client.get("/v1/vms").expect(200).json();
        assert_eq!(list["items"], json!([]));
    }
    // A token of another controller, with the same tenant's name.
    let elsewhere = Controller::start();
    let foreign = tenant(&elsewhere, "acme");
    foreign
        .client(&controller)
        .get("/v1/vms")
        .refused(401, "invalid_token");
    // A link of one hung on the token of another.
    let link = limited.token.rsplit('~').next().unwrap();
    controller
        .with_token(&format!("{}~{link}", acme.token))
        .get("/v1/vms")
        .refused(401, "invalid_token");
    acme.client(&controller)
        .get(&format!("/v1/vms/{vm}"))
        .expect(200);
    // Nothing of all this was written down as acme's.
    assert_eq!(audit_bodies(&acme.client(&controller), "").len(), before);
    controller.assert_sound();
}

#[test]
fn attack_13_a_stolen_widened_or_spliced_token_opens_nothing() {
    let controller = Controller::start();
    let acme = tenant(&controller, "acme");
    let device = acme.narrowed(&Wanted {
        scope: "vm.control",
        delegations: 1,
        require_pop: true,
        ..Wanted::default()
    });
    let session = device.narrowed(&Wanted {
        scope: "vm.control",
        ..Wanted::default()
    });
    let get = || Signed::new("GET", "/v1/me", "");
    get().by(&controller, &session).expect(200);
    // Stolen without its key: bare, and signed by the thief's or an earlier holder's.
    session
        .client(&controller)
        .get("/v1/me")
        .refused(401, "invalid_token");
    for key in [&SigningKey::generate().unwrap(), &acme.key, &device.key] {
        let headers = get().headers(&controller, key, &session.token);
        get()
            .send(&session.client(&controller), &headers)
            .refused(401, "invalid_token");
    }
    // The last link removed gives more, but needs the device's key.
    let shorter = session.token.rsplit_once('~').unwrap().0;
    let headers = get().headers(&controller, &session.key, shorter);
    get()
        .send(&controller.with_token(shorter), &headers)
        .refused(401, "invalid_token");
    // Five links, links out of their order, and far too much text. Widened claims: the vectors.
    let links: Vec<&str> = session.token.split('~').collect();
    let (long, longer) = (
        "A".repeat(6_000),
        format!("v4.public.{}", "A".repeat(6_000)),
    );
    for bad in [
        [links[0]; 5].join("~"),
        [links[0], links[2], links[1]].join("~"),
        [links[0], links[2]].join("~"),
        [links[1], links[2]].join("~"),
        long,
        longer,
    ] {
        controller
            .with_token(&bad)
            .get("/v1/me")
            .refused(401, "invalid_token");
    }
    // A proof for one request is none for another.
    let headers = get().headers(&controller, &session.key, &session.token);
    let elsewhere = Signed::new("GET", "/v1/vms", "");
    elsewhere
        .send(&session.client(&controller), &headers)
        .refused(401, "invalid_token");
    // A revoked link in the middle.
    let body = json!({ "token_id": device.id });
    acme.client(&controller)
        .post("/v1/tokens/revoke", &body)
        .expect(204);
    get()
        .by(&controller, &session)
        .refused(401, "token_revoked");
    controller.assert_sound();
}

#[test]
fn attack_14_a_captured_request_is_good_once_and_for_a_minute() {
    let mut controller = Controller::start();
    let beside = controller.beside();
    controller.tenant("acme", 1);
    let holder = strict(&controller, "service:tenant-admin");
    let now = jiff::Timestamp::now().as_second();
    for (skew, good) in [(-90, false), (-30, true), (0, true), (90, false)] {
        let mut request = Signed::new("GET", "/v1/me", "");
        request.created = now + skew;
        let reply = request.by(&controller, &holder);
        if good {
            reply.expect(200);
        } else {
            reply.refused(401, "invalid_token");
        }
    }
    // Captured, and sent again: at once, to the other controller, and after a restart.
    let key = SigningKey::generate().unwrap().public().to_base64();
    let body = json!({ "subject_pubkey": key, "scope": "vm.read", "expires_in_seconds": 60 });
    let body = body.to_string();
    let request = Signed::new("POST", "/v1/tokens", &body);
    let headers = request.headers(&controller, &holder.key, &holder.token);
    let client = holder.client(&controller);
    request.send(&client, &headers).expect(201);
    request
        .send(&client, &headers)
        .refused(401, "invalid_token");
    // The other one has another port, so the thief names the first in `Host`.
    let host = format!("127.0.0.1:{}", controller.port);
    let mut forged = headers.clone();
    forged.push(("host", host));
    request
        .send(&holder.client(&beside), &forged)
        .refused(401, "invalid_token");
    controller.kill_and_restart();
    request
        .send(&holder.client(&controller), &headers)
        .refused(401, "invalid_token");
    // Another body under the same proof.
    let changed = Signed {
        body: "{}",
        ..Signed::new("POST", "/v1/tokens", "{}")
    };
    changed
        .send(&holder.client(&controller), &headers)
        .refused(401, "invalid_token");
    // A genuine repeat is signed anew.
    Signed::new("POST", "/v1/tokens", &body)
        .by(&controller, &holder)
        .expect(201);
    let issued = audit_bodies(
        &controller.admin(),
        "tenant_id=acme&event_type=TOKEN_ISSUED",
    );
    assert_eq!(issued.len(), 4, "two holders, two of this test: {issued:?}");
    controller.assert_sound();
}

#[test]
fn what_a_holder_of_signed_requests_issues_demands_them_too() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let holder = strict(&controller, "service:tenant-admin");
    let key = SigningKey::generate().unwrap().public().to_base64();
    let body = json!({ "subject_pubkey": key, "scope": "vm.read", "expires_in_seconds": 60 });
    let body = body.to_string();
    let issued = Signed::new("POST", "/v1/tokens", &body)
        .by(&controller, &holder)
        .expect(201)
        .json();
    assert_eq!(issued["require_pop"], true);
    controller
        .with_token(issued["token"].as_str().unwrap())
        .get("/v1/me")
        .refused(401, "invalid_token");
    // What need not be signed is taken as it is, signed or not.
    let plain = tenant(&controller, "other");
    Signed::new("GET", "/v1/me", "")
        .by(&controller, &plain)
        .expect(200);
}
