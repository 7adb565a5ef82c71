//! What holds for all of the API: tags, conditions, waiting, pages, histories and the event stream.

use berth_tests::simulated_agent::SimulatedAgent;
use serde_json::{Value, json};

use crate::harness::{Client, Controller, Reply, vm_body};

fn with_header(
    client: &Client,
    method: &str,
    path: &str,
    header: (&str, &str),
    body: Option<&Value>,
) -> Reply {
    let headers = [("content-type", "application/json"), header];
    let text = body.map(Value::to_string);
    client.send(method, path, &headers, text.as_deref())
}

fn running_vm(controller: &Controller) -> (Client, SimulatedAgent) {
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 4);
    tenant.post("/v1/vms", &vm_body("web")).expect(201);
    agent.settle().unwrap();
    (tenant, agent)
}

#[test]
fn a_change_is_of_what_was_seen_or_is_refused_with_the_tag_of_now() {
    let controller = Controller::start();
    let (tenant, _agent) = running_vm(&controller);
    let admin = controller.admin();
    let seen = tenant.get("/v1/vms/web").expect(200);
    let seen = seen.header("etag").unwrap().to_owned();
    let labels = json!({ "labels": { "tier": "front" } });
    let changed = with_header(
        &tenant,
        "PATCH",
        "/v1/vms/web",
        ("if-match", &seen),
        Some(&labels),
    )
    .expect(200);
    let now = changed.header("etag").unwrap();
    assert_ne!(now, seen);
    assert_eq!(tenant.get("/v1/vms/web").header("etag"), Some(now));
    for (method, path, body) in [
        ("PATCH", "/v1/vms/web", Some(json!({ "name": "other" }))),
        ("POST", "/v1/vms/web/stop", Some(json!({}))),
        ("DELETE", "/v1/vms/web", None),
    ] {
        let stale = with_header(&tenant, method, path, ("if-match", &seen), body.as_ref());
        stale.refused(412, "precondition_failed");
        assert_eq!(stale.header("etag"), Some(now), "{method}");
    }
    let stale = ("if-match", "\"0\", \"1\"");
    let body = json!({ "max_vms": 9 });
    with_header(&admin, "PATCH", "/v1/tenants/acme", stale, Some(&body))
        .refused(412, "precondition_failed");
    with_header(&admin, "DELETE", "/v1/tenants/acme", stale, None)
        .refused(412, "precondition_failed");
    with_header(&tenant, "DELETE", "/v1/vms/web", ("if-match", "*"), None).expect(202);
}

#[test]
fn what_a_reader_has_is_not_sent_again_until_it_changes() {
    let controller = Controller::start();
    let (tenant, _agent) = running_vm(&controller);
    let read = |tag: &str| tenant.send("GET", "/v1/vms/web", &[("if-none-match", tag)], None);
    let first = read("\"nothing\"").expect(200);
    let tag = first.header("etag").unwrap().to_owned();
    for known in [
        tag.clone(),
        format!("\"other\", {tag}"),
        format!("W/{tag}"),
        "*".to_owned(),
    ] {
        let reply = read(&known).expect(304);
        assert_eq!(reply.text, "", "{known}");
        assert_eq!(reply.header("etag"), Some(tag.as_str()));
    }
    let labels = json!({ "labels": { "a": "b" } });
    tenant
        .send_json("PATCH", "/v1/vms/web", &labels)
        .expect(200);
    let second = read(&tag).expect(200);
    assert_ne!(second.header("etag"), Some(tag.as_str()));
    assert_eq!(second.json()["labels"], labels["labels"]);
    // What is not there or not allowed is told all the same.
    let absent = tenant.send("GET", "/v1/vms/none", &[("if-none-match", "*")], None);
    absent.refused(404, "not_found");
}

#[test]
fn an_unknown_scope_is_refused_with_where_the_known_ones_stand() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let admin = controller.admin();
    let error = admin
        .post(
            "/v1/tenants/acme/tokens",
            &crate::harness::token_body("vm.*"),
        )
        .refused(400, "invalid_request");
    let said = error["fields"]["scope"].as_str().unwrap();
    assert!(said.contains("GET /v1/version"), "{said}");
    let version = controller.stranger().get("/v1/version").expect(200).json();
    let scopes = version["scopes"].as_array().unwrap();
    assert!(
        scopes.contains(&json!("vm.read")) && scopes.len() == berth_token::Scope::ALL.len(),
        "{version}"
    );
}

