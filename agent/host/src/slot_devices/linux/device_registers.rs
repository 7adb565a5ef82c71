//! Config space and registers of one function, as far as resets and wipes read them.
//!
//! Two ways lead there: sysfs shows the first 64 bytes as the chip has them; through VFIO all of it can
//! be read, but the kernel answers for some registers itself. Offsets are those of PCI Local Bus 3.0
//! and PCI Bus Power Management 1.2.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use berth_agent_core::slot::reset::Liveness;
use berth_api::pci::{PciAddress, PciClass};
use berth_vfio::{RegionInfo, VfioDevice};

use super::open_slot::function;

/// Regions of a VFIO PCI device: BARs have their own number.
const REGION_BAR_0: u32 = 0;
const REGION_CONFIG: u32 = 7;

const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const STATUS: u64 = 6;
const STATUS_CAPABILITIES: u16 = 1 << 4;
const CAPABILITIES: u64 = 0x34;
const CAPABILITY_POWER: u8 = 1;
const POWER_STATE: u64 = 4;
/// A conventional config space has room for no more capabilities than this.
const MAX_CAPABILITIES: usize = 48;

/// Controller status of an NVMe drive (NVMe Base 3.1.4).
const NVME_STATUS: u64 = 0x1c;

/// The first 64 bytes of config space, as the chip has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConfigHead([u8; 64]);

impl ConfigHead {
    pub(super) fn read(root: &Path, address: PciAddress) -> io::Result<Self> {
        let mut head = [0; 64];
        File::open(function(root, address).join("config"))?.read_exact(&mut head)?;
        Ok(Self(head))
    }

    fn u16(&self, offset: usize) -> u16 {
        let [low, high] = self.bytes(offset);
        u16::from_le_bytes([low, high])
    }

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let tail = self.0.get(offset..).and_then(|tail| tail.first_chunk());
        *tail.expect("offsets of the header are inside the header")
    }

    pub(super) fn class(&self) -> PciClass {
        let [interface, sub, base] = self.bytes(9);
        PciClass(u32::from_be_bytes([0, base, sub, interface]))
    }

    /// How the function answers, without what VFIO has to tell.
    pub(super) fn liveness(&self) -> Liveness {
        let mut bars = [0; 6];
        for (offset, bar) in (0x10..).step_by(4).zip(&mut bars) {
            *bar = u32::from_le_bytes(self.bytes(offset));
        }
        Liveness {
            ids: [self.u16(0), self.u16(2)],
            command: self.u16(4),
            bars,
            power_state: None,
            register: None,
        }
    }
}

/// Config space of an open device.
#[derive(Debug)]
pub(super) struct OpenConfig<'d> {
    device: &'d VfioDevice,
    region: RegionInfo,
}

impl<'d> OpenConfig<'d> {
    pub(super) fn new(device: &'d VfioDevice) -> io::Result<Self> {
        let region = device.region(REGION_CONFIG)?;
        Ok(Self { device, region })
    }

    fn read_u8(&self, offset: u64) -> io::Result<u8> {
        let mut byte = [0];
        self.device.read(&self.region, offset, &mut byte)?;
        let [byte] = byte;
        Ok(byte)
    }

    fn read_u16(&self, offset: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.device.read(&self.region, offset, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// The power state, if the function has such a capability. The list comes from the device, so
    /// its length is bounded.
    pub(super) fn power_state(&self) -> io::Result<Option<u8>> {
        if self.read_u16(STATUS)? & STATUS_CAPABILITIES == 0 {
            return Ok(None);
        }
        let mut place = self.read_u8(CAPABILITIES)?;
        for _ in 0..MAX_CAPABILITIES {
            let at = u64::from(place & !3);
            if at < 0x40 {
                break;
            }
            if self.read_u8(at)? == CAPABILITY_POWER {
                let [state, _] = self.read_u16(at + POWER_STATE)?.to_le_bytes();
                return Ok(Some(state & 3));
            }
            place = self.read_u8(at + 1)?;
        }
        Ok(None)
    }

    /// Let the device's memory be reached, and the device reach ours if `masters_bus`.
    pub(super) fn turn_on(&self, masters_bus: bool) -> io::Result<()> {
        let mut command = self.read_u16(COMMAND)? | COMMAND_MEMORY;
        if masters_bus {
            command |= COMMAND_BUS_MASTER;
        }
        let bytes = command.to_le_bytes();
        self.device.write(&self.region, COMMAND, &bytes)
    }

    /// Keep the device from reaching our memory.
    pub(super) fn turn_bus_mastering_off(&self) -> io::Result<()> {
        let command = self.read_u16(COMMAND)? & !COMMAND_BUS_MASTER;
        let bytes = command.to_le_bytes();
        self.device.write(&self.region, COMMAND, &bytes)
    }
}

/// How an open device answers.
pub(super) fn liveness(
    root: &Path,
    address: PciAddress,
    device: &VfioDevice,
) -> io::Result<Liveness> {
    let head = ConfigHead::read(root, address)?;
    let config = OpenConfig::new(device)?;
    let mut liveness = head.liveness();
    liveness.power_state = config.power_state()?;
    if head.class().is_nvme() {
        config.turn_on(false)?;
        liveness.register = Some(nvme_status(device)?);
    }
    Ok(liveness)
}

fn nvme_status(device: &VfioDevice) -> io::Result<u32> {
    let registers = device.region(REGION_BAR_0)?;
    let mut bytes = [0; 4];
    device.read(&registers, NVME_STATUS, &mut bytes)?;
    Ok(u32::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_the_chip_has_it() {
        let mut head = [0; 64];
        head[..6].copy_from_slice(&[0x36, 0x1b, 0x10, 0x00, 0x06, 0x04]);
        head[9..12].copy_from_slice(&[0x02, 0x08, 0x01]);
        head[0x10..0x14].copy_from_slice(&0xfe00_0004_u32.to_le_bytes());
        head[0x24..0x28].copy_from_slice(&7_u32.to_le_bytes());
        let head = ConfigHead(head);
        assert!(head.class().is_nvme());
        let wanted = Liveness {
            ids: [0x1b36, 0x0010],
            command: 0x0406,
            bars: [0xfe00_0004, 0, 0, 0, 0, 7],
            power_state: None,
            register: None,
        };
        assert_eq!(head.liveness(), wanted);
    }

    #[test]
    fn a_config_space_that_ends_early_is_an_error() {
        let root = tempfile::tempdir().unwrap();
        let address = "0000:01:00.0".parse().unwrap();
        let folder = function(root.path(), address);
        std::fs::create_dir_all(&folder).unwrap();
        ConfigHead::read(root.path(), address).unwrap_err();
        std::fs::write(folder.join("config"), [0xff; 63]).unwrap();
        ConfigHead::read(root.path(), address).unwrap_err();
        std::fs::write(folder.join("config"), [0xff; 256]).unwrap();
        let head = ConfigHead::read(root.path(), address).unwrap();
        let before = head.liveness();
        assert!(head.liveness().problem(&before).is_some());
    }
}
