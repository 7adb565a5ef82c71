//! What happens to each byte of configuration space: the table of the whole space and the values
//! that are the model's own.
//!
//! Owns which registers of the device a guest can write at all. It is an allow-list: what no rule
//! names can be read and not written. Effects of a write are [`super::function`]'s business.
//!
//! ```text
//! Pass    read from the device, written to the device
//! Drop    read from the device, a write is dropped and counted
//! Shadow  the model's own value, of which the guest can write some bits or none
//! Bar     the model's own registers of the BARs
//! ```

use super::capabilities::{
    CONFIG_BYTES, CONFIG_BYTES_EXTENDED, Capabilities, Capability, extended_id, extended_next, id,
};

/// Command register.
pub(super) const COMMAND: u16 = 0x04;
/// First BAR register.
pub(super) const BARS: u16 = 0x10;
/// First byte after the BAR registers.
pub(super) const BARS_END: u16 = 0x28;
/// Header type.
pub(super) const HEADER_TYPE: u16 = 0x0e;
/// Interrupt pin.
pub(super) const INTERRUPT_PIN: u16 = 0x3d;

/// Command: the function answers in its port BARs. Taken and never given to the device, whose port
/// BARs the guest does not see.
const COMMAND_PORTS: u16 = 1 << 0;
/// Command: the function answers in its memory BARs.
pub(super) const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the function may do bus transactions of its own.
pub(super) const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: reaction to parity errors and to system errors.
pub(super) const COMMAND_ERRORS: u16 = 1 << 6 | 1 << 8;
/// Command: no INTx.
pub(super) const COMMAND_NO_INTX: u16 = 1 << 10;
const COMMAND_WRITABLE: u16 =
    COMMAND_PORTS | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_ERRORS | COMMAND_NO_INTX;

const CACHE_LINE: u16 = 0x0c;
const CARDBUS: u16 = 0x28;
const ROM: u16 = 0x30;
const INTERRUPT_LINE: u16 = 0x3c;
const LIST_POINTER: u16 = 0x34;

/// Offset of the power management control and status register in its capability.
pub(super) const POWER_CONTROL: u16 = 4;
/// Offset of the device control register in the PCI Express capability.
pub(super) const EXPRESS_CONTROL: u16 = 8;
const EXPRESS_CONTROL_2: u16 = 0x28;
/// Offset of the control byte in the advanced features capability.
pub(super) const FEATURES_CONTROL: u16 = 4;
/// Offset of the address register in the vital product data capability.
pub(super) const PRODUCT_DATA_ADDRESS: u16 = 2;

/// Extended capabilities of which the guest sees nothing: they make functions, resize BARs, need a
/// virtual IOMMU or change what the fabric does for others.
const HIDDEN_EXTENDED: [u16; 17] = [
    0x0d, // access control services
    0x0e, // alternative routing id
    0x0f, // address translation services
    0x10, // single-root I/O virtualisation
    0x11, // multi-root I/O virtualisation
    0x12, // multicast
    0x13, // page requests
    0x15, // resizable BARs
    0x1b, // process address spaces
    0x1d, // downstream port containment
    0x1f, // precision time measurement
    0x20, // PCI Express over M-PHY
    0x24, // resizable BARs of virtual functions
    0x2d, // hierarchy id
    0x2e, // data object exchange
    0x2f, // device 3
    0x30, // integrity and data encryption
];

/// What happens to one byte; see the module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Rule {
    Pass,
    Drop,
    Shadow,
    Bar,
}

/// The table of one function.
#[derive(Clone, Debug)]
pub(super) struct ConfigPolicy {
    rules: Box<[Rule]>,
    values: Box<[u8]>,
    writable: Box<[u8]>,
}

impl ConfigPolicy {
    /// The table for a space of `config_bytes` bytes with `capabilities`. The registers of MSI and
    /// MSI-X are read only; who emulates them says more by [`ConfigPolicy::shadow`].
    pub(super) fn new(config_bytes: u16, capabilities: &Capabilities) -> Self {
        let bytes = usize::from(config_bytes);
        let mut policy = Self {
            rules: vec![Rule::Drop; bytes].into_boxed_slice(),
            values: vec![0; bytes].into_boxed_slice(),
            writable: vec![0; bytes].into_boxed_slice(),
        };
        policy.header(capabilities.first);
        let ends = next_offsets(&capabilities.standard, CONFIG_BYTES);
        for (capability, end) in capabilities.standard.iter().zip(ends) {
            policy.standard(capability, end);
        }
        let ends = next_offsets(&capabilities.extended, CONFIG_BYTES_EXTENDED);
        for (capability, end) in capabilities.extended.iter().zip(ends) {
            policy.extended(capability, end);
        }
        policy
    }