#[test]
fn a_vm_is_called_anew_and_found_by_its_labels() {
    let controller = Controller::start();
    let (tenant, _agent) = running_vm(&controller);
    tenant.post("/v1/vms", &vm_body("db")).expect(201);
    let rename = |name: &str| tenant.send_json("PATCH", "/v1/vms/web", &json!({ "name": name }));
    rename("db").refused(409, "already_exists");
    rename("Not a name").refused(400, "invalid_request");
    tenant
        .send_json("PATCH", "/v1/vms/web", &json!({ "vcpus": 4 }))
        .refused(400, "unknown_field");
    let named = json!({ "name": "front", "labels": { "tier": "front" } });
    let vm = tenant
        .send_json("PATCH", "/v1/vms/web", &named)
        .expect(200)
        .json();
    assert_eq!(
        (&vm["name"], &vm["labels"]["tier"]),
        (&json!("front"), &json!("front"))
    );
    tenant.get("/v1/vms/web").refused(404, "not_found");
    let names = |query: &str| -> Vec<Value> {
        let page = tenant.get(&format!("/v1/vms?{query}")).expect(200).json();
        page["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|vm| vm["name"].clone())
            .collect()
    };
    assert_eq!(names("label=tier=front"), [json!("front")]);
    assert_eq!(names("label=tier=back"), Vec::<Value>::new());
    assert_eq!(names("state=running"), [json!("front")]);
    tenant
        .get("/v1/vms?label=tier")
        .refused(400, "invalid_request");
    tenant
        .get("/v1/vms?state=flying")
        .refused(400, "invalid_request");
    controller.assert_sound();
}

#[test]
fn pages_of_a_filtered_list_hold_each_vm_once() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 64 * 1024);
    let tenant = controller.tenant("acme", 20);
    for number in 0..8 {
        let mut body = vm_body(&format!("vm-{number}"));
        body["labels"] = json!({ "odd": (number % 2 == 1).to_string() });
        tenant.post("/v1/vms", &body).expect(201);
    }
    let mut found = Vec::new();
    let mut token = String::new();
    loop {
        let path = format!("/v1/vms?label=odd=true&limit=1&page_token={token}");
        let page = tenant.get(&path).expect(200).json();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= 1);
        found.extend(
            items
                .iter()
                .map(|vm| vm["name"].as_str().unwrap().to_owned()),
        );
        match page["next_page_token"].as_str() {
            Some(next) => token = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(found, ["vm-1", "vm-3", "vm-5", "vm-7"]);
}

#[test]
fn an_operation_is_listed_waited_for_and_not_cancelled() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 2);
    let vm = tenant.post("/v1/vms", &vm_body("web")).expect(201).json();
    let operation = format!("/v1/operations/{}", vm["operation"].as_str().unwrap());
    let shown = tenant.get(&operation).expect(200);
    assert!(shown.header("etag").is_some());
    assert_eq!(shown.json()["may_cancel"], false);
    tenant.delete(&operation).refused(409, "invalid_state");
    let list = |query: &str| {
        tenant
            .get(&format!("/v1/operations?{query}"))
            .expect(200)
            .json()["items"]
            .clone()
    };
    assert_eq!(list("state=running").as_array().unwrap().len(), 1);
    assert_eq!(list("state=done"), json!([]));
    tenant
        .get("/v1/operations?state=x")
        .refused(400, "invalid_request");
    tenant
        .get(&format!("{operation}/wait?timeout=0"))
        .refused(408, "wait_timeout");
    let waiting = std::thread::spawn({
        let tenant = tenant.clone();
        let path = format!("{operation}/wait?timeout=60");
        move || tenant.get(&path)
    });
    agent.settle().unwrap();
    assert_eq!(waiting.join().unwrap().expect(200).json()["state"], "done");
    assert_eq!(list("state=done").as_array().unwrap().len(), 1);
    tenant.delete(&operation).refused(409, "invalid_state");
}

#[test]
fn who_prefers_to_wait_gets_the_answer_when_it_is_done() {
    let controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let tenant = controller.tenant("acme", 2);
    let creating = std::thread::spawn({
        let tenant = tenant.clone();
        move || {
            with_header(
                &tenant,
                "POST",
                "/v1/vms",
                ("prefer", "respond-async, wait=60"),
                Some(&vm_body("web")),
            )
        }
    });
    while agent.carried_out == 0 {
        agent.sync(1).unwrap();
    }
    agent.settle().unwrap();
    assert_eq!(
        creating.join().unwrap().expect(201).json()["state"],
        "running"
    );
    // A time that is over is no error.
    let stop = with_header(
        &tenant,
        "POST",
        "/v1/vms/web/stop",
        ("prefer", "wait=0"),
        Some(&json!({})),
    )
    .expect(202);
    assert_eq!(stop.json()["state"], "running");
}

#[test]
fn a_vms_history_is_its_entries_of_the_ledger_even_when_it_is_gone() {
    let controller = Controller::start();
    let (tenant, mut agent) = running_vm(&controller);
    let id = tenant.get("/v1/vms/web").expect(200).json()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    tenant.delete("/v1/vms/web").expect(202);
    agent.settle().unwrap();
    let path = format!("/v1/vms/{id}/events");
    let history = tenant.get(&path).expect(200).json();
    let types: Vec<&str> = history["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event_type"].as_str().unwrap())
        .collect();
    assert_eq!(types.first(), Some(&"VM_CREATE_ACCEPTED"));
    assert_eq!(types.last(), Some(&"VM_DELETED"), "{types:?}");
    let first = tenant.get(&format!("{path}?limit=1")).expect(200).json();
    let next = first["next_page_token"].as_str().unwrap();
    let second = tenant
        .get(&format!("{path}?since={next}&limit=1"))
        .expect(200)
        .json();
    assert_eq!(second["items"][0], history["items"][1]);
}

