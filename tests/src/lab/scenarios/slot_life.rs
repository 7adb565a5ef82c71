//! `slot-life`: a slot of a drive and a display-class device goes from one tenant to the next. The
//! first writes a pattern over the whole drive; nothing of it is left in the drive's file, the host's
//! kernel never saw a block device of the drive in between, and the host's receipts prove the wipe to
//! somebody who has nothing but them, as the second tenant's passport does without naming the first.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::vfio_nvme::{FIND_DRIVE, make_backing};
use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::NodeSpec;
use crate::lab::scenario::Context;
use crate::lab::site::{Site, text};
use crate::lab::slots::{self, SlotOffer};

/// How long a guest may take. All is emulated twice.
const GUEST: Duration = Duration::from_secs(600);
/// How long a release with its wipe may take.
const WIPE: Duration = Duration::from_secs(600);
const DRIVE_BYTES: u64 = 64 << 20;
/// What the first tenant fills the drive with.
const PATTERN: &str = "what tenant A keeps to itself";
/// The slot's name on the node, and its class.
const OFFER: SlotOffer<'_> = SlotOffer {
    name: "bay1",
    class: "drive-and-display",
};

/// Fills the drive and says how much of it holds the pattern.
const FILL: &str = r#"
lspci -d ::0380 | grep -q . && echo display found
yes "what tenant A keeps to itself" | dd of=/dev/nvme0n1 bs=1M count=64 iflag=fullblock oflag=direct conv=fsync status=none
echo wrote $(dd if=/dev/nvme0n1 bs=1M iflag=direct status=none | grep -a -c "what tenant A keeps to itself")
"#;

/// Looks at everything that the drive holds.
const LOOK: &str = r#"
lspci -d ::0380 | grep -q . && echo display found
echo found $(dd if=/dev/nvme0n1 bs=1M iflag=direct status=none | grep -a -c "tenant A" || true)
"#;

