//! What monitoring reads: requests as they were answered, and what the database holds at that moment.
//!
//! Names and labels are a promise to dashboards. Labels come from our own table of routes, from states
//! and from ids that were checked; nothing that a caller wrote becomes a label.

use std::fmt;
use std::time::Duration;

use berth_api::rest::WitnessStatus;
use berth_api::slot::SlotState;
use berth_controller_store::Gauges;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::ledger_desk::Shown;
use crate::publisher::Progress;

/// What [`Metrics::page`] is, as HTTP calls it.
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Upper ends of the times that are told apart, in seconds: from a read of memory to a long poll.
const SECONDS: [f64; 9] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 30.0];

/// A label's names and values.
type Labels = Vec<(&'static str, String)>;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: &'static str,
    code: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Route {
    method: &'static str,
    route: &'static str,
}

/// What is counted while the controller serves.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    answered: Family<Answered, Counter>,
    seconds: Family<Route, Histogram>,
    differences: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("berth");
        let answered = Family::default();
        let seconds = Family::<Route, Histogram>::new_with_constructor(times as fn() -> Histogram);
        let differences = Gauge::default();
        registry.register("http_requests", "Requests answered", answered.clone());
        registry.register(
            "http_request_seconds",
            "Time from a request's head to its answer's head",
            seconds.clone(),
        );
        registry.register(
            "quota_inconsistency",
            "Counters that differed from their rows when these were last counted; must be 0",
            differences.clone(),
        );
        Self {
            registry,
            answered,
            seconds,
            differences,
        }
    }

    /// A request of this route was answered.
    pub(crate) fn answered(
        &self,
        method: &'static str,
        route: &'static str,
        code: u16,
        time: Duration,
    ) {
        let label = Answered {
            method,
            route,
            code: code.into(),
        };
        self.answered.get_or_create(&label).inc();
        self.seconds
            .get_or_create(&Route { method, route })
            .observe(time.as_secs_f64());
    }

    /// So many counters differ from their rows.
    pub(crate) fn counted_again(&self, differences: usize) {
        self.differences
            .set(i64::try_from(differences).unwrap_or(i64::MAX));
    }

    /// Whether no counter differed when they were last counted.
    pub(crate) fn counters_agree(&self) -> bool {
        self.differences.get() == 0
    }

    /// Everything, in the form that Prometheus reads.
    pub(crate) fn page(
        &self,
        gauges: &Gauges,
        ledger: &LedgerGauges,
    ) -> Result<String, fmt::Error> {
        let mut page = String::new();
        encode_registry(&mut page, &self.registry)?;
        encode_registry(&mut page, &what_there_is(gauges, ledger))?;
        encode_eof(&mut page)?;
        Ok(page)
    }
}

/// How the ledger stands.
#[derive(Debug)]
pub(crate) struct LedgerGauges {
    /// What others may see.
    pub(crate) shown: Shown,
    /// Who cosigns it.
    pub(crate) witnesses: Vec<WitnessStatus>,
    /// How far the public copy is, if there is one.
    pub(crate) publication: Option<Progress>,
}

