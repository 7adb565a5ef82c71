//! The ledger's reader under both names.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use crate::bench::Bench;

const OTHER_KEY: &str = "GjJ2avp5YXzgps1hJwNfLXmG9kIB9i1K66W4smub5pc=";

fn bench_with_two_tenants() -> Bench {
    let bench = Bench::start();
    bench.tenant("acme-corp", "1");
    bench.tenant("rival", "1");
    bench.tenant("rival-2", "1");
    bench
}

#[test]
fn the_published_command_shows_when_a_tenant_was_made_and_under_which_token() {
    let bench = bench_with_two_tenants();
    let admin = bench.berthctl(&["me", "--json"]).expect(0).json();
    // Word for word as published.
    let command = "read --filter tenant-id=acme-corp --event-type TENANT_CREATED --limit 1";
    let words: Vec<&str> = command.split(' ').collect();
    let read = bench.run("service-fs", &words);
    read.expect(0).shows("TENANT_CREATED  acme-corp  operator");
    read.shows(admin["token_id"].as_str().unwrap());
    assert_eq!(read.stdout.lines().count(), 2, "{}", read.stdout);
}

#[test]
fn filters_select_on_either_side() {
    let bench = bench_with_two_tenants();
    let read = |filters: &[&str]| {
        let arguments: Vec<&str> = ["ledger", "read", "--no-headers"]
            .iter()
            .chain(filters)
            .copied()
            .collect();
        bench.berthctl(&arguments).expect(0).stdout.clone()
    };
    assert_eq!(read(&["--event-type", "TENANT_CREATED"]).lines().count(), 3);
    assert_eq!(read(&["--filter", "tenant-id=rival"]).lines().count(), 1);
    assert_eq!(read(&["--filter", "outcome=denied"]).lines().count(), 0);
    let admin = bench.berthctl(&["me", "--json"]).json();
    let token = format!("token-id={}", admin["token_id"].as_str().unwrap());
    assert_eq!(
        read(&["--filter", &token, "--event-type", "TENANT_CREATED"])
            .lines()
            .count(),
        3
    );
    let mut limited = vec!["ledger", "read", "--event-type", "TENANT_CREATED"];
    limited.extend(["--limit", "2"]);
    bench
        .berthctl(&limited)
        .expect(0)
        .complains("more entries follow: --since");
    let refused = bench.berthctl(&["ledger", "read", "--filter", "tenant=acme-corp"]);
    refused
        .expect(2)
        .complains("tenant-id, vm-id, node-id, slot-id, event-type, outcome, token-id");
}

/// The published head once it covers every entry: heads are published a moment after their commits.
fn settled_head(bench: &Bench) -> serde_json::Value {
    let read = bench.berthctl(&["ledger", "read", "--json"]);
    let entries = read.expect(0).json().as_array().map_or(0, Vec::len);
    let begun = std::time::Instant::now();
    loop {
        let head = bench
            .berthctl(&["ledger", "head", "--json"])
            .expect(0)
            .json();
        if head["size"].as_u64() >= u64::try_from(entries).ok() {
            return head;
        }
        assert!(
            begun.elapsed().as_secs() < 60,
            "{head} never covers {entries}"
        );
    }
}

#[test]
fn the_tree_is_verified_up_to_the_root_that_is_signed() {
    let bench = bench_with_two_tenants();
    let head = settled_head(&bench);
    let verified = bench.berthctl(&["ledger", "verify"]);
    let sentence = format!(
        "verified: {} entries, root {}\n",
        head["size"],
        head["root"].as_str().unwrap()
    );
    verified
        .expect(0)
        .shows(&sentence)
        .shows("taken from the controller");
    let key = head["public_key"].as_str().unwrap();
    let pinned = bench.run("service-fs", &["verify", "--public-key", key]);
    pinned.expect(0).shows("the key that you gave");
    let read = bench.berthctl(&["ledger", "read", "--verify", "--filter", "tenant-id=rival"]);
    read.expect(0)
        .shows("TENANT_CREATED")
        .complains("verified: ");
}

#[test]
fn another_key_than_the_pinned_one_is_refused() {
    let bench = bench_with_two_tenants();
    let refused = bench.berthctl(&["ledger", "verify", "--public-key", OTHER_KEY]);
    refused.expect(1).complains("code: ledger_key");
    let mut read = vec!["ledger", "read", "--verify", "--public-key"];
    read.push(OTHER_KEY);
    assert_eq!(bench.berthctl(&read).expect(1).stdout, "");
    bench
        .berthctl(&["ledger", "verify", "--public-key", "x"])
        .expect(2);
}

