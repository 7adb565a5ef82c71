//! What operators do with slots through the controller, and what tenants may ask for.

use berth_api::rest::{QuarantineSlot, Slot, SlotClass, StoredReceipt};
use berth_api::slot::SlotState;
use clap::Subcommand;
use serde::Serialize;
use serde_json::{Value, json};

use super::receipts::{self, ReceiptArguments};
use crate::client::Path;
use crate::command::catalogue::price_cell;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with slots through the controller.
#[derive(Subcommand, Debug)]
pub(crate) enum RemoteSlotCommand {
    /// List the slots of all hosts (operators)
    List {
        /// Only those in this state, such as free or quarantined
        #[arg(long)]
        state: Option<String>,
        /// Only this class
        #[arg(long)]
        class: Option<String>,
        /// Only this node's, by its id
        #[arg(long)]
        node: Option<String>,
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// List the classes of slots that VMs can have
    Classes,
    /// Show one slot: what it is, who has it, what stands against it (operators)
    Show {
        /// Its id, `slot_…`
        slot: String,
    },
    /// Let tenants have a slot that its host's owner has approved (operators)
    ///
    /// Two people have to agree: `slot approve` on the host says that these devices may be given
    /// away at all, this says that they may be given to tenants from here on. It holds for the class
    /// and the devices as they are now; if they change, it has to be said again.
    Admit {
        /// Its id, `slot_…`
        slot: String,
    },
    /// Give a slot to nobody from here on; a VM that has it keeps it (operators)
    Quarantine {
        /// Its id, `slot_…`
        slot: String,
        /// Why
        #[arg(long)]
        reason: String,
    },
    /// Take a slot out of quarantine by way of a wipe (operators)
    Release {
        /// Its id, `slot_…`
        slot: String,
    },
    /// Wipe a free slot (operators)
    Wipe {
        /// Its id, `slot_…`
        slot: String,
    },
    /// The newest signed statements of a slot's host about it (operators)
    Receipts {
        /// Its id, `slot_…`
        slot: String,
        #[command(flatten)]
        output: ReceiptArguments,
    },
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: RemoteSlotCommand) -> Result<(), Failure> {
    let path = |slot: &str| Path::of(&["v1", "slots", slot]);
    let verb = |slot: &str, verb: &str| Path::of(&["v1", "slots", slot, verb]);
    let reply = match command {
        RemoteSlotCommand::List {
            state,
            class,
            node,
            limit,
        } => {
            let path = Path::of(&["v1", "slots"])
                .with("state", state)
                .with("class", class)
                .with("node", node);
            let items = session.client.list(&path, limit)?;
            return session.show_list(&items, list_table);
        }
        RemoteSlotCommand::Classes => {
            let items = session
                .client
                .list(&Path::of(&["v1", "slot-classes"]), None)?;
            return session.show_list(&items, classes_table);
        }
        RemoteSlotCommand::Receipts { slot, output } => {
            let shown: Value = session.client.get(path(&slot))?.read()?;
            let items = shown.get("receipts").and_then(Value::as_array).cloned();
            return receipts::show(session, &items.unwrap_or_default(), &output);
        }
        RemoteSlotCommand::Show { slot } => session.client.get(path(&slot))?,
        RemoteSlotCommand::Admit { slot } => session.client.post(verb(&slot, "approve"), None)?,
        RemoteSlotCommand::Quarantine { slot, reason } => {
            let body = json!(QuarantineSlot { reason });
            session
                .client
                .post(verb(&slot, "quarantine"), Some(&body))?
        }
        RemoteSlotCommand::Release { slot } => session
            .client
            .post(verb(&slot, "release-quarantine"), None)?,
        RemoteSlotCommand::Wipe { slot } => session.client.post(verb(&slot, "wipe"), None)?,
    };
    session.show(&reply, object_table)
}

/// Many slots.
#[must_use]
pub(crate) fn list_table(slots: &[Slot]) -> Table {
    let mut table = Table::new(&[
        "SLOT ID", "NAME", "CLASS", "STATE", "OBSTACLE", "VM", "TENANT", "NODE",
    ]);
    for slot in slots {
        let claim = slot.claim.as_ref();
        table.row([
            slot.id.into(),
            (&slot.name).into(),
            (&slot.class).into(),
            state_cell(slot),
            optional(slot.obstacle.as_ref()),
            optional(claim.map(|claim| claim.vm_id)),
            optional(claim.map(|claim| &claim.tenant_id)),
            slot.node_id.into(),
        ]);
    }
    table
}

/// One slot.
#[must_use]
pub(crate) fn object_table(slot: &Slot) -> Table {
    let problem = slot
        .problem
        .as_ref()
        .map(|problem| format!("{} ({})", problem.message, wire_word(&problem.code)));
    let admission = slot.admission.as_ref().map(|admission| {
        let holds = if admission.holds { "" } else { "; void" };
        format!("{} by {}{holds}", admission.at, admission.by)
    });
    let quarantine = slot.quarantine.as_ref().map(|quarantine| {
        format!(
            "{} ({}, {})",
            quarantine.reason, quarantine.by, quarantine.at
        )
    });
    let claim = slot.claim.as_ref();
    let devices: Vec<String> = slot
        .devices
        .iter()
        .map(|device| {
            let address = device
                .address
                .map_or_else(|| "absent".to_owned(), |address| address.to_string());
            format!("{} {address}", wire_word(&device.kind))
        })
        .collect();
    Table::of_object([
        ("slot", slot.id.into()),
        ("name", (&slot.name).into()),
        ("class", (&slot.class).into()),
        ("node", slot.node_id.into()),
        ("state", state_cell(slot)),
        ("host says", wire_word(&slot.host_state).into()),
        ("progress %", optional(slot.progress_percent)),
        ("obstacle", optional(slot.obstacle.as_ref())),
        ("problem", optional(problem)),
        ("admitted", optional(admission)),
        ("quarantined", optional(quarantine)),
        ("wipe required", yes_no(slot.wipe_required).into()),
        ("VM", optional(claim.map(|claim| claim.vm_id))),
        ("tenant", optional(claim.map(|claim| &claim.tenant_id))),
        ("claim", optional(claim.map(|claim| claim.claim_id))),
        ("claimed", optional(claim.map(|claim| &claim.claimed_at))),
        ("devices", devices.join(", ").into()),
        ("generation", slot.generation.into()),
        ("fencing epoch", slot.fencing_epoch.into()),
        ("reported", (&slot.reported_at).into()),
        ("newest receipt", newest(&slot.receipts)),
    ])
}

fn newest(receipts: &[StoredReceipt]) -> Cell {
    let newest = receipts.first();
    optional(
        newest.map(|receipt| format!("{} {} {}", receipt.kind, receipt.receipt_id, receipt.at)),
    )
}

/// Classes of slots.
#[must_use]
pub(crate) fn classes_table(classes: &[SlotClass]) -> Table {
    let mut table = Table::new(&["CLASS", "AVAILABLE", "FREE", "ALL", "PRICE"]);
    for class in classes {
        table.row([
            (&class.class).into(),
            (&class.available).into(),
            optional(class.free),
            optional(class.total),
            price_cell(class.price.as_ref()),
        ]);
    }
    table
}

pub(crate) fn yes_no(value: bool) -> &'static str {
    if value { "yes" } else { "no" }
}

fn state_cell(slot: &Slot) -> Cell {
    let tone = match slot.state {
        SlotState::Free if slot.claimable => Tone::Good,
        SlotState::Quarantined => Tone::Bad,
        SlotState::Free
        | SlotState::Discovered
        | SlotState::Unapproved
        | SlotState::Claimed
        | SlotState::Releasing
        | SlotState::Wiping
        | SlotState::Verifying => Tone::Caution,
        SlotState::InUse | SlotState::Retired => return wire_word(&slot.state).into(),
    };
    Cell::toned(&wire_word(&slot.state), tone)
}

/// A word of the contract as it is written there.
pub(crate) fn wire_word(value: &impl Serialize) -> String {
    serde_json::to_value(value)
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}
