//! Bus 0: the host bridge, configuration access by ECAM and the placing of BARs.
//!
//! Owns which slot answers and where each BAR lies. Everything is fixed before the guest runs, so
//! no access takes a lock here; each function has its own.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::bar::{BarKind, BarRequest};
use super::config_space::{ConfigSpace, PciIdentity};
use super::{DeviceSlot, PciFunction};
use crate::bus::{BusDevice, BusRange};
use crate::guest_error::{GuestError, GuestErrors};

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

const SLOTS: usize = 32;
const FUNCTION_BYTES: u64 = 4096;
const FUNCTIONS_PER_SLOT: u64 = 8;

/// The host bridge is only there so that a bus scan finds a device 0.
const HOST_BRIDGE: PciIdentity = PciIdentity {
    vendor: 0x8086,
    device: 0x0d57,
    revision: 0,
    class: 0x06_00_00,
    subsystem_vendor: 0,
    subsystem: 0,
};

/// Bus 0. A bus device of [`ECAM_BYTES`] for the MMIO bus.
pub struct PciRoot {
    host_bridge: ConfigSpace,
    functions: [Option<Arc<dyn PciFunction>>; SLOTS],
    bars: Vec<BusRange>,
    errors: Arc<GuestErrors>,
}

/// What a configuration access addresses.
enum Target<'a> {
    HostBridge(u16),
    Function(&'a dyn PciFunction, u16),
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
        let mut by_slot = [const { None }; SLOTS];
        for (slot, function) in functions {
            let place: &mut Option<_> = &mut by_slot[usize::from(slot.number())];
            if place.replace(function).is_some() {
                return Err(BuildPciRootError::SlotTaken {
                    slot: slot.number(),
                });
            }
        }
        let bars = place_bars(&by_slot, windows)?;
        let host_bridge = ConfigSpace::new(HOST_BRIDGE);
        Ok(Self {
            host_bridge,
            functions: by_slot,
            bars,
            errors,
        })
    }

    /// Where the BARs answer, for the MMIO bus.
    #[must_use]
    pub fn bar_ranges(&self) -> &[BusRange] {
        &self.bars
    }

    /// The function at `offset` into the configuration window, and the register there. `None`
    /// where nothing is, which a bus scan asks for often and which is no guest error.
    fn target(&self, offset: u64) -> Option<Target<'_>> {
        let register = u16::try_from(offset % FUNCTION_BYTES).ok()?;
        let function = offset / FUNCTION_BYTES;
        if !function.is_multiple_of(FUNCTIONS_PER_SLOT) {
            return None;
        }
        match usize::try_from(function / FUNCTIONS_PER_SLOT).ok()? {
            0 => Some(Target::HostBridge(register)),
            slot => {
                let function = self.functions.get(slot)?.as_deref()?;
                Some(Target::Function(function, register))
            }
        }
    }

    fn is_access_valid(&self, offset: u64, width: usize) -> bool {
        let is_valid = matches!((width, offset % 4), (1, _) | (2, 0 | 2) | (4, 0));
        if !is_valid {
            self.errors.bump(GuestError::PciConfigAccess);
        }
        is_valid
    }
}

impl fmt::Debug for PciRoot {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PciRoot")
            .field("bars", &self.bars)
            .finish_non_exhaustive()
    }
}

impl BusDevice for PciRoot {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let target = self
            .is_access_valid(offset, data.len())
            .then(|| self.target(offset));
        match target.flatten() {
            Some(Target::HostBridge(register)) => self.host_bridge.read(register, data),
            Some(Target::Function(function, register)) => function.config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if !self.is_access_valid(offset, data.len()) {
            return;
        }
        match self.target(offset) {
            Some(Target::Function(function, register)) => function.config_write(register, data),
            // Nothing of the host bridge has an effect.
            Some(Target::HostBridge(_)) | None => (),
        }
    }
}

/// One BAR of one function as a device for the MMIO bus.
struct BarRegion {
    function: Arc<dyn PciFunction>,
    index: u8,
}

impl BusDevice for BarRegion {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.bar_read(self.index, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.function.bar_write(self.index, offset, data);
    }
}

