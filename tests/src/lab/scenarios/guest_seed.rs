//! `guest-seed`: a Debian guest reads what its tenant gave it, and cannot change it; once it is set up,
//! nobody reads it any more.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::lab::host::Host;
use crate::lab::scenario::Context;
use crate::lab::site::{Site, text};
use crate::lab::ssh::Lifetime;

/// How long a guest may take on a host that is itself emulated; the usual time is 20 s.
const GUEST: Duration = Duration::from_secs(240);
const IMAGE: &str = "seed-reader";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILg6s5I8jrjZRGyHbX6WWhB2pYGbqTrDnVHqWpoThDnF";
/// Its last line is nowhere else: neither in the guest's script nor in what that prints.
const USER_DATA: &str = "#!/bin/sh\ntouch /given-by-the-tenant\n# for this guest alone\n";

/// What the guest does: the kernel of the lab's guest has no FAT, so it reads the drive's bytes. It has no
/// network either, so the report is made for it.
const SCRIPT: &str = r#"
udevadm settle
seed=/dev/disk/by-id/virtio-berth-seed
if [ -e /was-reset ]; then
    [ -e $seed ] || echo "no drive after a reset"
    exit 0
fi
echo "label $(blkid -o value -s LABEL $seed)"
has() { grep -aqF -e "$1" $seed && echo "has $1"; }
has '"local-hostname":"seeded"'
has 'touch /given-by-the-tenant'
has 'AAAAC3NzaC1lZDI1NTE5'
has 'v4.public.'
grep -aoE 'vm_[0-9a-z]{26}' $seed | sort -u | sed 's/^/names /'
echo "read-only $(blockdev --getro $seed)"
if echo x 2>/dev/null >$seed; then echo written; else echo "cannot be written"; fi
device=$(readlink -f $seed)
bytes() { dd if=$device bs=4096 count=1 iflag=direct 2>/dev/null | wc -c; }
echo "reads $(bytes) bytes"
until [ "$(bytes)" = 0 ]; do sleep 1; done
udevadm settle
echo 3 >/proc/sys/vm/drop_caches
if grep -aqF -e '"local-hostname"' $device; then echo "still there"; else echo "cannot be read"; fi
echo "sectors $(blockdev --getsz $device)"
dmesg | grep -F "${device#/dev/}" || true
touch /was-reset
sync
[ -e /was-reset ] && echo "goes on"
sleep 30
reboot -f
sleep 60
"#;

/// Runs the scenario.
///
/// # Errors
/// The first step that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let site = Site::boot("guest-seed", context, Lifetime::Ours)?;
    let result = run_on(&site, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn run_on(site: &Site<impl Host>, say: fn(&str)) -> Result<()> {
    site.enrol()?;
    site.import_script(IMAGE, SCRIPT)?;
    let token = site.tenant("acme-corp", 2)?;

    say("a guest with a key, user data and a token of its own");
    let wish = json!({
        "name": "seeded", "image": IMAGE, "vcpus": 1, "memory_mb": 256,
        "ssh_keys": [KEY], "user_data": USER_DATA, "guest_token": true,
    });
    let vm = site.expect(201, &token, "POST", "/v1/vms", Some(&wish))?;
    let id = text(&vm, "id")?;
    let console = site.wait_console(&token, "seeded", "reads 4096 bytes", GUEST)?;
    let read = [
        "label CIDATA",
        "has \"local-hostname\":\"seeded\"",
        "has touch /given-by-the-tenant",
        "has AAAAC3NzaC1lZDI1NTE5",
        "has v4.public.",
        &format!("names {id}"),
        "read-only 1",
        "cannot be written",
    ];
    heard(&console, &read, say)?;
    let held = holders(site)?;
    ensure!(
        held == 3,
        "{held} processes have the medium instead of three"
    );
    say("  on the host systemd, the agent and the VMM have the medium");

    say("the guest is set up: it reads nothing of the drive any more, and goes on");
    let made = site.expect(201, &token, "POST", "/v1/vms/seeded/guest-tokens", None)?;
    let guest = text(&made, "token")?;
    site.expect(204, &guest, "POST", "/v1/vms/seeded/boot-report", None)?;
    let console = site.wait_console(&token, "seeded", "goes on", GUEST)?;
    heard(&console, &["cannot be read", "sectors 0"], say)?;
    let held = holders(site)?;
    ensure!(held == 0, "{held} processes still have the medium");
    say("  on the host nobody has the medium");
    let entries = "/v1/audit/entries?event_type=VM_SEED_EJECTED";
    let told = site.expect(200, &token, "GET", entries, None)?.to_string();
    // The body is text with JSON in it.
    ensure!(told.contains("completed"), "not in the ledger: {told}");

    say("a reset under another agent brings nothing back");
    site.node.check("systemctl restart berth-agent")?;
    let console = site.wait_console(&token, "seeded", "BERTH-END", GUEST)?;
    heard(
        &console,
        &["no drive after a reset", "BERTH-END status=0"],
        say,
    )?;
    site.wait_vm(&token, "seeded", "stopped", GUEST)?;

    say("on the host: in no file, and not in the log");
    let found = site.node.check(
        "secret='for this guest alone|v4[.]public[.][A-Za-z0-9_-]{40}'; \
         grep -rlaE -e \"$secret\" /var/lib/berth/agent /run/berth 2>/dev/null || true; \
         journalctl -u berth-agent -o cat | grep -E -e \"$secret\" || true",
    )?;
    ensure!(found.trim().is_empty(), "it was left behind:\n{found}");

    say("without anything to give there is no second drive");
    let wish = json!({ "name": "plain", "image": IMAGE, "vcpus": 1, "memory_mb": 256 });
    site.expect(201, &token, "POST", "/v1/vms", Some(&wish))?;
    let console = site.wait_console(&token, "plain", "BERTH-END", GUEST)?;
    ensure!(
        !console.contains("CIDATA") && !console.contains("v4.public"),
        "a guest that was given nothing has a seed:\n{console}"
    );
    Ok(())
}

/// The guest has to have said these lines.
fn heard(console: &str, lines: &[&str], say: fn(&str)) -> Result<()> {
    for line in lines {
        ensure!(
            console.contains(line),
            "the guest did not say {line:?}:\n{console}"
        );
        say(&format!("  the guest says: {line}"));
    }
    Ok(())
}

/// How many processes of the host have a guest's medium open.
fn holders(site: &Site<impl Host>) -> Result<usize> {
    let found = site.node.check(
        "for process in /proc/[0-9]*; do \
           if ls -l $process/fd 2>/dev/null | grep -q memfd:berth-seed; then echo $process; fi; \
         done",
    )?;
    Ok(found.lines().count())
}
