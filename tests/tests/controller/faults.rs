//! Files that end too early after a power cut, and an anchor that cannot be written.

use std::path::Path;

use serde_json::Value;

use crate::database::TestDatabase;
use crate::harness::{Client, Controller, audit_bodies, tenant_body};

/// Tenants that are made before a cut.
const TENANTS: usize = 12;

/// Make sure that everything up to now was shown to somebody, which anchors it.
fn be_shown_everything(admin: &Client, index: u64) -> u64 {
    let path = format!("/v1/audit/proof/inclusion?index={index}");
    let proof = admin.get(&path).expect(200).json();
    proof["size"].as_u64().unwrap()
}

fn index_of_new_tenant(admin: &Client, name: &str) -> u64 {
    let made = admin.post("/v1/tenants", &tenant_body(name, 1));
    let made = made.expect(201).json();
    made["audit_index"].as_u64().unwrap()
}

fn copy(from: &Path, to: &Path) {
    for name in ["berth.db", "berth.db-wal", "berth.db-shm"] {
        drop(std::fs::remove_file(to.join(name)));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// Take bytes from the end of a file; whether it had so many.
fn cut(file: &Path, bytes: u64) -> bool {
    let file = std::fs::OpenOptions::new().write(true).open(file).unwrap();
    let length = file.metadata().unwrap().len();
    let is_long = length > bytes;
    file.set_len(length.saturating_sub(bytes)).unwrap();
    is_long
}

/// What a power cut leaves of files that were not flushed, and worse. Whatever is missing, the
/// controller has all that it acknowledged, or says that it has not and signs nothing.
#[test]
fn files_that_end_too_early_are_complete_or_refused_and_never_signed_over() {
    let mut controller = Controller::start_on(TestDatabase::sqlite);
    let admin = controller.admin();
    let names: Vec<_> = (0..TENANTS).map(|n| format!("tenant-{n}")).collect();
    let indices = names.iter().map(|name| index_of_new_tenant(&admin, name));
    let last = indices.max().unwrap();
    let shown = be_shown_everything(&admin, last);
    controller.kill();
    let whole = tempfile::tempdir().unwrap();
    copy(controller.folder(), whole.path());
    let anchor = controller.folder().join("anchor/checkpoint");
    let anchored = std::fs::read(&anchor).unwrap();
    let mut refused = 0;
    let cuts = [0, 1, 24, 4096, 4120, 3 * 4120 + 100, 20 * 4120, 1 << 40]
        .map(|bytes| ("berth.db-wal", bytes))
        .into_iter()
        .chain([("berth.db", 1), ("berth.db", 4096), ("berth.db", 5000)]);
    for (file, bytes) in cuts {
        copy(whole.path(), controller.folder());
        std::fs::write(&anchor, &anchored).unwrap();
        let had_more = cut(&controller.folder().join(file), bytes);
        let what = format!("{file} without its last {bytes} bytes (it had more: {had_more})");
        match controller.try_restart() {
            Ok(()) => {
                let admin = controller.admin();
                let head = admin.get("/v1/audit/head").expect(200).json();
                assert!(head["size"].as_u64() >= Some(shown), "{what}: {head}");
                let created = audit_bodies(&admin, "event_type=TENANT_CREATED");
                for name in &names {
                    let is_it = |body: &Value| body["tenant_id"] == name.as_str();
                    assert_eq!(
                        created.iter().filter(|body| is_it(body)).count(),
                        1,
                        "{what}"
                    );
                }
                controller.kill();
                controller.assert_sound();
            }
            Err(refusal) => {
                refused += 1;
                assert!(matches!(refusal.code, Some(1 | 78)), "{what}: {refusal:?}");
                assert!(
                    refusal.said.contains("berth-controller: "),
                    "{what}: {refusal:?}"
                );
                assert_eq!(std::fs::read(&anchor).unwrap(), anchored, "{what}");
            }
        }
    }
    assert!(refused >= 4, "only {refused} cuts were found out");
    copy(whole.path(), controller.folder());
    controller.restart();
}

/// What could not be anchored is not shown; what was committed stays, and is shown once the anchor can be
/// written again. A kill in between, with the commit done and the anchor older, is the same.
#[test]
fn what_cannot_be_anchored_is_not_shown_and_is_not_lost() {
    let volume = tempfile::tempdir().unwrap();
    let folder = volume.path().join("anchor");
    let settings = format!("[ledger]\nanchor = \"{}/checkpoint\"\n", folder.display());
    let mut controller = Controller::serve_configured(&settings, "127.0.0.1:0");
    let admin = controller.admin();
    let index = index_of_new_tenant(&admin, "first");
    let before = be_shown_everything(&admin, index);
    // The other volume goes away: a file is where its folder was.
    let aside = volume.path().join("aside");
    std::fs::rename(&folder, &aside).unwrap();
    std::fs::write(&folder, "not a folder").unwrap();
    let hidden = index_of_new_tenant(&admin, "second");
    let path = format!("/v1/audit/proof/inclusion?index={hidden}");
    admin.get(&path).refused(404, "not_found");
    let head = admin.get("/v1/audit/head").expect(200).json();
    assert_eq!(head["size"].as_u64(), Some(before));
    controller.kill();
    std::fs::remove_file(&folder).unwrap();
    std::fs::rename(&aside, &folder).unwrap();
    controller.restart();
    let admin = controller.admin();
    assert!(be_shown_everything(&admin, hidden) > hidden);
    let third = index_of_new_tenant(&admin, "third");
    assert!(be_shown_everything(&admin, third) > third);
    controller.assert_sound();
}

/// A controller that dies amid its anchor leaves a part of the next one beside it.
#[test]
fn what_a_kill_left_beside_the_anchor_is_no_obstacle() {
    let mut controller = Controller::start();
    let admin = controller.admin();
    let index = index_of_new_tenant(&admin, "acme");
    be_shown_everything(&admin, index);
    controller.kill();
    let left = controller.folder().join("anchor/checkpoint.1.new");
    std::fs::write(left, "ledger.berth.internal/").unwrap();
    controller.restart();
    be_shown_everything(&controller.admin(), index);
    controller.assert_sound();
}

fn wait_until_published(admin: &Client, size: u64) {
    let published = || {
        let head = admin.get("/v1/audit/head").expect(200).json();
        head["published_size"].as_u64()
    };
    while published() < Some(size) {
        std::thread::yield_now();
    }
}

/// The public copy is an anchor that others keep: with the controller's own anchor gone, too, it still
/// tells that the database went back in time.
#[test]
fn a_database_that_is_older_than_the_public_copy_is_not_served() {
    let public = tempfile::tempdir().unwrap();
    let folder = public.path().display();
    let settings = format!("[publish]\nfolder = \"{folder}\"\nevery_seconds = 1\n");
    let mut controller = Controller::configured_on(TestDatabase::sqlite, &settings, "127.0.0.1:0");
    let admin = controller.admin();
    let first = index_of_new_tenant(&admin, "first");
    wait_until_published(&admin, first + 1);
    let ready = admin.get("/readyz").expect(200).json();
    assert_eq!(ready["checks"]["publication"], "ok");
    controller.kill();
    let yesterday = tempfile::tempdir().unwrap();
    copy(controller.folder(), yesterday.path());
    controller.restart();
    let second = index_of_new_tenant(&admin, "second");
    wait_until_published(&admin, second + 1);
    controller.kill();
    let checkpoint = public.path().join("e1/checkpoint");
    let shown = std::fs::read(&checkpoint).unwrap();
    copy(yesterday.path(), controller.folder());
    std::fs::remove_dir_all(controller.folder().join("anchor")).unwrap();
    let refusal = controller.try_restart().unwrap_err();
    assert_eq!(refusal.code, Some(78), "{refusal:?}");
    assert!(refusal.said.contains("are published"), "{refusal:?}");
    assert!(refusal.said.contains("new-epoch"), "{refusal:?}");
    assert_eq!(std::fs::read(&checkpoint).unwrap(), shown);
    let begun = controller.offline(&["new-epoch", "--reason", "the disk burnt"]);
    assert!(begun.status.success(), "{begun:?}");
    controller.restart();
    wait_until_published(&controller.admin(), 1);
    assert!(public.path().join("e2/checkpoint").exists());
    assert_eq!(std::fs::read(&checkpoint).unwrap(), shown);
}
