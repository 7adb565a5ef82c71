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

#[test]
fn a_tenant_is_suspended_and_resumed_and_its_ceilings_are_shown() {
    let bench = Bench::start();
    let mut create = create("acme-corp");
    create.extend(["--max-vcpus", "16", "--max-creates-per-day", "9"]);
    bench
        .berthctl(&create)
        .expect(0)
        .shows("max vCPUs:                16")
        .shows("max creates per day:      9")
        .shows("suspended since:          -");
    let suspended = bench
        .berthctl(&["tenant", "suspend", "acme-corp", "--json"])
        .expect(0)
        .json();
    assert!(suspended["suspended_at"].is_string(), "{suspended}");
    let resumed = bench
        .berthctl(&["tenant", "resume", "acme-corp", "--json"])
        .expect(0)
        .json();
    assert!(resumed["suspended_at"].is_null(), "{resumed}");
    bench
        .berthctl(&["tenant", "update", "acme-corp", "--tier", "nonsense"])
        .expect(2)
        .complains("tier");
    bench
        .berthctl(&["tenant", "suspend", "nobody"])
        .expect(3)
        .complains("code: not_found");
}

#[test]
fn a_project_and_its_service_account_live_from_create_to_delete() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "3");
    let admin = bench.tenant_token("acme-corp");
    let tenant = |arguments: &[&str]| bench.berthctl_as(&admin, arguments);
    let made = tenant(&["project", "create", "web", "--quota", "vms=2", "--json"]);
    assert_eq!(made.expect(0).json()["quotas"]["vms"], 2);
    tenant(&["project", "create", "web"])
        .expect(8)
        .complains("code: already_exists");
    let changed = tenant(&["project", "update", "web", "--department", "sales"]);
    changed.expect(0).shows("department:    sales");
    tenant(&["project", "update", "web"]).expect(2);
    tenant(&["project", "list"])
        .expect(0)
        .shows("web")
        .shows("default");
    tenant(&["project", "delete", "default"])
        .expect(8)
        .complains("code: protected");

    let key = bench.path("robot");
    bench.berthctl(&["token", "keygen", &key]).expect(0);
    let public = format!("@{key}.pub");
    let place = ["--project", "web", "--role", "viewer"];
    let mut create = vec![
        "service-account",
        "create",
        "robot",
        "--subject-pubkey",
        &public,
    ];
    create.extend(place);
    tenant(&create).expect(0).shows("web=viewer");
    let mut issue = vec!["token", "issue", "acme-corp", "--subject-pubkey", &public];
    issue.extend(["--scope", "vm.read", "--scope", "vm.create", "--json"]);
    let issued = tenant(&issue).expect(0).json();
    let robot = issued["token"].as_str().unwrap();
    let refused = [
        "vm",
        "create",
        "one",
        "--image",
        "debian-12",
        "--project",
        "web",
    ];
    bench
        .berthctl_as(robot, &refused)
        .expect(4)
        .complains("the role viewer does not permit it");
    let grant = [
        "service-account",
        "grant",
        "robot",
        "--project",
        "default",
        "--role",
        "editor",
    ];
    tenant(&grant).expect(0).shows("editor");
    tenant(&["project", "members", "default"])
        .expect(0)
        .shows("robot            editor");
    tenant(&["service-account", "revoke", "robot", "--project", "default"]).expect(0);
    tenant(&["service-account", "disable", "robot"])
        .expect(0)
        .shows("disabled");
    bench
        .berthctl_as(robot, &["me"])
        .expect(4)
        .complains("disabled or deleted");
    tenant(&["service-account", "enable", "robot"])
        .expect(0)
        .shows("enabled");
    tenant(&["service-account", "list"])
        .expect(0)
        .shows("robot");
    tenant(&["service-account", "delete", "robot"]).expect(0);
    tenant(&["service-account", "show", "robot"])
        .expect(3)
        .complains("code: not_found");
    tenant(&["project", "delete", "web"])
        .expect(0)
        .shows("deleted web");
    let wrong = [
        "service-account",
        "grant",
        "robot",
        "--project",
        "web",
        "--role",
        "owner",
    ];
    tenant(&wrong).expect(2);
}
