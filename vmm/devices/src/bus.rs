//! From an address to the device that answers it, for port I/O and for memory-mapped I/O alike.
//!
//! A [`Bus`] is sorted and immutable once built, so a vCPU's exit takes no lock here; each device
//! has its own. The bus checks widths and ends in one place, so that a device only ever sees 1, 2,
//! 4 or 8 bytes that lie wholly inside its range.

use std::fmt;
use std::sync::Arc;

use crate::guest_error::{GuestError, GuestErrors};

/// A device behind a range of addresses. Called from any vCPU thread, several at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes) with what the guest reads at `offset` into the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes what the guest writes at `offset` into the range (1, 2, 4 or 8 bytes).
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a bus could not be built: always a mistake of the machine's layout.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildBusError {
    /// A device of no bytes.
    #[error("the device at {base:#x} has a range of no bytes; give it at least one")]
    Empty {
        /// First address.
        base: u64,
    },
    /// A range that passes the end of the address space.
    #[error("the device at {base:#x} of {bytes:#x} bytes passes the end of the address space")]
    TooLong {
        /// First address.
        base: u64,
        /// Length of the range.
        bytes: u64,
    },
    /// Two devices at one address.
    #[error("the devices at {first:#x} and {second:#x} overlap; move one of them")]
    Overlap {
        /// First address of the lower device.
        first: u64,
        /// First address of the higher device.
        second: u64,
    },
}

/// One device and where it answers.
#[derive(Clone)]
pub struct BusRange {
    /// First address.
    pub base: u64,
    /// Length in bytes.
    pub bytes: u64,
    /// What answers.
    pub device: Arc<dyn BusDevice>,
}

impl fmt::Debug for BusRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "BusRange({:#x}, {:#x} bytes)",
            self.base, self.bytes
        )
    }
}

/// All devices of one address space.
#[derive(Debug)]
pub struct Bus {
    ranges: Box<[BusRange]>,
    errors: Arc<GuestErrors>,
}

impl Bus {
    /// Builds the bus from `ranges` in any order.
    ///
    /// # Errors
    /// If a range is empty, passes the end of the address space or overlaps another one.
    pub fn new(mut ranges: Vec<BusRange>, errors: Arc<GuestErrors>) -> Result<Self, BuildBusError> {
        for range in &ranges {
            if range.bytes == 0 {
                return Err(BuildBusError::Empty { base: range.base });
            }
            if range.base.checked_add(range.bytes - 1).is_none() {
                return Err(BuildBusError::TooLong {
                    base: range.base,
                    bytes: range.bytes,
                });
            }
        }
        ranges.sort_by_key(|range| range.base);
        for pair in ranges.windows(2) {
            if pair[1].base - pair[0].base < pair[0].bytes {
                return Err(BuildBusError::Overlap {
                    first: pair[0].base,
                    second: pair[1].base,
                });
            }
        }
        Ok(Self {
            ranges: ranges.into_boxed_slice(),
            errors,
        })
    }

    /// Fills `data` with what the guest reads at `address`: all ones where nothing answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Ok((device, offset)) => device.read(offset, data),
            Err(error) => {
                self.errors.bump(error);
                data.fill(0xff);
            }
        }
    }

    /// Hands the guest's write at `address` to the device there; ignored where nothing answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address, data.len()) {
            Ok((device, offset)) => device.write(offset, data),
            Err(error) => self.errors.bump(error),
        }
    }

    fn find(&self, address: u64, width: usize) -> Result<(&dyn BusDevice, u64), GuestError> {
        let width = match width {
            1 => 1,
            2 => 2,
            4 => 4,
            8 => 8,
            _ => return Err(GuestError::BusAccess),
        };
        let above = self.ranges.partition_point(|range| range.base <= address);
        let range = above
            .checked_sub(1)
            .and_then(|position| self.ranges.get(position))
            .ok_or(GuestError::BusMiss)?;
        let offset = address - range.base;
        if offset >= range.bytes {
            return Err(GuestError::BusMiss);
        }
        if range.bytes - offset < width {
            return Err(GuestError::BusAccess);
        }
        Ok((range.device.as_ref(), offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn range(base: u64, bytes: u64) -> (BusRange, Arc<Recorder>) {
        let device = Arc::new(Recorder::default());
        (
            BusRange {
                base,
                bytes,
                device: device.clone(),
            },
            device,
        )
    }

    #[test]
    fn an_access_reaches_the_device_of_its_address_with_an_offset() {
        let (low, low_device) = range(0x1000, 0x10);
        let (high, high_device) = range(0x1010, 0x10);
        let bus = Bus::new(vec![high, low], Arc::default()).unwrap();
        let mut data = [0; 4];
        bus.read(0x100c, &mut data);
        assert_eq!(data, [0xc; 4]);
        bus.write(0x1011, &[7]);
        assert!(low_device.0.lock().unwrap().is_empty());
        assert_eq!(*high_device.0.lock().unwrap(), [(1, vec![7])]);
    }

    #[test]
    fn misses_straddles_and_odd_widths_read_all_ones_and_are_counted() {
        let (only, device) = range(0x1000, 0x10);
        let errors = Arc::new(GuestErrors::default());
        let bus = Bus::new(vec![only], errors.clone()).unwrap();
        for (address, width) in [(0xfff, 1), (0x1010, 4), (u64::MAX, 8), (0, 1)] {
            let mut data = vec![0; width];
            bus.read(address, &mut data);
            bus.write(address, &data);
            assert!(data.iter().all(|&byte| byte == 0xff));
        }
        assert_eq!(errors.count(GuestError::BusMiss), 8);
        for (address, width) in [
            (0x100e, 4),
            (0x1009, 8),
            (0x1000, 3),
            (0x1000, 0),
            (0x1000, 16),
        ] {
            let mut data = vec![0; width];
            bus.read(address, &mut data);
            bus.write(address, &data);
            assert!(data.iter().all(|&byte| byte == 0xff));
        }
        assert_eq!(errors.count(GuestError::BusAccess), 10);
        assert!(device.0.lock().unwrap().is_empty());
    }

    #[test]
    fn bad_layouts_are_refused() {
        let build = |ranges: &[(u64, u64)]| {
            let ranges = ranges
                .iter()
                .map(|&(base, bytes)| range(base, bytes).0)
                .collect();
            Bus::new(ranges, Arc::default()).map(drop)
        };
        assert_eq!(build(&[(0, 0)]), Err(BuildBusError::Empty { base: 0 }));
        assert_eq!(
            build(&[(u64::MAX, 2)]),
            Err(BuildBusError::TooLong {
                base: u64::MAX,
                bytes: 2
            })
        );
        assert_eq!(
            build(&[(0x20, 8), (0x10, 0x11)]),
            Err(BuildBusError::Overlap {
                first: 0x10,
                second: 0x20
            })
        );
        assert_eq!(build(&[(u64::MAX, 1), (0x10, 0x10), (0x20, 1)]), Ok(()));
    }
}
