//! The agent as a witness of its controller's ledger: what it has seen it keeps, and what does not
//! continue that it does not obey.

use berth_api::agent::{
    FreezeCode, LEDGER_KEY_PAYLOAD_TYPE, LedgerKeyChange, LogReport, RefusalCode, SignedEnvelope,
    TASK_PAYLOAD_TYPE, Task, TaskAction, TaskOutcome,
};
use berth_api::ids::{TaskId, VmId};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;

use crate::controller::{Controller, LOG_KEY, log_by, log_of};
use crate::host::{Daemon, Host, now, token};

fn joined() -> (Host, Controller) {
    let (host, controller) = (Host::new(), Controller::start());
    let joined = host.run(&["join", &token(&controller.url(), now() + 600)]);
    assert_eq!(joined.status, Some(0), "{}", joined.stderr);
    (host, controller)
}

/// The first report of which this holds.
fn report(controller: &Controller, holds: impl Fn(&LogReport) -> bool) -> LogReport {
    loop {
        let report = controller.next_sync().log;
        if holds(&report) {
            return report;
        }
    }
}

fn has_seen(size: u64) -> impl Fn(&LogReport) -> bool {
    move |report| report.seen.as_ref().is_some_and(|seen| seen.size == size)
}

/// Order something destructive; what became of it.
fn delete(controller: &Controller) -> TaskOutcome {
    let task = Task {
        task_id: TaskId::generate(),
        node_id: controller.node_id,
        node_epoch: 1,
        vm_id: VmId::generate(),
        tenant_id: "acme-corp".parse().unwrap(),
        generation: 1,
        not_before: now(),
        expires_at: now() + 300,
        ledger_index: 0,
        action: TaskAction::VmDelete {},
    };
    let envelope = seal(&controller.task_key, TASK_PAYLOAD_TYPE, &task).unwrap();
    controller.send(task.task_id, envelope);
    controller.result(task.task_id).outcome
}

#[track_caller]
fn assert_frozen(outcome: &TaskOutcome) {
    let TaskOutcome::Refused { code, message } = outcome else {
        panic!("it was obeyed: {outcome:?}");
    };
    assert_eq!(*code, RefusalCode::LogFrozen, "{message}");
}

/// Order something destructive until it is obeyed. A reply that was made before the controller showed
/// another log may be read after one that was made then, and freezes once more.
fn assert_obeyed_again(controller: &Controller) {
    for _ in 0..10 {
        if !matches!(delete(controller), TaskOutcome::Refused { .. }) {
            return;
        }
    }
    panic!("it is refused still");
}

fn frozen(host: &Host, controller: &Controller) -> Daemon {
    let daemon = host.daemon();
    report(controller, has_seen(3));
    controller.show(Some(log_of(2)));
    // Something to answer wakes the poll that is held.
    assert_frozen(&delete(controller));
    daemon
}

#[test]
fn what_was_seen_is_kept_before_it_is_told_and_the_next_agent_goes_on_from_there() {
    let (host, controller) = joined();
    let daemon = host.daemon();
    report(&controller, has_seen(3));
    controller.show(Some(log_of(300)));
    drop(delete(&controller));
    let told = report(&controller, has_seen(300));
    assert!(told.cosignature.is_some() && told.frozen.is_none());
    let kept = std::fs::read_to_string(host.path("state/log.json")).unwrap();
    assert!(kept.contains("e1\\n300\\n"), "{kept}");
    drop(daemon);
    while controller.try_next_sync().is_some() {}
    let _next = host.daemon();
    // Its first word, before anybody has shown it anything.
    assert!(has_seen(300)(&controller.next_sync().log));
}

