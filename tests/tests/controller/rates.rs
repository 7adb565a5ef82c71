//! How often somebody may ask, and that nobody's flood keeps another from asking.

use serde_json::json;

use crate::harness::{Client, Controller, Reply, tenant_body};
use crate::holders::{Wanted, issued};

/// A tenant whose bucket holds ten requests and refills in minutes.
fn slow_tenant(controller: &Controller, id: &str) {
    let mut body = tenant_body(id, 5);
    body["api_rate_limit_rpm"] = json!(1);
    controller.admin().post("/v1/tenants", &body).expect(201);
}

/// Ask until it is too much; how often it was not.
fn flood(client: &Client, path: &str) -> (usize, Reply) {
    for passed in 0..1_000 {
        let reply = client.get(path);
        if reply.status == 429 {
            return (passed, reply);
        }
    }
    panic!("there is no limit");
}

#[test]
fn a_flood_never_keeps_its_tenant_from_stopping_nor_anybody_else_from_asking() {
    let controller = Controller::start();
    slow_tenant(&controller, "acme");
    slow_tenant(&controller, "other");
    let acme = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let other = issued(&controller, "other", "service:tenant-admin", &json!({}));
    let client = acme.client(&controller);
    let (passed, reply) = flood(&client, "/v1/vms");
    assert_eq!(passed, 10);
    assert_eq!(
        reply.header("ratelimit-policy"),
        Some(r#""tenant";q=1;w=60"#)
    );
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    reply.refused(429, "rate_limited");
    // What it is and what it costs to ask are free, and what ends something has its own bucket.
    client.get("/v1/me").expect(200);
    let stopped = client.send("POST", "/v1/vms/web/stop", &[], None);
    assert_eq!(
        stopped.header("ratelimit-policy"),
        Some(r#""tenant-end";q=1;w=60"#)
    );
    stopped.refused(404, "not_found");
    client.delete("/v1/vms/web").refused(404, "not_found");
    other.client(&controller).get("/v1/vms").expect(200);
    controller.admin().get("/v1/vms").expect(200);
    client.get("/v1/vms").refused(429, "rate_limited");
}

#[test]
fn a_leaked_session_does_not_use_up_what_its_tenant_may_ask() {
    let controller = Controller::start();
    let mut body = tenant_body("acme", 5);
    body["api_rate_limit_rpm"] = json!(240);
    controller.admin().post("/v1/tenants", &body).expect(201);
    let acme = issued(&controller, "acme", "service:tenant-admin", &json!({}));
    let leaked = acme.narrowed(&Wanted::default());
    let (_, reply) = flood(&leaked.client(&controller), "/v1/vms");
    assert_eq!(
        reply.header("ratelimit-policy"),
        Some(r#""holder";q=120;w=60"#)
    );
    acme.client(&controller).get("/v1/vms").expect(200);
}

#[test]
fn refused_tokens_of_one_address_are_limited_and_good_ones_are_not() {
    let settings = "[rate_limits]\nfailed_auth_rpm = 1\nlimit_loopback = true\n";
    let controller = Controller::serve_configured(settings, "127.0.0.1:0");
    let bad = controller.with_token("v4.public.nonsense");
    let (passed, reply) = flood(&bad, "/v1/vms");
    assert_eq!(passed, 10);
    assert!(reply.header("retry-after").is_some());
    for header in ["ratelimit", "ratelimit-policy"] {
        assert_eq!(reply.header(header), None, "strangers learn no rates");
    }
    reply.refused(429, "rate_limited");
    controller.admin().get("/v1/tenants").expect(200);
    // Who sends none at all is told so, at no cost to anybody.
    controller
        .stranger()
        .get("/v1/vms")
        .refused(401, "unauthorized");
}

#[test]
fn one_address_is_limited_before_its_tokens_are_looked_at() {
    let settings = "[rate_limits]\naddress_rpm = 1\nlimit_loopback = true\n";
    let controller = Controller::serve_configured(settings, "127.0.0.1:0");
    let (passed, reply) = flood(&controller.admin(), "/v1/tenants");
    assert_eq!(passed, 10);
    assert_eq!(reply.header("ratelimit"), None);
    reply.refused(429, "rate_limited");
    controller.stranger().get("/healthz").expect(200);
}
