//! `berthctl verify isolation`: whether either of two tenants is shown anything of the other.
//!
//! It asks as each of them, with tokens that may read and no more, that it issues for some minutes and
//! revokes at the end. It reads alone: a controller that does not isolate must not be made to act.

use std::thread;
use std::time::Duration;

use berth_api::ids::{OperationId, VmId};
use berth_api::rest::ErrorCode;
use berth_ledger::keys::SigningKey;
use clap::Subcommand;
use serde::Serialize;
use serde_json::{Value, json};

use crate::client::{Client, Path};
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{Cell, Table, Tone};

const SCOPES: [&str; 3] = ["vm.read", "vm.console", "ledger.read"];
/// How long the tokens are good for, should nobody live to revoke them, in seconds.
const TOKEN_SECONDS: u32 = 900;
/// Objects of each kind that are asked for as the other tenant: one that leaks is one too many, and
/// they are all looked up alike.
const MOST_OF_A_KIND: u32 = 25;
/// Entries of the ledger that are looked at.
const MOST_ENTRIES: u32 = 1000;
/// How often a request that came too soon is made again, and how long it waits before.
const TRIES: u32 = 120;
const PAUSE: Duration = Duration::from_secs(1);

/// What can be verified of a controller that runs.
#[derive(Subcommand, Debug)]
pub(crate) enum VerifyCommand {
    /// Ask as each of two tenants for what the other has; status 1 if anything is shown (operators)
    Isolation {
        /// One tenant
        tenant: String,
        /// Another; both should own something
        other: String,
    },
}

/// What was looked at, and what was wrong with it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Objects that were listed to their owner.
    listed: usize,
    /// VMs among them.
    vms: usize,
    /// Requests for the other tenant's objects.
    asked: usize,
    /// What a tenant was shown of the other.
    findings: Vec<Finding>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    /// Who asked.
    tenant_id: String,
    /// For what.
    request: String,
    /// What came.
    problem: String,
}

/// One tenant, and a connection in its name.
struct Party {
    tenant_id: String,
    token_id: String,
    client: Client,
    vms: Vec<Value>,
    operations: Vec<Value>,
}

/// An answer without what differs between any two.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Answered {
    status: u16,
    body: Value,
}

/// Run one of them.
pub(crate) fn run(session: &mut Session, command: VerifyCommand) -> Result<(), Failure> {
    let VerifyCommand::Isolation { tenant, other } = command;
    if tenant == other {
        return Err(Failure::Usage {
            sentence: "a tenant is not isolated from itself".to_owned(),
            remedy: "Name two tenants.".to_owned(),
        });
    }
    let mut report = Report::default();
    let one = Party::new(&session.client, tenant)?;
    let looked = Party::new(&session.client, other).and_then(|other| {
        let looked = look(&one, &other, &mut report);
        revoke(&session.client, &other).and(looked)
    });
    revoke(&session.client, &one)?;
    looked?;
    session.screen.show(&report, || table(&report))?;
    if report.vms == 0 {
        session
            .screen
            .note("neither tenant has a VM yet: only that their records are apart was seen");
    }
    match report.findings.len() {
        0 => Ok(()),
        count => Err(Failure::NotIsolated { count }),
    }
}

fn look(one: &Party, other: &Party, report: &mut Report) -> Result<(), Failure> {
    for (asker, owner) in [(one, other), (other, one)] {
        own_lists(asker, report)?;
        others_objects(asker, owner, report)?;
    }
    Ok(())
}

impl Party {
    fn new(operator: &Client, tenant_id: String) -> Result<Self, Failure> {
        let holder = SigningKey::generate().map_err(Failure::GenerateKey)?;
        let body = json!({
            "subject_pubkey": holder.public().to_base64(),
            "scope": SCOPES,
            "expires_in_seconds": TOKEN_SECONDS,
            "label": "verify isolation",
        });
        let path = Path::of(&["v1", "tenants", &tenant_id, "tokens"]);
        let issued = operator.post(path, Some(&body))?.value()?;
        let client = operator.holding(text(&issued, "token"))?;
        let mut party = Self {
            tenant_id,
            token_id: text(&issued, "token_id").to_owned(),
            client,
            vms: Vec::new(),
            operations: Vec::new(),
        };
        party.vms = party.list(&["v1", "vms"], MOST_OF_A_KIND)?;
        party.operations = party.list(&["v1", "operations"], MOST_OF_A_KIND)?;
        Ok(party)
    }

    fn list(&self, parts: &[&str], most: u32) -> Result<Vec<Value>, Failure> {
        patiently(|| self.client.list(&Path::of(parts), Some(most)))
    }

    fn ask(&self, parts: &[&str]) -> Result<Answered, Failure> {
        patiently(|| match self.client.get(Path::of(parts)) {
            Ok(reply) => Ok(Answered {
                status: 200,
                body: String::from_utf8_lossy(reply.bytes()).into(),
            }),
            Err(Failure::Refused(refusal)) if refusal.status != 429 => {
                let mut body = refusal.body.clone();
                if let Some(members) = body.as_object_mut() {
                    members.remove("request_id");
                }
                let status = refusal.status;
                Ok(Answered { status, body })
            }
            Err(failure) => Err(failure),
        })
    }
}

fn revoke(operator: &Client, party: &Party) -> Result<(), Failure> {
    let path = Path::of(&["v1", "tokens", &party.token_id]);
    patiently(|| operator.delete(path.clone())).map(drop)
}

