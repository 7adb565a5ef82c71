//! MSI-X of a passed-through function: where its table lies and what the guest's table makes of
//! the host's vectors.
//!
//! Owns the order of things: vectors exist before the device's enable bit is set, what fired while
//! masked is pending before an unmask looks at it, and a vector that was masked delivers nothing
//! once the guest's write is done. The table itself is [`crate::pci::msix::Msix`].

use std::sync::Arc;

use super::bars::FunctionBars;
use super::capabilities::Capability;
use super::config_policy::ConfigPolicy;
use super::host::Host;
use super::ops::{Area, InterruptCounts, VectorKind};
use super::vectors::{HostVectors, is_interrupt};
use crate::guest_error::{GuestError, GuestErrors};
use crate::interrupt::MsiSender;
use crate::pci::msix::{
    MSIX_CONTROL_ENABLE, MSIX_CONTROL_FUNCTION_MASK, MSIX_ENTRY_BYTES, MSIX_MAX_VECTORS, Msix,
};

const CONTROL: u16 = 2;
const CONTROL_SIZE: u16 = 0x7ff;
const PLACE_BAR: u32 = 0b111;
const VECTORS_PER_WORD: u64 = 64;

/// Why the device's MSI-X cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ReadMsixError {
    /// The table or the pending bits lie in no memory BAR.
    #[error("the {what} of MSI-X is in BAR {bar}, which is no memory BAR")]
    NoBar {
        /// "table" or "pending bits".
        what: &'static str,
        /// The BAR.
        bar: u8,
    },
    /// The table or the pending bits pass the end of their BAR.
    #[error(
        "the {what} of MSI-X at {offset:#x} of BAR {bar} passes the end of the BAR of {bytes:#x} \
         bytes"
    )]
    Outside {
        /// "table" or "pending bits".
        what: &'static str,
        /// The BAR.
        bar: u8,
        /// Where in the BAR.
        offset: u64,
        /// Length of the BAR.
        bytes: u64,
    },
    /// Table and pending bits share bytes.
    #[error("the table and the pending bits of MSI-X overlap in BAR {bar}")]
    Overlap {
        /// The BAR.
        bar: u8,
    },
}

/// A structure in a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Place {
    pub(super) bar: u8,
    pub(super) area: Area,
}

impl Place {
    /// `register` as the capability has it: the BAR in the lowest three bits, the offset above.
    pub(super) fn new(
        what: &'static str,
        register: u32,
        bytes: u64,
        bar_bytes: impl Fn(u8) -> Option<u64>,
    ) -> Result<Self, ReadMsixError> {
        let [bar, ..] = (register & PLACE_BAR).to_le_bytes();
        let offset = u64::from(register & !PLACE_BAR);
        let there = bar_bytes(bar).ok_or(ReadMsixError::NoBar { what, bar })?;
        let end = offset.checked_add(bytes).filter(|&end| end <= there);
        end.ok_or(ReadMsixError::Outside {
            what,
            bar,
            offset,
            bytes: there,
        })?;
        Ok(Self {
            bar,
            area: Area { offset, bytes },
        })
    }

    /// Whether `bytes` bytes at `offset` of BAR `bar` touch it.
    fn is_touched(&self, bar: u8, offset: u64, bytes: u64) -> bool {
        let end = self.area.offset.saturating_add(self.area.bytes);
        bar == self.bar && offset < end && self.area.offset < offset.saturating_add(bytes)
    }
}

/// What of MSI-X an access to a BAR touches, with the offset into it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Touched {
    Table(u64),
    Pending(u64),
}

/// The MSI-X state of one function.
#[derive(Debug)]
pub(super) struct PassedMsix {
    start: u16,
    table: Place,
    pending: Place,
    can_add: bool,
    msix: Msix,
    errors: Arc<GuestErrors>,
}