    fn header(&mut self, first_capability: u16) {
        self.shadow(COMMAND, &[0; 2], &COMMAND_WRITABLE.to_le_bytes());
        // Cache line and latency are the guest's notes; header type 0 of one function; no self-test.
        self.shadow(CACHE_LINE, &[0; 4], &[0xff, 0xff, 0, 0]);
        self.set_rule(BARS, BARS_END, Rule::Bar);
        self.shadow(CARDBUS, &[0; 4], &[]);
        self.shadow(ROM, &[0; 12], &[]);
        self.shadow(LIST_POINTER, &first_capability.to_le_bytes()[..1], &[]);
        // The line is the guest's note; there is no pin.
        self.shadow(INTERRUPT_LINE, &[0; 2], &[0xff]);
    }

    fn standard(&mut self, capability: &Capability, end: u16) {
        let Capability {
            id, offset, header, ..
        } = *capability;
        let [id_byte, next, ..] = header.to_le_bytes();
        self.shadow(offset, &[id_byte, next & 0xfc], &[]);
        match id {
            id::POWER_MANAGEMENT => self.pass(offset + POWER_CONTROL, 2),
            id::VITAL_PRODUCT_DATA => self.pass(offset + PRODUCT_DATA_ADDRESS, 2),
            id::EXPRESS => {
                self.pass(offset + EXPRESS_CONTROL, 4);
                if capability.bytes > EXPRESS_CONTROL_2 {
                    self.pass(offset + EXPRESS_CONTROL_2, 2);
                }
            }
            id::ADVANCED_FEATURES => self.pass(offset + FEATURES_CONTROL, 1),
            id::ENHANCED_ALLOCATION => self.hide_standard(capability, end),
            _ => (),
        }
    }

    fn extended(&mut self, capability: &Capability, end: u16) {
        let offset = capability.offset;
        if HIDDEN_EXTENDED.contains(&capability.id) {
            let next = u32::from(extended_next(capability.header)) << 20;
            self.hide(offset, end, &next.to_le_bytes());
            return;
        }
        let kept = capability.header & !(0b11 << 20);
        self.shadow(offset, &kept.to_le_bytes(), &[]);
        if capability.id == extended_id::ERROR_REPORTING {
            // Statuses, masks and severities, and the control of the checksums.
            self.pass(offset + 4, 0x18);
        }
    }

    /// Makes `capability` one of id 0 that reads zero up to `end` and keeps the list together.
    pub(super) fn hide_standard(&mut self, capability: &Capability, end: u16) {
        let next = capability.header.to_le_bytes()[1] & 0xfc;
        self.hide(capability.offset, end, &[0, next]);
    }

    fn hide(&mut self, start: u16, end: u16, header: &[u8]) {
        let bytes = usize::from(end.saturating_sub(start));
        self.shadow(start, &vec![0; bytes], &[]);
        self.shadow(start, header, &[]);
    }

    /// Makes the bytes from `offset` the model's own, with `values`, of which the guest can write
    /// the bits in `writable`; bytes without a mask are read only.
    pub(super) fn shadow(&mut self, offset: u16, values: &[u8], writable: &[u8]) {
        let masks = writable.iter().copied().chain(std::iter::repeat(0));
        for ((position, &value), mask) in (usize::from(offset)..).zip(values).zip(masks) {
            if let (Some(rule), Some(byte), Some(writable)) = (
                self.rules.get_mut(position),
                self.values.get_mut(position),
                self.writable.get_mut(position),
            ) {
                (*rule, *byte, *writable) = (Rule::Shadow, value, mask);
            }
        }
    }

    fn pass(&mut self, offset: u16, bytes: u16) {
        self.set_rule(offset, offset + bytes, Rule::Pass);
    }

