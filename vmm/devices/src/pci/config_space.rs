//! The first 256 bytes of a function's configuration space as data: values and write masks.
//!
//! Owns what every function has (identity, command, BARs, capability list). Registers with an
//! effect are the owner's: it looks at [`ConfigSpace::command`] or its own capability after a
//! write. There is no INTx: the interrupt pin reads 0.

use super::bar::{Bar, BarRequest};

/// Length of the space in bytes. The extended space is not there and reads all ones.
pub const CONFIG_BYTES: u16 = 256;
/// Command: the function answers in its memory BARs.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may do bus transactions of its own.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Number of BAR registers of an ordinary function.
pub const BAR_REGISTERS: u8 = 6;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const BARS: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const FIRST_CAPABILITY: u8 = 0x40;

const STATUS_CAPABILITIES: u16 = 1 << 4;
/// I/O decoding is left out: no function has an I/O BAR. INTx disable is there for drivers that
/// set it and look.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | COMMAND_BUS_MASTER | 1 << 6 | 1 << 8 | 1 << 10;

/// Who a function says it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PciIdentity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class, subclass and programming interface, from the highest of 24 bits to the lowest.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// Values and write masks of one function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    values: [u8; CONFIG_BYTES as usize],
    writable: [u8; CONFIG_BYTES as usize],
    bars: Vec<Bar>,
    last_capability: Option<u8>,
    next_capability: u8,
}

impl ConfigSpace {
    /// A function without BARs and capabilities, not decoding memory.
    #[must_use]
    pub fn new(identity: PciIdentity) -> Self {
        let mut space = Self {
            values: [0; CONFIG_BYTES as usize],
            writable: [0; CONFIG_BYTES as usize],
            bars: Vec::new(),
            last_capability: None,
            next_capability: FIRST_CAPABILITY,
        };
        space.set(VENDOR, &identity.vendor.to_le_bytes());
        space.set(DEVICE, &identity.device.to_le_bytes());
        space.set(REVISION, &[identity.revision]);
        space.set(CLASS, &identity.class.to_le_bytes()[..3]);
        space.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        space.set(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(CACHE_LINE, &[0xff]);
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a capability with `body` after its two header bytes; `writable` masks the body's bits
    /// that the guest may write. Returns where it starts, or `None` if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u8> {
        let start = self.next_capability;
        let bytes = u8::try_from(body.len()).ok()?.checked_add(2)?;
        let end = start.checked_add(bytes)?;
        self.next_capability = end.checked_next_multiple_of(4)?;
        let place = usize::from(start);
        self.set(place, &[id, 0]);
        self.set(place + 2, body);
        self.allow(place + 2, writable);
        match self.last_capability {
            Some(last) => self.set(usize::from(last) + 1, &[start]),
            None => {
                self.set(CAPABILITIES, &[start]);
                self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
            }
        }
        self.last_capability = Some(start);
        Some(start)
    }

    /// Adds a BAR at `address`.
    pub fn add_bar(&mut self, request: BarRequest, address: u64) {
        self.bars.push(Bar::new(request, address));
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.values[COMMAND], self.values[COMMAND + 1]])
    }

    /// Whether the function answers in its memory BARs.
    #[must_use]
    pub fn decodes_memory(&self) -> bool {
        self.command() & COMMAND_MEMORY != 0
    }

    /// Up to 4 bytes at `offset` as a number; bytes that are not there read all ones.
    #[must_use]
    pub fn value(&self, offset: u16, width: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes[..width.min(4)]);
        u32::from_le_bytes(bytes)
    }

    /// Fills `data` with what the guest reads at `offset`.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (position, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.byte(position);
        }
    }

    /// Takes a write of the guest at `offset`. BARs take only whole registers.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let offset = usize::from(offset);
        if let Some(register) = bar_register(offset) {
            if let (Ok(bytes), 0) = (data.try_into(), (offset - BARS) % 4) {
                self.write_bar(register, u32::from_le_bytes(bytes));
            }
            return;
        }
        for (position, &byte) in (offset..).zip(data) {
            if let (Some(value), Some(mask)) =
                (self.values.get_mut(position), self.writable.get(position))
            {
                *value = *value & !mask | byte & mask;
            }
        }
    }

    fn write_bar(&mut self, register: u8, value: u32) {
        for bar in &mut self.bars {
            bar.write(register, value);
        }
    }

    fn byte(&self, position: usize) -> u8 {
        let Some(register) = bar_register(position) else {
            return self.values.get(position).copied().unwrap_or(0xff);
        };
        let value = self
            .bars
            .iter()
            .find_map(|bar| bar.read(register))
            .unwrap_or(0);
        value.to_le_bytes()[(position - BARS) % 4]
    }

    /// Sets bytes of the device's own making. `place` is a constant or was checked.
    fn set(&mut self, place: usize, bytes: &[u8]) {
        self.values[place..place + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, place: usize, mask: &[u8]) {
        self.writable[place..place + mask.len()].copy_from_slice(mask);
    }
}