impl PassedMsix {
    /// Takes `capability` over, whose registers in `policy` become the model's. `registers` are
    /// those of the table and of the pending bits. `None` if the host delivers no vector.
    pub(super) fn new(
        capability: &Capability,
        registers: [u32; 2],
        interrupts: InterruptCounts,
        bars: &FunctionBars,
        sender: Arc<dyn MsiSender>,
        errors: Arc<GuestErrors>,
    ) -> Result<Option<Self>, ReadMsixError> {
        let host_vectors = u16::try_from(interrupts.msix).unwrap_or(MSIX_MAX_VECTORS);
        if host_vectors == 0 {
            return Ok(None);
        }
        let [_, _, low, high] = capability.header.to_le_bytes();
        let size = (u16::from_le_bytes([low, high]) & CONTROL_SIZE) + 1;
        let bar_bytes = |bar| bars.bytes(bar);
        let table_bytes = u64::from(size) * MSIX_ENTRY_BYTES;
        let pending_bytes = u64::from(size).div_ceil(VECTORS_PER_WORD) * 8;
        let table = Place::new("table", registers[0], table_bytes, bar_bytes)?;
        let pending = Place::new("pending bits", registers[1], pending_bytes, bar_bytes)?;
        if table.is_touched(pending.bar, pending.area.offset, pending.area.bytes) {
            return Err(ReadMsixError::Overlap { bar: table.bar });
        }
        Ok(Some(Self {
            start: capability.offset,
            table,
            pending,
            can_add: interrupts.can_add_msix,
            msix: Msix::new(size.min(host_vectors), sender, Arc::clone(&errors)),
            errors,
        }))
    }

    /// Makes the capability's registers in `policy` the model's.
    pub(super) fn install(&self, registers: [u32; 2], policy: &mut ConfigPolicy) {
        let size = self.msix.vector_count() - 1;
        let writable = MSIX_CONTROL_ENABLE | MSIX_CONTROL_FUNCTION_MASK;
        let control = self.start + CONTROL;
        policy.shadow(control, &size.to_le_bytes(), &writable.to_le_bytes());
        for (offset, register) in [(4, registers[0]), (8, registers[1])] {
            policy.shadow(self.start + offset, &register.to_le_bytes(), &[]);
        }
    }

    /// The structures whose pages must trap.
    pub(super) fn places(&self) -> [Place; 2] {
        [self.table, self.pending]
    }

    /// Whether `bytes` bytes at `offset` of configuration space touch the control register.
    pub(super) fn is_control_touched(&self, offset: u16, bytes: u16) -> bool {
        let control = self.start + CONTROL;
        offset < control + 2 && control < offset.saturating_add(bytes)
    }

    /// What `bytes` bytes at `offset` of BAR `bar` touch. An access that starts before a structure
    /// gets an offset that no access is valid at.
    pub(super) fn touched(&self, bar: u8, offset: u64, bytes: u64) -> Option<Touched> {
        if self.table.is_touched(bar, offset, bytes) {
            return Some(Touched::Table(offset.wrapping_sub(self.table.area.offset)));
        }
        let is_touched = self.pending.is_touched(bar, offset, bytes);
        is_touched.then(|| Touched::Pending(offset.wrapping_sub(self.pending.area.offset)))
    }

    /// Takes the control register after the guest's write.
    pub(super) fn set_control(
        &mut self,
        host: &Host,
        vectors: &mut HostVectors,
        policy: &ConfigPolicy,
    ) {
        let control = policy.word(self.start + CONTROL);
        let was_enabled = self.msix.is_enabled();
        if control & MSIX_CONTROL_ENABLE == 0 {
            self.msix.set_control(control);
            if was_enabled {
                self.turn_off(host, vectors);
            }
            return;
        }
        if was_enabled {
            self.collect(host, vectors, 0..self.msix.vector_count());
        } else {
            let count = self.msix.programmed_count().max(1);
            vectors.turn_on(host, VectorKind::MsiX, count);
        }
        self.msix.set_control(control);
        if control & MSIX_CONTROL_FUNCTION_MASK == 0 {
            self.make_room(host, vectors, self.msix.programmed_count());
        }
        self.route_all(host, vectors);
        if !was_enabled {
            let bits = MSIX_CONTROL_ENABLE.to_le_bytes();
            host.write_config(self.start + CONTROL, &bits);
        }
    }

    fn turn_off(&self, host: &Host, vectors: &mut HostVectors) {
        if vectors.kind() == Some(VectorKind::MsiX) {
            vectors.turn_off(host);
        }
        host.write_config(self.start + CONTROL, &[0; 2]);
    }