fn what_there_is(gauges: &Gauges, ledger: &LedgerGauges) -> Registry {
    let mut registry = Registry::with_prefix("berth");
    let mut add = |name, help, values: Vec<(Labels, u64)>| {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in values {
            family.get_or_create(&labels).set(number(value));
        }
        registry.register(name, help, family);
    };
    let vms = gauges.vms.iter().map(|((tenant, state), count)| {
        let labels = vec![("tenant", tenant.clone()), ("state", state.clone())];
        (labels, *count)
    });
    add("vms", "VMs that are not deleted", vms.collect());
    let overdue = gauges
        .overdue_vms
        .iter()
        .map(|(state, count)| (vec![("state", state.clone())], *count));
    add(
        "vm_state_overdue",
        "VMs that should have left their state by now",
        overdue.collect(),
    );
    let slots = gauges.slots.iter().map(|((class, state), count)| {
        let labels = vec![("class", class.clone()), ("state", state_word(*state))];
        (labels, *count)
    });
    add("slots", "Slots", slots.collect());
    let nodes = gauges
        .nodes
        .iter()
        .map(|(state, count)| (vec![("state", (*state).to_owned())], *count));
    add("nodes", "Nodes by what is heard of them", nodes.collect());
    let tasks = gauges
        .pending_tasks
        .iter()
        .map(|(kind, count)| (vec![("kind", kind.clone())], *count));
    add(
        "pending_tasks",
        "Tasks not answered by a host",
        tasks.collect(),
    );
    let quota = |value: fn(&berth_controller_store::QuotaGauge) -> Option<u64>| {
        let of_all = gauges.quotas.iter().filter_map(move |quota| {
            let labels = vec![
                ("tenant", quota.tenant.clone()),
                ("resource", quota.resource.clone()),
            ];
            Some((labels, value(quota)?))
        });
        of_all.collect()
    };
    add("quota_limit", "Ceilings", quota(|quota| quota.limit));
    add("quota_used", "Charges", quota(|quota| Some(quota.used)));
    add(
        "build_info",
        "The controller that runs",
        vec![(vec![("version", env!("CARGO_PKG_VERSION").to_owned())], 1)],
    );
    let of_witnesses = |value: fn(&WitnessStatus) -> u64| {
        let all = ledger.witnesses.iter().map(move |witness| {
            let labels = vec![("witness", witness.name.clone())];
            (labels, value(witness))
        });
        all.collect()
    };
    add(
        "ledger_cosigned_size",
        "Entries of the newest checkpoint that a witness cosigned",
        of_witnesses(|witness| witness.cosigned_size.unwrap_or(0)),
    );
    add(
        "ledger_witness_up",
        "Whether a witness cosigned when it was asked last",
        of_witnesses(|witness| u64::from(witness.problem.is_none())),
    );
    let mut add = |name, help, value| {
        let gauge = Gauge::<i64>::default();
        gauge.set(value);
        registry.register(name, help, gauge);
    };
    add(
        "ledger_entries",
        "Entries of the ledger that others were shown",
        number(ledger.shown.size),
    );
    if let Some(publication) = ledger.publication {
        add(
            "ledger_published_entries",
            "Entries of the ledger that are in its public copy",
            number(publication.size.unwrap_or(0)),
        );
        add(
            "ledger_publication_up",
            "Whether the public copy could be written when that was tried last",
            i64::from(!publication.is_failing),
        );
    }
    registry
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn times() -> Histogram {
    Histogram::new(SECONDS)
}

/// A state as it is on the wire.
fn state_word(state: SlotState) -> String {
    serde_json::to_value(state)
        .ok()
        .and_then(|word| word.as_str().map(ToOwned::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use berth_controller_store::QuotaGauge;
    use berth_ledger::merkle::Hash;

    use super::*;

    #[test]
    fn a_page_has_what_was_answered_and_what_there_is() {
        let metrics = Metrics::new();
        for time in [Duration::from_millis(2), Duration::from_millis(400)] {
            metrics.answered("get", "/v1/vms/{vm}", 200, time);
        }
        metrics.counted_again(3);
        assert!(!metrics.counters_agree());
        let quota = |resource: &str, limit| QuotaGauge {
            tenant: "acme".to_owned(),
            resource: resource.to_owned(),
            limit,
            used: 4,
        };
        let gauges = Gauges {
            vms: BTreeMap::from([(("acme".to_owned(), "running".to_owned()), 2)]),
            overdue_vms: BTreeMap::from([("starting".to_owned(), 3)]),
            slots: BTreeMap::from([(("gpu".to_owned(), SlotState::InUse), 1)]),
            nodes: BTreeMap::from([("online", 7)]),
            pending_tasks: BTreeMap::from([("vm_create".to_owned(), 5)]),
            quotas: vec![quota("vms", Some(10)), quota("vcpus", None)],
        };
        let ledger = LedgerGauges {
            shown: Shown {
                origin: "ledger.example/e1".to_owned(),
                size: 99,
                root: Hash([0; 32]),
                note: String::new(),
            },
            witnesses: Vec::new(),
            publication: Some(Progress {
                size: Some(90),
                is_failing: true,
            }),
        };
        let page = metrics.page(&gauges, &ledger).unwrap();
        for line in [
            r#"berth_http_requests_total{method="get",route="/v1/vms/{vm}",code="200"} 2"#,
            r#"berth_http_request_seconds_bucket{le="0.0025",method="get",route="/v1/vms/{vm}"} 1"#,
            "berth_quota_inconsistency 3",
            r#"berth_vms{tenant="acme",state="running"} 2"#,
            r#"berth_vm_state_overdue{state="starting"} 3"#,
            r#"berth_slots{class="gpu",state="in_use"} 1"#,
            r#"berth_nodes{state="online"} 7"#,
            r#"berth_pending_tasks{kind="vm_create"} 5"#,
            r#"berth_quota_limit{tenant="acme",resource="vms"} 10"#,
            r#"berth_quota_used{tenant="acme",resource="vcpus"} 4"#,
            "berth_ledger_entries 99",
            "berth_ledger_published_entries 90",
            "berth_ledger_publication_up 0",
        ] {
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        assert!(!page.contains(r#"berth_quota_limit{tenant="acme",resource="vcpus"}"#));
        assert!(page.ends_with("# EOF\n"));
        let unpublished = LedgerGauges {
            publication: None,
            ..ledger
        };
        let page = metrics.page(&gauges, &unpublished).unwrap();
        assert!(!page.contains("publi"), "{page}");
    }
}
