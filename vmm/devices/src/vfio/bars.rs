//! The memory BARs of a passed-through function as the guest sees them.
//!
//! Owns their registers, their addresses and what of them is mapped into the guest. The host's own
//! addresses are never seen. A BAR moves only while the function does not decode memory, and only
//! within the window that it was placed in:
//!
//! ```text
//! write with decoding off -> the register takes it (minus the size's bits)
//! decoding goes on        -> inside the window: the BAR is there from here on
//!                            anywhere else:     ignored, the register reads the old address again
//! write with decoding on  -> all ones: reads the size; anything else: reads the address again
//! ```
//!
//! So a 64-bit address of which one half is written is never acted on.

use std::ops::Range;

use super::host::{Host, VfioCounter};
use super::ops::{Area, BAR_COUNT, BarInfo, Description, Mappable};
use crate::pci::bar::BarKind;

/// Granularity of mappings.
pub(super) const PAGE_BYTES: u64 = 4096;
/// Most areas of one BAR that are mapped; accesses to others trap.
const MAX_AREAS: usize = 32;
/// Least size of a memory BAR.
const LEAST_BYTES: u64 = 16;

const REGISTER_IS_PORTS: u32 = 1;
const REGISTER_TYPE: u32 = 0b110;
const REGISTER_TYPE_32: u32 = 0b000;
const REGISTER_TYPE_64: u32 = 0b100;
const REGISTER_PREFETCHABLE: u32 = 0b1000;
const REGISTER_FLAGS: u32 = 0xf;

/// Why the device's BARs cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadBarsError {
    /// A register with a reserved type.
    #[error("BAR {bar} has the reserved type of register {register:#x}")]
    BadType {
        /// Its first register.
        bar: u8,
        /// The register.
        register: u32,
    },
    /// A size that no BAR can have.
    #[error("BAR {bar} has a size of {bytes:#x} bytes, which no such BAR can have")]
    BadSize {
        /// Its first register.
        bar: u8,
        /// Its size.
        bytes: u64,
    },
    /// A 64-bit BAR without a second register.
    #[error("BAR {bar} is 64 bits wide and has no second register of its own")]
    NoUpperHalf {
        /// Its first register.
        bar: u8,
    },
}

/// One BAR.
#[derive(Clone, Debug)]
pub(super) struct FunctionBar {
    index: u8,
    bytes: u64,
    kind: BarKind,
    is_prefetchable: bool,
    /// Where the guest may put it; empty until the machine has placed it.
    window: Range<u64>,
    /// Where it answers while memory is decoded.
    address: u64,
    /// What its registers read, without the flags.
    register: u64,
    /// What can be mapped.
    areas: Vec<Area>,
    /// What is mapped, at `address`.
    mapped: Vec<Area>,
}

/// All BARs of a function.
#[derive(Clone, Debug, Default)]
pub(super) struct FunctionBars {
    bars: Vec<FunctionBar>,
}

/// A place in a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct BarOffset {
    /// The BAR's first register.
    pub(super) bar: u8,
    /// Bytes from its start.
    pub(super) offset: u64,
}

impl FunctionBars {
    /// The BARs that `description` and the registers' values tell of. Port BARs are left out: the
    /// guest does not see them.
    pub(super) fn read(
        description: &Description,
        registers: [u32; BAR_COUNT],
    ) -> Result<Self, ReadBarsError> {
        let mut bars = Vec::new();
        let mut upper_half = None;
        for ((index, info), register) in (0_u8..).zip(&description.bars).zip(registers) {
            if upper_half == Some(index) {
                if info.bytes != 0 {
                    return Err(ReadBarsError::NoUpperHalf { bar: index - 1 });
                }
            } else if info.bytes != 0 && register & REGISTER_IS_PORTS == 0 {
                let bar = FunctionBar::read(index, info, register)?;
                if bar.kind == BarKind::Memory64 {
                    upper_half = Some(index + 1);
                }
                bars.push(bar);
            }
        }
        Ok(Self { bars })
    }

    /// Length of the BAR at `index`, if there is one.
    pub(super) fn bytes(&self, index: u8) -> Option<u64> {
        self.bars
            .iter()
            .find(|bar| bar.index == index)
            .map(|bar| bar.bytes)
    }