    /// Serves a read of the table or the pending bits.
    pub(super) fn read(
        &mut self,
        host: &Host,
        vectors: &HostVectors,
        touched: Touched,
        data: &mut [u8],
    ) {
        match touched {
            Touched::Table(offset) => self.msix.table_read(offset, data),
            Touched::Pending(offset) => {
                let first = u16::try_from(offset.saturating_mul(8)).unwrap_or(u16::MAX);
                let last = first.saturating_add(64).min(self.msix.vector_count());
                self.collect(host, vectors, first..last);
                self.msix.pending_read(offset, data);
            }
        }
    }

    /// Serves a write of the table. The pending bits cannot be written.
    pub(super) fn write(
        &mut self,
        host: &Host,
        vectors: &mut HostVectors,
        touched: Touched,
        data: &[u8],
    ) {
        let Touched::Table(offset) = touched else {
            return self.errors.bump(GuestError::MsixAccess);
        };
        // No vector has the number that stands for an offset out of bounds.
        let vector = u16::try_from(offset / MSIX_ENTRY_BYTES).unwrap_or(u16::MAX);
        self.collect(host, vectors, vector..vector.saturating_add(1));
        self.msix.table_write(offset, data);
        let message = self.msix.deliverable(vector);
        if message.is_some() {
            self.make_room(host, vectors, vector + 1);
        }
        if vectors.kind() == Some(VectorKind::MsiX) {
            vectors.route(host, vector, message);
        }
    }

    /// Back to the state after a reset of the function; the vectors are off already.
    pub(super) fn reset(&mut self, policy: &mut ConfigPolicy) {
        self.msix.reset();
        let size = self.msix.vector_count() - 1;
        policy.set(self.start + CONTROL, &size.to_le_bytes());
    }

    /// Takes what fired while it went nowhere into the pending bits. A vector that is unmasked and
    /// yet goes nowhere is one that the host did not route, which is sent, or one without an
    /// address, which is lost.
    fn collect(&mut self, host: &Host, vectors: &HostVectors, range: std::ops::Range<u16>) {
        if vectors.kind() != Some(VectorKind::MsiX) {
            return;
        }
        for vector in range.start..range.end.min(vectors.count()) {
            let message = self.msix.deliverable(vector);
            if vectors.take_fired(host, vector) && message.is_none_or(|to| is_interrupt(&to)) {
                self.msix.signal(vector);
            }
        }
    }

    /// Makes at least `count` vectors exist in the host.
    fn make_room(&mut self, host: &Host, vectors: &mut HostVectors, count: u16) {
        let there = vectors.count();
        if vectors.kind() != Some(VectorKind::MsiX) {
            vectors.turn_on(host, VectorKind::MsiX, count);
            self.route_all(host, vectors);
        } else if count > there && self.can_add {
            vectors.add(host, count);
        } else if count > there {
            self.grow_anew(host, vectors, count);
        }
    }

    /// For hosts that cannot add vectors: turns them off and more of them on. Twice as many at
    /// least, so that the number of turns stays small. What fired in between may be lost, so every
    /// vector that goes somewhere is sent once; drivers take a spurious interrupt in their stride.
    fn grow_anew(&mut self, host: &Host, vectors: &mut HostVectors, count: u16) {
        let there = vectors.count();
        let more = count
            .max(there.saturating_mul(2))
            .min(self.msix.vector_count());
        self.collect(host, vectors, 0..there);
        vectors.turn_on(host, VectorKind::MsiX, more);
        if vectors.kind().is_none() {
            vectors.turn_on(host, VectorKind::MsiX, there);
        }
        self.route_all(host, vectors);
        for vector in 0..there {
            if self.msix.deliverable(vector).is_some() {
                self.msix.signal(vector);
            }
        }
    }

    fn route_all(&self, host: &Host, vectors: &mut HostVectors) {
        if vectors.kind() == Some(VectorKind::MsiX) {
            for vector in 0..vectors.count() {
                vectors.route(host, vector, self.msix.deliverable(vector));
            }
        }
    }
}

#[cfg(test)]
mod tests;
