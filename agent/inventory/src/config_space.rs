//! The walk of a function's configuration space, which is bytes that the device made up.
//!
//! Reads four bytes at a time and only what it needs. Each list of capabilities is followed for as many
//! links as fit into it and no register twice, so that no device can make it run in a circle or leave
//! its space.

use std::collections::BTreeSet;

use berth_agent_core::slot::snapshot::{AcsControl, ConfigFacts};

/// Bytes of config space that a caller without privileges may read.
const PUBLIC_BYTES: u16 = 64;
/// Where capabilities of PCI Express begin.
const EXTENDED_START: u16 = 0x100;

/// Registers of the common header (PCI 6.1).
mod header {
    pub(super) const ID: u16 = 0x00;
    pub(super) const COMMAND: u16 = 0x04;
    pub(super) const TYPE: u16 = 0x0c;
    pub(super) const CAPABILITIES: u16 = 0x34;
    pub(super) const CARDBUS_CAPABILITIES: u16 = 0x14;
    /// Bit 4 of the status register, as the command register's word has it.
    pub(super) const HAS_CAPABILITIES: u32 = 1 << 20;
    pub(super) const MULTIFUNCTION: u32 = 1 << 23;
}

/// Ids of capabilities (PCI Code and ID Assignment, 2).
mod capability {
    pub(super) const POWER: u8 = 0x01;
    pub(super) const MSI: u8 = 0x05;
    pub(super) const EXPRESS: u8 = 0x10;
    pub(super) const MSI_X: u8 = 0x11;
}

/// Ids of extended capabilities (PCI Code and ID Assignment, 3).
mod extended {
    pub(super) const SERIAL: u16 = 0x0003;
    pub(super) const ACS: u16 = 0x000d;
    pub(super) const SRIOV: u16 = 0x0010;
}

/// What a config space says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigSpace {
    /// What a judge needs. `physical_function` is not in a config space and is `None`.
    pub facts: ConfigFacts,
    /// The PCI Express device serial number.
    pub serial: Option<u64>,
}

/// Walk a config space. `read` gives the 32-bit register at an offset that is a multiple of four, or
/// nothing where there is none or it cannot be read.
pub fn walk(read: impl Fn(u16) -> Option<u32>) -> ConfigSpace {
    let mut space = ConfigSpace::default();
    match read(header::ID) {
        None => {
            space.facts.fault = Some("its config space cannot be read".to_owned());
            return space;
        }
        Some(id) if id & 0xffff == 0xffff => return space,
        Some(_) => space.facts.answers = true,
    }
    let fault = standard(&read, &mut space)
        .and_then(|is_express| {
            if is_express {
                extended(&read, &mut space)
            } else {
                Ok(())
            }
        })
        .err();
    space.facts.fault = fault.map(str::to_owned);
    space
}

const CUT: &str = "its config space can be read only in part, as for a caller who is not root";
const CIRCLE: &str = "its list of capabilities runs in a circle";
const OUTSIDE: &str = "its list of capabilities leaves its place";

/// Follows the list of standard capabilities; tells whether the function is a PCI Express one.
fn standard(
    read: &impl Fn(u16) -> Option<u32>,
    space: &mut ConfigSpace,
) -> Result<bool, &'static str> {
    let command = read(header::COMMAND).ok_or(CUT)?;
    let kind = read(header::TYPE).ok_or(CUT)?;
    space.facts.is_multifunction = kind & header::MULTIFUNCTION != 0;
    // Whether there are capabilities or not, a judge must have been able to see them.
    read(PUBLIC_BYTES).ok_or(CUT)?;
    if command & header::HAS_CAPABILITIES == 0 {
        return Ok(false);
    }
    let first = match (kind >> 16) & 0x7f {
        2 => header::CARDBUS_CAPABILITIES,
        _ => header::CAPABILITIES,
    };
    let mut at = low_byte(read(first).ok_or(CUT)?) & 0xfc;
    let mut seen = BTreeSet::new();
    let mut is_express = false;
    while at != 0 {
        if u16::from(at) < PUBLIC_BYTES {
            return Err(OUTSIDE);
        }
        if !seen.insert(at) {
            return Err(CIRCLE);
        }
        let offset = u16::from(at);
        let head = read(offset).ok_or(CUT)?;
        match low_byte(head) {
            capability::POWER => {
                let status = read_inside(read, offset, 4, EXTENDED_START)?;
                space.facts.power_state = Some(low_byte(status) & 3);
            }
            capability::MSI | capability::MSI_X => space.facts.has_msi = true,
            capability::EXPRESS => {
                is_express = true;
                space.facts.port_kind = Some(low_byte(head >> 20) & 0xf);
            }
            0xff => return Err(OUTSIDE),
            _ => {}
        }
        at = low_byte(head >> 8) & 0xfc;
    }
    Ok(is_express)
}