    fn set_rule(&mut self, start: u16, end: u16, rule: Rule) {
        let range = usize::from(start)..usize::from(end);
        if let Some(rules) = self.rules.get_mut(range) {
            rules.fill(rule);
        }
    }

    /// What happens to the byte at `offset`; `None` past the end of the space.
    pub(super) fn rule(&self, offset: u16) -> Option<Rule> {
        self.rules.get(usize::from(offset)).copied()
    }

    /// The model's own 16 bits at `offset`.
    pub(super) fn word(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.value(offset), self.value(offset.saturating_add(1))])
    }

    /// The model's own 32 bits at `offset`.
    pub(super) fn long(&self, offset: u16) -> u32 {
        let high = self.word(offset.saturating_add(2));
        u32::from(high) << 16 | u32::from(self.word(offset))
    }

    /// The model's own byte at `offset`.
    pub(super) fn value(&self, offset: u16) -> u8 {
        self.values.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// Sets the model's own bytes at `offset`, writable by the guest or not.
    pub(super) fn set(&mut self, offset: u16, values: &[u8]) {
        for (value, &new) in self.values.iter_mut().skip(offset.into()).zip(values) {
            *value = new;
        }
    }

    /// Takes the guest's write into what is the model's own, and says whether a byte of it fell to
    /// [`Rule::Drop`].
    pub(super) fn write(&mut self, offset: u16, data: &[u8]) -> bool {
        let mut is_dropped = false;
        for (position, &byte) in (usize::from(offset)..).zip(data) {
            match self.rules.get(position) {
                Some(Rule::Shadow) => {
                    if let (Some(value), Some(mask)) =
                        (self.values.get_mut(position), self.writable.get(position))
                    {
                        *value = *value & !mask | byte & mask;
                    }
                }
                Some(Rule::Drop) | None => is_dropped = true,
                Some(Rule::Pass | Rule::Bar) => (),
            }
        }
        is_dropped
    }

    /// The parts of a write of `bytes` bytes at `offset` that go to the device, as offset and
    /// length: the whole of it, or aligned halves and single bytes.
    pub(super) fn passed(&self, offset: u16, bytes: usize) -> Vec<(u16, usize)> {
        let is_passed = |at: usize| self.rules.get(at) == Some(&Rule::Pass);
        let start = usize::from(offset);
        let mut parts = Vec::new();
        let mut done = 0;
        while done < bytes {
            let at = start + done;
            let width = [4, 2, 1].into_iter().find(|&width| {
                at.is_multiple_of(width) && width <= bytes - done && (at..at + width).all(is_passed)
            });
            if let (Some(width), Ok(at)) = (width, u16::try_from(at)) {
                parts.push((at, width));
            }
            done += width.unwrap_or(1);
        }
        parts
    }
}

/// For each capability where the next higher one starts.
fn next_offsets(capabilities: &[Capability], end: u16) -> impl Iterator<Item = u16> {
    let starts = capabilities.iter().skip(1).map(|next| next.offset);
    starts.chain(std::iter::once(end))
}

