//! Kill it at any time: nothing acknowledged is lost, every counter agrees, the ledger verifies.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::harness::{Client, Controller, audit_bodies, binary, vm_body};

fn create_until_told(
    client: Client,
    thread: usize,
    stop: Arc<AtomicBool>,
) -> std::thread::JoinHandle<Vec<String>> {
    std::thread::spawn(move || {
        let mut acknowledged = Vec::new();
        for n in 0.. {
            if stop.load(Ordering::Acquire) {
                break;
            }
            let body = vm_body(&format!("vm-{thread}-{n}"));
            let json = [("content-type", "application/json")];
            match client.try_send("POST", "/v1/vms", &json, Some(&body.to_string())) {
                Some(reply) if reply.status == 201 => {
                    acknowledged.push(reply.json()["id"].as_str().unwrap().to_owned());
                }
                // Refused or cut off by the kill: nothing was promised.
                Some(_) | None => {}
            }
        }
        acknowledged
    })
}

#[test]
fn a_kill_amid_concurrent_creates_loses_nothing_that_was_acknowledged() {
    let mut controller = Controller::start();
    let _agent = controller.agent("node-1", 1 << 20);
    let tenant = controller.tenant("acme", 900);
    let mut acknowledged = Vec::new();
    for round in 0..3 {
        let stop = Arc::new(AtomicBool::new(false));
        let threads: Vec<_> = (0..4)
            .map(|thread| create_until_told(tenant.clone(), round * 10 + thread, Arc::clone(&stop)))
            .collect();
        // Kill it in the middle: as soon as this round has made a few.
        let before = acknowledged.len();
        while audit_bodies(&tenant, "event_type=VM_CREATE_ACCEPTED").len() < before + 12 {}
        controller.kill();
        stop.store(true, Ordering::Release);
        for thread in threads {
            acknowledged.extend(thread.join().unwrap());
        }
        controller.assert_sound();
        controller.restart();
    }
    let listed = tenant.get("/v1/vms?limit=1000").expect(200).json();
    let listed: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|vm| vm["id"].as_str().unwrap())
        .collect();
    assert!(acknowledged.len() >= 12);
    for id in &acknowledged {
        assert!(
            listed.contains(&id.as_str()),
            "{id} was acknowledged and is lost"
        );
    }
    let used = tenant.get("/v1/usage").expect(200).json()["items"][0]["used"]
        .as_u64()
        .unwrap();
    assert_eq!(usize::try_from(used).unwrap(), listed.len());
}

#[test]
fn vms_converge_after_the_controller_was_killed_under_its_agents() {
    let mut controller = Controller::start();
    let running = controller.agent("node-1", 1 << 16).run();
    let tenant = controller.tenant("acme", 20);
    for n in 0..10 {
        tenant
            .post("/v1/vms", &vm_body(&format!("vm-{n}")))
            .expect(201);
        if n % 3 == 0 {
            controller.kill_and_restart();
        }
    }
    for n in 0..10 {
        tenant
            .get(&format!("/v1/vms/vm-{n}/wait?state=running&timeout=20"))
            .expect(200);
    }
    assert_eq!(running.stop().unwrap().carried_out, 10);
    controller.assert_sound();
}

/// Take away what keeps the ledger as it is. Who owns the database can; the signed root remains.
fn drop_triggers(controller: &Controller) {
    let drop = |name| format!("DROP TRIGGER {name}");
    let postgres = "ledger_entry_is_never_changed ON ledger_entry";
    controller
        .database()
        .run_as(&drop("ledger_entry_is_never_updated"), &drop(postgres))
        .unwrap();
}

