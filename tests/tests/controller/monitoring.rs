//! `/metrics`: who may look, and that it says what is so.

use serde_json::json;

use crate::harness::{Controller, vm_body};

#[test]
fn monitoring_sees_a_use_above_its_limit_and_nobody_else_may_look() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 8192);
    let acme = controller.tenant("acme", 2);
    acme.post("/v1/vms", &vm_body("web-1")).expect(201);
    let admin = controller.admin();
    let lower = json!({ "max_vms": 0 });
    admin
        .send_json("PATCH", "/v1/tenants/acme", &lower)
        .expect(200);
    acme.post("/v1/vms", &vm_body("web-2"))
        .refused(429, "quota_exceeded");

    let minted =
        controller.offline(&["admin-token", "--scope", "service:metrics", "--days", "365"]);
    assert!(minted.status.success(), "{minted:?}");
    let watcher = controller.with_token(String::from_utf8(minted.stdout).unwrap().trim());
    let page = watcher.get("/metrics").expect(200);
    let kind = page.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = &page.text;
    for line in [
        r#"berth_quota_limit{tenant="acme",resource="vms"} 0"#,
        r#"berth_quota_used{tenant="acme",resource="vms"} 1"#,
        r#"berth_http_requests_total{method="post",route="/v1/vms",code="201"} 1"#,
        r#"berth_http_requests_total{method="post",route="/v1/vms",code="429"} 1"#,
        r#"berth_nodes{state="online"} 1"#,
        "berth_quota_inconsistency 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    let ready = controller.stranger().get("/readyz").expect(200).json();
    assert_eq!(ready["checks"]["counters"], "ok");

    watcher.get("/v1/nodes").refused(403, "permission_denied");
    acme.get("/metrics").refused(403, "permission_denied");
    controller
        .stranger()
        .get("/metrics")
        .refused(401, "unauthorized");
}
