//! Registers that reach the device and do more than that: power state, resets, product data.
//!
//! Owns what a write to them means, as data. [`super::function`] does it. Resets never reach the
//! device as bits: the host does them, so that it can say whether they worked.

const EXPRESS_RESET: u8 = 1 << 7;
const FEATURES_RESET: u8 = 1 << 0;
const PRODUCT_DATA_WRITE: u8 = 1 << 7;
/// The power state's bits; 0 is D0.
pub(super) const POWER_STATE: u8 = 0b11;

/// Where the registers are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EffectRegisters {
    /// Power management control and status, two bytes.
    pub(super) power: Option<u16>,
    /// The high byte of the PCI Express device control, of a device that can be reset by it.
    pub(super) express_reset: Option<u16>,
    /// The same of a device that cannot.
    pub(super) express_no_reset: Option<u16>,
    /// The advanced features control, of a device that can be reset by it.
    pub(super) features_reset: Option<u16>,
    /// The high byte of the vital product data's address.
    pub(super) product_data: Option<u16>,
}

/// What a write means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WriteEffects {
    /// What is left for the device.
    pub(super) part: Part,
    /// The write must not reach the device at all.
    pub(super) is_refused: bool,
    /// The function is to be reset.
    pub(super) is_reset: bool,
    /// The power state that is written.
    pub(super) power_state: Option<u8>,
}

impl EffectRegisters {
    /// What a write of `data` (1, 2 or 4 bytes) at `offset` means.
    pub(super) fn of_write(&self, offset: u16, data: &[u8]) -> WriteEffects {
        let mut part = Part::new(offset, data);
        let is_refused = part.clear(self.product_data, PRODUCT_DATA_WRITE);
        let is_features_reset = part.clear(self.features_reset, FEATURES_RESET);
        let is_express_reset = part.clear(self.express_reset, EXPRESS_RESET);
        part.clear(self.express_no_reset, EXPRESS_RESET);
        let power_state = part.byte(self.power).map(|byte| *byte & POWER_STATE);
        WriteEffects {
            part,
            is_refused,
            is_reset: is_features_reset || is_express_reset,
            power_state,
        }
    }
}

/// Up to four bytes on their way to the device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    offset: u16,
    bytes: [u8; 4],
    width: usize,
}

impl Part {
    fn new(offset: u16, data: &[u8]) -> Self {
        let mut bytes = [0; 4];
        for (byte, &written) in bytes.iter_mut().zip(data) {
            *byte = written;
        }
        let width = data.len().min(bytes.len());
        Self {
            offset,
            bytes,
            width,
        }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.width).unwrap_or(&self.bytes)
    }

    /// The byte for the register `at`, if it is there and written.
    fn byte(&mut self, at: Option<u16>) -> Option<&mut u8> {
        let position = usize::from(at?.checked_sub(self.offset)?);
        self.bytes.get_mut(..self.width)?.get_mut(position)
    }

    /// Clears `bit` of the byte for the register `at` and says whether it was set.
    fn clear(&mut self, at: Option<u16>, bit: u8) -> bool {
        self.byte(at).is_some_and(|byte| {
            let was_set = *byte & bit != 0;
            *byte &= !bit;
            was_set
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERS: EffectRegisters = EffectRegisters {
        power: Some(0x44),
        express_reset: Some(0x89),
        express_no_reset: None,
        features_reset: Some(0xd4),
        product_data: Some(0xe3),
    };

    #[track_caller]
    fn check(offset: u16, data: &[u8], left: &[u8], is_reset: bool, power_state: Option<u8>) {
        let write = REGISTERS.of_write(offset, data);
        assert_eq!(write.part.as_slice(), left);
        assert_eq!((write.is_reset, write.power_state), (is_reset, power_state));
        assert!(!write.is_refused);
    }

    #[test]
    fn a_register_has_its_effect_in_a_write_of_any_width_that_holds_it() {
        check(0x88, &[0x10, 0x80], &[0x10, 0], true, None);
        check(0x88, &[0x10, 0x80, 1, 2], &[0x10, 0, 1, 2], true, None);
        check(0x89, &[0x81], &[1], true, None);
        check(0x88, &[0x80], &[0x80], false, None);
        check(0x8a, &[0xff, 0xff], &[0xff, 0xff], false, None);
        check(0xd4, &[1], &[0], true, None);
        check(0x44, &[0xff], &[0xff], false, Some(3));
        check(0x44, &[0, 1], &[0, 1], false, Some(0));
        check(0x45, &[3], &[3], false, None);
    }

    #[test]
    fn product_data_is_not_written() {
        assert!(REGISTERS.of_write(0xe2, &[0, 0x80]).is_refused);
        assert!(REGISTERS.of_write(0xe3, &[0xff]).is_refused);
        assert!(!REGISTERS.of_write(0xe2, &[0xff, 0x7f]).is_refused);
    }
}