/// Follows the list of extended capabilities. That there is none is no fault: what they would allow is
/// not allowed then.
fn extended(
    read: &impl Fn(u16) -> Option<u32>,
    space: &mut ConfigSpace,
) -> Result<(), &'static str> {
    let mut at = EXTENDED_START;
    let mut seen = BTreeSet::new();
    while at != 0 {
        if at < EXTENDED_START {
            return Err(OUTSIDE);
        }
        if !seen.insert(at) {
            return Err(CIRCLE);
        }
        let head = match read(at) {
            Some(head) => head,
            // A host without access to extended config space shows the first 256 bytes alone.
            None if at == EXTENDED_START => return Ok(()),
            None => return Err(OUTSIDE),
        };
        if head == 0 || head == u32::MAX {
            return Ok(());
        }
        match low_half(head) {
            extended::SERIAL => {
                let low = read_inside(read, at, 4, EXTENDED_END)?;
                let high = read_inside(read, at, 8, EXTENDED_END)?;
                space.serial = Some(u64::from(high) << 32 | u64::from(low));
            }
            extended::ACS => {
                let word = read_inside(read, at, 4, EXTENDED_END)?;
                space.facts.acs_capable = Some(services(low_half(word)));
                space.facts.acs = Some(services(low_half(word >> 16)));
            }
            extended::SRIOV => {
                let control = read_inside(read, at, 8, EXTENDED_END)?;
                let counts = read_inside(read, at, 16, EXTENDED_END)?;
                let is_on = control & 1 != 0;
                space.facts.virtual_functions = Some(if is_on { low_half(counts) } else { 0 });
            }
            _ => {}
        }
        at = low_half(head >> 20) & 0xffc;
    }
    Ok(())
}

/// One past the last register.
const EXTENDED_END: u16 = 0x1000;

fn read_inside(
    read: &impl Fn(u16) -> Option<u32>,
    capability: u16,
    register: u16,
    end: u16,
) -> Result<u32, &'static str> {
    let at = capability.saturating_add(register);
    if at >= end {
        return Err(OUTSIDE);
    }
    read(at).ok_or(OUTSIDE)
}

fn services(bits: u16) -> AcsControl {
    let has = |bit: u16| bits & (1 << bit) != 0;
    AcsControl {
        source_validation: has(0),
        request_redirect: has(2),
        completion_redirect: has(3),
        upstream_forwarding: has(4),
    }
}

fn low_byte(word: u32) -> u8 {
    let [byte, ..] = word.to_le_bytes();
    byte
}