/// Where the capability after the standard one at `offset` starts.
pub(super) fn end_of(capabilities: &Capabilities, offset: u16) -> u16 {
    capabilities
        .standard
        .iter()
        .map(|other| other.offset)
        .find(|&other| other > offset)
        .unwrap_or(CONFIG_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(registers: &[(u16, u32)]) -> ConfigPolicy {
        let mut bytes = vec![0; 4096];
        bytes[6] = 0x10;
        for &(offset, value) in registers {
            let place = usize::from(offset);
            bytes[place..place + 4].copy_from_slice(&u32::to_le_bytes(value));
        }
        let capabilities = Capabilities::read(4096, |offset| {
            let place = usize::from(offset);
            Ok(u32::from_le_bytes(
                bytes[place..place + 4].try_into().unwrap(),
            ))
        })
        .unwrap();
        ConfigPolicy::new(4096, &capabilities)
    }

    fn passed_bytes(policy: &ConfigPolicy) -> Vec<u16> {
        (0..4096)
            .filter(|&offset| policy.rule(offset) == Some(Rule::Pass))
            .collect()
    }

    #[test]
    fn nothing_of_an_unknown_device_is_written_through() {
        let policy = policy(&[
            (0x34, 0x40),
            (0x40, 0x0102_5009), // vendor-specific
            (0x50, 0x007e),      // no id that is known
            (0x100, 0x2001_000b),
            (0x200, 0x0001_7777),
        ]);
        assert_eq!(passed_bytes(&policy), Vec::<u16>::new());
        for offset in [0x42, 0x52, 0xf0, 0x104, 0x204, 0xfff] {
            assert_eq!(policy.rule(offset), Some(Rule::Drop), "{offset:#x}");
        }
        assert_eq!(policy.rule(4096), None);
    }

    #[test]
    fn only_the_allowed_registers_of_known_capabilities_are_written_through() {
        let policy = policy(&[
            (0x34, 0x40),
            (0x40, 0x0003_5001), // power management
            (0x50, 0x8003),      // vital product data
            (0x80, 0x0002_c010), // PCI Express, version 2
            (0xc0, 0x0306_d013), // advanced features
            (0xd0, 0x0014),      // enhanced allocation
            (0x100, 0x0002_0001),
        ]);
        let expected: Vec<_> = [
            0x44..0x46,
            0x52..0x54,
            0x88..0x8c,
            0xa8..0xaa,
            0xc4..0xc5,
            0x104..0x11c,
        ]
        .into_iter()
        .flatten()
        .collect();
        assert_eq!(passed_bytes(&policy), expected);
    }

    #[test]
    fn the_header_shows_one_function_without_rom_pin_or_port_decoding() {
        let mut policy = policy(&[(0x34, 0x40), (0x40, 0x09)]);
        assert!(!policy.write(0x04, &[0xff, 0xff]));
        assert_eq!(policy.word(COMMAND), 0x0547);
        policy.write(0x0c, &[0xff; 4]);
        assert_eq!(policy.long(0x0c), 0x0000_ffff);
        policy.write(0x30, &[0xff; 4]);
        assert_eq!(policy.long(0x30), 0, "no ROM to size");
        policy.write(0x3c, &[0xff; 2]);
        assert_eq!(policy.word(0x3c), 0x00ff, "a line to note and no pin");
        assert_eq!(policy.value(0x34), 0x40);
        assert!((BARS..BARS_END).all(|offset| policy.rule(offset) == Some(Rule::Bar)));
    }

    #[test]
    fn what_would_reach_beyond_the_function_is_a_null_capability_that_keeps_the_list() {
        for hidden in HIDDEN_EXTENDED {
            let policy = policy(&[
                (0x100, 0x1501_0003),
                (0x150, 0x2001_0000 | u32::from(hidden)),
                (0x200, 0x0001_0018),
            ]);
            assert_eq!(policy.long(0x100), 0x1501_0003);
            assert_eq!(policy.long(0x150), 0x2000_0000);
            assert_eq!(policy.long(0x200), 0x0001_0018);
            for offset in 0x150..0x200 {
                assert_eq!(policy.rule(offset), Some(Rule::Shadow));
            }
            assert_eq!(policy.rule(0x204), Some(Rule::Drop));
        }
    }

    #[test]
    fn a_hidden_capability_at_the_end_of_the_list_hides_all_that_follows() {
        let policy = policy(&[(0x34, 0x80), (0x80, 0x0014), (0x100, 0x0001_0010)]);
        assert!((0x80..0x100).all(|offset| policy.rule(offset) == Some(Rule::Shadow)));
        assert!((0x100..0x1000).all(|offset| policy.rule(offset) == Some(Rule::Shadow)));
        assert_eq!((policy.long(0x80), policy.long(0x100)), (0, 0));
    }

    #[test]
    fn a_write_across_rules_is_taken_apart() {
        let mut policy = policy(&[(0x34, 0x40), (0x40, 0x0003_0001)]);
        assert_eq!(policy.passed(0x44, 4), [(0x44, 2)]);
        assert_eq!(policy.passed(0x45, 1), [(0x45, 1)]);
        assert!(policy.passed(0x46, 2).is_empty());
        assert!(policy.write(0x44, &[0; 4]));
        assert!(!policy.write(0x44, &[0; 2]));
        assert!(
            !policy.write(0x40, &[0; 2]),
            "headers are read only by nature"
        );
    }
}
