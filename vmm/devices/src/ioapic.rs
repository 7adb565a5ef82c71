//! The 24-pin I/O APIC of a machine whose local APICs are in the kernel (split irqchip).
//!
//! Owns the register file and the translation of a pin into a message. Every pin is edge
//! triggered: the machine has no level source, so a pin programmed as level is sent once per pulse
//! and its end-of-interrupt needs no handling. Messages leave through [`MsiSender`].

use std::fmt;
use std::sync::{Arc, Mutex};

use crate::bus::BusDevice;
use crate::interrupt::{IrqLine, MsiMessage, MsiSender};
use crate::sync::lock;

/// Number of input pins.
pub const IOAPIC_PINS: u8 = 24;
/// Length of the register window, in bytes.
pub const IOAPIC_BYTES: u64 = 0x1000;

const SELECT_OFFSET: u64 = 0x00;
const WINDOW_OFFSET: u64 = 0x10;

const REGISTER_ID: u8 = 0x00;
const REGISTER_VERSION: u8 = 0x01;
const REGISTER_ARBITRATION: u8 = 0x02;
const REGISTER_FIRST_ENTRY: u8 = 0x10;

/// Version 0x11 (82093AA, no EOI register) with the number of the last pin in bits 16 to 23.
const VERSION: u32 = 0x11 | (IOAPIC_PINS as u32 - 1) << 16;

const ENTRY_MASKED: u64 = 1 << 16;
/// Delivery status and remote IRR are the device's, all else of the low half is the driver's.
const ENTRY_WRITABLE: u64 = 0xff00_0000_0001_afff;

const MSI_ADDRESS: u64 = 0xfee0_0000;

struct Registers {
    id: u32,
    select: u8,
    entries: [u64; IOAPIC_PINS as usize],
}

/// The I/O APIC, a bus device of [`IOAPIC_BYTES`].
pub struct IoApic {
    registers: Mutex<Registers>,
    msi: Arc<dyn MsiSender>,
}

impl IoApic {
    /// An I/O APIC after reset: every pin masked.
    #[must_use]
    pub fn new(msi: Arc<dyn MsiSender>) -> Self {
        let entries = [ENTRY_MASKED; IOAPIC_PINS as usize];
        Self {
            registers: Mutex::new(Registers {
                id: 0,
                select: 0,
                entries,
            }),
            msi,
        }
    }

    /// Raises and lowers `pin` once. Masked pins and pins that are not there lose the edge, as in
    /// hardware.
    pub fn pulse(&self, pin: u8) {
        let entry = lock(&self.registers).entries.get(usize::from(pin)).copied();
        if let Some(entry) = entry.filter(|entry| entry & ENTRY_MASKED == 0) {
            self.msi.send(message(entry));
        }
    }

    /// `pin` of this I/O APIC as a line for a device.
    #[must_use]
    pub fn line(self: &Arc<Self>, pin: u8) -> IoApicLine {
        IoApicLine {
            ioapic: self.clone(),
            pin,
        }
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("IoApic").finish_non_exhaustive()
    }
}

/// One input pin, made by [`IoApic::line`].
#[derive(Clone, Debug)]
pub struct IoApicLine {
    ioapic: Arc<IoApic>,
    pin: u8,
}

impl IrqLine for IoApicLine {
    fn pulse(&self) {
        self.ioapic.pulse(self.pin);
    }
}

/// The message that a redirection entry stands for: destination, destination mode, vector,
/// delivery mode and trigger mode sit at fixed places in both forms (Intel SDM 3, 11.11).
fn message(entry: u64) -> MsiMessage {
    let destination = entry >> 56;
    let logical = entry >> 11 & 1;
    let vector_and_delivery = entry & 0x7ff;
    MsiMessage {
        address: MSI_ADDRESS | destination << 12 | logical << 2,
        data: low_half(vector_and_delivery),
    }
}

fn low_half(value: u64) -> u32 {
    u32::try_from(value & u64::from(u32::MAX)).expect("the value is masked to 32 bits")
}