    /// First register, length and kind of each BAR.
    pub(super) fn wanted(&self) -> impl Iterator<Item = (u8, u64, BarKind)> {
        self.bars.iter().map(|bar| (bar.index, bar.bytes, bar.kind))
    }

    /// Keeps the pages of `area` of the BAR at `index` trapping. With `is_mappable` false the
    /// whole BAR traps unless the host listed its areas.
    pub(super) fn trap(&mut self, index: u8, area: Area, info: &BarInfo) {
        for bar in self.bars.iter_mut().filter(|bar| bar.index == index) {
            if info.mappable == Mappable::Whole && !info.is_msix_mappable {
                bar.areas.clear();
            }
            bar.areas = without_pages(&bar.areas, area);
        }
    }

    /// Puts the BAR at `index` at `address`, from where the guest can move it within `window`.
    pub(super) fn place(&mut self, index: u8, address: u64, window: &Range<u64>) {
        for bar in self.bars.iter_mut().filter(|bar| bar.index == index) {
            bar.window = window.clone();
            bar.address = address;
            bar.register = address;
        }
    }

    /// What register `register` of the six reads.
    pub(super) fn read_register(&self, register: u8) -> u32 {
        self.bars
            .iter()
            .find_map(|bar| bar.read_register(register))
            .unwrap_or(0)
    }

    /// Takes a write of a whole register. `decodes` says whether memory is decoded.
    pub(super) fn write_register(&mut self, host: &Host, register: u8, value: u32, decodes: bool) {
        for bar in &mut self.bars {
            bar.write_register(host, register, value, decodes);
        }
    }

    /// Memory decoding goes on: moves the BARs that the guest gave a good address.
    pub(super) fn take_moves(&mut self, host: &Host) {
        for bar in &mut self.bars {
            bar.take_move(host);
        }
    }

    /// The BAR and offset at guest physical `address`, if `width` bytes from there lie in one.
    pub(super) fn locate(&self, address: u64, width: u64) -> Option<BarOffset> {
        self.bars.iter().find_map(|bar| bar.locate(address, width))
    }

    /// Maps all areas that are not mapped.
    pub(super) fn map(&mut self, host: &Host) {
        for bar in self.bars.iter_mut().filter(|bar| !bar.window.is_empty()) {
            for &area in &bar.areas {
                let address = bar.address + area.offset;
                if !bar.mapped.contains(&area) && host.map_area(bar.index, area, address) {
                    bar.mapped.push(area);
                }
            }
        }
    }

    /// Unmaps all areas that are mapped.
    pub(super) fn unmap(&mut self, host: &Host) {
        for bar in &mut self.bars {
            for area in bar.mapped.drain(..) {
                host.unmap_area(bar.index, area, bar.address + area.offset);
            }
        }
    }
}

impl FunctionBar {
    fn read(index: u8, info: &BarInfo, register: u32) -> Result<Self, ReadBarsError> {
        let kind = match register & REGISTER_TYPE {
            REGISTER_TYPE_32 => BarKind::Memory32,
            REGISTER_TYPE_64 if index == 5 => {
                return Err(ReadBarsError::NoUpperHalf { bar: index });
            }
            REGISTER_TYPE_64 => BarKind::Memory64,
            _ => {
                return Err(ReadBarsError::BadType {
                    bar: index,
                    register,
                });
            }
        };
        let bytes = info.bytes;
        let is_possible = bytes.is_power_of_two()
            && bytes >= LEAST_BYTES
            && (kind == BarKind::Memory64 || bytes <= 1 << 31);
        if !is_possible {
            return Err(ReadBarsError::BadSize { bar: index, bytes });
        }
        Ok(Self {
            index,
            bytes,
            kind,
            is_prefetchable: register & REGISTER_PREFETCHABLE != 0,
            window: 0..0,
            address: 0,
            register: 0,
            areas: mappable_areas(info),
            mapped: Vec::new(),
        })
    }

