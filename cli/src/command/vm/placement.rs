//! Where a VM may and should go, as arguments; and what would become of one, as a table.

use std::collections::BTreeMap;

use berth_api::ids::NodeId;
use berth_api::rest::{
    AntiAffinity, AntiAffinityMode, NodeVerdict, NumaWish, PlacementRequest, PlanOutcome, VmPlan,
};
use clap::Args;

use super::parse_label;
use crate::command::slot::remote::wire_word;
use crate::table::{Cell, Table, Tone, optional};

/// Where a new VM may and should go.
#[derive(Args, Debug)]
pub(crate) struct PlacementArguments {
    /// Only this node, which must be dedicated to the tenant
    #[arg(long, value_name = "NODE_ID")]
    node: Option<NodeId>,
    /// Only nodes of this zone
    #[arg(long)]
    zone: Option<String>,
    /// Only nodes with this label; may be repeated
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = parse_label)]
    node_labels: Vec<(String, String)>,
    /// Not on a node where another VM of this group is
    #[arg(long, value_name = "GROUP")]
    apart_from: Option<String>,
    /// With --apart-from: rather beside another than nowhere
    #[arg(long, requires = "apart_from")]
    apart_if_possible: bool,
    /// All slots of one NUMA node, or no VM
    #[arg(long)]
    numa_strict: bool,
}

impl PlacementArguments {
    /// What to ask for, if anything.
    pub(crate) fn into_request(self) -> Option<PlacementRequest> {
        let mode = self
            .apart_if_possible
            .then_some(AntiAffinityMode::Preferred);
        let request = PlacementRequest {
            node: self.node,
            zone: self.zone,
            node_labels: self.node_labels.into_iter().collect(),
            anti_affinity: self.apart_from.map(|group| AntiAffinity { group, mode }),
            numa: self.numa_strict.then_some(NumaWish::Strict),
        };
        (request != PlacementRequest::default()).then_some(request)
    }
}

/// What would become of a VM; for operators with what is said of each node.
#[must_use]
pub(crate) fn plan_table(plan: &VmPlan) -> Table {
    let tone = match plan.outcome {
        PlanOutcome::Accepted => Tone::Good,
        PlanOutcome::Waits => Tone::Caution,
        PlanOutcome::Refused => Tone::Bad,
    };
    let refusal = plan.refusal.as_ref();
    let why = refusal.map(|refusal| format!("{} ({})", refusal.error, refusal.code.as_str()));
    let slots: Vec<String> = plan.slots.iter().map(ToString::to_string).collect();
    let mut table = Table::of_object([
        ("outcome", Cell::toned(&wire_word(&plan.outcome), tone)),
        ("why", optional(why)),
        ("reasons", counts(refusal.map(|refusal| &refusal.reasons))),
        ("node", optional(plan.node_id)),
        ("zone", optional(plan.zone.as_ref())),
        ("disk GB", optional(plan.disk_gb)),
        (
            "slots",
            optional((!slots.is_empty()).then(|| slots.join(", "))),
        ),
        ("charges", counts(Some(&plan.charges))),
    ]);
    for verdict in plan.candidates.iter().flatten() {
        table.row([
            format!("{} {}", verdict.node_id, verdict.name)
                .as_str()
                .into(),
            verdict_cell(verdict),
        ]);
    }
    table
}

fn counts<N: ToString>(counts: Option<&BTreeMap<String, N>>) -> Cell {
    let texts: Vec<String> = counts
        .into_iter()
        .flatten()
        .map(|(what, count)| format!("{what}={}", count.to_string()))
        .collect();
    optional((!texts.is_empty()).then(|| texts.join(" ")))
}

fn verdict_cell(verdict: &NodeVerdict) -> Cell {
    let Some(score) = verdict.score else {
        let why = verdict.rejection.as_deref().unwrap_or("does not fit");
        let slots: Vec<String> = verdict
            .reasons
            .iter()
            .filter(|(reason, _)| *reason != why)
            .map(|(reason, count)| format!(" {reason}={count}"))
            .collect();
        return Cell::toned(&format!("{why}{}", slots.concat()), Tone::Bad);
    };
    let mut text = format!("fits, {} MB left", score.memory_left_mb);
    for (holds, words) in [
        (score.reserved, "reserved"),
        (score.dedicated, "dedicated"),
        (!score.numa_local, "slots of several NUMA nodes"),
        (score.group_vms > 0, "beside others of the group"),
    ] {
        if holds {
            text.push_str(", ");
            text.push_str(words);
        }
    }
    Cell::toned(&text, Tone::Good)
}