impl Registers {
    /// Which entry and which half of it `select` names.
    fn selected_entry(&self) -> Option<(usize, u32)> {
        let index = self.select.checked_sub(REGISTER_FIRST_ENTRY)?;
        let pin = usize::from(index / 2);
        (pin < self.entries.len()).then_some((pin, u32::from(index % 2) * 32))
    }

    fn read(&self) -> u32 {
        match self.select {
            REGISTER_ID | REGISTER_ARBITRATION => self.id,
            REGISTER_VERSION => VERSION,
            _ => self.selected_entry().map_or(u32::MAX, |(pin, shift)| {
                low_half(self.entries[pin] >> shift)
            }),
        }
    }

    fn write(&mut self, value: u32) {
        if self.select == REGISTER_ID {
            self.id = value & 0x0f00_0000;
        } else if let Some((pin, shift)) = self.selected_entry() {
            let half = u64::from(u32::MAX) << shift;
            let written = self.entries[pin] & !half | u64::from(value) << shift;
            self.entries[pin] = written & ENTRY_WRITABLE;
        }
        // Version and arbitration are read-only: firmware and kernels write them all the same.
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = lock(&self.registers);
        let value = match offset {
            SELECT_OFFSET => u32::from(registers.select),
            WINDOW_OFFSET => registers.read(),
            _ => u32::MAX,
        };
        if data.len() == 4 {
            data.copy_from_slice(&value.to_le_bytes());
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Ok(bytes) = data.try_into() else { return };
        let [select, ..] = data else { return };
        let mut registers = lock(&self.registers);
        match offset {
            SELECT_OFFSET => registers.select = *select,
            WINDOW_OFFSET => registers.write(u32::from_le_bytes(bytes)),
            _ => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<MsiMessage>>);

    impl MsiSender for Recorder {
        fn send(&self, message: MsiMessage) {
            self.0.lock().unwrap().push(message);
        }
    }

    fn ioapic() -> (Arc<IoApic>, Arc<Recorder>) {
        let sent = Arc::new(Recorder::default());
        (Arc::new(IoApic::new(sent.clone())), sent)
    }

    fn set(ioapic: &IoApic, register: u8, value: u32) {
        ioapic.write(SELECT_OFFSET, &u32::from(register).to_le_bytes());
        ioapic.write(WINDOW_OFFSET, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic, register: u8) -> u32 {
        ioapic.write(SELECT_OFFSET, &u32::from(register).to_le_bytes());
        let mut bytes = [0; 4];
        ioapic.read(WINDOW_OFFSET, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn every_pin_is_masked_after_reset() {
        let (ioapic, sent) = ioapic();
        for pin in 0..=u8::MAX {
            ioapic.pulse(pin);
        }
        assert!(sent.0.lock().unwrap().is_empty());
        assert_eq!(get(&ioapic, 0x10 + 2 * 23), 0x1_0000);
    }

    #[test]
    fn an_unmasked_pin_becomes_a_message() {
        let (ioapic, sent) = ioapic();
        set(&ioapic, 0x11 + 2 * 4, 0xff00_0000 & (3 << 24));
        set(&ioapic, 0x10 + 2 * 4, 0x0000_0931);
        ioapic.line(4).pulse();
        let expected = MsiMessage {
            address: 0xfee0_3004,
            data: 0x131,
        };
        assert_eq!(*sent.0.lock().unwrap(), [expected]);
        set(&ioapic, 0x10 + 2 * 4, 0x0001_0931);
        ioapic.line(4).pulse();
        assert_eq!(sent.0.lock().unwrap().len(), 1);
    }

    #[test]
    fn read_only_bits_and_registers_keep_their_value() {
        let (ioapic, _) = ioapic();
        set(&ioapic, REGISTER_VERSION, u32::MAX);
        assert_eq!(get(&ioapic, REGISTER_VERSION), 0x0017_0011);
        set(&ioapic, 0x10, u32::MAX);
        assert_eq!(get(&ioapic, 0x10), 0x0001_afff);
        set(&ioapic, REGISTER_ID, u32::MAX);
        assert_eq!(get(&ioapic, REGISTER_ID), 0x0f00_0000);
        assert_eq!(get(&ioapic, 0x40), u32::MAX);
        set(&ioapic, 0x40, 0);
    }
}
