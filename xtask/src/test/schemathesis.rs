//! The API's document tried on a running controller by schemathesis, which knows nothing of our code:
//! no server error, no answer that the document does not tell of.

use std::process::Command;

use anyhow::{Context as _, Result};
use berth_ledger::keys::SigningKey;
use berth_tests::command::run_logged;
use berth_tests::load::served::{Served, State, StoreKind};
use berth_tests::progress::say;
use berth_tests::simulated_agent::http_client;
use berth_tests::workspace;
use serde_json::{Value, json};

use super::Tally;
use crate::python;

const PACKAGE: &str = "schemathesis==4.32.5";
/// Random requests for each route and kind of caller.
const EXAMPLES: &str = "3";
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
    response_schema_conformance";
/// Left out: what answers late by intent or never ends, and what ends the caller's own rights, after
/// which everything is 401.
const LEFT_OUT: &str = r"/wait$|^/v1/events$|^/v1/tokens/revoke$|^/v1/agent/sync$";

/// Try it as an operator and as a tenant.
pub(super) fn run(tally: &mut Tally) -> Result<()> {
    let python = match python::environment("schemathesis", &[PACKAGE])? {
        Ok(python) => python,
        Err(reason) => {
            tally.skipped.push(format!("API by schemathesis: {reason}"));
            return Ok(());
        }
    };
    let program = workspace::target_dir().join("debug/berth-controller");
    let state = State::init(&program, StoreKind::Sqlite, &workspace::build_dir())?;
    let served = state.serve()?;
    let operator = std::fs::read_to_string(state.folder().join("admin.token"))?;
    let tenant = a_tenant(&served, operator.trim())?;
    // Every edge of every schema takes a minute, so it is tried by those who are trusted less.
    for (who, token, phases) in [
        ("an operator", operator.trim(), "fuzzing"),
        ("a tenant", &tenant, "coverage,fuzzing"),
    ] {
        let name = format!("API by schemathesis as {who}");
        let log = workspace::build_dir().join(format!(
            "logs/schemathesis-{}.log",
            who.rsplit(' ').next().unwrap_or(who)
        ));
        let mut command = Command::new(python.with_file_name("schemathesis"));
        command
            .arg("run")
            .arg(workspace::root().join("docs/openapi.json"))
            .args(["--url", served.url(), "--seed", "1", "--workers", "1"])
            .args(["--max-examples", EXAMPLES, "--phases", phases])
            .args(["--checks", CHECKS, "--warnings", "off", "--no-color"])
            .args(["--exclude-path-regex", LEFT_OUT])
            .args(["--request-timeout", "30"])
            .arg("--header")
            .arg(format!("Authorization: Bearer {token}"))
            .current_dir(state.folder());
        let outcome = run_logged(&mut command, &log).and_then(|()| nothing_untold(&state));
        say(&format!("  {name}: {}", word(&outcome)));
        tally.count(&name, outcome);
    }
    served.stop()
}

fn word(outcome: &Result<()>) -> &'static str {
    if outcome.is_ok() {
        "nothing untold"
    } else {
        "failed"
    }
}

/// A tenant with something in it, and its administrator's token.
fn a_tenant(served: &Served<'_>, operator: &str) -> Result<String> {
    let post = |token: &str, path: &str, body: &Value| -> Result<Value> {
        let mut answer = http_client()
            .post(format!("{}{path}", served.url()))
            .header("authorization", format!("Bearer {token}"))
            .send_json(body)?;
        let text = answer.body_mut().read_to_string()?;
        anyhow::ensure!(answer.status() == 201, "{path}: {text}");
        Ok(serde_json::from_str(&text)?)
    };
    post(
        operator,
        "/v1/tenants",
        &json!({ "tenant_id": "acme", "display_name": "Acme", "max_vms": 5,
            "storage_quota_gb": 100, "api_rate_limit_rpm": 60_000 }),
    )?;
    let holder = SigningKey::generate()?.public().to_base64();
    let issued = post(
        operator,
        "/v1/tenants/acme/tokens",
        &json!({ "subject_pubkey": holder, "scope": "service:tenant-admin",
            "expires_in_seconds": 3600 }),
    )?;
    let token = issued["token"].as_str().context("a token")?.to_owned();
    post(&token, "/v1/projects", &json!({ "project_id": "web" }))?;
    Ok(token)
}

/// The controller itself compares each answer with the document's table.
fn nothing_untold(state: &State) -> Result<()> {
    let log = std::fs::read_to_string(state.folder().join("controller.log"))?;
    let untold: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("undocumented answer") || line.contains("panicked"))
        .collect();
    anyhow::ensure!(untold.is_empty(), "{}", untold.join("\n"));
    Ok(())
}
