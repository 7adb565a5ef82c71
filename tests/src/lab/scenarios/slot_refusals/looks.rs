//! One node with a device for each way of being misplaced, looked at by `berthctl slot check`.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{judge, reason, with_filesystem};
use crate::lab::devices::{Device, Nvme};
use crate::lab::host::Host as _;
use crate::lab::node::{Node, NodeSpec};
use crate::lab::scenario::Context;
use crate::lab::scenarios::vfio_nvme::make_backing;
use crate::lab::slots::{address_of, address_of_drive};

const DRIVE_BYTES: u64 = 16 << 20;

/// One thing that is wrong, and how it shows.
struct Case {
    /// What is wrong, in the scenario's words.
    about: &'static str,
    /// The device that is looked at.
    device: String,
    /// A script that makes it so.
    before: String,
    /// A script that undoes it.
    after: String,
    /// The code that has to be given.
    code: &'static str,
    /// Words that the message has to have.
    words: Vec<String>,
}

impl Case {
    fn new(about: &'static str, device: &str, code: &'static str, words: &[&str]) -> Self {
        Self {
            about,
            device: device.to_owned(),
            before: String::new(),
            after: String::new(),
            code,
            words: words.iter().map(ToString::to_string).collect(),
        }
    }

    fn with(mut self, before: String, after: String) -> Self {
        (self.before, self.after) = (before, after);
        self
    }
}

pub(super) fn run(context: &Context) -> Result<()> {
    let spec = NodeSpec {
        devices: devices()?,
        ..NodeSpec::default()
    };
    let node = Node::boot("slot-refusals", &context.node, &spec)?;
    let result = look(&node, context.say);
    if result.is_err() {
        node.collect();
    }
    result
}

fn drive(serial: &str) -> Result<Nvme> {
    Ok(Nvme {
        image: backing(serial)?,
        serial: serial.to_owned(),
    })
}

fn backing(serial: &str) -> Result<PathBuf> {
    make_backing("slot-refusals", serial, DRIVE_BYTES)
}

fn devices() -> Result<Vec<Device>> {
    Ok(vec![
        Device::NvmeTwins([drive("twin0")?, drive("twin1")?]),
        Device::NvmesBehindSwitch([drive("left")?, drive("right")?]),
        Device::NvmesBehindOpenPorts([drive("open0")?, drive("open1")?]),
        Device::BehindPlainBridge,
        Device::DisplaySlot,
        Device::Unresettable,
        Device::NvmeWithFunctions {
            serial: "many".to_owned(),
            functions: 2,
        },
        Device::NvmeSlot {
            image: with_filesystem(backing("good")?)?,
            serial: "good".to_owned(),
        },
    ])
}

