//! `berthctl node`: the hosts that run VMs.

use std::collections::BTreeMap;

use berth_api::agent::TreeHead;
use berth_api::ids::TenantId;
use berth_api::rest::{ChangeNode, CreateJoinToken, IssuedJoinToken, Node};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::client::Path;
use crate::command::slot::remote::wire_word;
use crate::command::vm::{labels, parse_label};
use crate::duration::parse_seconds;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone, optional};

/// What can be done with nodes.
#[derive(Subcommand, Debug)]
pub(crate) enum NodeCommand {
    /// Make a token with which one new host may join, and print it, this once
    JoinToken {
        /// Only for a host of this name
        #[arg(long)]
        node_name: Option<String>,
        /// How long it is good for, 60s to 24h [default: 1h]
        #[arg(long, value_name = "DURATION", value_parser = parse_seconds)]
        ttl: Option<u64>,
        /// Print the token alone, for `$(…)`
        #[arg(long, conflicts_with = "json")]
        raw: bool,
    },
    /// List all nodes; a tenant sees those that it enrolled itself
    List {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one node
    Show {
        /// Its name or id
        node: String,
    },
    /// Change by what VMs are placed there; those that are there stay
    Update {
        /// Its name or id
        node: String,
        #[command(flatten)]
        changes: NodeChanges,
    },
    /// Give it no VMs from here on; those that are there stay
    Cordon {
        /// Its name or id
        node: String,
    },
    /// Give it VMs again
    Uncordon {
        /// Its name or id
        node: String,
    },
}

/// What can be changed; at least one must be given.
#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct NodeChanges {
    /// Whether it gets only VMs that fit nowhere else
    #[arg(long, value_name = "BOOL")]
    reserved: Option<bool>,
    /// Whose alone it is
    #[arg(long, value_name = "TENANT")]
    dedicated_to: Option<TenantId>,
    /// It is everybody's
    #[arg(long, conflicts_with = "dedicated_to")]
    shared: bool,
    /// Its zone
    #[arg(long)]
    zone: Option<String>,
    /// It has no zone
    #[arg(long, conflicts_with = "zone")]
    no_zone: bool,
    /// A label that VMs can ask for; may be repeated. Takes the place of all labels
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// It has no labels
    #[arg(long, conflicts_with = "labels")]
    no_labels: bool,
    /// VMs that may be placed there
    #[arg(long, value_name = "N")]
    max_vms: Option<u32>,
    /// As many VMs as fit may be placed there
    #[arg(long, conflicts_with = "max_vms")]
    no_max_vms: bool,
}

impl From<NodeChanges> for ChangeNode {
    fn from(changes: NodeChanges) -> Self {
        let names_labels = changes.no_labels || !changes.labels.is_empty();
        Self {
            reserved: changes.reserved,
            dedicated_to: set_or_taken(changes.dedicated_to, changes.shared),
            zone: set_or_taken(changes.zone, changes.no_zone),
            labels: names_labels.then(|| changes.labels.into_iter().collect()),
            max_vms_per_node: set_or_taken(changes.max_vms, changes.no_max_vms),
        }
    }
}

/// `null` takes a setting away; what is left out stays.
pub(super) fn set_or_taken<T>(set: Option<T>, is_taken: bool) -> Option<Option<T>> {
    match set {
        Some(value) => Some(Some(value)),
        None => is_taken.then_some(None),
    }
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: NodeCommand) -> Result<(), Failure> {
    match command {
        NodeCommand::JoinToken {
            node_name,
            ttl,
            raw,
        } => {
            let body = json!(CreateJoinToken {
                node_name,
                ttl_s: ttl
            });
            let path = Path::of(&["v1", "nodes", "join-tokens"]);
            let reply = session.client.post(path, Some(&body))?;
            if raw {
                let issued: IssuedJoinToken = reply.read()?;
                return session
                    .screen
                    .write(format!("{}\n", issued.token).as_bytes());
            }
            session.show(&reply, join_token_table)
        }
        NodeCommand::List { limit } => {
            let items = session.client.list(&Path::of(&["v1", "nodes"]), limit)?;
            session.show_list(&items, list_table)
        }
        NodeCommand::Show { node } => {
            let reply = session.client.get(Path::of(&["v1", "nodes", &node]))?;
            session.show(&reply, object_table)
        }
        NodeCommand::Update { node, changes } => {
            let body = json!(ChangeNode::from(changes));
            let reply = session
                .client
                .patch(Path::of(&["v1", "nodes", &node]), &body)?;
            session.show(&reply, object_table)
        }
        NodeCommand::Cordon { node } => order(session, &node, "cordon"),
        NodeCommand::Uncordon { node } => order(session, &node, "uncordon"),
    }
}

fn order(session: &mut Session, node: &str, verb: &str) -> Result<(), Failure> {
    let path = Path::of(&["v1", "nodes", node, verb]);
    let reply = session.client.post(path, None)?;
    session.show(&reply, object_table)
}

