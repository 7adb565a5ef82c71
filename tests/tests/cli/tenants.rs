//! Tenants, tokens, and who may do what.

use crate::bench::Bench;

const CEILINGS: [&str; 6] = [
    "--max-vms",
    "10",
    "--storage-quota-gb",
    "100",
    "--api-rate-limit-rpm",
    "600",
];

fn create(tenant: &str) -> Vec<&str> {
    let mut arguments = vec!["tenant", "create", tenant];
    arguments.extend(CEILINGS);
    arguments
}

#[test]
fn a_tenant_lives_from_create_to_delete() {
    let bench = Bench::start();
    bench
        .berthctl(&create("acme-corp"))
        .expect(0)
        .shows("tenant:                   acme-corp");
    bench
        .berthctl(&create("acme-corp"))
        .expect(8)
        .complains("code: tenant_exists");
    bench
        .berthctl(&create("Acme"))
        .expect(2)
        .complains("code: invalid_tenant_id");
    let changed = bench.berthctl(&["tenant", "update", "acme-corp", "--max-vms", "3", "--json"]);
    assert_eq!(changed.expect(0).json()["max_vms"], 3);
    assert_eq!(changed.json()["storage_quota_gb"], 100);
    bench
        .berthctl(&["tenant", "list"])
        .expect(0)
        .shows("TENANT")
        .shows("acme-corp  acme-corp  3");
    let bare = bench.berthctl(&["tenant", "list", "--no-headers"]);
    assert!(
        bare.expect(0).stdout.starts_with("acme-corp"),
        "{}",
        bare.stdout
    );
    bench
        .berthctl(&["tenant", "delete", "acme-corp"])
        .expect(0)
        .shows("deleted acme-corp");
    bench
        .berthctl(&["tenant", "show", "acme-corp"])
        .expect(3)
        .complains("code: not_found");
    bench
        .berthctl(&create("acme-corp"))
        .expect(8)
        .complains("code: tenant_exists");
}

#[test]
fn a_list_of_several_pages_is_one_list() {
    let bench = Bench::start();
    for tenant in ["a", "b", "c", "d", "e"] {
        bench.berthctl(&create(tenant)).expect(0);
    }
    let listed = bench.berthctl(&["tenant", "list", "--json"]);
    assert_eq!(listed.expect(0).json().as_array().unwrap().len(), 5);
    let three = bench.berthctl(&["tenant", "list", "--limit", "3", "--no-headers"]);
    assert_eq!(three.expect(0).stdout.lines().count(), 3);
}

#[test]
fn a_token_is_issued_used_listed_and_revoked() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let key = bench.path("key");
    bench.berthctl(&["token", "keygen", &key]).expect(0);
    let public = format!("@{key}.pub");
    let mut issue = vec!["token", "issue", "acme-corp", "--subject-pubkey", &public];
    issue.extend(["--scope", "service:tenant-admin", "--label", "ci", "--json"]);
    let issued = bench.berthctl(&issue).expect(0).json();
    let token = issued["token"].as_str().unwrap();
    let id = issued["token_id"].as_str().unwrap();
    bench
        .berthctl_as(token, &["me"])
        .expect(0)
        .shows("acme-corp")
        .shows(id);
    bench.berthctl_as(token, &["usage"]).expect(0).shows("vms");
    let listed = bench.berthctl(&["token", "list", "acme-corp"]);
    assert!(
        !listed
            .expect(0)
            .shows(id)
            .shows("ci")
            .stdout
            .contains(token)
    );
    bench
        .berthctl_as(token, &["tenant", "list"])
        .expect(4)
        .complains("code: permission_denied");
    bench
        .berthctl(&["token", "revoke", id])
        .expect(0)
        .shows("revoked");
    let refused = bench.berthctl_as(token, &["me"]);
    refused.expect(4).complains("code: token_revoked");
    assert!(!refused.stderr.contains(token));
}

#[test]
fn bad_values_are_named_field_by_field() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let mut issue = vec![
        "token",
        "issue",
        "acme-corp",
        "--subject-pubkey",
        "nonsense",
    ];
    issue.extend(["--scope", "service:tenant-admin"]);
    bench.berthctl(&issue).expect(2).complains("subject_pubkey");
    let unknown = r#"{"tenant_id":"b","display_name":"B","max_vmz":1}"#;
    let refused = bench.post("/v1/tenants", unknown);
    refused
        .expect(2)
        .complains("max_vmz")
        .complains("code: unknown_field");
    let json = bench.berthctl(&["--json", "tenant", "show", "nobody"]);
    let error: serde_json::Value = serde_json::from_str(&json.expect(3).stderr).unwrap();
    assert_eq!(error["code"], "not_found");
    assert!(error["request_id"].as_str().unwrap().starts_with("req_"));
}

#[test]
fn a_token_of_nobody_is_denied() {
    let bench = Bench::start();
    bench
        .berthctl_as("v4.public.AAAA", &["vm", "list"])
        .expect(4)
        .complains("code: invalid_token");
}

#[test]
fn a_raw_call_prints_the_reply() {
    let bench = Bench::start();
    let version = bench.berthctl(&["api", "get", "/v1/version"]);
    assert!(version.expect(0).json()["version"].is_string());
}
