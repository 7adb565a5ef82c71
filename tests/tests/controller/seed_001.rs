//! Seed 001, steps 1 to 5, as its curl lines send them.

use serde_json::json;

use crate::harness::{Controller, audit_bodies, token_body, vm_body};

#[test]
fn a_tenant_namespace_is_configured_as_the_guide_says() {
    let controller = Controller::start();
    let admin = controller.admin();
    let agent = controller.agent("node-1", 64 * 1024).run();

    // Step 1.
    let record = json!({
        "tenant_id": "acme-corp",
        "display_name": "Acme Corporation",
        "max_vms": 10,
        "storage_quota_gb": 100,
        "api_rate_limit_rpm": 600,
    });
    let created = admin.post("/v1/tenants", &record).expect(201);
    assert_eq!(created.header("location"), Some("/v1/tenants/acme-corp"));
    let tenant = created.json();
    for (name, value) in record.as_object().unwrap() {
        assert_eq!(&tenant[name], value);
    }
    let created_at = tenant["created_at"].as_str().unwrap();
    assert!(
        created_at.ends_with('Z') && created_at.len() == 24,
        "{created_at}"
    );
    admin
        .post("/v1/tenants", &record)
        .refused(409, "tenant_exists");

    // Step 2.
    let asked = token_body("service:tenant-admin");
    let issued = admin
        .post("/v1/tenants/acme-corp/tokens", &asked)
        .expect(201)
        .json();
    assert_eq!(issued["tenant_id"], "acme-corp");
    assert_eq!(issued["scope"], json!(["service:tenant-admin"]));
    let tenant_admin = controller.with_token(issued["token"].as_str().unwrap());

    // Step 3.
    let other = controller.tenant("other-corp", 3);
    other.post("/v1/vms", &vm_body("theirs")).expect(201);
    let vms = tenant_admin.get("/v1/vms").expect(200).json();
    assert_eq!(vms["items"], json!([]));

    // Step 4.
    for n in 0..10 {
        let vm = tenant_admin
            .post("/v1/vms", &vm_body(&format!("vm-{n}")))
            .expect(201)
            .json();
        assert_eq!(vm["tenant_id"], "acme-corp");
    }
    let refused = tenant_admin.post("/v1/vms", &vm_body("vm-11"));
    let mut body = refused.refused(429, "quota_exceeded");
    assert_eq!(refused.header("retry-after"), None);
    assert_eq!(body["limit"], 10);
    // What each VM does at this moment is its agent's matter; all of them are counted.
    let counted = body["quota"]["counted"].take();
    let counts = counted.as_object().unwrap().values();
    assert_eq!(
        counts.filter_map(serde_json::Value::as_u64).sum::<u64>(),
        10
    );
    body["quota"].as_object_mut().unwrap().remove("counted");
    assert_eq!(
        body["quota"],
        json!({
            "resource": "vms", "limit": 10, "used": 10, "requested": 1, "remaining": 0,
            "scope": "tenant/acme-corp",
        })
    );
    let listed = tenant_admin.get("/v1/vms").expect(200).json();
    let owners: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["tenant_id"].clone())
        .collect();
    assert_eq!(owners, vec![json!("acme-corp"); 10]);

    // Step 5.
    let query = "tenant_id=acme-corp&event_type=TENANT_CREATED";
    let entries = audit_bodies(&admin, query);
    let me = admin.get("/v1/me").expect(200).json();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["actor"]["token_id"], me["token_id"]);
    assert_eq!(entries[0]["time"], tenant["created_at"]);
    assert_eq!(
        entries[0]["request"]["id"].as_str(),
        created.header("x-request-id")
    );
    let denied = audit_bodies(&tenant_admin, "event_type=VM_CREATE_DENIED");
    assert_eq!(denied.len(), 1);
    assert_eq!(denied[0]["detail"]["quota"]["used"], 10);

    agent.stop().unwrap();
    controller.assert_sound();
}