#[test]
fn a_changed_byte_in_the_ledger_is_found_and_its_entry_named() {
    let mut controller = Controller::start();
    controller.tenant("acme", 1);
    controller.tenant("other", 1);
    controller.kill();
    controller.assert_sound();
    let database = controller.database();
    let change = "UPDATE ledger_entry SET body = replace(body, 'acme', 'acmf') WHERE idx = 1";
    let refused = database.run(change).unwrap_err();
    assert!(refused.contains("append-only"), "{refused}");
    let deletion = database
        .run("DELETE FROM ledger_entry WHERE idx = 4")
        .unwrap_err();
    assert!(deletion.contains("append-only"), "{deletion}");
    drop_triggers(&controller);
    database.run(change).unwrap();
    let output = controller.offline(&["verify-ledger"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("entry 1:"), "{said}");
}

#[test]
fn a_counter_that_lies_is_found_by_the_checker() {
    let mut controller = Controller::start();
    controller.tenant("acme", 1);
    controller.kill();
    controller
        .database()
        .run("UPDATE quota SET used = 1 WHERE resource = 'vms' AND scope = ''")
        .unwrap();
    let output = controller.offline(&["check"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("quota acme//vms")
    );
}

#[test]
fn with_a_last_entry_that_does_not_verify_it_does_not_start() {
    let mut controller = Controller::start();
    controller.tenant("acme", 1);
    controller.kill();
    drop_triggers(&controller);
    controller
        .database()
        .run("UPDATE ledger_entry SET body = body || ' ' WHERE idx = (SELECT MAX(idx) FROM ledger_entry)")
        .unwrap();
    let output = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("does not verify")
    );
}

#[test]
fn a_change_that_cannot_be_recorded_does_not_happen() {
    let controller = Controller::start();
    let tenant = controller.tenant("acme", 1);
    let database = controller.database();
    database
        .run_as(
            "CREATE TRIGGER disk_full BEFORE INSERT ON ledger_entry
             BEGIN SELECT RAISE(ABORT, 'disk full'); END",
            "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS
               $$ BEGIN RAISE EXCEPTION 'disk full'; END $$;
             CREATE TRIGGER disk_full BEFORE INSERT ON ledger_entry
               FOR EACH ROW EXECUTE FUNCTION disk_full()",
        )
        .unwrap();
    let admin = controller.admin();
    let body = crate::harness::tenant_body("late", 1);
    let error = admin
        .post("/v1/tenants", &body)
        .refused(503, "audit_unavailable");
    assert_eq!(error["retryable"], true);
    tenant.get("/v1/vms").expect(200);
    admin.get("/v1/tenants/late").refused(404, "not_found");
    let on_table = "DROP TRIGGER disk_full ON ledger_entry";
    database.run_as("DROP TRIGGER disk_full", on_table).unwrap();
    admin.post("/v1/tenants", &body).expect(201);
    controller.assert_sound();
}

#[test]
fn a_stop_does_not_wait_for_long_polls() {
    let mut controller = Controller::start();
    let mut agent = controller.agent("node-1", 4096);
    let poll = std::thread::spawn(move || agent.sync(25));
    let tenant = controller.tenant("acme", 1);
    tenant.get("/v1/vms").expect(200);
    let begun = std::time::Instant::now();
    let status = controller.terminate();
    assert!(status.success(), "{status:?}");
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    // Answered, or cut off if it had not arrived yet: either way it is over.
    drop(poll.join().unwrap());
    controller.assert_sound();
}

#[test]
fn an_address_that_others_can_reach_is_refused_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(binary())
        .arg("--state-dir")
        .arg(folder.path())
        .args(["serve", "--listen", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("not a loopback address") && said.contains("tls_certificate"),
        "{said}"
    );
}

#[test]
fn init_twice_changes_nothing() {
    let controller = Controller::start();
    let files = [
        "admin.token",
        "keys/token.key",
        "keys/task.key",
        "keys/ledger.key",
    ];
    let read = || files.map(|file| std::fs::read(controller.folder().join(file)).unwrap());
    let before = read();
    assert!(controller.offline(&["init"]).status.success());
    assert_eq!(before, read());
}

/// Copy the database's files into another folder, or back. Nobody has them open.
pub(crate) fn copy_database(from: &std::path::Path, to: &std::path::Path) {
    for name in ["berth.db", "berth.db-wal", "berth.db-shm"] {
        let target = to.join(name);
        if target.exists() {
            std::fs::remove_file(&target).unwrap();
        }
        if from.join(name).exists() {
            std::fs::copy(from.join(name), target).unwrap();
        }
    }
}

/// A controller that serves, and its database as it was some changes ago.
fn with_yesterdays_database() -> (Controller, tempfile::TempDir) {
    let mut controller = Controller::start_on(crate::database::TestDatabase::sqlite);
    controller.tenant("acme", 1);
    controller.kill();
    let yesterday = tempfile::tempdir().unwrap();
    copy_database(controller.folder(), yesterday.path());
    controller.restart();
    (controller, yesterday)
}

#[test]
fn a_database_that_went_back_in_time_is_not_served() {
    let (mut controller, yesterday) = with_yesterdays_database();
    let admin = controller.admin();
    let later = admin
        .post("/v1/tenants", &crate::harness::tenant_body("later", 1))
        .expect(201)
        .json();
    // A proof is given under a checkpoint that was anchored before it was shown.
    let index = later["audit_index"].as_u64().unwrap();
    let proof = admin
        .get(&format!("/v1/audit/proof/inclusion?index={index}"))
        .expect(200)
        .json();
    assert!(proof["size"].as_u64().unwrap() > index);
    assert!(
        proof["tlog_proof"]
            .as_str()
            .unwrap()
            .starts_with("c2sp.org/tlog-proof@v1\n")
    );
    controller.kill();
    copy_database(yesterday.path(), controller.folder());
    let refused = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(refused.status.code(), Some(78), "{refused:?}");
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("went back in time"), "{said}");
    assert!(said.contains("new-epoch"), "{said}");
    let begun = controller.offline(&["new-epoch", "--reason", "the newer disk burnt"]);
    assert!(begun.status.success(), "{begun:?}");
    controller.restart();
    let admin = controller.admin();
    let head = admin.get("/v1/audit/head").expect(200).json();
    assert!(head["origin"].as_str().unwrap().ends_with("/e2"), "{head}");
    let first = &audit_bodies(&admin, "event_type=LEDGER_EPOCH_BEGUN")[0]["detail"]["previous"];
    assert_eq!(first["reason"], "the newer disk burnt");
    let known = first["checkpoint"].as_str().unwrap();
    assert!(
        known.contains(&format!("/e1\n{}\n", proof["size"])),
        "{known}"
    );
    controller.assert_sound();
}

