//! Devices of a node on their way to a guest: found by what they are, bound to `vfio-pci`, and
//! looked at from the host.
//!
//! Owns the scripts that do it by hand. In a real host the agent does, behind its checks.

use anyhow::{Context as _, Result};

use super::host::Host;
use super::node::Node;

/// Binds devices to `vfio-pci` by their addresses.
const BIND: &str = r#"
modprobe vfio-pci && modprobe vfio_iommu_type1
bind() {
    device=/sys/bus/pci/devices/$1
    echo vfio-pci >"$device/driver_override"
    [ ! -e "$device/driver" ] || echo "$1" >"$device/driver/unbind"
    echo "$1" >/sys/bus/pci/drivers_probe
    [ "$(basename "$(readlink -f "$device/driver")")" = vfio-pci ]
}
"#;

/// A device of the node, bound to `vfio-pci`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSlot {
    /// Its address as `0000:01:00.0`.
    pub address: String,
}

impl HostSlot {
    /// The NVMe drive with that serial number.
    ///
    /// # Errors
    /// If there is none, or it cannot be bound.
    pub fn nvme(node: &Node, serial: &str) -> Result<Self> {
        Self::bind(
            node,
            &format!(
                r#"for drive in /sys/class/nvme/nvme*; do
                    [ "$(tr -d ' ' <"$drive/serial")" = {serial} ] || continue
                    basename "$(readlink -f "$drive/device")"
                done"#
            ),
        )
        .with_context(|| format!("the drive {serial}"))
    }

    /// The one device with these vendor and device ids, as `0x1af4`.
    ///
    /// # Errors
    /// If there is none or more than one, or it cannot be bound.
    pub fn device(node: &Node, vendor: &str, device: &str) -> Result<Self> {
        let mut all = Self::devices(node, vendor, device)?;
        let found = all.pop().filter(|_| all.is_empty());
        found.with_context(|| format!("not just one device {vendor}:{device}"))
    }

    /// All devices with these vendor and device ids, by address.
    ///
    /// # Errors
    /// If one cannot be bound.
    pub fn devices(node: &Node, vendor: &str, device: &str) -> Result<Vec<Self>> {
        let found = node.check(&format!(
            r#"for device in /sys/bus/pci/devices/*; do
                [ "$(cat "$device/vendor" "$device/device" | tr '\n' ' ')" = "{vendor} {device} " ] &&
                    basename "$device"
            done || true"#
        ))?;
        let bind = |address| Self::bind(node, &format!("echo {address}"));
        found.lines().map(bind).collect()
    }

    fn bind(node: &Node, find: &str) -> Result<Self> {
        let found = node.check(&format!(
            "set -eu\n{BIND}\naddress=$({find})\n[ -n \"$address\" ]\nbind \"$address\"\necho \"$address\""
        ))?;
        let address = found.trim().to_owned();
        Ok(Self { address })
    }

    /// The option by which `vmm-run` passes it to a guest.
    #[must_use]
    pub fn option(&self) -> String {
        format!("--vfio {}", self.address)
    }

    /// Whether the device answers and nobody has it: its vendor id can be read, it does not master
    /// the bus, and its group is free.
    ///
    /// # Errors
    /// What is otherwise.
    pub fn must_be_sane(&self, node: &Node) -> Result<()> {
        node.check(&format!(
            r#"set -eu
            device=/sys/bus/pci/devices/{address}
            [ "$(basename "$(readlink -f "$device/driver")")" = vfio-pci ]
            [ "$(od -An -tx2 -N2 "$device/config" | tr -d ' ')" != ffff ]
            command=$((0x$(od -An -tx2 -j4 -N2 "$device/config" | tr -d ' ')))
            [ $((command & 4)) = 0 ]
            group=$(basename "$(readlink -f "$device/iommu_group")")
            # A group has one owner: opening it fails while somebody has it.
            ( exec 3<>"/dev/vfio/$group" )"#,
            address = self.address
        ))
        .map(drop)
        .with_context(|| format!("{} after its guest", self.address))
    }
}