/// Gives every BAR an aligned address: larger ones first, so that alignment wastes nothing, and
/// in slot order among equals, so that the same machine always gets the same addresses.
fn place_bars(
    functions: &[Option<Arc<dyn PciFunction>>; SLOTS],
    windows: &BarWindows,
) -> Result<Vec<BusRange>, BuildPciRootError> {
    let mut wanted: Vec<(u8, BarRequest, &Arc<dyn PciFunction>)> = Vec::new();
    for (slot, function) in (0_u8..).zip(functions) {
        let Some(function) = function else { continue };
        let mut used_registers = 0_u8;
        for request in function.bar_requests() {
            let index = request.index;
            let registers = ((1_u8 << request.registers()) - 1).checked_shl(u32::from(index));
            let is_free = registers.is_some_and(|registers| used_registers & registers == 0);
            if !request.is_well_formed() || !is_free {
                return Err(BuildPciRootError::BadBar { slot, index });
            }
            used_registers |= registers.unwrap_or(0);
            wanted.push((slot, request, function));
        }
    }
    wanted.sort_by_key(|(_, request, _)| std::cmp::Reverse(request.bytes));
    let (mut low, mut high) = (windows.low.clone(), windows.high.clone());
    low.end = low.end.min(1 << 32);
    let mut placed = Vec::with_capacity(wanted.len());
    for (slot, BarRequest { index, bytes, kind }, function) in wanted {
        let window = match kind {
            BarKind::Memory32 => &mut low,
            BarKind::Memory64 => &mut high,
        };
        let base = take_aligned(window, bytes).ok_or(BuildPciRootError::WindowFull {
            slot,
            index,
            bytes,
        })?;
        function.assign_bar(index, base);
        let device = Arc::new(BarRegion {
            function: function.clone(),
            index,
        });
        placed.push(BusRange {
            base,
            bytes,
            device,
        });
    }
    Ok(placed)
}

