//! `vm-lifecycle`: a tenant's VM from create to delete, with agent and controller killed meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::host::Host;
use crate::lab::scenario::Context;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::ssh::Lifetime;

/// How long a guest may take on a host that is itself emulated; the usual time is 20 s.
const GUEST: Duration = Duration::from_secs(180);

/// Runs the scenario.
///
/// # Errors
/// The first step that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let site = Site::boot("vm-lifecycle", context, Lifetime::Ours)?;
    let result = run_on(&site, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn run_on(site: &Site<impl Host>, say: fn(&str)) -> Result<()> {
    site.enrol()?;
    let token = site.tenant("acme-corp", 2)?;

    say("create");
    let wish = json!({ "name": "web", "image": IMAGE, "vcpus": 1, "memory_mb": 256 });
    let vm = site.expect(201, &token, "POST", "/v1/vms", Some(&wish))?;
    let id = text(&vm, "id")?;
    let unit = unit_of(&id)?;
    site.wait_vm(&token, "web", "running", GUEST)?;
    site.wait_console(&token, "web", "BERTH-READY", GUEST)?;
    let pid = main_pid(site, &unit)?;
    sits_in_its_tenants_slice(site, &unit)?;

    say("kill the agent: the guest does not notice");
    kill(site, "berth-agent")?;
    ensure!(
        main_pid(site, &unit)? == pid,
        "the VMM is another process than before"
    );
    site.wait_vm(&token, "web", "running", GUEST)?;

    say("kill the controller: nothing is forgotten");
    kill(site, "berth-controller")?;
    site.wait_ready()?;
    ensure!(
        main_pid(site, &unit)? == pid,
        "the VMM is another process than before"
    );
    let after = site.wait_vm(&token, "web", "running", GUEST)?;
    ensure!(
        after["id"] == id.as_str(),
        "another VM has the name: {after:#}"
    );

    say("stop: the guest is asked, and powers itself off");
    site.expect(202, &token, "POST", "/v1/vms/web/stop", None)?;
    site.wait_vm(&token, "web", "stopped", GUEST)?;
    site.wait_console(&token, "web", "reboot: Power down", Duration::from_secs(10))?;
    has_ended(site, &unit)?;

    say("start again, on the same disk");
    site.expect(202, &token, "POST", "/v1/vms/web/start", None)?;
    site.wait_vm(&token, "web", "running", GUEST)?;
    ensure!(
        main_pid(site, &unit)? != pid,
        "the VMM is the process that has ended"
    );

    say("delete: nothing is left behind");
    site.expect(202, &token, "DELETE", "/v1/vms/web", None)?;
    site.wait_vm(&token, &id, "deleted", GUEST)?;
    nothing_is_left(site, &token, &id)?;
    site.show("berthctl ledger read --filter tenant-id=acme-corp --verify")?;
    Ok(())
}

/// The unit of a VM, by its id.
///
/// # Errors
/// If that is no VM's id.
pub fn unit_of(id: &str) -> Result<String> {
    let bare = id
        .strip_prefix("vm_")
        .with_context(|| format!("{id} is not a VM's id"))?;
    Ok(format!("berth-vm-{bare}.service"))
}

fn main_pid(site: &Site<impl Host>, unit: &str) -> Result<u32> {
    let shown = site
        .node
        .check(&format!("systemctl show --value --property MainPID {unit}"))?;
    let pid = shown.trim().parse().context("reading MainPID")?;
    ensure!(pid != 0, "{unit} has no process");
    Ok(pid)
}

fn sits_in_its_tenants_slice(site: &Site<impl Host>, unit: &str) -> Result<()> {
    let group = site.node.check(&format!(
        "systemctl show --value --property ControlGroup {unit}"
    ))?;
    ensure!(
        group.starts_with(r"/berth.slice/berth-acme\x2dcorp.slice/"),
        "{unit} is in {}",
        group.trim()
    );
    Ok(())
}

/// Kills a daemon without warning and waits until systemd has another one running and ready.
fn kill(site: &Site<impl Host>, daemon: &str) -> Result<()> {
    let show = format!("systemctl show --value --property MainPID {daemon}");
    let before = site.node.check(&show)?.trim().to_owned();
    site.node.check(&format!("kill -KILL {before}"))?;
    let replaced = format!("systemctl is-active {daemon} && test \"$({show})\" != {before}");
    site.node.wait_until(
        &format!("{daemon} comes back"),
        Duration::from_secs(60),
        &replaced,
    )?;
    Ok(())
}

fn has_ended(site: &Site<impl Host>, unit: &str) -> Result<()> {
    let script = format!("! systemctl is-active --quiet {unit}");
    site.node
        .wait_until(&format!("{unit} ends"), Duration::from_secs(10), &script)?;
    Ok(())
}

fn nothing_is_left(site: &Site<impl Host>, token: &str, id: &str) -> Result<()> {
    let bare = id.trim_start_matches("vm_");
    let units = site
        .node
        .check("systemctl list-units --all --no-legend 'berth-vm-*'")?;
    ensure!(units.trim().is_empty(), "units are left:\n{units}");
    let processes = site.node.check("pgrep -a berth-vmm || true")?;
    ensure!(
        processes.trim().is_empty(),
        "processes are left:\n{processes}"
    );
    let disks = site.node.check(&format!(
        "find /var/lib/berth/agent/vms -path '*{bare}*' -type f ! -name record.json"
    ))?;
    ensure!(disks.trim().is_empty(), "files are left:\n{disks}");
    let usage = site.expect(200, token, "GET", "/v1/usage", None)?;
    // What was created today stays counted, and so do the tokens.
    let lasts =
        |entry: &Value| entry["resource"] == "creates_per_day" || entry["resource"] == "tokens";
    let charged =
        |entry: &Value| !lasts(entry) && entry["used"].as_u64().is_none_or(|used| used > 0);
    let entries = usage
        .get("items")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    ensure!(!entries.is_empty(), "no usage is told: {usage:#}");
    ensure!(
        !entries.iter().any(charged),
        "something is still charged: {usage:#}"
    );
    Ok(())
}
