//! The udev rules that follow from approvals: which devices of this host are slots'.
//!
//! Pure: approvals in, text out. The rules only give a device the name of its slot; what that means is in
//! the package's own rules. They match a device by what it is and by its place, never by bus numbers,
//! and whatever could have a meaning to udev is left out: serial numbers come from devices.

use std::fmt::Write as _;

use berth_api::slot::{DeviceIdentity, serial_kind};

use crate::slot::approval::{Approval, ApprovedDevice};

/// Name of the file in `/etc/udev/rules.d`. It sorts before the package's rules, which use what it says,
/// and before all rules that probe a drive.
pub const RULES_FILE: &str = "58-berth-slots.rules";

/// The whole file for these approvals.
#[must_use]
pub fn render<'a>(approvals: impl IntoIterator<Item = &'a Approval>) -> String {
    let mut text = String::from(
        "# Written by `berthctl slot approve` and `unapprove` from /etc/berth/slots.d: do not change it.\n\
         # Says which devices are slots'; 59-berth-slots.rules says what follows from that.\n\
         ACTION==\"remove\", GOTO=\"berth_slots_known\"\n",
    );
    for approval in approvals {
        for device in &approval.devices {
            // Writing to a String cannot fail.
            write!(text, "{}", rules(&approval.name, device)).ok();
        }
    }
    text.push_str("LABEL=\"berth_slots_known\"\n");
    text
}

fn rules(slot: &str, device: &ApprovedDevice) -> String {
    let identity = &device.identity;
    let name = format!("ENV{{BERTH_SLOT}}=\"{slot}\"");
    let mut text = format!("# {slot}: {}\n", device.address);
    if let Some(path) = device_path(&identity.path) {
        let what = |attribute: &str| {
            ids(identity)
                .map(|(id, value)| format!("{attribute}{{{id}}}==\"0x{value}\", "))
                .concat()
        };
        text.push_str(&format!(
            "SUBSYSTEM==\"pci\", DEVPATH==\"{path}\", {}{name}\n\
             SUBSYSTEM==\"block|nvme\", DEVPATH==\"{path}/*\", {}{name}\n",
            what("ATTR"),
            what("ATTRS"),
        ));
    }
    // A drive with several controllers is no child of any of them.
    let serial = |kind| identity.serials.get(kind).filter(|text| is_plain(text));
    if let Some((serial, model)) =
        serial(serial_kind::NVME_SERIAL).zip(serial(serial_kind::NVME_MODEL))
    {
        text.push_str(&format!(
            "SUBSYSTEM==\"block\", KERNEL==\"nvme*\", ATTRS{{serial}}==\"{serial}\", \
             ATTRS{{model}}==\"{model}\", {name}\n"
        ));
    }
    text
}

fn ids(identity: &DeviceIdentity) -> [(&'static str, String); 4] {
    [
        ("vendor", identity.vendor.to_string()),
        ("device", identity.device.to_string()),
        ("subsystem_vendor", identity.subsystem_vendor.to_string()),
        ("subsystem_device", identity.subsystem.to_string()),
    ]
}

/// A pattern for the device's path in sysfs: each bus number is two characters, whichever.
fn device_path(path: &str) -> Option<String> {
    let is_hex = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_hexdigit());
    let mut domain = None;
    let mut pattern = String::from("/devices");
    for part in path.split('/') {
        if let Some((root, bus)) = part.strip_prefix("pci").and_then(|p| p.split_once(':')) {
            if !is_hex(root) || !is_hex(bus) {
                return None;
            }
            domain = Some(root);
            pattern.push_str(&format!("/{part}"));
            continue;
        }
        let (device, function) = part.split_once('.')?;
        if !is_hex(device) || !is_hex(function) {
            return None;
        }
        pattern.push_str(&format!("/{}:??:{part}", domain?));
    }
    Some(pattern)
}

/// Whether a text has no meaning to udev but its own, and none of its patterns.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, ' ' | '.' | '_' | '-' | '+'))
}

#[cfg(test)]
mod tests {
    use berth_api::ids::SlotId;

    use super::*;
    use crate::slot::approval::{Wish, propose};
    use crate::slot::judge::tests::{Host, address, drive};

    fn approval(serial: &str) -> Approval {
        let host = Host::default().with(drive("0000:3b:00.0", serial).below("0000:00:01.0"));
        let wish = Wish {
            slot_id: SlotId::generate(),
            name: "disk-1".to_owned(),
            class: "nvme".to_owned(),
            approved_at: "2026-01-02T03:04:05Z".to_owned(),
        };
        propose(&host.snapshot(), &[address("0000:3b:00.0")], wish).unwrap()
    }

    #[test]
    fn a_slots_devices_are_named_by_place_and_kind() {
        let rules = render([&approval("S1")]);
        let ids = |attribute: &str| {
            format!(
                "{attribute}{{vendor}}==\"0x1b36\", {attribute}{{device}}==\"0x0010\", \
                 {attribute}{{subsystem_vendor}}==\"0x1af4\", {attribute}{{subsystem_device}}==\"0x1100\", \
                 ENV{{BERTH_SLOT}}=\"disk-1\""
            )
        };
        for line in [
            format!(
                "SUBSYSTEM==\"pci\", DEVPATH==\"/devices/pci0000:00/0000:??:01.0/0000:??:00.0\", {}",
                ids("ATTR")
            ),
            format!(
                "SUBSYSTEM==\"block|nvme\", \
                 DEVPATH==\"/devices/pci0000:00/0000:??:01.0/0000:??:00.0/*\", {}",
                ids("ATTRS")
            ),
            "SUBSYSTEM==\"block\", KERNEL==\"nvme*\", ATTRS{serial}==\"S1\", ATTRS{model}==\"model\", \
             ENV{BERTH_SLOT}=\"disk-1\""
                .to_owned(),
        ] {
            assert!(rules.lines().any(|found| found == line), "{line}\n{rules}");
        }
    }

    #[test]
    fn a_serial_number_cannot_speak_to_udev() {
        for serial in [
            "x\", RUN+=\"/bin/sh -c id",
            "x\nRUN+=\"/bin/id\"",
            "*",
            "a|b",
            "$env{X}",
            "",
        ] {
            let rules = render([&approval(serial)]);
            assert!(!rules.contains("ATTRS{serial}"), "{rules}");
            assert!(!rules.contains("RUN"), "{rules}");
        }
    }

    #[test]
    fn a_place_that_is_none_gives_no_rule() {
        let mut approval = approval("S1");
        for path in [
            "pci0000:00/*/00.0",
            "pci0000:00\"/00.0",
            "01.0",
            "",
            "pci:/0.0",
        ] {
            approval.devices[0].identity.path = path.to_owned();
            assert!(!render([&approval]).contains("DEVPATH"), "{path}");
        }
    }

    #[test]
    fn a_root_bus_below_a_function_brings_its_own_domain() {
        assert_eq!(
            device_path("pci0000:00/0e.0/pci10000:e0/01.0").as_deref(),
            Some("/devices/pci0000:00/0000:??:0e.0/pci10000:e0/10000:??:01.0")
        );
    }
}
