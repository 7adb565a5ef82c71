//! Base address registers: what a function asks for, where the machine puts it and what a guest
//! reads while it sizes one.
//!
//! Addresses are assigned before the guest runs and never move: a guest's write of an address is
//! ignored and the register goes on reading the assigned one, which is what Linux expects under
//! ACPI `_DSM` function 5 = 0. That leaves no half-written 64-bit address to act on.

/// Least length of a BAR: no two BARs share a page.
pub const BAR_MIN_BYTES: u64 = 4096;

const TYPE_64_BIT: u32 = 0b100;
const TYPE_BITS: u32 = 0xf;

/// Which addresses a BAR may have.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum BarKind {
    /// Below 4 GiB, one register.
    Memory32,
    /// Anywhere, two registers.
    Memory64,
}

/// One BAR of a function, not prefetchable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BarRequest {
    /// Its (first) register, 0 to 5.
    pub index: u8,
    /// Its length in bytes: a power of two, at least [`BAR_MIN_BYTES`].
    pub bytes: u64,
    /// Which addresses it may have.
    pub kind: BarKind,
}

impl BarRequest {
    /// Number of registers it takes.
    #[must_use]
    pub fn registers(&self) -> u8 {
        match self.kind {
            BarKind::Memory32 => 1,
            BarKind::Memory64 => 2,
        }
    }

    /// Whether a function can have it at all.
    #[must_use]
    pub fn is_well_formed(&self) -> bool {
        self.bytes.is_power_of_two()
            && self.bytes >= BAR_MIN_BYTES
            && (self.kind == BarKind::Memory64 || self.bytes <= 1 << 31)
            && self
                .index
                .checked_add(self.registers())
                .is_some_and(|end| end <= 6)
    }
}

/// One BAR with its address.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    request: BarRequest,
    address: u64,
    /// Per register: the guest wrote all ones and reads the size.
    is_sizing: [bool; 2],
}

impl Bar {
    pub(super) fn new(request: BarRequest, address: u64) -> Self {
        Self {
            request,
            address,
            is_sizing: [false; 2],
        }
    }

    /// What `register` reads, if it is one of this BAR's.
    pub(super) fn read(&self, register: u8) -> Option<u32> {
        let half = self.half(register)?;
        let shown = if self.is_sizing[half] {
            !(self.request.bytes - 1)
        } else {
            self.address
        };
        let word = shown >> (32 * half) & u64::from(u32::MAX);
        let word = u32::try_from(word).expect("the value is masked to 32 bits");
        Some(if half == 0 {
            word & !TYPE_BITS | self.type_bits()
        } else {
            word
        })
    }

    /// Takes a write to `register` if it is one of this BAR's: all ones start sizing, anything
    /// else ends it.
    pub(super) fn write(&mut self, register: u8, value: u32) {
        if let Some(half) = self.half(register) {
            let ignored = if half == 0 { TYPE_BITS } else { 0 };
            self.is_sizing[half] = value | ignored == u32::MAX;
        }
    }

    fn half(&self, register: u8) -> Option<usize> {
        let half = register.checked_sub(self.request.index)?;
        (half < self.request.registers()).then_some(usize::from(half))
    }

    fn type_bits(&self) -> u32 {
        match self.request.kind {
            BarKind::Memory32 => 0,
            BarKind::Memory64 => TYPE_64_BIT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(index: u8, bytes: u64, kind: BarKind) -> BarRequest {
        BarRequest { index, bytes, kind }
    }

    #[test]
    fn sizing_a_64_bit_bar_reads_its_mask_and_then_its_address_again() {
        let mut bar = Bar::new(request(2, 1 << 33, BarKind::Memory64), 0x12_0000_0000);
        assert_eq!(bar.read(1), None);
        assert_eq!(bar.read(4), None);
        bar.write(2, u32::MAX);
        assert_eq!((bar.read(2), bar.read(3)), (Some(4), Some(0x12)));
        bar.write(3, u32::MAX);
        assert_eq!((bar.read(2), bar.read(3)), (Some(4), Some(0xffff_fffe)));
        bar.write(2, 4);
        bar.write(3, 0x12);
        assert_eq!((bar.read(2), bar.read(3)), (Some(4), Some(0x12)));
    }

    #[test]
    fn a_move_is_ignored() {
        let mut bar = Bar::new(request(0, 0x1000, BarKind::Memory32), 0xc000_0000);
        bar.write(0, 0xd000_0000);
        assert_eq!(bar.read(0), Some(0xc000_0000));
        bar.write(0, 0xffff_fff0);
        assert_eq!(
            bar.read(0),
            Some(0xffff_f000),
            "some systems size without the type bits"
        );
    }

    #[test]
    fn malformed_requests_are_recognised() {
        for (index, bytes, kind) in [
            (0, 0, BarKind::Memory32),
            (0, 0x800, BarKind::Memory32),
            (0, 0x3000, BarKind::Memory32),
            (0, 1 << 32, BarKind::Memory32),
            (6, 0x1000, BarKind::Memory32),
            (5, 0x1000, BarKind::Memory64),
            (255, 0x1000, BarKind::Memory64),
        ] {
            assert!(
                !request(index, bytes, kind).is_well_formed(),
                "{index} {bytes:#x} {kind:?}"
            );
        }
        assert!(request(5, 0x1000, BarKind::Memory32).is_well_formed());
        assert!(request(4, 1 << 40, BarKind::Memory64).is_well_formed());
    }
}
