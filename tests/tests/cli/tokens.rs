//! Tokens that their holders narrow and sign with, and docs/tokens.md as it stands.

use berth_tests::lab::document::blocks;
use berth_tests::workspace::root;

use crate::bench::Bench;

/// A token for a new key of a tenant's holder, and the key's file.
fn issued(bench: &Bench, name: &str, more: &[&str]) -> (String, String) {
    let key = bench.path(&format!("{name}.key"));
    bench.berthctl(&["token", "keygen", &key]).expect(0);
    let public = format!("@{key}.pub");
    let mut issue = vec!["token", "issue", "acme-corp", "--subject-pubkey", &public];
    issue.extend(["--scope", "service:tenant-admin", "--raw"]);
    issue.extend(more);
    let token = bench.berthctl(&issue).expect(0).stdout.trim().to_owned();
    (token, key)
}

#[test]
fn the_document_on_tokens_can_be_followed() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let document = std::fs::read_to_string(root().join("docs/tokens.md")).unwrap();
    let script: Vec<String> = blocks(&document)
        .into_iter()
        .map(|block| block.text)
        .filter(|text| text.starts_with("berthctl"))
        .collect();
    assert!(script.len() >= 5, "{script:?}");
    let answer = bench.shell(&script.join("\n"));
    answer
        .expect(0)
        .shows("vm.read")
        .shows("acme-corp")
        .shows("revoked all tokens of that holder")
        .shows("revoked all tokens so far");
    for name in ["admin.token", "job.token", "strict.token"] {
        let token = std::fs::read_to_string(bench.path(name)).unwrap();
        bench
            .berthctl_as(
                token.trim(),
                &["--holder-key", &bench.path("admin.key"), "me"],
            )
            .expect(4)
            .complains("code: token_revoked");
    }
}

#[test]
fn a_token_is_narrowed_and_looked_into_without_a_controller() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let (token, key) = issued(&bench, "admin", &[]);
    let vm = "vm_01kb000000000000000000000b";
    let mut derived = String::new();
    bench.without_controller(|| {
        let derive = [
            "--holder-key",
            &key,
            "token",
            "derive",
            "--scope",
            "vm.read",
        ];
        let made = bench.berthctl_as(&token, &[&derive[..], &["--res", vm, "--json"]].concat());
        let made = made.expect(0).json();
        derived = made["token"].as_str().unwrap().to_owned();
        assert_eq!(made["link"]["scope"][0], "vm.read");
        let seen = bench.berthctl_as(&derived, &["token", "inspect", "--json"]);
        let seen = seen.expect(0).json();
        assert_eq!(seen["links"].as_array().unwrap().len(), 2);
        assert_eq!(seen["links"][1]["resources"][0], vm);
        assert_eq!(seen["verified"], false);
        // What the parent does not allow is refused here already, with the reason.
        let again = [
            "--holder-key",
            &key,
            "token",
            "derive",
            "--scope",
            "vm.read",
        ];
        bench
            .berthctl_as(&derived, &again)
            .expect(2)
            .complains("code: cannot_derive");
        let wider = [
            "--holder-key",
            &key,
            "token",
            "derive",
            "--scope",
            "service:metrics",
        ];
        bench
            .berthctl_as(&token, &wider)
            .expect(2)
            .complains("does not cover `service:metrics`");
        bench
            .berthctl_as("v4.public.AAAA", &["token", "inspect"])
            .expect(2)
            .complains("code: not_a_token");
    });
    bench
        .berthctl_as(&derived, &["me"])
        .expect(0)
        .shows("vm.read");
    let denied = bench.berthctl_as(&derived, &["usage"]);
    denied.expect(4).complains("code: permission_denied");
    bench
        .berthctl(&["token", "list", "acme-corp"])
        .expect(0)
        .shows("vm.read");
}

#[test]
fn a_token_that_demands_signed_requests_needs_its_key() {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    let (token, key) = issued(&bench, "strict", &["--require-pop"]);
    let (_, other) = issued(&bench, "other", &[]);
    bench
        .berthctl_as(&token, &["--holder-key", &key, "vm", "list"])
        .expect(0);
    bench
        .berthctl_as(&token, &["vm", "list"])
        .expect(4)
        .complains("code: private_key");
    bench
        .berthctl_as(&token, &["--holder-key", &other, "vm", "list"])
        .expect(4)
        .complains("code: invalid_token");
    // A query, and a body.
    let made = bench.berthctl_as(
        &token,
        &["--holder-key", &key, "api", "GET", "/v1/vms?limit=5"],
    );
    made.expect(0);
    let issue = [
        "--holder-key",
        &key,
        "token",
        "issue",
        "acme-corp",
        "--subject-pubkey",
        &format!("@{other}.pub"),
        "--scope",
        "vm.read",
        "--expires-in",
        "1h",
        "--json",
    ];
    let issued = bench.berthctl_as(&token, &issue).expect(0).json();
    assert_eq!(issued["require_pop"], true);
    std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    bench
        .berthctl_as(&token, &["--holder-key", &key, "vm", "list"])
        .expect(4)
        .complains("chmod 0600");
}