/// Again, if it came too soon for the tenant's rate.
fn patiently<T>(ask: impl Fn() -> Result<T, Failure>) -> Result<T, Failure> {
    let mut tries = 1;
    loop {
        match ask() {
            Err(failure) if failure.code() == ErrorCode::RateLimited.as_str() && tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            done => return done,
        }
    }
}

/// Whatever a tenant's lists hold must be its own.
fn own_lists(party: &Party, report: &mut Report) -> Result<(), Failure> {
    let entries = party.list(&["v1", "audit", "entries"], MOST_ENTRIES)?;
    let bodies = entries
        .iter()
        .filter_map(|entry| serde_json::from_str(text(entry, "body")).ok());
    let entries: Vec<Value> = bodies.collect();
    for (request, items) in [("/v1/vms", &party.vms), ("/v1/audit/entries", &entries)] {
        report.listed += items.len();
        report
            .findings
            .extend(foreign_items(&party.tenant_id, request, items));
    }
    report.listed += party.operations.len();
    report.vms += party.vms.len();
    Ok(())
}

fn foreign_items(own: &str, request: &str, items: &[Value]) -> Vec<Finding> {
    let owners = items.iter().map(|item| text(item, "tenant_id"));
    let foreign = owners.filter(|owner| !owner.is_empty() && *owner != own);
    foreign
        .map(|owner| Finding {
            tenant_id: own.to_owned(),
            request: request.to_owned(),
            problem: format!("lists an object of {owner}"),
        })
        .collect()
}

/// What the other tenant owns must answer like what does not exist.
fn others_objects(asker: &Party, owner: &Party, report: &mut Report) -> Result<(), Failure> {
    let absent_vm = VmId::generate().to_string();
    let absent_operation = OperationId::generate().to_string();
    let mut pairs: Vec<(Vec<&str>, Vec<&str>)> = Vec::new();
    for vm in &owner.vms {
        let id = text(vm, "id");
        for below in ["", "events", "receipts"] {
            pairs.push((at("vms", id, below), at("vms", &absent_vm, below)));
        }
        pairs.push((
            vec!["v1", "vms", id, "console", "log"],
            vec!["v1", "vms", &absent_vm, "console", "log"],
        ));
        let name = text(vm, "name");
        if !asker.vms.iter().any(|own| text(own, "name") == name) {
            pairs.push((at("vms", name, ""), at("vms", &absent_vm, "")));
        }
    }
    for operation in &owner.operations {
        let id = text(operation, "id");
        pairs.push((
            at("operations", id, ""),
            at("operations", &absent_operation, ""),
        ));
    }
    for below in ["", "usage"] {
        pairs.push((
            at("tenants", &owner.tenant_id, below),
            at("tenants", "nobody-has-this-name", below),
        ));
    }
    for (foreign, absent) in pairs {
        report.asked += 1;
        let problem = judge(&asker.ask(&foreign)?, &asker.ask(&absent)?);
        report.findings.extend(problem.map(|problem| Finding {
            tenant_id: asker.tenant_id.clone(),
            request: format!("/{}", foreign.join("/")),
            problem,
        }));
    }
    Ok(())
}

fn at<'a>(kind: &'a str, id: &'a str, below: &'a str) -> Vec<&'a str> {
    let parts = ["v1", kind, id, below];
    parts.into_iter().filter(|part| !part.is_empty()).collect()
}

/// What is wrong with an answer about another's object, beside the one about an object that is not there.
fn judge(foreign: &Answered, absent: &Answered) -> Option<String> {
    if foreign.status < 400 {
        Some("is shown".to_owned())
    } else if foreign != absent {
        Some(format!(
            "is told apart from what does not exist (HTTP {}, not {})",
            foreign.status, absent.status
        ))
    } else {
        None
    }
}

fn text<'v>(object: &'v Value, member: &str) -> &'v str {
    object.get(member).and_then(Value::as_str).unwrap_or("")
}

fn table(report: &Report) -> Table {
    if report.findings.is_empty() {
        return Table::of_object([
            ("isolation", Cell::toned("holds", Tone::Good)),
            ("objects listed", report.listed.into()),
            ("objects of the other asked for", report.asked.into()),
        ]);
    }
    let mut table = Table::new(&["AS", "REQUEST", "PROBLEM"]);
    for finding in &report.findings {
        table.row([
            (&finding.tenant_id).into(),
            (&finding.request).into(),
            Cell::toned(&finding.problem, Tone::Bad),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(status: u16, body: Value) -> Answered {
        Answered { status, body }
    }

    #[test]
    fn only_an_answer_like_that_about_nothing_is_isolation() {
        let absent = answered(404, json!({ "code": "not_found" }));
        assert_eq!(judge(&absent, &absent), None);
        assert!(judge(&answered(200, json!("{}")), &absent).is_some());
        let forbidden = answered(403, json!({ "code": "permission_denied" }));
        assert!(judge(&forbidden, &absent).is_some());
        let wordy = answered(404, json!({ "code": "not_found", "detail": "of globex" }));
        assert!(judge(&wordy, &absent).is_some());
    }

    #[test]
    fn what_a_list_has_of_another_tenant_is_found() {
        let items = [
            json!({ "tenant_id": "acme" }),
            json!({ "tenant_id": "globex" }),
            json!({ "of": "the log itself" }),
        ];
        let found = foreign_items("acme", "/v1/vms", &items);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].problem.contains("globex"));
    }
}