/// Runs the scenario.
///
/// # Errors
/// The first thing that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let backing = make_backing("slot-life", "drive", DRIVE_BYTES)?;
    let spec = NodeSpec {
        memory_mib: 6144,
        devices: vec![
            Device::NvmeSlot {
                image: backing.clone(),
                serial: "slot1".to_owned(),
            },
            Device::DisplaySlot,
        ],
        ..NodeSpec::default()
    };
    let site = Site::boot_with("slot-life", context, spec)?;
    let result = run_on(&site, &backing, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn run_on(site: &Site, backing: &Path, say: fn(&str)) -> Result<()> {
    let watch = Watch::start(site)?;
    let drive = slots::address_of_drive(&site.node, "slot1")?;
    let display = slots::address_of(&site.node, "0x1af4", "0x1050")?;
    site.show("berthctl slot candidates")?;
    let approved = watch.now(site)?;
    site.show(&format!(
        "berthctl slot approve --yes --name {} --class {} {drive} {display}",
        OFFER.name, OFFER.class
    ))?;
    site.show("berthctl slot check")?;
    site.import_script("fill", &format!("{FIND_DRIVE}{FILL}"))?;
    site.import_script("look", &format!("{FIND_DRIVE}{LOOK}"))?;
    site.enrol()?;
    let slot = slots::admit(site, OFFER.name)?;
    say(&format!("  {slot} can be claimed"));

    let a = site.tenant_with_slots("tenant-a", 1, &[OFFER.class])?;
    let wrote = guest(site, &a, "fill", "wrote")?;
    say(&format!("  tenant A wrote the pattern {wrote} times"));
    ensure!(
        occurrences(backing)? > 0,
        "the pattern never came to the drive's file, so its absence would show nothing"
    );
    let vm = site.expect(200, &a, "GET", "/v1/vms/fill", None)?;
    let id = text(&vm, "id")?;
    site.expect(202, &a, "DELETE", "/v1/vms/fill", None)?;
    slots::wait_slot(site, OFFER.name, "free", WIPE)?;
    ensure!(
        occurrences(backing)? == 0,
        "the drive's file still has what tenant A wrote"
    );
    say("  the slot is free again, and the drive's file has nothing of it");
    receipts(site, &a, &id, say)?;

    let b = site.tenant_with_slots("tenant-b", 1, &[OFFER.class])?;
    let found = guest(site, &b, "look", "found")?;
    ensure!(found == "0", "tenant B found {found} lines of tenant A");
    say("  tenant B has the slot and finds nothing");
    passport(site, &b, &id, say)?;
    site.expect(202, &b, "DELETE", "/v1/vms/look", None)?;
    slots::wait_slot(site, OFFER.name, "free", WIPE)?;
    watch.saw_no_block_device(site, &approved)?;
    say("  the host's kernel never had a block device of it");
    site.show("berthctl ledger read --filter tenant-id=tenant-a --verify")?;
    Ok(())
}

/// Runs a guest with the slot to its power-off and returns what it said about `fact`.
fn guest(site: &Site, token: &str, image: &str, fact: &str) -> Result<String> {
    let wish = json!({
        "name": image, "image": image, "vcpus": 1, "memory_mb": 256,
        "slots": [{ "class": OFFER.class }],
    });
    site.expect(201, token, "POST", "/v1/vms", Some(&wish))?;
    let log = site.wait_console(token, image, "BERTH-END", GUEST)?;
    site.wait_vm(token, image, "stopped", GUEST)?;
    ensure!(
        log.contains("BERTH-END status=0") && log.contains("BERTH-OUT display found"),
        "the guest {image} did not do its work; its console says:\n{log}"
    );
    let words = format!("BERTH-OUT {fact} ");
    let line = log.lines().find_map(|line| line.split_once(&words));
    let (_, said) = line.with_context(|| format!("the guest {image} did not say {fact}"))?;
    Ok(said.trim().to_owned())
}

/// How often the file has the pattern.
fn occurrences(file: &Path) -> Result<usize> {
    let bytes = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let pattern = PATTERN.as_bytes();
    Ok(bytes
        .windows(pattern.len())
        .filter(|window| *window == pattern)
        .count())
}

/// Tenant A's receipts hold without a network and without a controller, and no longer with one byte
/// changed.
fn receipts(site: &Site, token: &str, vm: &str, say: fn(&str)) -> Result<()> {
    let path = format!("/v1/vms/{vm}/receipts");
    let all = site.expect(200, token, "GET", &path, None)?;
    let items = all["items"].as_array().cloned().unwrap_or_default();
    let kinds: Vec<&str> = items
        .iter()
        .filter_map(|item| item["kind"].as_str())
        .collect();
    for kind in ["claim", "release", "wipe"] {
        ensure!(
            kinds.contains(&kind),
            "no receipt of a {kind} among {kinds:?}"
        );
    }
    site.node.check(&format!(
        "rm -rf /root/receipts && BERTH_TOKEN={token} berthctl vm receipts {vm} \
         --output-dir /root/receipts"
    ))?;
    for item in &items {
        let file = format!("/root/receipts/{}.json", text(item, "receipt_id")?);
        let verify = format!(
            "unshare --net berthctl receipt verify --key '{}'",
            text(item, "node_public_key")?
        );
        site.show(&format!("{verify} {file}"))?;
        // The payload's first letters stand for the first bytes of the statement.
        site.node.check(&format!(
            "sed 's/\"payload\": *\"eyJ/\"payload\": \"eyK/' {file} >/root/forged.json && \
             ! cmp -s {file} /root/forged.json && ! {verify} /root/forged.json"
        ))?;
    }
    let wipe = items.iter().find(|item| item["kind"] == "wipe");
    ensure!(wipe.is_some(), "no receipt of a wipe");
    say(&format!(
        "  {} receipts hold offline: {}",
        items.len(),
        kinds.join(", ")
    ));
    Ok(())
}

/// Tenant B's passport names the wipe after tenant A and not tenant A, verifies without a network, and no
/// longer with one digit changed or by another key.
fn passport(site: &Site, token: &str, last_vm: &str, say: fn(&str)) -> Result<()> {
    let file = "/root/look.passport";
    site.node.check(&format!(
        "BERTH_TOKEN={token} berthctl vm passport look --output {file}"
    ))?;
    let head = site.expect(200, &site.admin_token, "GET", "/v1/audit/head", None)?;
    let verify = format!(
        "unshare --net berthctl receipt verify --log-key '{}'",
        text(&head, "public_key")?
    );
    site.show(&format!("{verify} {file}"))?;
    let shown = site.node.check(&format!("{verify} --json {file}"))?;
    let shown: Value = serde_json::from_str(&shown).context("what was verified is not JSON")?;
    let slot = &shown[0]["slots"][0];
    ensure!(
        slot["was_wiped"] == true && slot["launch"]["host_key"].is_string(),
        "the passport does not show the wipe and the launch: {shown:#}"
    );
    // The digest of what the host signed is the one that tenant A was given the receipt of.
    let wipes = site.expect(
        200,
        &site.admin_token,
        "GET",
        "/v1/audit/entries?event_type=SLOT_WIPED",
        None,
    )?;
    let digest = text(slot, "receipt_sha256")?;
    let of_a = wipes["items"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|entry| {
            let body = entry["body"].as_str().unwrap_or_default();
            body.contains(&digest) && body.contains(last_vm)
        });
    ensure!(of_a, "the passport's wipe is not the one after tenant A");
    let stranger = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    site.node.check(&format!(
        "! grep -q -e tenant-a -e {last_vm} {file} && \
         sed 's/\"index\": /\"index\": 1/' {file} >/root/forged.passport && \
         ! cmp -s {file} /root/forged.passport && ! {verify} /root/forged.passport && \
         ! unshare --net berthctl receipt verify --log-key {stranger} {file}"
    ))?;
    say("  tenant B's passport names the wipe after tenant A, not tenant A, and holds offline");
    Ok(())
}

/// What the host's kernel and udev say of block devices, from before the slot's approval on.
struct Watch;

impl Watch {
    fn start(site: &Site) -> Result<Self> {
        site.node.check(
            "systemd-run --quiet --unit=watch --property=StandardOutput=file:/root/uevents \
             stdbuf -oL udevadm monitor --kernel --udev --subsystem-match=block",
        )?;
        // Only a watch that has seen something shows anything by seeing nothing.
        site.node.wait_until(
            "the watch sees block devices",
            Duration::from_secs(60),
            "udevadm trigger --action=change /sys/class/block/vda; grep -q vda /root/uevents",
        )?;
        Ok(Self)
    }

    /// The kernel's clock, in seconds, as in its log.
    fn now(&self, site: &Site) -> Result<String> {
        let uptime = site.node.check("cut -d' ' -f1 /proc/uptime")?;
        Ok(uptime.trim().to_owned())
    }

    /// Whatever the kernel had of the drive went away with its approval, and nothing came back.
    fn saw_no_block_device(&self, site: &Site, since: &str) -> Result<()> {
        let seen = site.node.check(&format!(
            "grep -E ' (add|change) ' /root/uevents | grep nvme1 || true; \
             dmesg | sed 's/^\\[ *//' | awk -F. -v since={since} '$1 + 0 > since + 0' | \
             grep -E 'nvme1|nvme nvme' || true; ls /dev/nvme1* 2>/dev/null || true"
        ))?;
        ensure!(
            seen.trim().is_empty(),
            "the host had a block device of the slot's drive:\n{seen}"
        );
        Ok(())
    }
}