#[test]
fn a_tenant_reads_and_verifies_its_own_entries_alone() {
    let bench = bench_with_two_tenants();
    let token = bench.tenant_token("acme-corp");
    let read = bench.berthctl_as(&token, &["ledger", "read"]);
    read.expect(0).shows("TENANT_CREATED  acme-corp");
    assert!(!read.stdout.contains("rival"), "{}", read.stdout);
    let verified = bench.berthctl_as(&token, &["ledger", "verify"]);
    verified
        .expect(0)
        .shows("without gaps and each one bound by its leaf");
    let foreign = [
        "ledger",
        "read",
        "--filter",
        "tenant-id=rival",
        "--no-headers",
    ];
    let foreign = bench.berthctl_as(&token, &foreign);
    assert!(!foreign.stdout.contains("rival"), "{}", foreign.stdout);
}

#[test]
fn an_entry_that_was_changed_is_named() {
    let bench = bench_with_two_tenants();
    let read = ["ledger", "read", "--filter", "tenant-id=rival", "--json"];
    let index = bench.berthctl(&read).expect(0).json()[0]["index"].clone();
    let url = liar(bench.address(), "rival\\\"", "rigal\\\"");
    let complaint = format!("entry {index} is not what the ledger has of it");
    let verified = bench.berthctl(&["ledger", "verify", "--url", &url]);
    verified
        .expect(1)
        .complains(&complaint)
        .complains("code: ledger_broken");
    let read = bench.berthctl(&["ledger", "read", "--verify", "--url", &url]);
    assert_eq!(read.expect(1).complains(&complaint).stdout, "");
}

#[test]
fn an_export_verifies_without_a_controller_and_a_changed_byte_does_not() {
    let bench = bench_with_two_tenants();
    let token = bench.tenant_token("acme-corp");
    let file = bench.path("acme.jsonl");
    let key = bench
        .berthctl(&["ledger", "head", "--json"])
        .expect(0)
        .json()["public_key"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut export = vec!["ledger", "export", "--with-view-key", "--file"];
    export.push(&file);
    bench.berthctl_as(&token, &export).expect(0);
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(!text.contains("rival"), "{text}");
    let verify = ["ledger", "verify", &file, "--public-key", &key];
    bench.without_controller(|| {
        bench
            .berthctl(&verify)
            .expect(0)
            .shows("all of one tenant from its first on, with the tags of its sequence")
            .shows("the key that you gave");
    });
    let other = ["ledger", "verify", &file, "--public-key", OTHER_KEY];
    bench.berthctl(&other).expect(1).complains("ledger_export");
    let without_second = text.lines().enumerate().filter(|(n, _)| *n != 1);
    let kept: Vec<_> = without_second.map(|(_, line)| line).collect();
    for changed in [
        text.replacen("completed", "accepted!", 1),
        text.replacen("TENANT_CREATED", "TENANT_DELETED", 1),
        kept.join("\n") + "\n",
        text.lines().next().unwrap().to_owned() + "\n",
    ] {
        std::fs::write(&file, changed).unwrap();
        bench.berthctl(&verify).expect(1).complains("ledger_export");
    }
}

#[test]
fn entries_are_followed_as_they_come() {
    let bench = bench_with_two_tenants();
    let watched = bench.berthctl(&[
        "ledger",
        "watch",
        "--since",
        "1h",
        "--event-type",
        "TENANT_CREATED",
        "--limit",
        "3",
    ]);
    assert_eq!(watched.expect(0).stdout.lines().count(), 3);
    let read = ["ledger", "read", "--no-headers", "--since"];
    let since = |when: &str| {
        let arguments: Vec<&str> = read.iter().copied().chain([when]).collect();
        bench.berthctl(&arguments).expect(0).stdout.lines().count()
    };
    assert!(since("1h") >= 3);
    assert_eq!(since("2999-01-01T00:00:00Z"), 0);
    bench
        .berthctl(&["ledger", "read", "--since", "yesterday"])
        .expect(2);
}

/// A man in the middle who replaces a text by another of the same length in every reply.
fn liar(upstream: &str, truth: &'static str, lie: &'static str) -> String {
    assert_eq!(truth.len(), lie.len());
    let upstream = upstream.to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut server = TcpStream::connect(&upstream).unwrap();
            let mut replies = BufReader::new(server.try_clone().unwrap());
            let mut requests = client.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut requests, &mut server));
            std::thread::spawn(move || {
                while let Some(reply) = one_reply(&mut replies) {
                    client
                        .write_all(reply.replace(truth, lie).as_bytes())
                        .unwrap();
                }
            });
        }
    });
    url
}

/// A head and the body that it announces; nothing at the end of the connection.
fn one_reply(from: &mut BufReader<TcpStream>) -> Option<String> {
    let mut reply = String::new();
    let mut length = 0;
    while !reply.ends_with("\r\n\r\n") {
        let start = reply.len();
        if from.read_line(&mut reply).ok()? == 0 {
            return None;
        }
        let line = reply[start..].to_ascii_lowercase();
        if let Some(number) = line.strip_prefix("content-length:") {
            length = number.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body).ok()?;
    Some(reply + &String::from_utf8(body).unwrap())
}