/// A join token just made.
#[must_use]
pub(crate) fn join_token_table(issued: &IssuedJoinToken) -> Table {
    Table::of_object([
        ("token", (&issued.token).into()),
        ("expires", (&issued.expires_at).into()),
        ("run on the host", (&issued.install_command).into()),
    ])
}

/// Many nodes.
#[must_use]
pub(crate) fn list_table(nodes: &[Node]) -> Table {
    let mut table = Table::new(&[
        "NODE ID",
        "NAME",
        "LIVENESS",
        "KVM",
        "VMS",
        "CPUS",
        "MEMORY MB",
        "USED MB",
        "OPEN TO",
        "ZONE",
        "HEARTBEAT",
    ]);
    for node in nodes {
        table.row([
            node.id.into(),
            (&node.name).into(),
            liveness(node),
            kvm(node),
            node.vms.into(),
            node.vcpus.into(),
            node.memory_mb.into(),
            node.memory_used_mb.into(),
            open_to(node),
            optional(node.zone.as_ref()),
            optional(node.last_heartbeat.as_ref()),
        ]);
    }
    table
}

/// One node.
#[must_use]
pub(crate) fn object_table(node: &Node) -> Table {
    Table::of_object([
        ("node", node.id.into()),
        ("name", (&node.name).into()),
        ("state", state(node)),
        ("liveness", liveness(node)),
        ("last heartbeat", optional(node.last_heartbeat.as_ref())),
        ("KVM usable", kvm(node)),
        ("open to", open_to(node)),
        ("cordoned", optional(node.cordoned_at.as_ref())),
        ("zone", optional(node.zone.as_ref())),
        ("labels", labels(&node.labels)),
        ("slots", slots(&node.slots)),
        ("VMs", node.vms.into()),
        ("max VMs", optional(node.max_vms_per_node)),
        ("CPUs", node.vcpus.into()),
        ("memory MB", node.memory_mb.into()),
        ("memory used MB", node.memory_used_mb.into()),
        ("disk MB", node.disk_mb.into()),
        ("boot id", (&node.boot_id).into()),
        ("agent version", (&node.agent_version).into()),
        ("ledger", ledger(node)),
    ])
}

fn state(node: &Node) -> Cell {
    let tone = if node.cordoned_at.is_some() {
        Tone::Caution
    } else {
        Tone::Good
    };
    Cell::toned(&node.state, tone)
}

fn liveness(node: &Node) -> Cell {
    if node.log.frozen.is_some() {
        return Cell::toned(&format!("{}, frozen", node.liveness), Tone::Bad);
    }
    let tone = match node.liveness.as_str() {
        "online" => Tone::Good,
        "suspect" => Tone::Caution,
        _ => Tone::Bad,
    };
    Cell::toned(&node.liveness, tone)
}

/// What the host has seen of the ledger, and whether it goes along.
fn ledger(node: &Node) -> Cell {
    let size = |head: &TreeHead| format!("{} entries of {}", head.size, head.origin);
    let seen = node.log.seen.as_ref().map_or("nothing".to_owned(), size);
    let Some(freeze) = &node.log.frozen else {
        return Cell::toned(&format!("seen: {seen}"), Tone::Good);
    };
    let shown = freeze
        .shown
        .as_ref()
        .map_or("nothing readable".to_owned(), size);
    let code = wire_word(&freeze.code);
    Cell::toned(
        &format!(
            "FROZEN ({code}): seen: {seen}; shown: {shown}; it starts, stops, deletes and wipes nothing"
        ),
        Tone::Bad,
    )
}

/// Who gets VMs placed there.
fn open_to(node: &Node) -> Cell {
    if node.cordoned_at.is_some() {
        return Cell::toned("nobody", Tone::Caution);
    }
    let who = match &node.dedicated_to {
        Some(tenant) => tenant.to_string(),
        None => "everybody".to_owned(),
    };
    let last = if node.reserved { ", at last" } else { "" };
    Cell::from(format!("{who}{last}").as_str())
}

/// Slots by class and state: `nvme: 3 free, 1 in_use`.
fn slots(slots: &BTreeMap<String, BTreeMap<String, u32>>) -> Cell {
    let classes: Vec<String> = slots
        .iter()
        .map(|(class, states)| {
            let counts: Vec<String> = states
                .iter()
                .map(|(state, count)| format!("{count} {state}"))
                .collect();
            format!("{class}: {}", counts.join(", "))
        })
        .collect();
    optional((!classes.is_empty()).then(|| classes.join("; ")))
}

fn kvm(node: &Node) -> Cell {
    if node.kvm {
        Cell::toned("yes", Tone::Good)
    } else {
        Cell::toned("no", Tone::Bad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_stays_and_what_is_taken_away_is_null() {
        assert_eq!(set_or_taken(Some(1), false), Some(Some(1)));
        assert_eq!(set_or_taken::<u32>(None, true), Some(None));
        assert_eq!(set_or_taken::<u32>(None, false), None);
        let body = json!(ChangeNode {
            zone: Some(None),
            reserved: Some(true),
            ..ChangeNode::default()
        });
        assert_eq!(body, json!({ "zone": null, "reserved": true }));
    }
}