    fn half(&self, register: u8) -> Option<u32> {
        let half = register.checked_sub(self.index)?;
        let halves = match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 => 2,
        };
        (half < halves).then_some(u32::from(half))
    }

    fn read_register(&self, register: u8) -> Option<u32> {
        let half = self.half(register)?;
        let word = word(self.register, half);
        Some(if half == 0 { word | self.flags() } else { word })
    }

    fn flags(&self) -> u32 {
        let kind = match self.kind {
            BarKind::Memory32 => REGISTER_TYPE_32,
            BarKind::Memory64 => REGISTER_TYPE_64,
        };
        kind | if self.is_prefetchable {
            REGISTER_PREFETCHABLE
        } else {
            0
        }
    }

    fn write_register(&mut self, host: &Host, register: u8, value: u32, decodes: bool) {
        let Some(half) = self.half(register) else {
            return;
        };
        let flags = if half == 0 { REGISTER_FLAGS } else { 0 };
        let is_sizing = value | flags == u32::MAX;
        let taken = if !decodes || is_sizing {
            u64::from(value & !flags)
        } else {
            u64::from(word(self.address, half))
        };
        if decodes && !is_sizing && value & !flags != word(self.address, half) {
            host.count(VfioCounter::BarMoveIgnored);
        }
        let others = self.register & !(u64::from(u32::MAX) << (32 * half));
        self.register = (others | taken << (32 * half)) & !(self.bytes - 1);
    }

    fn take_move(&mut self, host: &Host) {
        if self.register == self.address {
            return;
        }
        let is_inside = self.register >= self.window.start
            && self
                .register
                .checked_add(self.bytes)
                .is_some_and(|end| end <= self.window.end);
        if is_inside {
            self.address = self.register;
        } else {
            self.register = self.address;
            host.count(VfioCounter::BarMoveIgnored);
        }
    }

    fn locate(&self, address: u64, width: u64) -> Option<BarOffset> {
        if self.window.is_empty() {
            return None;
        }
        let offset = address.checked_sub(self.address)?;
        let end = offset.checked_add(width)?;
        (end <= self.bytes).then_some(BarOffset {
            bar: self.index,
            offset,
        })
    }
}

fn word(value: u64, half: u32) -> u32 {
    let word = value >> (32 * half) & u64::from(u32::MAX);
    u32::try_from(word).expect("the value is masked to 32 bits")
}

/// Whole pages of the BAR that the host can map, ascending and disjoint.
fn mappable_areas(info: &BarInfo) -> Vec<Area> {
    if !info.is_readable || !info.is_writable {
        return Vec::new();
    }
    let whole = Area {
        offset: 0,
        bytes: info.bytes,
    };
    let listed = match &info.mappable {
        Mappable::Nothing => &[],
        Mappable::Whole => std::slice::from_ref(&whole),
        Mappable::Areas(areas) => areas.as_slice(),
    };
    let mut areas: Vec<_> = listed
        .iter()
        .filter_map(|&area| whole_pages(area, info.bytes))
        .collect();
    areas.sort_unstable();
    let mut end = 0;
    areas.retain(|area| {
        let is_free = area.offset >= end;
        if is_free {
            end = area.offset + area.bytes;
        }
        is_free
    });
    areas.truncate(MAX_AREAS);
    areas
}

/// The whole pages of `area` that lie in a BAR of `bytes` bytes.
fn whole_pages(area: Area, bytes: u64) -> Option<Area> {
    let start = area.offset.checked_next_multiple_of(PAGE_BYTES)?;
    let end = area.offset.checked_add(area.bytes)?.min(bytes);
    let end = end - end % PAGE_BYTES;
    (start < end).then(|| Area {
        offset: start,
        bytes: end - start,
    })
}

/// `areas` without the pages that `hole` touches.
fn without_pages(areas: &[Area], hole: Area) -> Vec<Area> {
    let start = hole.offset - hole.offset % PAGE_BYTES;
    let end = hole
        .offset
        .saturating_add(hole.bytes)
        .checked_next_multiple_of(PAGE_BYTES)
        .unwrap_or(u64::MAX);
    let mut left = Vec::with_capacity(areas.len() + 1);
    for area in areas {
        let area_end = area.offset + area.bytes;
        for (from, to) in [
            (area.offset, area_end.min(start)),
            (area.offset.max(end), area_end),
        ] {
            if from < to {
                left.push(Area {
                    offset: from,
                    bytes: to - from,
                });
            }
        }
    }
    left
}

#[cfg(test)]
mod tests;