/// What is not what it seems on this node.
fn cases(node: &Node) -> Result<Vec<Case>> {
    let drive = |serial| address_of_drive(node, serial);
    let (twin, other_twin) = (drive("twin0")?, drive("twin1")?);
    let (left, right) = (drive("left")?, drive("right")?);
    let (open, other_open) = (drive("open0")?, drive("open1")?);
    let (good, many, root) = (drive("good")?, drive("many")?, drive("root")?);
    let display = address_of(node, "0x1234", "0x1111")?;
    let gpu = address_of(node, "0x1af4", "0x1050")?;
    let network = address_of(node, "0x1af4", "0x1000")?;
    let unresettable = on_root_bus(node, "0x1234", "0x11e8")?;
    let block = node.check(&format!(
        "basename /sys/bus/pci/devices/{good}/nvme/nvme*/nvme*n1"
    ))?;
    let block = block.trim();
    let file = |name: &str| format!("/sys/bus/pci/devices/{good}/{name}");
    let unsafe_ = "iommu_group_unsafe";
    Ok(vec![
        Case::new(
            "another drive in its group",
            &twin,
            unsafe_,
            &[&other_twin, "nvme"],
        ),
        Case::new(
            "a bridge to conventional PCI above it",
            &display,
            unsafe_,
            &["IOMMU group", "not of the slot"],
        ),
        Case::new(
            "a switch whose ports are not kept apart",
            &left,
            unsafe_,
            &[&right],
        ),
        Case::new(
            "root ports without access control services",
            &open,
            unsafe_,
            &[&other_open, "IOMMU group"],
        ),
        Case::new("no way to reset it", &unresettable, "reset_failed", &[]),
        Case::new(
            "its ways to be reset taken away",
            &good,
            "reset_failed",
            &["reset_method"],
        )
        .with(
            format!("echo >{}", file("reset_method")),
            format!("echo default >{}", file("reset_method")),
        ),
        Case::new("a mounted filesystem", &good, "device_in_use", &["mounted"])
            .with(format!("mount /dev/{block} /mnt"), "umount /mnt".to_owned()),
        Case::new("swap", &good, "device_in_use", &["swap"]).with(
            format!("mkswap /dev/{block} && swapon /dev/{block}"),
            format!("swapoff /dev/{block}"),
        ),
        Case::new(
            "a volume of the device mapper",
            &good,
            "device_in_use",
            &["held by dm-0"],
        )
        .with(
            format!(
                "modprobe dm_mod && dmsetup create --noudevsync volume --table \
                 \"0 $(cat /sys/class/block/{block}/size) linear /dev/{block} 0\""
            ),
            "dmsetup remove --noudevsync --retry volume".to_owned(),
        ),
        Case::new("the host's own system", &root, "device_in_use", &[]),
        Case::new("the host's network", &network, "device_in_use", &["eth0"]),
        Case::new(
            "virtual functions switched on",
            &many,
            "bind_failed",
            &["sriov_numvfs"],
        )
        .with(
            format!(
                "echo 0 >/sys/bus/pci/devices/{many}/sriov_drivers_autoprobe; \
                 echo 2 >/sys/bus/pci/devices/{many}/sriov_numvfs"
            ),
            format!("echo 0 >/sys/bus/pci/devices/{many}/sriov_numvfs"),
        ),
        Case::new("asleep", &gpu, "reset_failed", &["D3hot"]).with(
            format!(
                "echo {gpu} >/sys/bus/pci/devices/{gpu}/driver/unbind; \
                 setpci -s {gpu} CAP_PM+4.w=3:3"
            ),
            format!("setpci -s {gpu} CAP_PM+4.w=0:3"),
        ),
    ])
}

fn on_root_bus(node: &Node, vendor: &str, device: &str) -> Result<String> {
    let found = node.check(&format!(
        "lspci -D -n -s 0000:00: -d {}:{} | cut -d' ' -f1",
        vendor.trim_start_matches("0x"),
        device.trim_start_matches("0x")
    ))?;
    let found = found.trim().to_owned();
    ensure!(!found.is_empty(), "no {vendor}:{device} on the root bus");
    Ok(found)
}

fn look(node: &Node, say: fn(&str)) -> Result<()> {
    let good = address_of_drive(node, "good")?;
    for case in cases(node)? {
        if !case.before.is_empty() {
            node.check(&case.before)?;
        }
        let found = judge(node, &format!("slot check {}", case.device));
        let words: Vec<&str> = case.words.iter().map(String::as_str).collect();
        let found = found.with_context(|| case.about)?;
        let message = reason(&found, case.code, &words).with_context(|| case.about)?;
        say(&format!("  {}: {}: {message}", case.about, case.code));
        refuses_to_approve(node, &case.device)?;
        if !case.after.is_empty() {
            node.check(&case.after)?;
        }
    }
    let left = judge(node, &format!("slot check {good}"))?;
    ensure!(
        left.is_empty(),
        "a drive that nothing is wrong with is refused"
    );
    Ok(())
}

/// Nothing is written that an agent could read.
fn refuses_to_approve(node: &Node, device: &str) -> Result<()> {
    let script = format!(
        "! berthctl slot approve --yes --name no --class no {device} && \
         [ -z \"$(ls /etc/berth/slots.d 2>/dev/null)\" ]"
    );
    node.check(&script)?;
    Ok(())
}
