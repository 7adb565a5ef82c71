//! `seed-001`: the how-to for a tenant's namespace, executed block by block as it stands.
//!
//! Only the placeholders of the document are filled in. Each step's promise is checked against what
//! came back; step 4 has no block and is done as its text says.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::document::{Block, blocks};
use crate::lab::host::Host;
use crate::lab::scenario::Context;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::ssh::Lifetime;
use crate::workspace;

/// The name of the tenant's first VM.
pub const FIRST_VM: &str = "web";
/// What `max_vms` is in the document.
const MAX_VMS: u32 = 10;

/// Runs the scenario.
///
/// # Errors
/// The first step that does not keep its promise.
pub(crate) fn run(context: &Context) -> Result<()> {
    let site = Site::boot("seed-001", context, Lifetime::Ours)?;
    let result = run_on(&site, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn run_on(site: &Site<impl Host>, say: fn(&str)) -> Result<()> {
    site.enrol()?;
    let other = site.tenant("other-corp", 1)?;
    let foreign = create(site, &other, "theirs")?;
    ensure!(
        foreign.status == 201,
        "another tenant's VM: {:#}",
        foreign.body
    );
    let tenant = walk(site, say, |_| Ok(()))?;
    delete_all(site, &tenant)?;
    delete(site, &other, &[foreign.body])
}

/// Executes the document on a site that is enrolled; returns the tenant administrator's token.
/// The tenant is left with [`MAX_VMS`] VMs. `before_quota` gets the token while the tenant has its
/// first VM and no other.
///
/// # Errors
/// The first step that does not keep its promise.
pub fn walk(
    site: &Site<impl Host>,
    say: fn(&str),
    before_quota: impl FnOnce(&str) -> Result<()>,
) -> Result<String> {
    let path = workspace::root().join("docs/seed-001.md");
    let document =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let steps = blocks(&document);
    let [register, issue, isolation, ledger] = &steps[..] else {
        anyhow::bail!("{} has {} blocks instead of 4", path.display(), steps.len());
    };
    let before = site.node.check("date -u +%Y-%m-%dT%H:%M:%S")?;

    let tenant = execute(site, say, register, &[("admin-token", &site.admin_token)])?;
    ensure!(
        tenant["tenant_id"] == "acme-corp",
        "not the tenant's record: {tenant:#}"
    );
    ensure!(
        tenant["max_vms"] == MAX_VMS,
        "not the quota that was set: {tenant:#}"
    );
    let created_at = text(&tenant, "created_at")?;
    ensure!(
        created_at.as_str() >= before.trim(),
        "created at {created_at}, before {before}"
    );

    let key = site.new_public_key("acme-admin")?;
    let values = [
        ("admin-token", site.admin_token.as_str()),
        ("tenant-admin-pubkey", &key),
    ];
    let issued = execute(site, say, issue, &values)?;
    ensure!(
        issued["tenant_id"] == "acme-corp",
        "not for the tenant: {issued:#}"
    );
    let token = text(&issued, "token")?;

    let first = create(site, &token, FIRST_VM)?;
    ensure!(first.status == 201, "the first VM: {:#}", first.body);
    let listed = execute(site, say, isolation, &[("tenant-admin-token", &token)])?;
    let listed = items(&listed)?;
    ensure!(
        listed.len() == 1,
        "{} VMs instead of the tenant's one",
        listed.len()
    );
    ensure!(
        listed.iter().all(|vm| vm["tenant_id"] == "acme-corp"),
        "VMs of others are listed: {listed:#?}"
    );

    before_quota(&token)?;

    say("Step 4: Verify quota enforcement");
    verify_quota(site, say, &token)?;

    let entry = show_block(site, say, ledger, &[])?;
    ensure!(
        entry.contains("TENANT_CREATED"),
        "no TENANT_CREATED entry: {entry}"
    );
    ensure!(
        entry.contains("acme-corp"),
        "the entry is not the tenant's: {entry}"
    );
    ensure!(
        !entry.contains("other-corp"),
        "an entry of another tenant: {entry}"
    );
    Ok(token)
}

/// Deletes all of the tenant's VMs.
///
/// # Errors
/// If one of them does not go.
pub fn delete_all(site: &Site<impl Host>, token: &str) -> Result<()> {
    let page = site.expect(200, token, "GET", "/v1/vms", None)?;
    delete(site, token, &items(&page)?)
}

/// Fills the quota and asks for one more. One VM of the tenant exists.
fn verify_quota(site: &Site<impl Host>, say: fn(&str), token: &str) -> Result<()> {
    for number in 2..=MAX_VMS {
        let reply = create(site, token, &format!("vm-{number}"))?;
        ensure!(
            reply.status == 201,
            "VM {number} of {MAX_VMS}: {:#}",
            reply.body
        );
    }
    let refused = create(site, token, "vm-11")?;
    ensure!(
        refused.status == 429,
        "the 11th VM came back with {}",
        refused.status
    );
    let body = &refused.body;
    say(&format!(
        "    VM 11 of {MAX_VMS}: {} {}",
        refused.status, body["error"]
    ));
    ensure!(body["code"] == "quota_exceeded", "another code: {body:#}");
    ensure!(body["limit"] == MAX_VMS, "another limit: {body:#}");
    let vms = items(&site.expect(200, token, "GET", "/v1/vms", None)?)?.len();
    ensure!(
        vms == 10,
        "the refusal left something behind: {vms} VMs are listed"
    );
    Ok(())
}

fn create(site: &Site<impl Host>, token: &str, name: &str) -> Result<crate::lab::site::Reply> {
    let wish = json!({ "name": name, "image": IMAGE, "memory_mb": 128 });
    site.call(token, "POST", "/v1/vms", Some(&wish))
}

/// Deletes VMs: asks for all of them, then waits for all of them.
fn delete(site: &Site<impl Host>, token: &str, vms: &[Value]) -> Result<()> {
    for vm in vms {
        site.expect(
            202,
            token,
            "DELETE",
            &format!("/v1/vms/{}", text(vm, "id")?),
            None,
        )?;
    }
    for vm in vms {
        site.wait_vm(token, &text(vm, "id")?, "deleted", Duration::from_secs(180))?;
    }
    Ok(())
}

/// Runs a block whose answer is JSON.
fn execute(
    site: &Site<impl Host>,
    say: fn(&str),
    block: &Block,
    values: &[(&str, &str)],
) -> Result<Value> {
    let output = show_block(site, say, block, values)?;
    serde_json::from_str(&output)
        .with_context(|| format!("{}: the answer is not JSON: {output}", block.heading))
}

fn show_block(
    site: &Site<impl Host>,
    say: fn(&str),
    block: &Block,
    values: &[(&str, &str)],
) -> Result<String> {
    say(&block.heading);
    for line in block.text.lines() {
        say(&format!("  {line}"));
    }
    let output = site
        .node
        .check(&block.with(values))
        .with_context(|| block.heading.clone())?;
    for line in output.lines() {
        say(&format!("    {}", shortened(line)));
    }
    Ok(output)
}

/// Tokens are long, and of no use to a reader.
fn shortened(line: &str) -> String {
    const SHOWN: usize = 300;
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn items(page: &Value) -> Result<Vec<Value>> {
    let items = page.get("items").and_then(Value::as_array);
    Ok(items
        .with_context(|| format!("no list of items in {page:#}"))?
        .clone())
}
