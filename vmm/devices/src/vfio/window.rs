//! The ranges of guest addresses that passed-through BARs can move in, as devices of the MMIO bus.
//!
//! Owns the look-up from an address to the function that decodes it. The bus itself is fixed once
//! built, so one range covers a whole window and asks the functions where their BARs are.

use std::ops::Range;
use std::sync::Arc;

use super::bar_layout::BarPlan;
use super::function::VfioPci;
use crate::bus::{BusDevice, BusRange};
use crate::guest_error::{GuestError, GuestErrors};
use crate::pci::bar::BarKind;

/// One window. Where the guest puts two BARs at one address the first function answers.
struct BarWindow {
    start: u64,
    functions: Vec<Arc<VfioPci>>,
    errors: Arc<GuestErrors>,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let address = self.start.saturating_add(offset);
        let mut functions = self.functions.iter();
        if !functions.any(|function| function.read_memory(address, data)) {
            self.errors.bump(GuestError::BusMiss);
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let address = self.start.saturating_add(offset);
        let mut functions = self.functions.iter();
        if !functions.any(|function| function.write_memory(address, data)) {
            self.errors.bump(GuestError::BusMiss);
        }
    }
}

/// Puts the BARs of `functions` where `plan`, made of their [`VfioPci::wanted_bars`] in the same
/// order, says, and returns what answers there for the MMIO bus.
#[must_use]
pub fn place(
    functions: &[Arc<VfioPci>],
    plan: &BarPlan,
    errors: &Arc<GuestErrors>,
) -> Vec<BusRange> {
    for placed in &plan.bars {
        let window = match placed.kind {
            BarKind::Memory32 => &plan.low,
            BarKind::Memory64 => &plan.high,
        };
        if let Some(function) = functions.get(placed.function) {
            function.place_bar(placed.bar, placed.address, window);
        }
    }
    let window = |range: &Range<u64>| BusRange {
        base: range.start,
        bytes: range.end.saturating_sub(range.start),
        device: Arc::new(BarWindow {
            start: range.start,
            functions: functions.to_vec(),
            errors: Arc::clone(errors),
        }),
    };
    [&plan.low, &plan.high]
        .into_iter()
        .filter(|range| !range.is_empty())
        .map(window)
        .collect()
}