#[test]
fn a_ledger_that_went_back_is_not_obeyed_until_its_host_says_so() {
    let (host, controller) = joined();
    let refused = host.run(&["accept-rollback", "--reason", "x", "--yes"]);
    assert_eq!(refused.status, Some(1), "{}", refused.stdout);
    let daemon = frozen(&host, &controller);
    let told = report(&controller, |report| report.frozen.is_some());
    let freeze = told.frozen.unwrap();
    assert_eq!(freeze.code, FreezeCode::RolledBack);
    assert_eq!(freeze.shown.unwrap().size, 2);
    // Another agent on the same host does not forget.
    drop(daemon);
    let _daemon = host.daemon();
    assert_frozen(&delete(&controller));
    let shown = host.run(&["ledger"]);
    assert!(
        shown.stdout.contains("frozen: RolledBack"),
        "{}",
        shown.stdout
    );

    let unconfirmed = host.run(&["accept-rollback", "--reason", "the disk is lost"]);
    assert_eq!(unconfirmed.status, Some(1), "{}", unconfirmed.stdout);
    let accept = ["accept-rollback", "--reason", "the disk is lost", "--yes"];
    let accepted = host.run(&accept);
    assert_eq!(accepted.status, Some(0), "{}", accepted.stderr);
    assert!(accepted.stdout.contains("3 entries") && accepted.stdout.contains("2 entries"));
    // It is followed when the next sync is made; the answer to this one is still refused.
    drop(delete(&controller));
    let told = report(&controller, |report| report.accepted.is_some());
    assert!(told.frozen.is_none() && has_seen(2)(&told), "{told:?}");
    assert_obeyed_again(&controller);
}

/// One key of the log says that another comes after it.
fn key_change(old: u8, new: u8) -> SignedEnvelope {
    let key = |seed: u8| SigningKey::from_seed(&[seed; 32]).unwrap();
    let change = LedgerKeyChange {
        old: key(old).public().to_base64(),
        new: key(new).public().to_base64(),
        at: now(),
    };
    seal(&key(old), LEDGER_KEY_PAYLOAD_TYPE, &change).unwrap()
}

#[test]
fn a_new_key_of_the_ledger_is_followed_by_the_old_ones_word_and_by_no_other() {
    let (host, controller) = joined();
    let daemon = host.daemon();
    report(&controller, has_seen(3));
    let new = LOG_KEY + 1;
    *controller.key_changes.lock().unwrap() = vec![key_change(LOG_KEY, new)];
    controller.show(Some(log_by(new, 7)));
    drop(delete(&controller));
    let told = report(&controller, has_seen(7));
    assert!(told.frozen.is_none(), "{told:?}");
    // The next agent knows it from the disk alone.
    drop(daemon);
    while controller.try_next_sync().is_some() {}
    controller.key_changes.lock().unwrap().clear();
    controller.show(Some(log_by(new, 9)));
    let _next = host.daemon();
    let told = report(&controller, has_seen(9));
    assert!(told.frozen.is_none(), "{told:?}");
    // One that names itself, and one that only the key before names.
    for stranger in [
        vec![key_change(new + 1, new + 1)],
        vec![key_change(LOG_KEY, new + 1)],
    ] {
        *controller.key_changes.lock().unwrap() = stranger;
        controller.show(Some(log_by(new + 1, 11)));
        assert_frozen(&delete(&controller));
        let told = report(&controller, |report| report.frozen.is_some());
        assert_eq!(told.frozen.unwrap().code, FreezeCode::NotSigned);
        assert_eq!(told.seen.unwrap().size, 9);
    }
}

#[test]
fn the_newer_database_restored_ends_the_freeze_by_itself() {
    let (host, controller) = joined();
    let _daemon = frozen(&host, &controller);
    controller.show(Some(log_of(7)));
    assert_obeyed_again(&controller);
    let goes_on = |report: &LogReport| has_seen(7)(report) && report.frozen.is_none();
    report(&controller, goes_on);
}

#[test]
fn a_controller_that_shows_no_ledger_is_not_obeyed() {
    let (host, controller) = joined();
    let _daemon = host.daemon();
    report(&controller, has_seen(3));
    controller.show(None);
    assert_frozen(&delete(&controller));
    controller.show(Some(log_of(3)));
    assert_obeyed_again(&controller);
}
