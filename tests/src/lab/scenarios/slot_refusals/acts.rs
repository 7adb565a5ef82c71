//! What goes wrong while an agent works: between look and act, while a tenant has a slot, and while it
//! is taken back. A slot per case on one node, so that one stuck slot is seen to hold up no other.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::with_filesystem;
use crate::lab::devices::{Device, Nvme};
use crate::lab::host::Host as _;
use crate::lab::node::NodeSpec;
use crate::lab::scenario::Context;
use crate::lab::scenarios::vfio_nvme::make_backing;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::slots;

const LIMIT: Duration = Duration::from_secs(300);
const DRIVE_BYTES: u64 = 16 << 20;
/// The stalling drive's length and its bytes in a second: it would take hours.
const SLOW: (u64, u64) = (1 << 30, 64 << 10);
/// The slots; each has a class and a drive of its own name.
const SLOTS: [&str; 8] = [
    "mounted", "unreset", "foreign", "liar", "stalling", "swapped", "live", "starved",
];
/// QEMU's id of the drive that is exchanged: devices count from 1, and the guest's image is the first.
const SWAPPED_ID: (&str, &str) = ("dev7", "port7");

pub(super) fn run(context: &Context) -> Result<()> {
    let mut devices = Vec::new();
    for name in SLOTS {
        let is_slow = name == "stalling";
        let bytes = if is_slow { SLOW.0 } else { DRIVE_BYTES };
        let mut image = make_backing("slot-refusals", name, bytes)?;
        if name == "mounted" {
            image = with_filesystem(image)?;
        }
        let serial = name.to_owned();
        devices.push(if is_slow {
            let drive = Nvme { image, serial };
            let write_rate = SLOW.1;
            Device::SlowNvmeSlot { drive, write_rate }
        } else {
            Device::NvmeSlot { image, serial }
        });
    }
    let spec = NodeSpec {
        memory_mib: 4096,
        devices,
        ..NodeSpec::default()
    };
    let site = Site::boot_with("slot-refusals", context, spec)?;
    let result = all(&site, context.say);
    if result.is_err() {
        site.node.collect();
    }
    result
}

fn all(site: &Site, say: fn(&str)) -> Result<()> {
    let mut work = Work {
        site,
        token: String::new(),
        say,
    };
    work.approve()?;
    site.enrol()?;
    work.open_file_approves_nothing()?;
    for name in SLOTS {
        slots::admit(site, name).with_context(|| name.to_owned())?;
    }
    work.token = site.tenant_with_slots("acme-corp", 20, &SLOTS)?;
    work.stalling().context("a wipe that stalls")?;
    work.mounted().context("mounted after the look")?;
    work.unreset().context("a reset that fails")?;
    work.foreign().context("somebody else has it")?;
    work.liar().context("no wipe that is allowed")?;
    work.swapped().context("another drive in its place")?;
    work.live().context("while a tenant has it")?;
    work.starved().context("too little locked memory")?;
    work.stalled().context("the end of the stalled wipe")
}

struct Work<'a> {
    site: &'a Site,
    token: String,
    say: fn(&str),
}

