//! Waiting for a VM: a pure judgement of what was read, and a loop around it.
//!
//! It polls, so that it survives a restart of the controller and respects the tenant's rate limit.

use std::time::{Duration, Instant};

use berth_api::ids::{OperationId, VmId};
use berth_api::rest::{ErrorCode, Operation, Vm, VmState};
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser as _};
use serde_json::Value;

use crate::client::{Path, Reply};
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::session::Session;

const STATES: [&str; 11] = [
    "pending",
    "scheduling",
    "provisioning",
    "starting",
    "running",
    "stopping",
    "stopped",
    "failed",
    "unreachable",
    "deleting",
    "deleted",
];

/// The text of a state, as the API writes it.
#[must_use]
pub(crate) fn state_text(state: VmState) -> &'static str {
    match state {
        VmState::Pending => "pending",
        VmState::Scheduling => "scheduling",
        VmState::Provisioning => "provisioning",
        VmState::Starting => "starting",
        VmState::Running => "running",
        VmState::Stopping => "stopping",
        VmState::Stopped => "stopped",
        VmState::Failed => "failed",
        VmState::Unreachable => "unreachable",
        VmState::Deleting => "deleting",
        VmState::Deleted => "deleted",
    }
}

/// Accepts a state as the API writes it.
pub(crate) fn state_parser() -> impl clap::builder::TypedValueParser<Value = VmState> {
    PossibleValuesParser::new(STATES).try_map(|text| serde_json::from_value(text.into()))
}

/// The options of every command that can wait.
#[derive(Args, Clone, Debug)]
pub(crate) struct WaitArguments {
    /// Wait until it is done, or until the VM is in this state; progress goes to standard error
    #[arg(long, value_name = "STATE", num_args = 0..=1, require_equals = true, value_parser = state_parser())]
    pub(crate) wait: Option<Option<VmState>>,
    /// How long to wait, such as 90s or 5m
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_seconds)]
    pub(crate) timeout: u64,
}

impl WaitArguments {
    /// What to wait for, if at all, when `goal` is what the command leads to.
    #[must_use]
    pub(crate) fn goal(&self, goal: VmState) -> Option<VmState> {
        self.wait.map(|named| named.unwrap_or(goal))
    }
}

/// What is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    /// Which VM.
    pub(crate) vm: VmId,
    /// The operation that leads there; else the one that works on the VM, if any.
    pub(crate) operation: Option<OperationId>,
    /// Where it should go.
    pub(crate) state: VmState,
    /// How long to wait, in seconds.
    pub(crate) seconds: u64,
}

/// What one look at the VM says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Reached,
    Hopeless(String),
    Underway,
}

fn is_running(operation: &Operation) -> bool {
    operation.state == "running"
}

/// `operation` is the one that leads to the goal; with none, a VM at rest does not move again.
fn judge(vm: &Vm, operation: Option<&Operation>, wanted: VmState) -> Verdict {
    if vm.state == wanted {
        return Verdict::Reached;
    }
    let reason = |what: &str, why: Option<&berth_api::rest::StateReason>| {
        Verdict::Hopeless(match why {
            Some(why) => format!("{what}: {} ({})", why.message, why.code),
            None => what.to_owned(),
        })
    };
    match (vm.state, operation) {
        (VmState::Deleted, _) => reason("it is deleted", vm.state_reason.as_ref()),
        (_, Some(operation)) if operation.state == "failed" => reason(
            &format!("the {} failed", operation.kind),
            operation.error.as_ref(),
        ),
        (_, Some(operation)) if is_running(operation) => Verdict::Underway,
        (VmState::Failed, _) => reason("it failed", vm.state_reason.as_ref()),
        _ => Verdict::Underway,
    }
}

/// Wait for the goal; the VM as it is then.
pub(crate) fn wait_for(session: &mut Session, goal: &Goal) -> Result<Reply, Failure> {
    let started = Instant::now();
    let mut shown = String::new();
    for attempt in 0_u32.. {
        let mut pause = Duration::from_millis(if attempt < 8 { 250 } else { 1000 });
        match look(session, goal) {
            Ok(sight) => match judge(&sight.vm, sight.operation.as_ref(), goal.state) {
                Verdict::Reached => return Ok(sight.reply),
                Verdict::Hopeless(reason) => {
                    return Err(Failure::WaitHopeless {
                        what: sight.vm.name,
                        wanted: state_text(goal.state).to_owned(),
                        reason,
                    });
                }
                Verdict::Underway => show_phase(session, &mut shown, &sight.phase(), started),
            },
            Err(failure) => {
                pause = pause_after(&failure).ok_or(failure)?;
                show_phase(session, &mut shown, "waiting for the controller", started);
            }
        }
        if started.elapsed() + pause > Duration::from_secs(goal.seconds) {
            break;
        }
        std::thread::sleep(pause);
    }
    Err(Failure::WaitTimeout {
        what: goal.vm.to_string(),
        state: shown,
        wanted: state_text(goal.state).to_owned(),
        seconds: goal.seconds,
    })
}

/// A VM that is there, and the operation while the goal is not reached.
struct Sight {
    reply: Reply,
    vm: Vm,
    operation: Option<Operation>,
}

impl Sight {
    fn phase(&self) -> String {
        let state = state_text(self.vm.state);
        match &self.operation {
            Some(operation) if is_running(operation) && operation.phase != state => {
                format!("{state} ({})", operation.phase)
            }
            _ => state.to_owned(),
        }
    }
}

