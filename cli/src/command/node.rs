//! `berthctl node`: the hosts that run VMs.

use berth_api::agent::TreeHead;
use berth_api::rest::{CreateJoinToken, IssuedJoinToken, Node};
use clap::Subcommand;
use serde_json::json;

use crate::client::Path;
use crate::command::slot::remote::wire_word;
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
    /// List all nodes
    List {
        /// At most this many
        #[arg(long, value_name = "N")]
        limit: Option<u32>,
    },
    /// Show one node
    Show {
        /// Its id, `node_…`
        node: String,
    },
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
    }
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
        ("liveness", liveness(node)),
        ("last heartbeat", optional(node.last_heartbeat.as_ref())),
        ("KVM usable", kvm(node)),
        ("VMs", node.vms.into()),
        ("CPUs", node.vcpus.into()),
        ("memory MB", node.memory_mb.into()),
        ("memory used MB", node.memory_used_mb.into()),
        ("boot id", (&node.boot_id).into()),
        ("agent version", (&node.agent_version).into()),
        ("ledger", ledger(node)),
    ])
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

fn kvm(node: &Node) -> Cell {
    if node.kvm {
        Cell::toned("yes", Tone::Good)
    } else {
        Cell::toned("no", Tone::Bad)
    }
}
