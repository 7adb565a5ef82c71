//! `rollback`: yesterday's database is restored under a running fleet. The controller refuses to serve it
//! and says what to do; tenants' VMs run on and notice nothing. The operator then begins a new log, which
//! says what is missing.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::vm_lifecycle::unit_of;
use crate::lab::host::Host;
use crate::lab::scenario::Context;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::ssh::Lifetime;

/// How long a guest may take on a host that is itself emulated.
const GUEST: Duration = Duration::from_secs(180);
/// How long a daemon may take to end or to say something.
const DAEMON: Duration = Duration::from_secs(60);
/// Where the controller keeps everything.
const STATE: &str = "/var/lib/berth/controller";
/// Where the operator keeps backups.
const BACKUP: &str = "/root/yesterday";
/// What the operator gives as the reason for a new log.
const REASON: &str = "the volume of the database was lost";

/// Runs the scenario.
///
/// # Errors
/// The first step that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let site = Site::boot("rollback", context, Lifetime::Ours)?;
    let result = run_on(&site, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn run_on(site: &Site<impl Host>, say: fn(&str)) -> Result<()> {
    site.enrol()?;
    let token = site.tenant("acme-corp", 4)?;
    let wish = json!({ "name": "web", "image": IMAGE, "vcpus": 1, "memory_mb": 256 });
    let vm = site.expect(201, &token, "POST", "/v1/vms", Some(&wish))?;
    let guest = Guest::new(site, &text(&vm, "id")?, &token)?;

    say("a backup of the database, and a day after it");
    stop(site)?;
    site.node.check(&format!(
        "mkdir {BACKUP} && cp -a {STATE}/berth.db* {BACKUP}/"
    ))?;
    start(site)?;
    let later = site.tenant("later-corp", 1)?;
    // Somebody is shown the newest checkpoint: only from then on is it a rollback to forget it.
    let head = site.expect(200, &later, "GET", "/v1/audit/head", None)?;
    guest.runs_on(site)?;

    say("yesterday's database is restored");
    stop(site)?;
    site.node.check(&format!(
        "rm {STATE}/berth.db* && cp -a {BACKUP}/berth.db* {STATE}/"
    ))?;
    refuses(site, say, "went back in time")?;
    guest.runs_on(site)?;

    say("the operator begins a new log, which says what is missing");
    // The agent's polls would start it again and again through its socket.
    stop(site)?;
    as_controller(site, &format!("new-epoch --reason '{REASON}'"))?;
    start(site)?;
    says_what_is_missing(site, head["size"].as_u64())?;
    site.wait_vm(&token, "web", "running", GUEST)?;
    guest.runs_on(site)?;
    site.show("berthctl ledger verify")?;
    Ok(())
}

/// The new log's first entry carries the newest checkpoint that was shown of the old one.
fn says_what_is_missing(site: &Site<impl Host>, shown: Option<u64>) -> Result<()> {
    let path = "/v1/audit/entries?event_type=LEDGER_EPOCH_BEGUN";
    let page = site.expect(200, &site.admin_token, "GET", path, None)?;
    let body: Value = serde_json::from_str(&text(&page["items"][0], "body")?)?;
    let previous = &body["detail"]["previous"];
    ensure!(previous["reason"] == REASON, "another reason: {body:#}");
    let checkpoint = text(previous, "checkpoint")?;
    let size = checkpoint.lines().nth(1).and_then(|line| line.parse().ok());
    ensure!(
        size >= shown && size.is_some(),
        "{shown:?} entries were shown, and the new log knows of {size:?}"
    );
    Ok(())
}

/// A guest that must not notice anything.
struct Guest {
    unit: String,
    pid: String,
}

impl Guest {
    fn new(site: &Site<impl Host>, id: &str, token: &str) -> Result<Self> {
        site.wait_vm(token, id, "running", GUEST)?;
        site.wait_console(token, id, "BERTH-READY", GUEST)?;
        let unit = unit_of(id)?;
        let pid = main_pid(site, &unit)?;
        Ok(Self { unit, pid })
    }

    /// The same process, and it still computes.
    fn runs_on(&self, site: &Site<impl Host>) -> Result<()> {
        let pid = main_pid(site, &self.unit)?;
        ensure!(
            pid == self.pid,
            "the VM's process is {pid}, not {}",
            self.pid
        );
        let time = format!("awk '{{ print $14 + $15 }}' /proc/{pid}/stat");
        let before = site.node.check(&time)?;
        let script = format!("test \"$({time})\" -gt {}", before.trim());
        site.node.wait_until("the guest goes on", DAEMON, &script)?;
        Ok(())
    }
}

fn main_pid(site: &Site<impl Host>, unit: &str) -> Result<String> {
    let show = format!("systemctl show --value --property MainPID {unit}");
    Ok(site.node.check(&show)?.trim().to_owned())
}

fn stop(site: &Site<impl Host>) -> Result<()> {
    site.node
        .check("systemctl stop berth-controller.socket berth-controller")?;
    Ok(())
}

fn start(site: &Site<impl Host>) -> Result<()> {
    site.node.check(
        "systemctl reset-failed; systemctl start berth-controller.socket berth-controller",
    )?;
    site.wait_ready()
}

/// One of the controller's commands, as the user that owns its files.
fn as_controller(site: &Site<impl Host>, command: &str) -> Result<String> {
    site.show(&format!(
        "setpriv --reuid=berth-controller --regid=berth-controller --clear-groups \
         berth-controller {command}"
    ))
}

/// It does not start, systemd does not try for ever, and the journal has words that help.
fn refuses(site: &Site<impl Host>, say: fn(&str), words: &str) -> Result<()> {
    let started = site
        .node
        .run("systemctl start berth-controller.socket berth-controller")?;
    ensure!(
        !started.status.success(),
        "it started on yesterday's database"
    );
    let shown =
        "systemctl show --value --property ExecMainStatus,SubState berth-controller | tr '\\n' ' '";
    let script = format!("test \"$({shown})\" = '78 failed '");
    site.node
        .wait_until("the controller gives up", DAEMON, &script)?;
    let journal = site
        .node
        .check("journalctl --no-pager -b -o cat -u berth-controller | tail -n 20")?;
    let told = journal.lines().find(|line| line.contains(words));
    ensure!(
        told.is_some_and(|line| line.contains("new-epoch") && line.contains("Restore")),
        "the journal does not say what happened and what to do:\n{journal}"
    );
    say(&format!("    {}", told.unwrap_or_default()));
    Ok(())
}