impl Work<'_> {
    fn check(&self, script: &str) -> Result<String> {
        self.site.node.check(script)
    }

    fn address(&self, name: &str) -> Result<String> {
        let slot = slots::slot(self.site, name)?;
        text(&slot["devices"][0], "address")
    }

    fn approve(&self) -> Result<()> {
        for name in SLOTS {
            let drive = slots::address_of_drive(&self.site.node, name)?;
            self.check(&format!(
                "berthctl slot approve --yes --name {name} --class {name} {drive}"
            ))?;
        }
        self.wipe_policy("liar", r#"methods = ["nvme_sanitize_crypto"]"#)?;
        self.wipe_policy("stalling", r#"methods = ["nvme_overwrite"]"#)?;
        self.check(
            "sed -i 's/^deadline_s = .*/deadline_s = 20/' /etc/berth/slots.d/stalling.toml",
        )?;
        Ok(())
    }

    fn wipe_policy(&self, name: &str, methods: &str) -> Result<()> {
        let file = format!("/etc/berth/slots.d/{name}.toml");
        self.check(&format!(
            r"sed -i '/^methods = \[$/,/^\]/c {methods}' {file} && grep -qF '{methods}' {file}"
        ))?;
        Ok(())
    }

    /// Creates a VM that wants the slot of that name.
    fn create(&self, name: &str) -> Result<()> {
        let wish = json!({
            "name": name, "image": IMAGE, "vcpus": 1, "memory_mb": 256,
            "slots": [{ "class": name }],
        });
        self.site
            .expect(201, &self.token, "POST", "/v1/vms", Some(&wish))?;
        Ok(())
    }

    fn delete(&self, name: &str) -> Result<()> {
        let hard = json!({ "mode": "hard" });
        let path = format!("/v1/vms/{name}");
        self.site
            .call(&self.token, "POST", &format!("{path}/stop"), Some(&hard))?;
        self.site.expect(202, &self.token, "DELETE", &path, None)?;
        Ok(())
    }

    /// The claim is refused with that code, which tenant and operator are told.
    fn claim_is_refused(&self, name: &str, code: &str) -> Result<()> {
        self.create(name)?;
        let vm = self.site.wait_vm(&self.token, name, "failed", LIMIT)?;
        let reason = &vm["state_reason"];
        ensure!(
            reason.to_string().contains(code),
            "the VM failed for another reason than {code}: {reason}"
        );
        (self.say)(&format!("  {name}: {}", reason["message"]));
        self.delete(name)
    }

    /// The slot is out of use with that code.
    fn is_quarantined(&self, name: &str, code: &str) -> Result<Value> {
        let slot = slots::wait_slot(self.site, name, "quarantined", LIMIT)?;
        let problem = &slot["problem"];
        ensure!(
            problem["code"] == code,
            "{name} is in quarantine for {problem}"
        );
        (self.say)(&format!("  {name}: {code}: {}", problem["message"]));
        Ok(slot)
    }

    fn open_file_approves_nothing(&self) -> Result<()> {
        let file = "/etc/berth/slots.d/live.toml";
        self.check(&format!("chmod 0666 {file}"))?;
        let said = self.check("! berthctl slot check 2>&1")?;
        ensure!(
            said.contains("live.toml"),
            "nothing is said of the file: {said}"
        );
        self.check(&format!("chmod 0644 {file}"))?;
        (self.say)("  an approval that others can write approves nothing");
        Ok(())
    }

    /// Begins; the others go on beside it.
    fn stalling(&self) -> Result<()> {
        self.create("stalling")?;
        self.site
            .wait_vm(&self.token, "stalling", "running", LIMIT)?;
        self.delete("stalling")?;
        slots::wait_slot(self.site, "stalling", "wiping", LIMIT)?;
        Ok(())
    }

    fn stalled(&self) -> Result<()> {
        self.is_quarantined("stalling", "wipe_failed")?;
        // An agent that waits for a drive could be stuck in it.
        self.check("timeout 20 systemctl restart berth-agent")?;
        self.is_quarantined("stalling", "wipe_failed")?;
        Ok(())
    }

    fn mounted(&self) -> Result<()> {
        let drive = self.address("mounted")?;
        self.check(&format!(
            "block=$(basename /sys/bus/pci/devices/{drive}/nvme/nvme*/nvme*n1) && \
             mount /dev/$block /mnt && echo kept >/mnt/file"
        ))?;
        self.claim_is_refused("mounted", "device_in_use")?;
        self.check("grep -q kept /mnt/file && umount /mnt")?;
        Ok(())
    }

    /// A reset of the bus fails behind QEMU's root ports, and no other way is left.
    fn unreset(&self) -> Result<()> {
        let drive = self.address("unreset")?;
        self.check(&format!(
            "echo bus >/sys/bus/pci/devices/{drive}/reset_method"
        ))?;
        self.claim_is_refused("unreset", "reset_failed")?;
        self.is_quarantined("unreset", "reset_failed")?;
        Ok(())
    }

    fn foreign(&self) -> Result<()> {
        let drive = self.address("foreign")?;
        self.check(&format!(
            "cd /sys/bus/pci/devices/{drive} && modprobe vfio-pci && \
             echo vfio-pci >driver_override && echo {drive} >driver/unbind && \
             echo {drive} >/sys/bus/pci/drivers_probe && \
             group=$(basename $(readlink -f iommu_group)) && \
             systemd-run --quiet --unit=foreign sh -c \"exec 3<>/dev/vfio/$group; sleep 1000\" && \
             until ls -l /proc/$(systemctl show --value --property MainPID foreign)/fd | \
             grep -q vfio; do :; done"
        ))?;
        self.claim_is_refused("foreign", "foreign_user")?;
        self.check("systemctl stop foreign")?;
        Ok(())
    }

    /// The drive has no Sanitize. Nothing weaker is done instead, and what the tenant left is never
    /// shown to the host, even when the device comes back as a new one.
    fn liar(&self) -> Result<()> {
        self.create("liar")?;
        self.site.wait_vm(&self.token, "liar", "running", LIMIT)?;
        let drive = self.address("liar")?;
        self.delete("liar")?;
        self.is_quarantined("liar", "wipe_failed")?;
        let path = format!("/sys/bus/pci/devices/{drive}");
        self.check(&format!(
            "echo 1 >{path}/remove && echo 1 >/sys/bus/pci/rescan"
        ))?;
        self.site.node.wait_until(
            "the agent takes the drive back from the host",
            LIMIT,
            &format!("readlink {path}/driver | grep -q '/vfio-pci$'"),
        )?;
        slots::wait_slot(self.site, "liar", "quarantined", LIMIT)?;
        (self.say)("  liar: enumerated anew, taken from the host's driver again");
        Ok(())
    }

    /// Another drive at the same place is another drive.
    fn swapped(&self) -> Result<()> {
        let mut monitor = self.site.node.monitor()?;
        let (id, port) = SWAPPED_ID;
        monitor.unplug(id, LIMIT)?;
        monitor.execute(
            "device_add",
            &json!({
                "driver": "nvme", "id": "another", "serial": "another", "bus": port,
                "drive": format!("disk-{id}"),
            }),
        )?;
        let mut last = Value::Null;
        let told = crate::lab::ssh::wait_for(LIMIT, || {
            last = slots::slot(self.site, "swapped")?;
            Ok(last["problem"]["code"] == "device_identity_changed")
        })?;
        ensure!(told, "the other drive was not told apart: {last:#}");
        ensure!(last["claimable"] == false, "the other drive can be claimed");
        (self.say)(&format!("  swapped: {}", last["problem"]["message"]));
        Ok(())
    }

    /// A process that may not lock its guest's memory cannot let a device reach it. What has to be
    /// changed is said; the slot was in nobody's hands, and the next guest gets it.
    fn starved(&self) -> Result<()> {
        let limits = "/run/systemd/system/berth-vm-.service.d";
        self.check(&format!(
            "mkdir -p {limits} && printf '[Service]\\nLimitMEMLOCK=16M\\n' >{limits}/starved.conf && \
             systemctl daemon-reload"
        ))?;
        self.claim_is_refused("starved", "LimitMEMLOCK=")?;
        slots::wait_slot(self.site, "starved", "free", LIMIT)?;
        self.check(&format!(
            "rm {limits}/starved.conf && systemctl daemon-reload"
        ))?;
        self.create("starved")?;
        self.site
            .wait_vm(&self.token, "starved", "running", LIMIT)?;
        self.delete("starved")?;
        slots::wait_slot(self.site, "starved", "free", LIMIT)?;
        Ok(())
    }

    /// Nobody else gets at a device that a guest has, and what root does to it is the guest's harm
    /// alone.
    fn live(&self) -> Result<()> {
        self.create("live")?;
        self.site.wait_vm(&self.token, "live", "running", LIMIT)?;
        let drive = self.address("live")?;
        let path = format!("/sys/bus/pci/devices/{drive}");
        self.check(&format!(
            "group=$(basename $(readlink -f {path}/iommu_group)) && \
             ! sh -c \"exec 3<>/dev/vfio/$group\" 2>/dev/null"
        ))?;
        (self.say)("  live: a second opener of its group is turned away");
        self.check(&format!("echo 1 >{path}/reset"))?;
        // The kernel keeps the writer waiting, whatever signal comes, until the guest lets go.
        self.check(&format!(
            "setsid sh -c 'echo {drive} >{path}/driver/unbind' </dev/null >/dev/null 2>&1 & \
             echo $! >/run/unbinding"
        ))?;
        self.site.wait_vm(&self.token, "live", "running", LIMIT)?;
        self.check("kill -0 $(cat /run/unbinding)")?;
        (self.say)("  live: reset and unbound under its guest; the agent goes on");
        self.delete("live")?;
        slots::wait_slot(self.site, "live", "free", LIMIT)?;
        Ok(())
    }
}
