//! What the daemon does with tasks that it must not obey, seen from its controller.

use berth_api::agent::{
    RefusalCode, SignedEnvelope, TASK_PAYLOAD_TYPE, Task, TaskAction, TaskOutcome, VmSpec,
};
use berth_api::ids::{NodeId, TaskId, VmId};
use berth_ledger::envelope::seal;
use berth_ledger::keys::SigningKey;

use crate::controller::Controller;
use crate::host::{Daemon, Host, now, token};

struct Bench {
    host: Host,
    controller: Controller,
    vm_id: VmId,
}

impl Bench {
    fn new() -> Self {
        let (host, controller) = (Host::new(), Controller::start());
        let joined = host.run(&["join", &token(&controller.url(), now() + 600)]);
        assert_eq!(joined.status, Some(0), "{}", joined.stderr);
        Self {
            host,
            controller,
            vm_id: VmId::generate(),
        }
    }

    fn task(&self, generation: u64, action: TaskAction) -> Task {
        Task {
            task_id: TaskId::generate(),
            node_id: self.controller.node_id,
            node_epoch: 1,
            vm_id: self.vm_id,
            tenant_id: "acme-corp".parse().unwrap(),
            generation,
            not_before: now(),
            expires_at: now() + 300,
            ledger_index: 0,
            action,
        }
    }

    fn create(&self, generation: u64) -> Task {
        let spec = VmSpec {
            name: "web".to_owned(),
            vcpus: 1,
            memory_mib: 128,
            disk_mib: 64,
            image: "debian-12".to_owned(),
        };
        self.task(
            generation,
            TaskAction::VmCreate {
                spec,
                claims: Vec::new(),
            },
        )
    }

    fn signed(&self, task: &Task) -> SignedEnvelope {
        seal(&self.controller.task_key, TASK_PAYLOAD_TYPE, task).unwrap()
    }

    fn outcome(&self, task_id: TaskId, envelope: SignedEnvelope) -> TaskOutcome {
        self.controller.send(task_id, envelope);
        self.controller.result(task_id).outcome
    }

    #[track_caller]
    fn assert_refused(&self, task: &Task, envelope: SignedEnvelope, expected: RefusalCode) {
        let outcome = self.outcome(task.task_id, envelope);
        let TaskOutcome::Refused { code, .. } = outcome else {
            panic!("{outcome:?} is no refusal");
        };
        assert_eq!(code, expected);
    }

    /// No folder of any VM.
    fn vms(&self) -> usize {
        std::fs::read_dir(self.host.path("state/vms"))
            .unwrap()
            .count()
    }
}

fn started(bench: &Bench) -> Daemon {
    let daemon = bench.host.daemon();
    assert_eq!(
        bench.controller.next_sync().node_id,
        bench.controller.node_id
    );
    daemon
}

#[test]
fn forged_misdirected_and_oversized_tasks_are_refused_reported_and_leave_nothing() {
    let bench = Bench::new();
    let policy = bench.host.path("policy.toml");
    std::fs::write(&policy, "max_vcpus = 2").unwrap();
    let config = format!("policy = {policy:?}");
    std::fs::write(bench.host.path("agent.toml"), config).unwrap();
    let _daemon = started(&bench);

    let forged = bench.create(1);
    let stranger = SigningKey::generate().unwrap();
    let envelope = seal(&stranger, TASK_PAYLOAD_TYPE, &forged).unwrap();
    bench.assert_refused(&forged, envelope, RefusalCode::BadSignature);

    let mut elsewhere = bench.create(1);
    elsewhere.node_id = NodeId::generate();
    bench.assert_refused(&elsewhere, bench.signed(&elsewhere), RefusalCode::WrongNode);

    let mut old = bench.create(1);
    old.expires_at = now() - 3600;
    bench.assert_refused(&old, bench.signed(&old), RefusalCode::ClockSkew);

    let mut oversized = bench.create(1);
    let TaskAction::VmCreate { spec, .. } = &mut oversized.action else {
        unreachable!("create() creates");
    };
    spec.vcpus = 3;
    bench.assert_refused(&oversized, bench.signed(&oversized), RefusalCode::Policy);

    assert_eq!(bench.vms(), 0);
}

#[test]
fn a_replayed_task_is_refused_also_by_the_next_agent() {
    let bench = Bench::new();
    let daemon = started(&bench);
    let delete = bench.task(5, TaskAction::VmDelete {});
    let outcome = bench.outcome(delete.task_id, bench.signed(&delete));
    assert!(matches!(outcome, TaskOutcome::Done { .. }), "{outcome:?}");
    let late = bench.create(4);
    bench.assert_refused(&late, bench.signed(&late), RefusalCode::OldGeneration);
    drop(daemon);
    std::fs::remove_file(bench.host.path("bus")).unwrap();
    let _daemon = started(&bench);
    let later = bench.create(5);
    bench.assert_refused(&later, bench.signed(&later), RefusalCode::OldGeneration);
    // The same task again is the same answer, and no second deletion.
    assert_eq!(
        bench.outcome(delete.task_id, bench.signed(&delete)),
        outcome
    );
}

#[test]
fn an_unknown_image_fails_and_leaves_the_tombstone_alone() {
    let bench = Bench::new();
    let _daemon = started(&bench);
    let create = bench.create(1);
    let outcome = bench.outcome(create.task_id, bench.signed(&create));
    assert!(
        matches!(
            outcome,
            TaskOutcome::Failed {
                code: berth_api::agent::FailureCode::ImageUnknown,
                ..
            }
        ),
        "{outcome:?}"
    );
    let folder = bench.host.path("state/vms").join(bench.vm_id.bare());
    let left: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["record.json"]);
}

#[test]
fn two_agents_never_work_on_one_state() {
    let bench = Bench::new();
    let _daemon = started(&bench);
    let second = bench.host.run(&["run"]);
    assert_eq!(second.status, Some(1));
    assert!(
        second.stderr.contains("another berth-agent runs"),
        "{}",
        second.stderr
    );
}
