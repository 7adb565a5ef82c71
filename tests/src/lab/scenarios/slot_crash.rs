//! `slot-crash`: the agent ends, or the whole host loses its power, right after each step of a claim
//! and of a release was journaled. Each time the slot ends where it should; it is never free with what
//! a tenant left, and never free without a receipt that says why.
//!
//! Each round goes through one life of the slot: a claim that is interrupted once, a mark on the drive
//! in the tenant's name, and a release that is interrupted once.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::vfio_nvme::make_backing;
use crate::lab::devices::Device;
use crate::lab::host::Host as _;
use crate::lab::node::{NodeSpec, RootDisk};
use crate::lab::scenario::Context;
use crate::lab::site::{IMAGE, Site, text};
use crate::lab::slots::{self, SlotOffer};

const LIMIT: Duration = Duration::from_secs(300);
const DRIVE_BYTES: u64 = 32 << 20;
const OFFER: SlotOffer<'_> = SlotOffer {
    name: "bay1",
    class: "nvme",
};
/// What stands for a tenant's data, and where on the drive.
const MARK: &[u8] = b"what a tenant left behind";
const MARK_AT: [u64; 2] = [0, DRIVE_BYTES / 2];
/// How an agent ends that was told to.
const EXIT_STATUS: &str = "86";

/// What a claim journals, in order.
const CLAIM: [&str; 8] = [
    "preparing",
    "preparing.look",
    "preparing.vacate",
    "preparing.bind",
    "preparing.reset",
    "preparing.identify",
    "claimed",
    "in_use",
];
/// What a release journals, in order.
const RELEASE: [&str; 15] = [
    "releasing",
    "releasing.locate",
    "releasing.vacate",
    "releasing.bind",
    "releasing.reset",
    "releasing.identify",
    "wiping",
    "wiping.locate",
    "wiping.vacate",
    "wiping.bind",
    "wiping.wipe",
    "wiping.noted",
    "verifying",
    "verifying.locate",
    "verifying.verify",
];
/// Where the power goes: half of them while a tenant's data is at stake.
const POWER_CUTS: [&str; 10] = [
    "preparing",
    "preparing.bind",
    "preparing.identify",
    "claimed",
    "in_use",
    "releasing",
    "releasing.reset",
    "wiping.wipe",
    "wiping.noted",
    "verifying.verify",
];

/// Runs the scenario.
///
/// # Errors
/// The first end that is not as it should be.
pub(crate) fn run(context: &Context) -> Result<()> {
    let agent = context.failing_agent.as_ref();
    let host = CrashingHost {
        context,
        agent: agent.context("no agent with fail points was built")?,
        drive: make_backing("slot-crash", "drive", DRIVE_BYTES)?,
        root: make_backing("slot-crash", "root", 0)?,
    };
    context.node.copy_disk(&host.root)?;
    let site = host.boot()?;
    let result = host.rounds(site);
    std::fs::remove_file(&host.root).context("removing the root disk")?;
    result
}

/// A host that keeps its disks when it dies.
struct CrashingHost<'a> {
    context: &'a Context,
    agent: &'a Path,
    drive: PathBuf,
    root: PathBuf,
}

impl CrashingHost<'_> {
    fn boot(&self) -> Result<Site> {
        let spec = NodeSpec {
            memory_mib: 3072,
            root: RootDisk::Kept(self.root.clone()),
            devices: vec![Device::NvmeSlot {
                image: self.drive.clone(),
                serial: "slot1".to_owned(),
            }],
            ..NodeSpec::default()
        };
        Site::boot_with("slot-crash", self.context, spec)
    }

    fn rounds(&self, site: Site) -> Result<()> {
        let mut site = Some(site);
        let result = self.all(&mut site);
        if let (Err(_), Some(site)) = (&result, &site) {
            site.node.collect();
        }
        result
    }

    /// `site` is where the evidence of a failure is.
    fn all(&self, place: &mut Option<Site>) -> Result<()> {
        let site = place.as_ref().context("no host")?;
        site.node
            .copy_in(self.agent, "/usr/sbin/berth-agent", "0755")?;
        let drive = slots::address_of_drive(&site.node, "slot1")?;
        let (name, class) = (OFFER.name, OFFER.class);
        site.show(&format!(
            "berthctl slot approve --yes --name {name} --class {class} {drive}"
        ))?;
        site.enrol()?;
        slots::admit(site, name)?;
        let token = site.tenant_with_slots("acme-corp", 1, &[class])?;
        let claims = CLAIM.iter().map(Some).chain(std::iter::repeat(None));
        for (claim, release) in claims.zip(RELEASE) {
            let round = Round {
                host: self,
                site,
                token: &token,
            };
            round
                .with_kills(claim.copied(), release)
                .with_context(|| format!("killed after {claim:?} and {release}"))?;
            let claim = claim.map_or_else(String::new, |claim| format!("{claim}, then "));
            (self.context.say)(&format!(
                "  killed after {claim}{release}: free, and proved"
            ));
        }
        for point in POWER_CUTS {
            let before = place.take().context("no host")?;
            let round = Round {
                host: self,
                site: &before,
                token: &token,
            };
            round.until(point).with_context(|| point.to_owned())?;
            before.node.cut_power();
            let after = place.insert(self.boot()?);
            // Before that the controller shows the host as it was.
            after.wait_returned().context("a host without power")?;
            let round = Round {
                host: self,
                site: after,
                token: &token,
            };
            let end = round.after_power_cut(point);
            let end = end.with_context(|| format!("the power was cut after {point}"))?;
            (self.context.say)(&format!("  power cut after {point}: {end}"));
        }
        Ok(())
    }
}

