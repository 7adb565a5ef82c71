//! `rollback`: yesterday's database is restored under a running fleet. The controller refuses to serve it
//! and says what to do. With yesterday's anchor beside it, it cannot know, and then the hosts do: they
//! freeze, and do nothing for it that could not be undone. Tenants' VMs run on through all of it. The
//! newest database ends that; when it is lost for good, the operator begins a new log, which says what is
//! missing, and the host follows it by its operator's word alone.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::vm_lifecycle::unit_of;
use crate::lab::host::Host;
use crate::lab::scenario;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::ssh::Lifetime;

/// How long a guest may take on a host that is itself emulated.
const GUEST: Duration = Duration::from_secs(180);
/// How long a daemon may take to end or to say something.
const DAEMON: Duration = Duration::from_secs(60);
/// Where the controller keeps everything.
const STATE: &str = "/var/lib/berth/controller";
/// Where the operator keeps the backup of yesterday, and the newest state.
const YESTERDAY: &str = "/root/yesterday";
const TODAY: &str = "/root/today";
/// What was made after the backup; so many entries that nothing of this scenario makes up for them.
const TENANTS_OF_TODAY: usize = 10;
/// What the operator gives as the reason for a new log.
const REASON: &str = "the volume of the database was lost";

/// Runs the scenario.
///
/// # Errors
/// The first step that is not as it should be.
pub(crate) fn run(context: &scenario::Context) -> Result<()> {
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
    copy(site, STATE, YESTERDAY, &["berth.db*", "anchor"])?;
    start(site)?;
    let mut head = Value::Null;
    for number in 0..TENANTS_OF_TODAY {
        let later = site.tenant(&format!("later-{number}"), 1)?;
        // Somebody is shown the newest checkpoint: only from then on is it a rollback to forget it.
        head = site.expect(200, &later, "GET", "/v1/audit/head", None)?;
    }
    let shown = head["size"].as_u64().context("the size that was shown")?;
    host_has_seen(site, shown)?;
    guest.runs_on(site)?;
    stop(site)?;
    copy(site, STATE, TODAY, &["berth.db*", "anchor"])?;

    say("yesterday's database is restored");
    copy(site, YESTERDAY, STATE, &["berth.db*"])?;
    refuses(site, say, "went back in time")?;
    guest.runs_on(site)?;

    say("and yesterday's anchor with it: the controller cannot know, the host does");
    stop(site)?;
    copy(site, YESTERDAY, STATE, &["berth.db*", "anchor"])?;
    start(site)?;
    freezes(site, say, "rolled_back")?;
    let path = format!("/v1/vms/{}", guest.id);
    site.expect(202, &token, "DELETE", &path, None)?;
    site.node.wait_until(
        "the host's journal says why the VM is not deleted",
        DAEMON,
        "journalctl --no-pager -b -o cat -u berth-agent | grep -qF 'task refused (LogFrozen)'",
    )?;
    guest.runs_on(site)?;

    say("the newest database ends it");
    stop(site)?;
    copy(site, TODAY, STATE, &["berth.db*", "anchor"])?;
    start(site)?;
    site.node.wait_until("the host goes on", DAEMON, THAWED)?;
    site.wait_vm(&token, "web", "running", GUEST)?;
    guest.runs_on(site)?;

    say("it is lost for good: the operator begins a new log, which says what is missing");
    // The agent's polls would start it again and again through its socket.
    stop(site)?;
    copy(site, YESTERDAY, STATE, &["berth.db*"])?;
    as_controller(site, &format!("new-epoch --reason '{REASON}'"))?;
    start(site)?;
    says_what_is_missing(site, Some(shown))?;
    freezes(site, say, "other_log")?;
    guest.runs_on(site)?;

    say("the host follows it by its operator's word");
    site.show(&format!(
        "berth-agent accept-rollback --yes --reason '{REASON}'"
    ))?;
    site.node.wait_until("the host goes on", DAEMON, THAWED)?;
    site.wait_vm(&token, "web", "running", GUEST)?;
    guest.runs_on(site)?;
    let path = "/v1/audit/entries?event_type=NODE_ROLLBACK_ACCEPTED";
    let page = site.expect(200, &site.admin_token, "GET", path, None)?;
    ensure!(
        page["items"]
            .as_array()
            .is_some_and(|items| items.len() == 1),
        "{page:#}"
    );
    site.expect(202, &token, "DELETE", "/v1/vms/web", None)?;
    site.wait_vm(&token, "web", "deleted", GUEST)?;
    site.show("berthctl ledger verify")?;
    Ok(())
}

/// `berthctl node list` says nothing of it any more.
const THAWED: &str = "list=$(berthctl node list) && case \"$list\" in *frozen*) exit 1;; *online*) ;; *) exit 1; esac";

/// The controller's files from one folder to another, in place of what is there.
fn copy(site: &Site<impl Host>, from: &str, to: &str, what: &[&str]) -> Result<()> {
    for what in what {
        site.node.check(&format!(
            "mkdir -p {to} && rm -rf {to}/{what} && cp -a {from}/{what} {to}/"
        ))?;
    }
    Ok(())
}

/// Waits until the host has verified a log of at least so many entries.
fn host_has_seen(site: &Site<impl Host>, entries: u64) -> Result<()> {
    let script =
        format!("test \"$(berth-agent ledger | awk '/^seen:/ {{ print $2 }}')\" -ge {entries}");
    site.node
        .wait_until("the host verifies the newest log", DAEMON, &script)?;
    Ok(())
}

/// Waits until the host refuses to do anything that could not be undone; the operator sees why.
fn freezes(site: &Site<impl Host>, say: fn(&str), code: &str) -> Result<()> {
    let show = "berthctl node show $(berthctl node list | awk '/online/ { print $1 }')";
    let script = format!("{show} | grep -F 'FROZEN ({code})'");
    site.node.wait_until("the host freezes", DAEMON, &script)?;
    let node = site.node.check(show)?;
    let told = node.lines().find(|line| line.contains("FROZEN"));
    say(&format!(
        "    {}",
        told.context("`node show` does not say it")?.trim()
    ));
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
    id: String,
    unit: String,
    pid: String,
}

impl Guest {
    fn new(site: &Site<impl Host>, id: &str, token: &str) -> Result<Self> {
        site.wait_vm(token, id, "running", GUEST)?;
        site.wait_console(token, id, "BERTH-READY", GUEST)?;
        let unit = unit_of(id)?;
        let pid = main_pid(site, &unit)?;
        let id = id.to_owned();
        Ok(Self { id, unit, pid })
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