#[test]
fn a_database_that_is_restored_under_a_running_controller_ends_it() {
    let (mut controller, yesterday) = with_yesterdays_database();
    let later = controller
        .admin()
        .post("/v1/tenants", &crate::harness::tenant_body("later", 1))
        .expect(201)
        .json();
    let path = format!("/v1/audit/proof/inclusion?index={}", later["audit_index"]);
    controller.admin().get(&path).expect(200);
    let old = rusqlite::Connection::open(yesterday.path().join("berth.db")).unwrap();
    let mut live = rusqlite::Connection::open(controller.folder().join("berth.db")).unwrap();
    let restore = rusqlite::backup::Backup::new(&old, &mut live).unwrap();
    restore
        .run_to_completion(1_000, std::time::Duration::ZERO, None)
        .unwrap();
    assert_eq!(controller.ended().code(), Some(78));
    let refused = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains("went back in time"), "{said}");
}

#[test]
fn an_anchor_of_another_history_is_not_served_over() {
    let mut controller = Controller::start_on(crate::database::TestDatabase::sqlite);
    controller.tenant("acme", 1);
    controller.kill();
    let anchor = controller.folder().join("anchor/checkpoint");
    let note = std::fs::read_to_string(&anchor).unwrap();
    for (wrong, words) in [
        (note.replace("/e1\n", "/e9\n"), "is not a checkpoint"),
        ("nonsense".to_owned(), "is not a checkpoint"),
    ] {
        std::fs::write(&anchor, wrong).unwrap();
        let refused = controller.offline(&["serve", "--listen", "127.0.0.1:0"]);
        assert_eq!(refused.status.code(), Some(78), "{refused:?}");
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(said.contains(words), "{said}");
    }
    std::fs::write(&anchor, note).unwrap();
    controller.restart();
    controller.admin().get("/v1/audit/head").expect(200);
}