fn low_half(word: u32) -> u16 {
    let [low, high, ..] = word.to_le_bytes();
    u16::from_le_bytes([low, high])
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A config space of `len` bytes under construction.
    pub(crate) struct Bytes(pub(crate) Vec<u8>);

    impl Bytes {
        pub(crate) fn new(len: usize) -> Self {
            let mut bytes = Self(vec![0; len]);
            bytes.put(0x00, &[0x36, 0x1b, 0x10, 0x00]);
            bytes
        }

        pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
            self.0[at..at + bytes.len()].copy_from_slice(bytes);
        }

        /// Standard capabilities one after another from 0x40 on, 16 bytes each.
        pub(crate) fn with(mut self, capabilities: &[&[u8]]) -> Self {
            self.put(0x06, &[0x10]);
            self.put(0x34, &[0x40]);
            for (index, capability) in capabilities.iter().enumerate() {
                let at = 0x40 + index * 16;
                let next = if index + 1 < capabilities.len() {
                    at + 16
                } else {
                    0
                };
                self.put(at, &[capability[0], u8::try_from(next).unwrap()]);
                self.put(at + 2, &capability[1..]);
            }
            self
        }

        /// Extended capabilities one after another from 0x100 on, 64 bytes each.
        pub(crate) fn with_extended(mut self, capabilities: &[(u16, &[u8])]) -> Self {
            for (index, (id, body)) in capabilities.iter().enumerate() {
                let at = 0x100 + index * 64;
                let next = if index + 1 < capabilities.len() {
                    at + 64
                } else {
                    0
                };
                let head = u32::from(*id) | 1 << 16 | u32::try_from(next).unwrap() << 20;
                self.put(at, &head.to_le_bytes());
                self.put(at + 4, body);
            }
            self
        }

        fn walk(&self) -> ConfigSpace {
            walk(|at| {
                let bytes = self.0.get(usize::from(at)..usize::from(at) + 4)?;
                Some(u32::from_le_bytes(bytes.try_into().unwrap()))
            })
        }
    }

    #[test]
    fn a_whole_config_space_is_read() {
        let mut bytes = Bytes::new(4096)
            .with(&[&[0x01, 0, 0, 0x03], &[0x10, 0x62, 0x00], &[0x11, 0, 0]])
            .with_extended(&[
                (0x0003, &[8, 7, 6, 5, 4, 3, 2, 1]),
                (0x000d, &[0x1f, 0, 0x1d, 0]),
                (0x0010, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 3, 0]),
            ]);
        bytes.put(0x0e, &[0x80]);
        assert_eq!(
            bytes.walk(),
            ConfigSpace {
                facts: ConfigFacts {
                    answers: true,
                    is_multifunction: true,
                    port_kind: Some(6),
                    acs: Some(services(0x1d)),
                    acs_capable: Some(services(0x1f)),
                    virtual_functions: Some(3),
                    physical_function: None,
                    has_msi: true,
                    power_state: Some(3),
                    fault: None,
                },
                serial: Some(0x0102_0304_0506_0708),
            }
        );
    }

    #[test]
    fn virtual_functions_that_are_off_count_as_none() {
        let bytes = Bytes::new(4096)
            .with(&[&[0x10, 0x02, 0x00]])
            .with_extended(&[(0x0010, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0])]);
        assert_eq!(bytes.walk().facts.virtual_functions, Some(0));
    }

    #[test]
    fn a_conventional_function_has_no_extended_capabilities() {
        let bytes = Bytes::new(4096)
            .with(&[&[0x05, 0, 0]])
            .with_extended(&[(0x000d, &[0x1f, 0, 0x1d, 0])]);
        let facts = bytes.walk().facts;
        assert_eq!(
            (facts.acs, facts.port_kind, facts.fault),
            (None, None, None)
        );
        assert!(facts.has_msi);
    }

    #[test]
    fn a_function_that_is_gone_does_not_answer() {
        let space = Bytes(vec![0xff; 4096]).walk();
        assert!(!space.facts.answers);
        assert_eq!(space.serial, None);
    }

    #[track_caller]
    fn faulty(bytes: &Bytes, word: &str) {
        let fault = bytes.walk().facts.fault.unwrap_or_default();
        assert!(fault.contains(word), "{fault}");
    }

    #[test]
    fn what_a_caller_without_privileges_sees_is_in_doubt() {
        let mut whole = Bytes::new(4096).with(&[&[0x10, 0x02, 0x00]]);
        whole.0.truncate(64);
        faulty(&whole, "not root");
        faulty(&Bytes::new(64), "not root");
        faulty(&Bytes(Vec::new()), "cannot be read");
    }

    #[test]
    fn lists_that_run_in_a_circle_end() {
        let mut bytes = Bytes::new(256).with(&[&[0x05, 0, 0], &[0x11, 0, 0]]);
        bytes.put(0x51, &[0x40]);
        faulty(&bytes, "circle");

        let mut bytes = Bytes::new(4096)
            .with(&[&[0x10, 0x02, 0x00]])
            .with_extended(&[(0x0003, &[0; 8]), (0x000b, &[])]);
        bytes.put(0x142, &[0x01, 0x10]);
        faulty(&bytes, "circle");
    }

    #[test]
    fn lists_that_leave_their_place_end() {
        let mut bytes = Bytes::new(256).with(&[&[0x05, 0, 0]]);
        bytes.put(0x41, &[0x20]);
        faulty(&bytes, "leaves");

        let mut bytes = Bytes::new(4096)
            .with(&[&[0x10, 0x02, 0x00]])
            .with_extended(&[(0x000b, &[])]);
        bytes.put(0x102, &[0x01, 0x04]);
        faulty(&bytes, "leaves");

        // An access control capability at the very end has no room for its registers.
        bytes.put(0x102, &[0xc1, 0xff]);
        bytes.put(0xffc, &[0x0d, 0, 1, 0]);
        faulty(&bytes, "leaves");
    }

    #[test]
    fn without_access_to_extended_space_nothing_of_it_is_assumed() {
        let mut bytes = Bytes::new(4096)
            .with(&[&[0x10, 0x42, 0x00]])
            .with_extended(&[(0x000d, &[0x1f, 0, 0x1d, 0])]);
        bytes.0.truncate(256);
        let facts = bytes.walk().facts;
        assert_eq!((facts.acs, facts.fault), (None, None));
        assert_eq!(facts.port_kind, Some(4));
    }
}
