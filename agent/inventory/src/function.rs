//! One PCI function as sysfs shows it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use berth_agent_core::slot::approval::setting;
use berth_agent_core::slot::snapshot::{Bar, Function};
use berth_api::pci::{PciAddress, PciClass, PciId};
use berth_api::slot::{DeviceIdentity, serial_kind};

use crate::config_space::{self, ConfigSpace};
use crate::files::{device_path, link_name, names, parts, text};

/// Flags of a line of `resource` (include/linux/ioport.h).
mod resource_flag {
    pub(super) const PORTS: u64 = 0x100;
    pub(super) const MEMORY: u64 = 0x200;
    pub(super) const PREFETCHABLE: u64 = 0x2000;
}

/// What the block layer counts in, whatever a drive's blocks are.
const SECTOR: u64 = 512;
/// Base address registers of a function; what follows in `resource` is ROM, virtual functions' and
/// bridges' windows.
const BARS: usize = 6;

/// Read the function that `link` in `/sys/bus/pci/devices` leads to; nothing if it went away
/// meanwhile or does not say what it is.
pub(crate) fn read(link: &Path, address: PciAddress) -> Option<Function> {
    let device = device_path(link)?;
    let (path, parent) = place(&device)?;
    let at = |name: &str| device.join(name);
    let mut config = config(&at("config"));
    config.facts.physical_function = link_name(&at("physfn")).and_then(|name| name.parse().ok());
    // The kernel's count stands where extended config space cannot be read.
    if let Some(count) = text(&at("sriov_numvfs")).and_then(|count| count.parse().ok()) {
        let known = config.facts.virtual_functions.unwrap_or(0);
        config.facts.virtual_functions = Some(known.max(count));
    }
    let (serials, settings) = nvme(&at("nvme"));
    let mut identity = DeviceIdentity {
        vendor: id(&at("vendor"))?,
        device: id(&at("device"))?,
        subsystem_vendor: id(&at("subsystem_vendor")).unwrap_or(PciId(0)),
        subsystem: id(&at("subsystem_device")).unwrap_or(PciId(0)),
        class: PciClass(hex(&text(&at("class"))?)?.try_into().ok()?),
        path,
        serials,
    };
    if let Some(serial) = config.serial {
        identity
            .serials
            .insert(serial_kind::PCIE_DSN.to_owned(), format!("{serial:016x}"));
    }
    Some(Function {
        address,
        identity,
        parent,
        iommu_group: link_name(&at("iommu_group")).and_then(|name| name.parse().ok()),
        driver: link_name(&at("driver")),
        driver_override: text(&at("driver_override"))
            .filter(|driver| !driver.is_empty() && driver != "(null)"),
        numa_node: text(&at("numa_node")).and_then(|node| node.parse().ok()),
        reset_methods: text(&at("reset_method"))
            .map(|methods| methods.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        bars: bars(&text(&at("resource")).unwrap_or_default()),
        link: text(&at("current_link_speed"))
            .zip(text(&at("current_link_width")))
            .map(|(speed, width)| (speed, format!("x{width}"))),
        config: config.facts,
        uses: Vec::new(),
        settings,
    })
}

/// A function's way from its root bus without bus numbers, and the bridge above it.
fn place(device: &Path) -> Option<(String, Option<PciAddress>)> {
    let mut path = String::new();
    let mut above = None;
    let mut last = None;
    for part in parts(device).skip_while(|part| !is_root_bus(part)) {
        if is_root_bus(part) {
            // A root bus below a function, as of a volume management device, is no bus of that one.
            (above, last) = (None, None);
            if !path.is_empty() {
                path.push('/');
            }
            path.push_str(part);
            continue;
        }
        let at: PciAddress = part.parse().ok()?;
        path.push_str(&format!("/{:02x}.{:x}", at.device, at.function));
        (above, last) = (last, Some(at));
    }
    last.map(|_| (path, above))
}

/// Whether a part of a path is a root bus, such as `pci0000:00`.
fn is_root_bus(part: &str) -> bool {
    part.strip_prefix("pci")
        .and_then(|rest| rest.split_once(':'))
        .is_some_and(|(domain, bus)| {
            domain.len() >= 4
                && bus.len() == 2
                && domain
                    .chars()
                    .chain(bus.chars())
                    .all(|c| c.is_ascii_hexdigit())
        })
}

fn hex(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

fn id(path: &Path) -> Option<PciId> {
    hex(&text(path)?)?.try_into().ok().map(PciId)
}

fn config(path: &Path) -> ConfigSpace {
    let file = File::open(path);
    config_space::walk(|at| {
        let mut register = [0; 4];
        let file = file.as_ref().ok()?;
        file.read_exact_at(&mut register, u64::from(at)).ok()?;
        Some(u32::from_le_bytes(register))
    })
}

/// Bytes of all memory BARs of a function; 0 if it is not there.
#[must_use]
pub fn memory_bytes(root: &Path, address: PciAddress) -> u64 {
    let file = root.join(format!("sys/bus/pci/devices/{address}/resource"));
    bars(&text(&file).unwrap_or_default())
        .iter()
        .filter(|bar| bar.is_memory)
        .fold(0, |sum, bar| sum.saturating_add(bar.bytes))
}

fn bars(resource: &str) -> Vec<Bar> {
    (0..)
        .zip(resource.lines().take(BARS))
        .filter_map(|(index, line)| {
            let mut numbers = line.split_whitespace().map(hex);
            let (first, last) = (numbers.next()??, numbers.next()??);
            let flags = numbers.next()??;
            if flags & (resource_flag::PORTS | resource_flag::MEMORY) == 0 {
                return None;
            }
            Some(Bar {
                index,
                bytes: last.checked_sub(first)?.checked_add(1)?,
                is_memory: flags & resource_flag::MEMORY != 0,
                is_prefetchable: flags & resource_flag::PREFETCHABLE != 0,
            })
        })
        .collect()
}

type Named = BTreeMap<String, String>;

/// What the host's nvme driver has read from a drive, while it has it.
fn nvme(folder: &Path) -> (Named, Named) {
    let Some(controller) = names(folder).into_iter().next() else {
        return Default::default();
    };
    let read = |pairs: [(&str, &str); 2]| -> Named {
        pairs
            .into_iter()
            .filter_map(|(file, name)| {
                let value = text(&folder.join(&controller).join(file))?;
                Some((name.to_owned(), value)).filter(|(_, value)| !value.is_empty())
            })
            .collect()
    };
    let serials = read([
        ("serial", serial_kind::NVME_SERIAL),
        ("model", serial_kind::NVME_MODEL),
    ]);
    let mut settings = Named::new();
    if let Some(firmware) = text(&folder.join(&controller).join("firmware_rev")) {
        settings.insert(setting::NVME_FIRMWARE.to_owned(), firmware);
    }
    if let Some(namespaces) = namespaces(&folder.join(&controller)) {
        settings.insert(setting::NVME_NAMESPACES.to_owned(), namespaces);
    }
    (serials, settings)
}

/// The namespaces as the drive itself would tell them; nothing if sysfs does not show all that
/// belongs to it, as of blocks with metadata.
fn namespaces(controller: &Path) -> Option<String> {
    let mut found: BTreeMap<u32, String> = BTreeMap::new();
    for name in names(controller) {
        let at = |file: &str| text(&controller.join(&name).join(file));
        let Some(id) = at("nsid").and_then(|id| id.parse().ok()) else {
            continue;
        };
        let sectors: u64 = at("size")?.parse().ok()?;
        let block: u64 = at("queue/logical_block_size")?.parse().ok()?;
        let has_metadata = at("integrity/format").is_some_and(|format| format != "none")
            || at("metadata_bytes").is_some_and(|bytes| bytes != "0");
        let bytes = sectors.checked_mul(SECTOR)?;
        if bytes == 0 || has_metadata {
            return None;
        }
        found.insert(
            id,
            format!("{id}:{}x{block}+0/0", bytes.checked_div(block)?),
        );
    }
    let texts: Vec<String> = found.into_values().collect();
    (!texts.is_empty()).then(|| texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Tree;

    #[track_caller]
    fn place_is(device: &str, path: &str, parent: Option<&str>) {
        let expected = (path.to_owned(), parent.map(|at| at.parse().unwrap()));
        assert_eq!(place(Path::new(device)), Some(expected));
    }

    #[test]
    fn a_place_has_no_bus_numbers() {
        place_is(
            "/sys/devices/pci0000:00/0000:00:01.0/0000:3b:00.1",
            "pci0000:00/01.0/00.1",
            Some("0000:00:01.0"),
        );
        place_is(
            "/sys/devices/pci0000:40/0000:40:1f.2",
            "pci0000:40/1f.2",
            None,
        );
    }

    #[test]
    fn a_root_bus_below_a_function_is_one_of_its_own() {
        place_is(
            "/sys/devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:01.0/10000:e1:00.0",
            "pci0000:00/0e.0/pci10000:e0/01.0/00.0",
            Some("10000:e0:01.0"),
        );
    }

    #[test]
    fn what_is_on_no_root_bus_has_no_place() {
        assert_eq!(place(Path::new("/sys/devices/virtual/net/lo")), None);
        assert_eq!(place(Path::new("/sys/devices/pci0000:00")), None);
    }

    #[test]
    fn namespaces_are_told_as_the_drive_tells_them() {
        let tree = Tree::new();
        let controller = tree.root().join("sys/nvme0");
        let namespace = |name: &str, id: &str, size: &str, block: &str| {
            tree.file(&format!("sys/nvme0/{name}/nsid"), id);
            tree.file(&format!("sys/nvme0/{name}/size"), size);
            tree.file(&format!("sys/nvme0/{name}/queue/logical_block_size"), block);
        };
        tree.file("sys/nvme0/power/control", "auto\n");
        assert_eq!(namespaces(&controller), None);
        namespace("nvme0n1", "1\n", "131072\n", "512\n");
        namespace("nvme0c0n2", "2\n", "800\n", "4096\n");
        assert_eq!(
            namespaces(&controller).as_deref(),
            Some("1:131072x512+0/0, 2:100x4096+0/0")
        );
        tree.file("sys/nvme0/nvme0n1/integrity/format", "T10-DIF-TYPE1-CRC\n");
        assert_eq!(namespaces(&controller), None);
    }

    #[test]
    fn bars_are_read_with_their_kind() {
        let resource = "0x00000000fe000000 0x00000000fe003fff 0x0000000000140204\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
                        0x0000380000000000 0x000038000fffffff 0x000000000014220c\n\
                        garbage\n\
                        0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
                        0x00000000fe100000 0x00000000fe10ffff 0x0000000000046200\n";
        let bar = |index, bytes, is_memory, is_prefetchable| Bar {
            index,
            bytes,
            is_memory,
            is_prefetchable,
        };
        assert_eq!(
            bars(resource),
            [
                bar(0, 0x4000, true, false),
                bar(2, 0x20, false, false),
                bar(3, 0x1000_0000, true, true),
            ]
        );
    }
}