/// Takes `bytes`, aligned to themselves, from the start of `window`.
fn take_aligned(window: &mut Range<u64>, bytes: u64) -> Option<u64> {
    let base = window.start.checked_next_multiple_of(bytes)?;
    let end = base.checked_add(bytes)?;
    if end > window.end {
        return None;
    }
    window.start = end;
    Some(base)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use proptest::prelude::*;

    use super::*;
    use crate::bus::Bus;

    #[derive(Default)]
    struct Probe {
        requests: Vec<BarRequest>,
        assigned: Mutex<Vec<(u8, u64)>>,
        written: Mutex<Vec<(u16, Vec<u8>)>>,
    }

    impl PciFunction for Probe {
        fn bar_requests(&self) -> Vec<BarRequest> {
            self.requests.clone()
        }
        fn assign_bar(&self, index: u8, address: u64) {
            self.assigned.lock().unwrap().push((index, address));
        }
        fn config_read(&self, _: u16, data: &mut [u8]) {
            data.fill(0x5a);
        }
        fn config_write(&self, offset: u16, data: &[u8]) {
            self.written.lock().unwrap().push((offset, data.to_vec()));
        }
        fn bar_read(&self, index: u8, _: u64, data: &mut [u8]) {
            data.fill(index);
        }
        fn bar_write(&self, _: u8, _: u64, _: &[u8]) {}
    }

    fn probe(bars: &[(u8, u64, BarKind)]) -> Arc<Probe> {
        let requests = bars
            .iter()
            .map(|&(index, bytes, kind)| BarRequest { index, bytes, kind })
            .collect();
        Arc::new(Probe {
            requests,
            ..Probe::default()
        })
    }

    fn root(probes: &[(u8, Arc<Probe>)]) -> Result<PciRoot, BuildPciRootError> {
        let functions = probes
            .iter()
            .map(|(slot, probe)| (DeviceSlot::new(*slot).unwrap(), probe.clone() as _))
            .collect();
        let windows = BarWindows {
            low: 0xc000_0000..0xc001_0000,
            high: 1 << 40..2 << 40,
        };
        PciRoot::new(functions, &windows, Arc::default())
    }

    fn config(root: &PciRoot, slot: u64, function: u64, register: u64) -> u32 {
        let mut bytes = [0; 4];
        root.read(slot << 15 | function << 12 | register, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn a_scan_finds_the_host_bridge_and_the_functions_and_nothing_else() {
        let root = root(&[(1, probe(&[])), (31, probe(&[]))]).unwrap();
        assert_eq!(config(&root, 0, 0, 0), 0x0d57_8086);
        assert_eq!(config(&root, 0, 0, 8), 0x0600_0000);
        assert_eq!(config(&root, 1, 0, 0), 0x5a5a_5a5a);
        assert_eq!(config(&root, 31, 0, 0), 0x5a5a_5a5a);
        assert_eq!(config(&root, 2, 0, 0), u32::MAX);
        assert_eq!(config(&root, 1, 1, 0), u32::MAX);
        assert_eq!(config(&root, 0, 7, 0), u32::MAX);
        assert_eq!(root.errors.total(), 0);
    }

    #[test]
    fn odd_configuration_accesses_reach_no_function() {
        let function = probe(&[]);
        let root = root(&[(1, function.clone())]).unwrap();
        for (offset, width) in [
            (0x8001, 2),
            (0x8002, 4),
            (0x8000, 8),
            (0x8003, 2),
            (0x8000, 3),
        ] {
            let mut data = vec![0; width];
            root.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0xff));
            root.write(offset, &data);
        }
        assert_eq!(root.errors.count(GuestError::PciConfigAccess), 10);
        assert!(function.written.lock().unwrap().is_empty());
        root.write(0x8ffe, &[1, 2]);
        assert_eq!(*function.written.lock().unwrap(), [(0xffe, vec![1, 2])]);
    }

    #[test]
    fn bars_are_placed_aligned_in_their_window_and_answer_there() {
        let small = probe(&[
            (0, 0x1000, BarKind::Memory32),
            (2, 0x4000, BarKind::Memory64),
        ]);
        let large = probe(&[(1, 0x8000, BarKind::Memory32)]);
        let root = root(&[(1, small.clone()), (2, large.clone())]).unwrap();
        assert_eq!(*large.assigned.lock().unwrap(), [(1, 0xc000_0000)]);
        assert_eq!(
            *small.assigned.lock().unwrap(),
            [(2, 1 << 40), (0, 0xc000_8000)]
        );
        let bus = Bus::new(root.bar_ranges().to_vec(), Arc::default()).unwrap();
        let mut byte = [0];
        bus.read(0xc000_0000, &mut byte);
        assert_eq!(byte, [1]);
        bus.read((1 << 40) + 0x3fff, &mut byte);
        assert_eq!(byte, [2]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let twice = root(&[(3, probe(&[])), (3, probe(&[]))]);
        assert_eq!(twice.unwrap_err(), BuildPciRootError::SlotTaken { slot: 3 });
        let huge = root(&[(3, probe(&[(0, 0x2_0000, BarKind::Memory32)]))]);
        assert_eq!(
            huge.unwrap_err(),
            BuildPciRootError::WindowFull {
                slot: 3,
                index: 0,
                bytes: 0x2_0000
            }
        );
        let overlapping = root(&[(
            3,
            probe(&[
                (0, 0x1000, BarKind::Memory64),
                (1, 0x1000, BarKind::Memory32),
            ]),
        )]);
        assert_eq!(
            overlapping.unwrap_err(),
            BuildPciRootError::BadBar { slot: 3, index: 1 }
        );
        let odd = root(&[(3, probe(&[(200, 0x1000, BarKind::Memory32)]))]);
        assert_eq!(
            odd.unwrap_err(),
            BuildPciRootError::BadBar {
                slot: 3,
                index: 200
            }
        );
    }

    #[test]
    fn a_32_bit_bar_never_lies_above_4_gib() {
        let slot = DeviceSlot::new(1).unwrap();
        let function = probe(&[(0, 0x2000, BarKind::Memory32)]);
        let windows = BarWindows {
            low: 0xffff_f000..0x2_0000_0000,
            high: 0..0,
        };
        let root = PciRoot::new(vec![(slot, function as _)], &windows, Arc::default());
        let expected = BuildPciRootError::WindowFull {
            slot: 1,
            index: 0,
            bytes: 0x2000,
        };
        assert_eq!(root.unwrap_err(), expected);
    }

    #[test]
    fn slots_are_1_to_31() {
        assert_eq!(DeviceSlot::new(0), None);
        assert_eq!(DeviceSlot::new(32), None);
        assert_eq!(DeviceSlot::new(31).map(DeviceSlot::number), Some(31));
    }

    proptest! {
        #[test]
        fn random_configuration_accesses_never_panic(
            accesses in prop::collection::vec((0..ECAM_BYTES, 0_usize..9), 0..64)
        ) {
            let root = root(&[(1, probe(&[]))]).unwrap();
            for (offset, width) in accesses {
                root.read(offset, &mut vec![0; width]);
                root.write(offset, &vec![0xff; width]);
            }
        }
    }
}