/// One life of the slot.
struct Round<'a> {
    host: &'a CrashingHost<'a>,
    site: &'a Site,
    token: &'a str,
}

impl Round<'_> {
    /// The agent is killed at these points, and another takes over each time.
    fn with_kills(&self, claim: Option<&str>, release: &str) -> Result<()> {
        if let Some(point) = claim {
            self.end_agent_at(point)?;
        }
        self.create()?;
        if let Some(point) = claim {
            self.agent_ended_at(point)?;
            self.restart_agent()?;
        }
        self.site
            .wait_vm(self.token, "guest", "running", LIMIT)
            .context("the guest that the claim is for")?;
        self.leave_mark()?;
        self.end_agent_at(release)?;
        self.delete()?;
        self.agent_ended_at(release)?;
        self.restart_agent()?;
        self.is_free_and_proved()
    }

    /// Brings the slot to a point at which no agent goes on.
    fn until(&self, point: &str) -> Result<()> {
        let is_claim = CLAIM.contains(&point);
        if is_claim {
            self.end_agent_at(point)?;
        }
        self.create()?;
        if !is_claim {
            self.site
                .wait_vm(self.token, "guest", "running", LIMIT)
                .context("the guest")?;
            self.leave_mark()?;
            self.end_agent_at(point)?;
            self.delete()?;
        }
        self.agent_ended_at(point)
    }

    /// Whatever was interrupted, the slot comes to its next tenant clean.
    fn after_power_cut(&self, point: &str) -> Result<&'static str> {
        if RELEASE.contains(&point) {
            self.is_free_and_proved()?;
            return Ok("free, and proved");
        }
        // The VM is there and may have been started again; its tenant gives it up.
        self.delete()?;
        slots::wait_slot(self.site, OFFER.name, "free", LIMIT)?;
        self.is_free_for_a_reason()?;
        Ok("free after the VM was deleted, for a reason that a receipt tells")
    }

    fn create(&self) -> Result<()> {
        let wish = json!({
            "name": "guest", "image": IMAGE, "vcpus": 1, "memory_mb": 256,
            "slots": [{ "class": OFFER.class }],
        });
        self.site
            .expect(201, self.token, "POST", "/v1/vms", Some(&wish))?;
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        // Hard, as its guest is asked for nothing here.
        let hard = json!({ "mode": "hard" });
        self.site
            .call(self.token, "POST", "/v1/vms/guest/stop", Some(&hard))?;
        self.site
            .expect(202, self.token, "DELETE", "/v1/vms/guest", None)?;
        Ok(())
    }

    /// From the next start on the agent ends right after `point` was journaled, and stays dead.
    fn end_agent_at(&self, point: &str) -> Result<()> {
        self.site.node.check(&format!(
            "mkdir -p /run/systemd/system/berth-agent.service.d && \
             printf '[Service]\\nRestart=no\\nEnvironment=BERTH_AGENT_EXIT_AFTER={point}\\n' \
             >/run/systemd/system/berth-agent.service.d/end.conf && \
             systemctl daemon-reload && systemctl restart berth-agent"
        ))?;
        Ok(())
    }

    fn agent_ended_at(&self, point: &str) -> Result<()> {
        let what = format!("the agent ends after {point}");
        let show = "systemctl show --value --property ExecMainStatus,SubState berth-agent | \
                    tr '\\n' ' '";
        let script = format!("test \"$({show})\" = '{EXIT_STATUS} failed '");
        self.site.node.wait_until(&what, LIMIT, &script)?;
        let held = slots::slot(self.site, OFFER.name)?;
        ensure!(
            held["state"] != "free" || point == CLAIM[0],
            "the slot is shown as free while it is {point}"
        );
        Ok(())
    }

    fn restart_agent(&self) -> Result<()> {
        self.site.node.check(
            "rm /run/systemd/system/berth-agent.service.d/end.conf && systemctl daemon-reload && \
             systemctl restart berth-agent",
        )?;
        Ok(())
    }

    /// Puts the mark where a guest would have written it.
    fn leave_mark(&self) -> Result<()> {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&self.host.drive)
            .context("opening the drive's file")?;
        for place in MARK_AT {
            file.write_all_at(MARK, place).context("leaving the mark")?;
        }
        Ok(())
    }

    fn has_mark(&self) -> Result<bool> {
        let file = std::fs::File::open(&self.host.drive).context("opening the drive's file")?;
        let mut found = vec![0; MARK.len()];
        for place in MARK_AT {
            file.read_exact_at(&mut found, place)
                .context("looking for the mark")?;
            if found == MARK {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn is_free_and_proved(&self) -> Result<()> {
        slots::wait_slot(self.site, OFFER.name, "free", LIMIT)?;
        let kind = self.is_free_for_a_reason()?;
        ensure!(
            kind == "wipe",
            "the newest receipt is of a {kind}, not of a wipe"
        );
        Ok(())
    }

    /// The newest receipt is of what frees a slot, and the drive holds nothing.
    fn is_free_for_a_reason(&self) -> Result<String> {
        ensure!(
            !self.has_mark()?,
            "the slot is free, and the drive has the mark"
        );
        let id = text(&slots::slot(self.site, OFFER.name)?, "id")?;
        let path = format!("/v1/slots/{id}");
        let admin = &self.site.admin_token;
        let slot = self.site.expect(200, admin, "GET", &path, None)?;
        let newest = slot["receipts"].get(0).context("no receipt at all")?;
        let kind = text(newest, "kind")?;
        ensure!(
            matches!(kind.as_str(), "wipe" | "approval"),
            "the slot is free, and its newest receipt is of a {kind}"
        );
        Ok(kind)
    }
}