/// The `data` of events until one of this type.
fn heard(lines: impl Iterator<Item = String>, last: &str) -> Vec<Value> {
    let mut events = Vec::new();
    for line in lines {
        let Some(data) = line.strip_prefix("data: ") else {
            continue;
        };
        let event: Value = serde_json::from_str(data).unwrap();
        let is_last = event["event_type"] == last;
        events.push(event);
        if is_last {
            return events;
        }
    }
    panic!("the stream ended: {events:?}");
}

#[test]
fn an_event_stream_goes_on_where_it_was_cut_off_and_misses_nothing() {
    let controller = Controller::start();
    let (tenant, mut agent) = running_vm(&controller);
    let all = heard(tenant.follow("/v1/events?since=0", &[]), "VM_STARTED");
    let entries = tenant
        .get("/v1/audit/entries?limit=1000")
        .expect(200)
        .json();
    let of = |list: &Value, name: &str| -> Vec<u64> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item[name].as_u64().unwrap())
            .collect()
    };
    let heard_revisions = of(&json!(all), "revision");
    let expected = of(&entries["items"], "index");
    assert_eq!(heard_revisions, expected[..heard_revisions.len()]);
    // From the second on, both ways to say it.
    let (first, second) = (
        all[0]["revision"].to_string(),
        all[1]["revision"].to_string(),
    );
    let again = heard(
        tenant.follow(&format!("/v1/events?since={second}"), &[]),
        "VM_STARTED",
    );
    assert_eq!(again, all[1..]);
    let again = heard(
        tenant.follow("/v1/events", &[("last-event-id", &first)]),
        "VM_STARTED",
    );
    assert_eq!(again, all[1..]);
    // What happens while somebody listens, and of it what they want to hear.
    let stream = tenant.follow("/v1/events?types=VM_STOPPED,VM_STOP_ACCEPTED", &[]);
    tenant.post("/v1/vms/web/stop", &json!({})).expect(202);
    agent.settle().unwrap();
    let types: Vec<Value> = heard(stream, "VM_STOPPED")
        .iter()
        .map(|event| event["event_type"].clone())
        .collect();
    assert_eq!(types, ["VM_STOP_ACCEPTED", "VM_STOPPED"]);
    tenant
        .get("/v1/events?types=vm%20stopped")
        .refused(400, "invalid_request");
    tenant
        .get("/v1/events?since=1000000")
        .refused(410, "revision_gone");
}

#[test]
fn an_event_stream_ends_with_its_token() {
    let controller = Controller::start();
    controller.tenant("acme", 1);
    let reader = controller.token("acme", "ledger.read");
    let token_id = reader.get("/v1/me").expect(200).json()["token_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let stream = reader.follow("/v1/events", &[]);
    controller
        .admin()
        .delete(&format!("/v1/tokens/{token_id}"))
        .expect(204);
    // It comes to an end by itself, and tells nothing but why.
    let told: Vec<String> = stream.filter(|line| line.starts_with("data:")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("token_revoked"), "{told:?}");
}

#[test]
fn a_namespace_has_so_many_streams_and_the_next_one_is_told_to_wait() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let streams: Vec<_> = (0..16).map(|_| tenant.follow("/v1/events", &[])).collect();
    let refused = tenant.get("/v1/events");
    refused.refused(429, "rate_limited");
    assert!(refused.header("retry-after").is_some());
    drop(streams);
}

#[test]
fn an_answer_of_then_is_for_who_got_it() {
    let controller = Controller::start();
    let _agent = controller.agent("node-1", 4096);
    let first = controller.tenant("acme", 4);
    let second = controller.token("acme", "service:tenant-admin");
    let key = ("idempotency-key", "k-1");
    let made = with_header(&first, "POST", "/v1/vms", key, Some(&vm_body("web"))).expect(201);
    let again = with_header(&first, "POST", "/v1/vms", key, Some(&vm_body("web"))).expect(201);
    assert_eq!(again.header("idempotency-replayed"), Some("true"));
    assert_eq!(again.text, made.text);
    assert_eq!(again.header("etag"), made.header("etag"));
    // Another holder's key of that name is another key: what it asks for is taken by name.
    with_header(&second, "POST", "/v1/vms", key, Some(&vm_body("web")))
        .refused(409, "already_exists");
    let waits = "/v1/vms?wait=running&timeout=0";
    with_header(&first, "POST", waits, key, Some(&vm_body("web")))
        .refused(409, "idempotency_conflict");
    for bad in ["", "k\u{e9}y"] {
        let headers = [
            ("content-type", "application/json"),
            ("idempotency-key", bad),
        ];
        let reply = first.send(
            "POST",
            "/v1/vms",
            &headers,
            Some(&vm_body("db").to_string()),
        );
        reply.refused(400, "invalid_request");
    }
}
