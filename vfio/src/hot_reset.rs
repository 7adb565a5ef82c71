//! Resets that hit more than one function: whom, and doing it.
//!
//! Owns the layouts of `struct vfio_pci_hot_reset_info`, `struct vfio_pci_dependent_device` and
//! `struct vfio_pci_hot_reset` (`include/uapi/linux/vfio.h`).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use libc::Ioctl;

use crate::VfioDevice;
use crate::kernel_call::{broken, vfio, with_bytes};

const GET_PCI_HOT_RESET_INFO: Ioctl = vfio(12);
const PCI_HOT_RESET: Ioctl = vfio(13);

/// `struct vfio_pci_hot_reset_info`: argsz, flags, count, then the devices.
const HEAD_BYTES: usize = 12;
const FLAGS: usize = 4;
const COUNT: usize = 8;
/// `struct vfio_pci_dependent_device`: group id, segment, bus, device and function.
const DEVICE_BYTES: usize = 8;
/// The devices are named by an iommufd's own numbers instead of groups.
const FLAG_DEVICE_IDS: u32 = 1;
/// Most devices that are believed to be below one bridge.
const MAX_DEVICES: usize = 1024;
/// Times that devices may have come while they were asked for.
const MAX_GROWTHS: u32 = 3;

/// A function that a hot reset hits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct HotResetFunction {
    /// Its IOMMU group.
    pub group: u32,
    /// PCI domain.
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Device in the upper five bits, function in the lower three.
    pub device_function: u8,
}

impl VfioDevice {
    /// All functions that a hot reset of this one's bus or slot hits, itself among them.
    ///
    /// # Errors
    /// What the kernel says: `ENODEV` if there is no such reset, `EPERM` if it hits a device without a
    /// group. `InvalidData` if the reply contradicts itself, `Unsupported` if it has no groups.
    pub fn hot_reset_scope(&self) -> io::Result<Vec<HotResetFunction>> {
        let mut room = 0;
        for _ in 0..MAX_GROWTHS {
            let mut reply = vec![0; HEAD_BYTES + room * DEVICE_BYTES];
            match with_bytes(self.as_fd(), GET_PCI_HOT_RESET_INFO, &mut reply) {
                Ok(_) => return functions(&reply),
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {}
                Err(error) => return Err(error),
            }
            let count = usize::try_from(word(&reply, COUNT)?).map_err(io::Error::other)?;
            if count <= room || count > MAX_DEVICES {
                break;
            }
            room = count;
        }
        Err(broken("the kernel's list of reset devices has no end"))
    }

    /// Resets everything below this function's bridge. `groups` are open `/dev/vfio/<group>` of all that
    /// is hit, which proves to the kernel that it is ours.
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` if something is hit that is not in these groups or not with VFIO,
    /// `ENOTTY` if the bridge failed, maybe late.
    pub fn hot_reset(&self, groups: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut message = message(groups)?;
        with_bytes(self.as_fd(), PCI_HOT_RESET, &mut message)?;
        Ok(())
    }
}

/// `struct vfio_pci_hot_reset`; the length comes with the call.
fn message(groups: &[BorrowedFd<'_>]) -> io::Result<Vec<u8>> {
    let count = u32::try_from(groups.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    if count == 0 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut message: Vec<u8> = [0, 0, count]
        .into_iter()
        .flat_map(u32::to_ne_bytes)
        .collect();
    for group in groups {
        message.extend(group.as_raw_fd().to_ne_bytes());
    }
    Ok(message)
}

fn functions(reply: &[u8]) -> io::Result<Vec<HotResetFunction>> {
    if word(reply, FLAGS)? & FLAG_DEVICE_IDS != 0 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let count = usize::try_from(word(reply, COUNT)?).map_err(io::Error::other)?;
    let (devices, _) = reply
        .get(HEAD_BYTES..)
        .ok_or_else(too_short)?
        .as_chunks::<DEVICE_BYTES>();
    let devices = devices.get(..count).ok_or_else(too_short)?;
    Ok(devices.iter().map(function).collect())
}

fn function(bytes: &[u8; DEVICE_BYTES]) -> HotResetFunction {
    let &[g0, g1, g2, g3, d0, d1, bus, device_function] = bytes;
    HotResetFunction {
        group: u32::from_ne_bytes([g0, g1, g2, g3]),
        domain: u16::from_ne_bytes([d0, d1]),
        bus,
        device_function,
    }
}

fn word(reply: &[u8], offset: usize) -> io::Result<u32> {
    let bytes = reply.get(offset..).and_then(|tail| tail.first_chunk());
    bytes
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .ok_or_else(too_short)
}

fn too_short() -> io::Error {
    broken("the kernel's list of reset devices is longer than its reply")
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn reply(flags: u32, count: u32, devices: &[[u8; DEVICE_BYTES]]) -> Vec<u8> {
        let words = [0, flags, count].into_iter().flat_map(u32::to_ne_bytes);
        words.chain(devices.iter().flatten().copied()).collect()
    }

    #[test]
    fn a_reply_names_each_function() {
        let [g0, g1, g2, g3] = 17_u32.to_ne_bytes();
        let [d0, d1] = 1_u16.to_ne_bytes();
        let device = [g0, g1, g2, g3, d0, d1, 0x3b, 0x09];
        let wanted = HotResetFunction {
            group: 17,
            domain: 1,
            bus: 0x3b,
            device_function: 0x09,
        };
        assert_eq!(functions(&reply(0, 1, &[device])).unwrap(), [wanted]);
        assert_eq!(functions(&reply(0, 0, &[device])).unwrap(), []);
    }

    #[test]
    fn a_reply_that_contradicts_itself_is_an_error() {
        functions(&reply(0, 2, &[[0; DEVICE_BYTES]])).unwrap_err();
        functions(&reply(0, u32::MAX, &[])).unwrap_err();
        functions(&reply(FLAG_DEVICE_IDS, 0, &[])).unwrap_err();
        functions(&[0; 11]).unwrap_err();
    }

    #[test]
    fn a_message_has_all_groups_and_at_least_one() {
        let null = File::open("/dev/null").unwrap();
        let sent = message(&[null.as_fd(), null.as_fd()]).unwrap();
        let number = null.as_raw_fd().to_ne_bytes();
        assert_eq!(sent.len(), 20);
        assert_eq!(sent[8..12], 2_u32.to_ne_bytes());
        assert_eq!([&sent[12..16], &sent[16..]], [number, number]);
        message(&[]).unwrap_err();
    }

    #[test]
    fn a_file_that_is_no_device_is_refused() {
        let device = VfioDevice::new(File::open("/dev/null").unwrap().into());
        device.hot_reset_scope().unwrap_err();
        let group = File::open("/dev/null").unwrap();
        device.hot_reset(&[group.as_fd()]).unwrap_err();
        device.hot_reset(&[]).unwrap_err();
    }
}
