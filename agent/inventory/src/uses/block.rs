//! Block devices that are mounted, are swap, or are part of others.
//!
//! What stands on a partition, a volume or an array stands on every drive below it. Exclusive opens tell
//! the rest, at the moment when it counts; they are not made here.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use berth_agent_core::slot::snapshot::HostUse;
use berth_api::pci::PciAddress;

use super::Use;
use crate::files::{device_path, function_of, names, parts, text};
use crate::snapshot::ReadHostError;

/// Mount points without which the host does not come up again.
const SYSTEM: [&str; 5] = ["/", "/boot", "/boot/efi", "/efi", "/usr"];

/// One block device.
struct Block {
    /// Its number as `mountinfo` writes it, such as `259:1`.
    number: String,
    /// Its name in the device mapper, if it is a volume of that.
    volume: Option<String>,
    /// The functions that it is on: several for a drive with several controllers, none for an array.
    owners: BTreeSet<PciAddress>,
    /// What stands on it.
    holders: Vec<String>,
}

/// What is done with one block device directly.
enum Direct {
    Mounted(String),
    Other(&'static str),
}

/// Uses of all block devices.
pub(super) fn uses(root: &Path) -> Result<Vec<Use>, ReadHostError> {
    let blocks = blocks(&root.join("sys/class/block"));
    let direct = direct(root, &blocks)?;
    let mut uses = Vec::new();
    for (name, block) in blocks.iter().filter(|(_, block)| !block.owners.is_empty()) {
        let mut found: Vec<HostUse> = block
            .holders
            .iter()
            .map(|holder| HostUse::Block {
                device: name.clone(),
                how: format!("held by {holder}"),
            })
            .collect();
        for on in all_above(&blocks, name) {
            for (_, direct) in direct.iter().filter(|(used, _)| *used == on) {
                found.extend(told(name, on, direct));
            }
        }
        for owner in &block.owners {
            uses.extend(found.iter().cloned().map(|found| (*owner, found)));
        }
    }
    Ok(uses)
}

fn told(name: &str, on: &str, direct: &Direct) -> Vec<HostUse> {
    let over = if name == on {
        String::new()
    } else {
        format!(" by way of {on}")
    };
    let device = name.to_owned();
    match direct {
        Direct::Mounted(point) => {
            let mut found = vec![HostUse::Block {
                device: device.clone(),
                how: format!("mounted on {point}{over}"),
            }];
            if SYSTEM.contains(&point.as_str()) {
                found.push(HostUse::Boot { device });
            }
            found
        }
        Direct::Other(how) => vec![HostUse::Block {
            device,
            how: format!("{how}{over}"),
        }],
    }
}

/// A device, and what stands on it, and what stands on that. Partitions are told with their own names.
fn all_above<'a>(blocks: &'a BTreeMap<String, Block>, name: &'a str) -> BTreeSet<&'a str> {
    let mut above = BTreeSet::from([name]);
    let mut open = vec![name];
    while let Some(name) = open.pop() {
        let Some(block) = blocks.get(name) else {
            continue;
        };
        for holder in &block.holders {
            let partitions = blocks
                .keys()
                .filter(|other| blocks_part(other, holder))
                .map(String::as_str);
            for next in partitions.chain([holder.as_str()]) {
                if above.insert(next) {
                    open.push(next);
                }
            }
        }
    }
    above
}

/// Whether `name` is a partition of the array `of`, by the kernel's way of naming them.
fn blocks_part(name: &str, of: &str) -> bool {
    name.strip_prefix(of)
        .and_then(|rest| rest.strip_prefix('p'))
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
}

fn blocks(class: &Path) -> BTreeMap<String, Block> {
    names(class)
        .into_iter()
        .filter_map(|name| {
            let folder = device_path(&class.join(&name))?;
            let block = Block {
                number: text(&folder.join("dev")).unwrap_or_default(),
                volume: text(&folder.join("dm/name")),
                owners: owners(&folder),
                holders: names(&folder.join("holders")),
            };
            Some((name, block))
        })
        .collect()
}

/// A drive with several controllers is below no function in the tree of devices, but its subsystem
/// names the controllers.
fn owners(folder: &Path) -> BTreeSet<PciAddress> {
    if let Some(function) = function_of(folder) {
        return BTreeSet::from([function]);
    }
    folder
        .ancestors()
        .find(|above| {
            parts(above)
                .next_back()
                .is_some_and(|name| name.starts_with("nvme-subsys"))
        })
        .map(|subsystem| {
            names(subsystem)
                .iter()
                .filter_map(|name| function_of(&device_path(&subsystem.join(name))?))
                .collect()
        })
        .unwrap_or_default()
}

/// Block devices by name, with what is done with each.
fn direct(
    root: &Path,
    blocks: &BTreeMap<String, Block>,
) -> Result<Vec<(String, Direct)>, ReadHostError> {
    let mut found: BTreeSet<(String, String)> = BTreeSet::new();
    let own = root.join("proc/self/mountinfo");
    let text_of_own = std::fs::read_to_string(&own).map_err(ReadHostError::at(&own))?;
    // An agent may be confined to mounts of its own; the first process has the host's.
    let first = text(&root.join("proc/1/mountinfo")).unwrap_or_default();
    for line in text_of_own.lines().chain(first.lines()) {
        if let Some((name, point)) = mount(line, blocks) {
            found.insert((name, point));
        }
    }
    let mut direct: Vec<(String, Direct)> = found
        .into_iter()
        .map(|(name, point)| (name, Direct::Mounted(point)))
        .collect();
    let swaps = text(&root.join("proc/swaps")).unwrap_or_default();
    direct.extend(
        swaps
            .lines()
            .filter_map(|line| named(line.split_whitespace().next()?, blocks))
            .map(|name| (name, Direct::Other("swap"))),
    );
    // A btrfs is mounted from one of its devices and is on all of them.
    let btrfs = root.join("sys/fs/btrfs");
    for filesystem in names(&btrfs) {
        direct.extend(
            names(&btrfs.join(filesystem).join("devices"))
                .into_iter()
                .map(|name| (name, Direct::Other("part of a mounted btrfs"))),
        );
    }
    Ok(direct)
}

/// The block device and mount point of a line of `mountinfo` (proc(5)).
fn mount(line: &str, blocks: &BTreeMap<String, Block>) -> Option<(String, String)> {
    let mut fields = line.split(' ');
    let number = fields.nth(2)?;
    let point = unescaped(fields.nth(1)?);
    let source = line.split(" - ").nth(1)?.split(' ').nth(1)?;
    let by_number = blocks
        .iter()
        .find(|(_, block)| block.number == number)
        .map(|(name, _)| name.clone());
    let name = by_number.or_else(|| named(&unescaped(source), blocks))?;
    Some((name, point))
}

/// The block device that a path below `/dev` means.
fn named(path: &str, blocks: &BTreeMap<String, Block>) -> Option<String> {
    let name = path.strip_prefix("/dev/")?;
    if blocks.contains_key(name) {
        return Some(name.to_owned());
    }
    let volume = name.strip_prefix("mapper/")?;
    blocks
        .iter()
        .find(|(_, block)| block.volume.as_deref() == Some(volume))
        .map(|(name, _)| name.clone())
}

/// The kernel writes white space and backslashes as three octal digits.
fn unescaped(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .into_iter()
    .fold(text.to_owned(), |text, (code, plain)| {
        text.replace(code, plain)
    })
}

#[cfg(test)]
mod tests;
