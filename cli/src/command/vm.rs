//! `berthctl vm`: a tenant's guests.

use std::collections::BTreeMap;
use std::path::PathBuf;

use berth_api::agent::StopMode;
use berth_api::ids::{OperationId, VmId};
use berth_api::rest::{ChangeVm, CreateVm, Operation, SlotRequest, StopVm, Vm, VmSlot, VmState};
use berth_ledger::passport::Passport;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::client::{Path, Reply};
use crate::command::catalogue::operation_table;
use crate::command::node::set_or_taken;
use crate::command::slot::receipts::{self, ReceiptArguments};
use crate::command::slot::remote::wire_word;
use crate::console;
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};
use crate::wait::{Goal, WaitArguments, state_parser, state_text, wait_for};

pub(crate) mod placement;
mod seed;

use placement::{PlacementArguments, plan_table};
use seed::SeedArguments;

/// What can be done with VMs.
#[derive(Subcommand, Debug)]
pub(crate) enum VmCommand {
    /// Create a VM and start it
    Create {
        #[command(flatten)]
        shape: Box<VmShape>,
        /// Say what would become of it, and do nothing; an operator names the --tenant and sees each node
        #[arg(long, conflicts_with = "wait")]
        dry_run: bool,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// List VMs: the tenant's own, or all for an operator
    List {
        /// Only this tenant's (operators)
        #[arg(long)]
        tenant: Option<String>,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one VM
    Show {
        /// Its name or id
        vm: String,
    },
    /// Change what a VM is called, and when it ends by itself
    Update {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        changes: VmChanges,
    },
    /// Start a stopped or failed VM
    Start {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Stop a VM; its disk is kept
    Stop {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        how: StopArguments,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// Print what the guest wrote to its console
    Console {
        /// Its name or id
        vm: String,
        /// Go on printing what comes
        #[arg(long, short)]
        follow: bool,
        /// Only the last lines
        #[arg(long, value_name = "LINES")]
        tail: Option<usize>,
    },
    /// Delete a VM and its disk
    Delete {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        wait: WaitArguments,
    },
    /// What hosts have signed about the slots of a VM; of a deleted one by its id
    Receipts {
        /// Its name or id
        vm: String,
        #[command(flatten)]
        output: ReceiptArguments,
    },
    /// That the slots of a VM were wiped after whoever had them before; of a deleted one by its id
    Passport {
        /// Its name or id
        vm: String,
        /// Into this file instead of standard output; `receipt verify` checks it anywhere
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Wait until a VM is in a state
    Wait {
        /// Its name or id
        vm: String,
        /// Which state
        #[arg(long, default_value = "running", value_parser = state_parser())]
        state: VmState,
        /// How long to wait, such as 90s or 5m
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_seconds)]
        timeout: u64,
    },
}

/// What a new VM is like.
#[derive(Args, Debug)]
pub(crate) struct VmShape {
    /// 1 to 63 lower-case letters, digits and inner hyphens [default: made up]
    name: Option<String>,
    /// An image's name, as in `image list`
    #[arg(long)]
    image: String,
    /// A size's name, as in `size list`, instead of --vcpus and --memory-mb
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vcpus", "memory_mb"])]
    size: Option<String>,
    /// Number of vCPUs [default: 1]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Memory in MiB [default: 512]
    #[arg(long, value_name = "MIB")]
    memory_mb: Option<u64>,
    /// Root disk in GB [default: that of --size, or else the image's own size]
    #[arg(long, value_name = "GB")]
    disk_gb: Option<u32>,
    /// The tenant's project that it belongs to [default: default]
    #[arg(long)]
    project: Option<String>,
    /// Slots whose devices the guest gets; may be repeated: class=nvme, class=nvme,count=2 or id=slot_…
    #[arg(long = "slot", value_name = "SLOT", value_parser = parse_slot)]
    slots: Vec<SlotRequest>,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Delete it when so much time is over, such as 90s, 30m or 8h
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    ttl: Option<u64>,
    /// Delete it once it has stopped
    #[arg(long)]
    delete_on_stop: bool,
    #[command(flatten)]
    seed: SeedArguments,
    #[command(flatten)]
    placement: PlacementArguments,
    /// The tenant; must be the token's own
    #[arg(long)]
    tenant: Option<String>,
}

/// What can be changed; at least one must be given.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
pub(crate) struct VmChanges {
    /// Its new name
    #[arg(long)]
    name: Option<String>,
    /// A label; may be repeated. Takes the place of all labels
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// It has no labels
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// Delete it when so much time from now is over, such as 90s, 30m or 8h
    #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
    ttl: Option<u64>,
    /// No time deletes it
    #[arg(long, conflicts_with = "ttl")]
    no_ttl: bool,
    /// Whether it is deleted once it stops
    #[arg(long, value_name = "BOOL")]
    delete_on_stop: Option<bool>,
}

impl From<VmChanges> for ChangeVm {
    fn from(changes: VmChanges) -> Self {
        let names_labels = changes.no_labels || !changes.labels.is_empty();
        Self {
            name: changes.name,
            labels: names_labels.then(|| changes.labels.into_iter().collect()),
            ttl_seconds: set_or_taken(changes.ttl, changes.no_ttl),
            auto_delete_on_stop: changes.delete_on_stop,
        }
    }
}

/// How to stop a VM.
#[derive(Args, Debug)]
pub(crate) struct StopArguments {
    /// End it at once, as if its power were cut; what the guest has not written to its disk is lost
    #[arg(long)]
    hard: bool,
    /// How long the guest has to power itself off before it is ended, 1s to 1h [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = parse_stop_timeout, conflicts_with = "hard")]
    stop_timeout: Option<u32>,
}

impl StopArguments {
    /// What to send, where the controller's own choice is not the one.
    fn body(&self) -> Option<Value> {
        let asked = StopVm {
            mode: self.hard.then_some(StopMode::Hard),
            timeout_s: self.stop_timeout,
        };
        (asked != StopVm::default()).then(|| json!(asked))
    }
}

fn parse_stop_timeout(text: &str) -> Result<u32, String> {
    u32::try_from(parse_seconds(text)?)
        .ok()
        .filter(|seconds| (1..=3_600).contains(seconds))
        .ok_or_else(|| "must be 1s to 1h".to_owned())
}

impl VmShape {
    fn request(self) -> Result<CreateVm, Failure> {
        let shape = self;
        let mut request = CreateVm {
            name: shape.name,
            size: shape.size,
            vcpus: shape.vcpus,
            memory_mb: shape.memory_mb,
            disk_gb: shape.disk_gb,
            image: shape.image,
            tenant_id: shape.tenant,
            project_id: shape.project,
            slots: shape.slots,
            placement: shape.placement.into_request(),
            ttl_seconds: shape.ttl,
            auto_delete_on_stop: shape.delete_on_stop.then_some(true),
            labels: shape.labels.into_iter().collect(),
            ssh_keys: None,
            user_data: None,
            guest_token: false,
        };
        shape.seed.put_into(&mut request)?;
        Ok(request)
    }
}

fn parse_slot(text: &str) -> Result<SlotRequest, String> {
    let mut request = SlotRequest::default();
    for part in text.split(',') {
        match part.split_once('=') {
            Some(("class", class)) if request.class.is_none() && !class.is_empty() => {
                request.class = Some(class.to_owned());
            }
            Some(("count", count)) if request.count.is_none() => {
                let count = count.parse().map_err(|_| "count is a number".to_owned())?;
                request.count = Some(count);
            }
            Some(("id", id)) if request.slot_id.is_none() => {
                request.slot_id = Some(id.parse().map_err(|error| format!("{error}"))?);
            }
            _ => return Err("write it as class=NAME[,count=N] or id=slot_…".to_owned()),
        }
    }
    match (&request.class, &request.slot_id, request.count) {
        (Some(_), None, _) | (None, Some(_), None) => Ok(request),
        _ => Err("write it as class=NAME[,count=N] or id=slot_…".to_owned()),
    }
}

pub(super) fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as KEY=VALUE".to_owned()),
    }
}

fn path(vm: &str) -> Path {
    Path::of(&["v1", "vms", vm])
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: VmCommand) -> Result<(), Failure> {
    match command {
        VmCommand::Create {
            shape,
            dry_run: true,
            ..
        } => {
            let body = json!(shape.request()?);
            let path = Path::of(&["v1", "vms"]).with("dry_run", Some("plan"));
            let reply = session.client.post(path, Some(&body))?;
            session.show(&reply, plan_table)
        }
        VmCommand::Create { shape, wait, .. } => {
            let body = json!(shape.request()?);
            let reply = session.client.post(Path::of(&["v1", "vms"]), Some(&body))?;
            let vm: Vm = reply.read()?;
            let goal = goal(vm.id, vm.operation, wait.goal(VmState::Running), &wait);
            show_vm_after(session, &reply, goal)
        }
        VmCommand::List { tenant, limit } => {
            let path = Path::of(&["v1", "vms"]).with("tenant_id", tenant);
            let items = session.client.list(&path, limit)?;
            session.show_list(&items, list_table)
        }
        VmCommand::Show { vm } => {
            let reply = session.client.get(path(&vm))?;
            session.show(&reply, object_table)
        }
        VmCommand::Update { vm, changes } => {
            let body = json!(ChangeVm::from(changes));
            let reply = session.client.patch(path(&vm), &body)?;
            session.show(&reply, object_table)
        }
        VmCommand::Start { vm, wait } => {
            let reply = session.client.post(verb(&vm, "start"), None)?;
            show_operation_after(session, &reply, VmState::Running, &wait)
        }
        VmCommand::Stop { vm, how, wait } => {
            let body = how.body();
            let reply = session.client.post(verb(&vm, "stop"), body.as_ref())?;
            show_operation_after(session, &reply, VmState::Stopped, &wait)
        }
        VmCommand::Console { vm, follow, tail } => console::print(session, &vm, follow, tail),
        VmCommand::Delete { vm, wait } => {
            let reply = session.client.delete(path(&vm))?;
            show_operation_after(session, &reply, VmState::Deleted, &wait)
        }
        VmCommand::Receipts { vm, output } => {
            let items = session.client.list(&verb(&vm, "receipts"), None)?;
            receipts::show(session, &items, &output)
        }
        VmCommand::Passport { vm, output } => passport(session, &vm, output.as_deref()),
        VmCommand::Wait { vm, state, timeout } => {
            let goal = Goal {
                vm: id_of(session, &vm)?,
                operation: None,
                state,
                seconds: timeout,
            };
            show_vm_once(session, &goal)
        }
    }
}

/// What the controller gave is what is kept: nothing of it is believed here.
fn passport(
    session: &mut Session,
    vm: &str,
    output: Option<&std::path::Path>,
) -> Result<(), Failure> {
    let reply = session.client.get(verb(vm, "passport"))?;
    let passport: Passport = reply.read()?;
    let Some(path) = output else {
        return session.screen.show_json(&passport);
    };
    let text = serde_json::to_string_pretty(&passport).map_err(std::io::Error::from)?;
    std::fs::write(path, text + "\n").map_err(Failure::file("writing", path))?;
    let (file, slots) = (path.display().to_string(), passport.slots.len());
    session.screen.say(
        &json!({ "file": file, "vm_id": passport.vm_id, "slots": slots }),
        &format!(
            "wrote {file}: {slots} slots; check it anywhere with `berthctl receipt verify {file} --log-key KEY`, \
             the key from `berthctl ledger head`"
        ),
    )
}

/// A VM that is gone has no name any more, but an id says enough to wait for its end.
fn id_of(session: &Session, vm: &str) -> Result<VmId, Failure> {
    match vm.parse() {
        Ok(id) => Ok(id),
        Err(_name) => Ok(session.client.get(path(vm))?.read::<Vm>()?.id),
    }
}

fn verb(vm: &str, verb: &str) -> Path {
    Path::of(&["v1", "vms", vm, verb])
}

fn goal(
    vm: VmId,
    operation: Option<OperationId>,
    state: Option<VmState>,
    wait: &WaitArguments,
) -> Option<Goal> {
    state.map(|state| Goal {
        vm,
        operation,
        state,
        seconds: wait.timeout,
    })
}

/// Show the VM as it came, or as it is once the goal is reached.
fn show_vm_after(session: &mut Session, reply: &Reply, goal: Option<Goal>) -> Result<(), Failure> {
    match goal {
        None => session.show(reply, object_table),
        Some(goal) => show_vm_once(session, &goal),
    }
}

/// Wait for the goal and show the VM as it is then.
fn show_vm_once(session: &mut Session, goal: &Goal) -> Result<(), Failure> {
    let reply = wait_for(session, goal)?;
    session.show(&reply, object_table)
}

/// Show the operation as it came, or the VM once the operation's goal is reached.
fn show_operation_after(
    session: &mut Session,
    reply: &Reply,
    leads_to: VmState,
    wait: &WaitArguments,
) -> Result<(), Failure> {
    let Some(state) = wait.goal(leads_to) else {
        return session.show(reply, operation_table);
    };
    let operation: Operation = reply.read()?;
    let goal = goal(operation.vm_id, Some(operation.id), Some(state), wait);
    show_vm_after(session, reply, goal)
}

/// Many VMs.
#[must_use]
pub(crate) fn list_table(vms: &[Vm]) -> Table {
    let mut table = Table::new(&[
        "VM ID",
        "NAME",
        "TENANT",
        "STATE",
        "VCPUS",
        "MEMORY MB",
        "DISK GB",
        "IMAGE",
        "NODE",
    ]);
    for vm in vms {
        table.row([
            vm.id.into(),
            (&vm.name).into(),
            (&vm.tenant_id).into(),
            state_cell(vm.state),
            vm.vcpus.into(),
            vm.memory_mb.into(),
            vm.disk_gb.into(),
            (&vm.image).into(),
            optional(vm.node_id),
        ]);
    }
    table
}

/// One VM.
#[must_use]
pub(crate) fn object_table(vm: &Vm) -> Table {
    let reason = vm
        .state_reason
        .as_ref()
        .map(|reason| format!("{} ({})", reason.message, reason.code));
    Table::of_object([
        ("VM", vm.id.into()),
        ("name", (&vm.name).into()),
        ("tenant", (&vm.tenant_id).into()),
        ("state", state_cell(vm.state)),
        ("reason", optional(reason)),
        ("since", (&vm.state_since).into()),
        ("wanted", state_text(vm.desired_state).into()),
        ("size", optional(vm.size.as_ref())),
        ("vCPUs", vm.vcpus.into()),
        ("memory MB", vm.memory_mb.into()),
        ("disk GB", vm.disk_gb.into()),
        ("image", (&vm.image).into()),
        ("node", optional(vm.node_id)),
        ("slots", slots(&vm.slots)),
        ("SSH keys", key_names(&vm.ssh_keys)),
        ("user data", optional(vm.user_data_sha256.as_ref())),
        (
            "guest token",
            if vm.guest_token { "each run" } else { "-" }.into(),
        ),
        ("ends", optional(ending(vm))),
        ("labels", labels(&vm.labels)),
        ("created", (&vm.created_at).into()),
        ("operation", optional(vm.operation)),
    ])
}

/// What keys are called, or else their beginnings.
fn key_names(keys: &[String]) -> Cell {
    let names: Vec<String> = keys
        .iter()
        .map(|key| match key.splitn(3, ' ').nth(2) {
            Some(comment) if !comment.is_empty() => comment.to_owned(),
            Some(_) | None => key.chars().take(32).collect(),
        })
        .collect();
    optional((!names.is_empty()).then(|| names.join(", ")))
}

/// When it ends by itself, if it does.
fn ending(vm: &Vm) -> Option<String> {
    match (&vm.expires_at, vm.auto_delete_on_stop) {
        (None, false) => None,
        (None, true) => Some("once it stops".to_owned()),
        (Some(at), false) => Some(at.clone()),
        (Some(at), true) => Some(format!("{at}, or once it stops")),
    }
}

/// The slots that a VM has; with their problems, where they have some.
fn slots(slots: &[VmSlot]) -> Cell {
    let texts: Vec<String> = slots
        .iter()
        .map(|slot| match &slot.problem {
            None => format!("{} {} {}", slot.slot_id, slot.class, wire_word(&slot.state)),
            Some(problem) => format!(
                "{} {} {} ({})",
                slot.slot_id,
                slot.class,
                wire_word(&slot.state),
                wire_word(&problem.code)
            ),
        })
        .collect();
    optional((!texts.is_empty()).then(|| texts.join(", ")))
}

pub(super) fn labels(labels: &BTreeMap<String, String>) -> Cell {
    let texts: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    optional((!texts.is_empty()).then(|| texts.join(" ")))
}

fn state_cell(state: VmState) -> Cell {
    let tone = match state {
        VmState::Running => Tone::Good,
        VmState::Failed | VmState::Unreachable => Tone::Bad,
        VmState::Pending
        | VmState::Scheduling
        | VmState::Provisioning
        | VmState::Starting
        | VmState::Stopping
        | VmState::Deleting => Tone::Caution,
        VmState::Stopped | VmState::Deleted => return state_text(state).into(),
    };
    Cell::toned(state_text(state), tone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_stop_sends_no_body_and_others_say_what_differs() {
        let body = |hard, stop_timeout| StopArguments { hard, stop_timeout }.body();
        assert_eq!(body(false, None), None);
        assert_eq!(
            body(true, None),
            Some(json!({ "mode": "hard", "timeout_s": null }))
        );
        assert_eq!(
            body(false, Some(90)),
            Some(json!({ "mode": null, "timeout_s": 90 }))
        );
    }

    #[test]
    fn a_guest_has_from_a_second_to_an_hour() {
        for (text, seconds) in [("1s", 1), ("90", 90), ("1h", 3_600)] {
            assert_eq!(parse_stop_timeout(text), Ok(seconds), "{text}");
        }
        for text in ["0", "3601s", "2h", "", "1d", "4294967297s"] {
            assert!(parse_stop_timeout(text).is_err(), "{text}");
        }
    }

    #[test]
    fn slots_are_asked_for_by_class_or_by_id() {
        let of_class = |count| SlotRequest {
            class: Some("nvme".to_owned()),
            count,
            ..SlotRequest::default()
        };
        assert_eq!(parse_slot("class=nvme"), Ok(of_class(None)));
        assert_eq!(parse_slot("class=nvme,count=2"), Ok(of_class(Some(2))));
        assert_eq!(parse_slot("count=2,class=nvme"), Ok(of_class(Some(2))));
        let id = berth_api::ids::SlotId::generate();
        let one = SlotRequest {
            slot_id: Some(id),
            ..SlotRequest::default()
        };
        assert_eq!(parse_slot(&format!("id={id}")), Ok(one));
        for wrong in [
            "",
            "nvme",
            "class=",
            "count=2",
            "class=a,class=b",
            "class=a,count=x",
            "id=vm_x",
            "class=a,id=slot_x",
            "class=a,mig=1",
        ] {
            assert!(parse_slot(wrong).is_err(), "{wrong}");
        }
        parse_slot(&format!("id={id},count=2")).unwrap_err();
        parse_slot(&format!("id={id},class=nvme")).unwrap_err();
    }

    #[test]
    fn a_label_needs_a_key_and_may_have_any_value() {
        let pair = |key: &str, value: &str| Ok((key.to_owned(), value.to_owned()));
        assert_eq!(parse_label("a=b"), pair("a", "b"));
        assert_eq!(parse_label("a=b=c"), pair("a", "b=c"));
        assert_eq!(parse_label("a="), pair("a", ""));
        parse_label("a").unwrap_err();
        parse_label("=b").unwrap_err();
    }
}