/// The BAR register that byte `position` belongs to.
fn bar_register(position: usize) -> Option<u8> {
    let register = u8::try_from(position.checked_sub(BARS)? / 4).ok()?;
    (register < BAR_REGISTERS).then_some(register)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::bar::BarKind;
    use super::*;

    const IDENTITY: PciIdentity = PciIdentity {
        vendor: 0x1af4,
        device: 0x1042,
        revision: 1,
        class: 0x01_80_00,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1042,
    };

    #[test]
    fn identity_is_read_only_and_where_the_specification_puts_it() {
        let mut space = ConfigSpace::new(IDENTITY);
        space.write(0, &[0; 4]);
        space.write(8, &[0; 4]);
        assert_eq!(space.value(0, 4), 0x1042_1af4);
        assert_eq!(space.value(8, 4), 0x0180_0001);
        assert_eq!(space.value(0x2c, 4), 0x1042_1af4);
        assert_eq!(space.value(0x0e, 1), 0, "a single-function ordinary header");
        assert_eq!(space.value(0x3d, 1), 0, "no INTx");
    }

    #[test]
    fn only_the_command_bits_that_mean_something_can_be_set() {
        let mut space = ConfigSpace::new(IDENTITY);
        assert!(!space.decodes_memory());
        space.write(4, &[0xff; 4]);
        assert_eq!(space.command(), COMMAND_WRITABLE);
        assert!(space.decodes_memory());
        assert_eq!(space.value(6, 2), 0);
    }

    #[test]
    fn capabilities_form_a_list_that_starts_at_0x34() {
        let mut space = ConfigSpace::new(IDENTITY);
        let first = space.add_capability(9, &[1, 2, 3], &[0, 0xff, 0]).unwrap();
        let second = space.add_capability(0x11, &[4, 5], &[]).unwrap();
        assert_eq!(space.value(6, 2), u32::from(STATUS_CAPABILITIES));
        assert_eq!(space.value(0x34, 1), u32::from(first));
        assert_eq!(space.value(u16::from(first), 2), u32::from(second) << 8 | 9);
        assert_eq!(space.value(u16::from(second), 2), 0x11);
        assert_eq!(second % 4, 0);
        space.write(u16::from(first), &[0xff; 4]);
        assert_eq!(space.value(u16::from(first) + 2, 2), 0xff01);
        assert_eq!(space.add_capability(9, &[0; 250], &[]), None);
    }

    #[test]
    fn the_extended_space_is_not_there() {
        let mut space = ConfigSpace::new(IDENTITY);
        assert_eq!(space.value(256, 4), u32::MAX);
        space.write(4092, &[0; 4]);
        assert_eq!(space.value(4092, 4), u32::MAX);
    }

    #[test]
    fn bars_are_sized_by_whole_registers_only() {
        let mut space = ConfigSpace::new(IDENTITY);
        let request = BarRequest {
            index: 0,
            bytes: 0x8000,
            kind: BarKind::Memory32,
        };
        space.add_bar(request, 0xc000_0000);
        for byte in 0x10..0x14 {
            space.write(byte, &[0xff]);
        }
        assert_eq!(space.value(0x10, 4), 0xc000_0000);
        space.write(0x10, &[0xff; 4]);
        assert_eq!(space.value(0x10, 4), 0xffff_8000);
        assert_eq!(space.value(0x12, 2), 0xffff);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(
            space.value(0x14, 4),
            0,
            "a BAR that is not there has no size"
        );
    }

    proptest! {
        #[test]
        fn random_writes_never_panic_and_change_writable_bits_only(
            writes in prop::collection::vec((0_u16..4096, any::<u32>(), 1_usize..=4), 0..64)
        ) {
            let mut space = ConfigSpace::new(IDENTITY);
            space.add_capability(9, &[0x55; 14], &[0x0f; 14]).unwrap();
            let request = BarRequest { index: 2, bytes: 0x4000, kind: BarKind::Memory64 };
            space.add_bar(request, 0x80_0000_0000);
            let before = space.clone();
            for (offset, value, width) in writes {
                space.write(offset, &value.to_le_bytes()[..width]);
            }
            for position in 0..usize::from(CONFIG_BYTES) {
                let changed = space.values[position] ^ before.values[position];
                prop_assert_eq!(changed & !space.writable[position], 0);
            }
            space.write(0x18, &[0; 4]);
            space.write(0x1c, &[0; 4]);
            prop_assert_eq!(space.value(0x18, 4), 4);
            prop_assert_eq!(space.value(0x1c, 4), 0x80);
        }
    }
}
