//! ACPI hardware-reduced power-off, the reset register and the keyboard controller's reset pulse.
//!
//! Owns three one-byte ports and what a write to them means. It does not stop anything: the
//! request goes to a callback, and the vCPU that wrote must not enter the guest again before the
//! machine took it.

use std::fmt;
use std::sync::Arc;

use crate::bus::BusDevice;
use crate::guest_error::{GuestError, GuestErrors};

/// What the guest asked for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PowerRequest {
    /// Power off for good.
    PowerOff,
    /// Start again, by the ACPI reset register.
    Reset,
    /// Start again, by the keyboard controller's pulse.
    KeyboardReset,
}

/// Called on the vCPU thread that wrote the register.
pub type OnPowerRequest = Arc<dyn Fn(PowerRequest) + Send + Sync>;

/// `SLP_TYP` of S5 in the machine's `\_S5` package.
pub const SLEEP_TYPE_S5: u8 = 5;
/// `SLP_EN` of the sleep control register.
pub const SLEEP_ENABLE: u8 = 1 << 5;
/// The value that the FADT names for the reset register.
pub const RESET_VALUE: u8 = 0x01;
/// The command to a keyboard controller that pulses the reset line.
pub const KEYBOARD_RESET_COMMAND: u8 = 0xfe;

const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 0b111;

/// Which of the one-byte registers a [`PowerPort`] is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum PowerRegister {
    /// `SLEEP_CONTROL_REG`: reads as zero.
    SleepControl,
    /// `SLEEP_STATUS_REG`: reads as zero (the machine never wakes), writes clear nothing.
    SleepStatus,
    /// `RESET_REG`: [`RESET_VALUE`] resets.
    Reset,
    /// Port 0x64 of a keyboard controller that is not there: only the reset pulse is decoded.
    KeyboardCommand,
}

impl PowerRegister {
    /// Length of every register's range, in bytes.
    pub const BYTES: u64 = 1;

    fn meaning(self, value: u8) -> Option<PowerRequest> {
        let asks_for_s5 = value & SLEEP_ENABLE != 0
            && value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK == SLEEP_TYPE_S5;
        match self {
            Self::SleepControl if asks_for_s5 => Some(PowerRequest::PowerOff),
            Self::Reset if value == RESET_VALUE => Some(PowerRequest::Reset),
            Self::KeyboardCommand if value == KEYBOARD_RESET_COMMAND => {
                Some(PowerRequest::KeyboardReset)
            }
            Self::SleepControl | Self::SleepStatus | Self::Reset | Self::KeyboardCommand => None,
        }
    }

    fn value(self) -> u8 {
        match self {
            Self::SleepControl | Self::SleepStatus | Self::Reset => 0,
            // All ones is what a missing controller reads, so that i8042 probing gives up.
            Self::KeyboardCommand => 0xff,
        }
    }
}

/// One of the registers above as a device of [`PowerRegister::BYTES`].
pub struct PowerPort {
    register: PowerRegister,
    on_request: OnPowerRequest,
    errors: Arc<GuestErrors>,
}

impl PowerPort {
    /// A port that reports to `on_request`.
    #[must_use]
    pub fn new(
        register: PowerRegister,
        on_request: OnPowerRequest,
        errors: Arc<GuestErrors>,
    ) -> Self {
        Self {
            register,
            on_request,
            errors,
        }
    }
}

impl fmt::Debug for PowerPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("PowerPort")
            .field("register", &self.register)
            .finish()
    }
}

impl BusDevice for PowerPort {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        if let [byte] = data {
            *byte = self.register.value();
        } else {
            self.errors.bump(GuestError::PowerAccess);
            data.fill(0xff);
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let &[value] = data else {
            return self.errors.bump(GuestError::PowerAccess);
        };
        if let Some(request) = self.register.meaning(value) {
            (self.on_request)(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[track_caller]
    fn check(register: PowerRegister, write: &[u8], expected: &[PowerRequest]) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let record = seen.clone();
        let on_request: OnPowerRequest =
            Arc::new(move |request| record.lock().unwrap().push(request));
        PowerPort::new(register, on_request, Arc::default()).write(0, write);
        assert_eq!(*seen.lock().unwrap(), expected);
    }

    #[test]
    fn s5_with_enable_powers_off_and_nothing_else_does() {
        check(
            PowerRegister::SleepControl,
            &[0x34],
            &[PowerRequest::PowerOff],
        );
        for value in [0x14, 0x20, 0x30, 0x00, 0xff] {
            check(PowerRegister::SleepControl, &[value], &[]);
        }
        check(PowerRegister::SleepStatus, &[0x34], &[]);
    }

    #[test]
    fn the_reset_registers_reset_on_their_value_only() {
        check(PowerRegister::Reset, &[RESET_VALUE], &[PowerRequest::Reset]);
        check(PowerRegister::Reset, &[0], &[]);
        check(
            PowerRegister::KeyboardCommand,
            &[0xfe],
            &[PowerRequest::KeyboardReset],
        );
        check(PowerRegister::KeyboardCommand, &[0xd1], &[]);
    }

    #[test]
    fn other_widths_are_ignored_and_counted() {
        check(PowerRegister::SleepControl, &[0x34, 0], &[]);
        check(PowerRegister::Reset, &[1, 0, 0, 0], &[]);
        let errors = Arc::new(GuestErrors::default());
        let port = PowerPort::new(PowerRegister::Reset, Arc::new(|_| ()), errors.clone());
        let mut data = [0; 2];
        port.read(0, &mut data);
        port.write(0, &data);
        assert_eq!(data, [0xff; 2]);
        assert_eq!(errors.count(GuestError::PowerAccess), 2);
    }
}