fn look(session: &Session, goal: &Goal) -> Result<Sight, Failure> {
    let reply = read_vm(session, goal)?;
    let vm: Vm = reply.read()?;
    let operation = match goal.operation.or(vm.operation) {
        Some(operation) if vm.state != goal.state => {
            let path = Path::of(&["v1", "operations", &operation.to_string()]);
            let operation: Operation = session.client.get(path)?.read()?;
            // What the VM's last operation came to says nothing about a goal that is not its own.
            Some(operation).filter(|one| goal.operation.is_some() || is_running(one))
        }
        _ => None,
    };
    Ok(Sight {
        reply,
        vm,
        operation,
    })
}

/// A VM that is gone is shown to those alone who wait for its end.
fn read_vm(session: &Session, goal: &Goal) -> Result<Reply, Failure> {
    let id = goal.vm.to_string();
    let found = session.client.get(Path::of(&["v1", "vms", &id]));
    match found {
        Err(Failure::Refused(refusal))
            if refusal.status == 404 && goal.state == VmState::Deleted =>
        {
            let path = Path::of(&["v1", "vms", &id, "wait"]).with("state", Some("deleted"));
            session.client.get(path.with("timeout", Some(1)))
        }
        found => found,
    }
}

/// How long to pause after a failure that passes by itself; nothing for any other.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what is not known to pass by itself does not"
)]
fn pause_after(failure: &Failure) -> Option<Duration> {
    let seconds = match failure {
        Failure::NotReachable { .. } | Failure::Transport { .. } => 1,
        Failure::Refused(refusal) => match refusal.code()? {
            ErrorCode::Starting => 1,
            ErrorCode::RateLimited => {
                let reset = refusal.body.get("reset").and_then(Value::as_u64);
                reset.unwrap_or(1).clamp(1, 60)
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Duration::from_secs(seconds))
}

/// A line for every new phase; on a terminal the line also counts the seconds.
fn show_phase(session: &mut Session, shown: &mut String, phase: &str, started: Instant) {
    let screen = &mut session.screen;
    if shown != phase || screen.is_live() {
        screen.progress(&format!("{:>4} s  {phase}", started.elapsed().as_secs()));
        phase.clone_into(shown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::rest::StateReason;

    fn vm(state: VmState) -> Vm {
        Vm {
            id: VmId::generate(),
            name: "web-1".to_owned(),
            tenant_id: "acme-corp".parse().unwrap(),
            project_id: berth_api::ids::ProjectId::default(),
            state,
            state_reason: (state == VmState::Failed).then(|| StateReason {
                code: "vmm_exit".to_owned(),
                message: "the VMM ended by signal 9".to_owned(),
            }),
            state_since: String::new(),
            state_deadline: None,
            overdue: false,
            desired_state: VmState::Running,
            generation: 1,
            size: None,
            vcpus: 1,
            memory_mb: 128,
            disk_gb: 1,
            image: "debian".to_owned(),
            node_id: None,
            slots: Vec::new(),
            placement: None,
            ssh_keys: Vec::new(),
            user_data_sha256: None,
            guest_token: false,
            booted_at: None,
            expires_at: None,
            auto_delete_on_stop: false,
            labels: std::collections::BTreeMap::new(),
            created_at: String::new(),
            operation: None,
        }
    }

    fn operation(state: &str) -> Operation {
        Operation {
            may_cancel: false,
            id: OperationId::generate(),
            vm_id: VmId::generate(),
            kind: "create".to_owned(),
            state: state.to_owned(),
            phase: "copying_disk".to_owned(),
            error: Some(StateReason {
                code: "image_missing".to_owned(),
                message: "the node has no such image".to_owned(),
            }),
            created_at: String::new(),
        }
    }

    #[track_caller]
    fn check(state: VmState, operation_state: Option<&str>, expected: &Verdict) {
        let operation = operation_state.map(operation);
        assert_eq!(
            &judge(&vm(state), operation.as_ref(), VmState::Running),
            expected
        );
    }

    #[test]
    fn a_wait_ends_when_the_state_is_there_or_can_no_longer_come() {
        let failed =
            Verdict::Hopeless("it failed: the VMM ended by signal 9 (vmm_exit)".to_owned());
        check(VmState::Running, Some("running"), &Verdict::Reached);
        check(VmState::Starting, Some("running"), &Verdict::Underway);
        check(VmState::Failed, None, &failed);
        check(VmState::Failed, Some("done"), &failed);
        check(
            VmState::Deleted,
            None,
            &Verdict::Hopeless("it is deleted".to_owned()),
        );
        check(
            VmState::Stopped,
            Some("failed"),
            &Verdict::Hopeless(
                "the create failed: the node has no such image (image_missing)".to_owned(),
            ),
        );
    }

    #[test]
    fn a_failed_vm_that_is_being_started_again_is_waited_for() {
        check(VmState::Failed, Some("running"), &Verdict::Underway);
    }

    #[test]
    fn every_state_that_can_be_waited_for_is_spelled_as_in_the_api() {
        for text in STATES {
            let state: VmState = serde_json::from_value(text.into()).unwrap();
            assert_eq!(state_text(state), text);
            assert_eq!(serde_json::to_value(state).unwrap(), text);
        }
    }
}
