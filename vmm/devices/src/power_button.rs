//! The ACPI generic event device's status register and the power button behind it.
//!
//! The machine's AML handler reads the register when the line fires and notifies the power button
//! if [`STATUS_POWER_BUTTON`] is set. Reading clears, so one press is one notification.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::interrupt::IrqLine;

/// The status bit of a pressed power button.
pub const STATUS_POWER_BUTTON: u8 = 1;
/// Length of the register's range, in bytes.
pub const STATUS_BYTES: u64 = 1;

/// The event device. A bus device of [`STATUS_BYTES`]; [`PowerButton::press`] comes from the
/// control socket.
pub struct PowerButton {
    status: AtomicU8,
    line: Arc<dyn IrqLine>,
}

impl PowerButton {
    /// A button that pulses `line` when pressed.
    #[must_use]
    pub fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            status: AtomicU8::new(0),
            line,
        }
    }

    /// Presses the button: sets the bit, then interrupts the guest.
    pub fn press(&self) {
        self.status.fetch_or(STATUS_POWER_BUTTON, Ordering::SeqCst);
        self.line.pulse();
    }
}

impl fmt::Debug for PowerButton {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PowerButton")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl BusDevice for PowerButton {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.status.swap(0, Ordering::SeqCst);
        } else {
            data.fill(0xff);
        }
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct CountedLine(AtomicUsize);

    impl IrqLine for CountedLine {
        fn pulse(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_press_interrupts_and_is_seen_once() {
        let line = Arc::new(CountedLine::default());
        let button = PowerButton::new(line.clone());
        button.press();
        assert_eq!(line.0.load(Ordering::SeqCst), 1);
        let mut wide = [0; 4];
        button.read(0, &mut wide);
        assert_eq!(wide, [0xff; 4]);
        let mut status = [0];
        button.read(0, &mut status);
        assert_eq!(status, [STATUS_POWER_BUTTON]);
        button.read(0, &mut status);
        assert_eq!(status, [0]);
    }
}
