//! The device's capability lists, walked once before the guest runs.
//!
//! Owns the walk and what makes a list unusable. A device may lie: every pointer is bounded, no
//! capability is visited twice, and registers that the model acts on may not overlap. What a
//! capability is worth to the guest is [`super::config_policy`]'s business.

use std::io;

/// Length of configuration space without the extended part, in bytes.
pub(super) const CONFIG_BYTES: u16 = 256;
/// Length of configuration space with the extended part, in bytes.
pub(super) const CONFIG_BYTES_EXTENDED: u16 = 4096;

/// Ids of capabilities that the model knows.
pub(super) mod id {
    pub(in super::super) const POWER_MANAGEMENT: u16 = 0x01;
    pub(in super::super) const VITAL_PRODUCT_DATA: u16 = 0x03;
    pub(in super::super) const MSI: u16 = 0x05;
    pub(in super::super) const EXPRESS: u16 = 0x10;
    pub(in super::super) const MSIX: u16 = 0x11;
    pub(in super::super) const ADVANCED_FEATURES: u16 = 0x13;
    pub(in super::super) const ENHANCED_ALLOCATION: u16 = 0x14;
}

/// Ids of extended capabilities that the model knows.
pub(super) mod extended_id {
    pub(in super::super) const ERROR_REPORTING: u16 = 0x01;
}

const STATUS_HAS_LIST: u32 = 1 << 20;
const LIST_POINTER: u16 = 0x34;
const FIRST: u16 = 0x40;
const FIRST_EXTENDED: u16 = CONFIG_BYTES;
const REGISTER_BYTES: u16 = 4;

const MSI_64_BIT: u32 = 1 << 23;
const MSI_MASKABLE: u32 = 1 << 24;

/// Why the device's lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadCapabilitiesError {
    /// Configuration space could not be read.
    #[error("configuration space cannot be read at {offset:#x}")]
    Read {
        /// Where.
        offset: u16,
        /// What the kernel said.
        #[source]
        cause: io::Error,
    },
    /// A header of all ones: the device does not answer.
    #[error("the capability at {offset:#x} reads all ones")]
    AllOnes {
        /// Where.
        offset: u16,
    },
    /// A pointer into the header or out of configuration space.
    #[error("a capability list points to {offset:#x}, where no capability can be")]
    BadPointer {
        /// Where it points.
        offset: u16,
    },
    /// The list comes back to a capability.
    #[error("a capability list visits {offset:#x} twice")]
    Loop {
        /// The capability visited twice.
        offset: u16,
    },
    /// Two capabilities share a register.
    #[error("the capability at {first:#x} reaches into the one at {second:#x}")]
    Overlap {
        /// The lower one.
        first: u16,
        /// The higher one.
        second: u16,
    },
    /// A capability passes the end of its space.
    #[error("the capability at {offset:#x} passes the end of configuration space")]
    Truncated {
        /// Where it starts.
        offset: u16,
    },
    /// A capability that may exist once exists twice.
    #[error("there are two capabilities of id {id:#x}, the second one at {offset:#x}")]
    Duplicate {
        /// The capability's id.
        id: u16,
        /// The second one.
        offset: u16,
    },
}

/// One capability.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Capability {
    /// Its id; standard and extended ids are different spaces.
    pub(super) id: u16,
    /// Where it starts.
    pub(super) offset: u16,
    /// Its first register as the device had it.
    pub(super) header: u32,
    /// Bytes that the model knows: the whole capability if it acts on it, else the header.
    pub(super) bytes: u16,
}

/// Both lists, each in ascending order of offsets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Capabilities {
    /// Those of the first 256 bytes.
    pub(super) standard: Vec<Capability>,
    /// Those of the extended space.
    pub(super) extended: Vec<Capability>,
    /// Where the list of the standard ones starts; 0 without any. The other list starts at its
    /// space's first register.
    pub(super) first: u16,
}

impl Capabilities {
    /// Walks both lists of a configuration space of `config_bytes` bytes, reading aligned 4-byte
    /// registers with `read`.
    pub(super) fn read(
        config_bytes: u16,
        mut read: impl FnMut(u16) -> io::Result<u32>,
    ) -> Result<Self, ReadCapabilitiesError> {
        let mut read = |offset: u16| {
            read(offset).map_err(|cause| ReadCapabilitiesError::Read { offset, cause })
        };
        let (first, standard) = standard(&mut read)?;
        let extended = if config_bytes >= CONFIG_BYTES_EXTENDED {
            extended(&mut read)?
        } else {
            Vec::new()
        };
        Ok(Self {
            standard,
            extended,
            first,
        })
    }

    /// The standard capability `id`, if there is one.
    pub(super) fn find(&self, id: u16) -> Option<Capability> {
        self.standard
            .iter()
            .copied()
            .find(|capability| capability.id == id)
    }
}

type ReadResult<T> = Result<T, ReadCapabilitiesError>;

/// Where the list starts, and what is in it.
fn standard(read: &mut impl FnMut(u16) -> ReadResult<u32>) -> ReadResult<(u16, Vec<Capability>)> {
    let mut found = Vec::new();
    if read(REGISTER_BYTES)? & STATUS_HAS_LIST == 0 {
        return Ok((0, found));
    }
    let mut visited = Visited::default();
    let first = low_pointer(read(LIST_POINTER)?);
    let mut offset = first;
    while offset != 0 {
        if offset < FIRST {
            return Err(ReadCapabilitiesError::BadPointer { offset });
        }
        visited.add(offset)?;
        let header = read(offset)?;
        if header == u32::MAX {
            return Err(ReadCapabilitiesError::AllOnes { offset });
        }
        let id = u16::from(header.to_le_bytes()[0]);
        let bytes = standard_bytes(id, header);
        found.push(Capability {
            id,
            offset,
            header,
            bytes,
        });
        offset = low_pointer(header >> 8);
    }
    let once = [
        id::POWER_MANAGEMENT,
        id::VITAL_PRODUCT_DATA,
        id::MSI,
        id::EXPRESS,
        id::MSIX,
        id::ADVANCED_FEATURES,
    ];
    Ok((first, in_order(found, CONFIG_BYTES, &once)?))
}

fn extended(read: &mut impl FnMut(u16) -> ReadResult<u32>) -> ReadResult<Vec<Capability>> {
    let mut found = Vec::new();
    if matches!(read(FIRST_EXTENDED)?, 0 | u32::MAX) {
        return Ok(found);
    }
    let mut visited = Visited::default();
    let mut offset = FIRST_EXTENDED;
    while offset != 0 {
        if offset < FIRST_EXTENDED {
            return Err(ReadCapabilitiesError::BadPointer { offset });
        }
        visited.add(offset)?;
        let header = read(offset)?;
        if header == u32::MAX {
            return Err(ReadCapabilitiesError::AllOnes { offset });
        }
        let [low, high, ..] = header.to_le_bytes();
        let id = u16::from_le_bytes([low, high]);
        let bytes = match id {
            extended_id::ERROR_REPORTING => 0x2c,
            _ => REGISTER_BYTES,
        };
        found.push(Capability {
            id,
            offset,
            header,
            bytes,
        });
        offset = extended_next(header);
    }
    in_order(
        found,
        CONFIG_BYTES_EXTENDED,
        &[extended_id::ERROR_REPORTING],
    )
}

/// The lowest byte as a pointer, whose two lowest bits are reserved.
fn low_pointer(register: u32) -> u16 {
    u16::from(register.to_le_bytes()[0] & 0xfc)
}

/// The highest twelve bits as a pointer, whose two lowest bits are reserved.
pub(super) fn extended_next(header: u32) -> u16 {
    u16::try_from(header >> 20 & 0xffc).expect("twelve bits fit 16")
}

/// Bytes of a standard capability that the model acts on; the header's register for others.
fn standard_bytes(id: u16, header: u32) -> u16 {
    match id {
        id::POWER_MANAGEMENT | id::VITAL_PRODUCT_DATA => 8,
        id::MSI => msi_bytes(header),
        id::MSIX => 12,
        // Version 1 may end after the device registers; version 2 has the second device control.
        id::EXPRESS if header >> 16 & 0xf < 2 => 12,
        id::EXPRESS => 0x2c,
        // Six bytes; nothing else can start in the rest of the second register.
        id::ADVANCED_FEATURES => 8,
        _ => REGISTER_BYTES,
    }
}

/// Bytes of the MSI capability whose first register is `header`, in whole registers.
pub(super) fn msi_bytes(header: u32) -> u16 {
    let address = if header & MSI_64_BIT != 0 { 16 } else { 12 };
    let masks = if header & MSI_MASKABLE != 0 { 8 } else { 0 };
    address + masks
}

fn in_order(mut found: Vec<Capability>, end: u16, once: &[u16]) -> ReadResult<Vec<Capability>> {
    for (position, &Capability { id, offset, .. }) in found.iter().enumerate() {
        let is_known = found.iter().take(position).any(|earlier| earlier.id == id);
        if is_known && once.contains(&id) {
            return Err(ReadCapabilitiesError::Duplicate { id, offset });
        }
    }
    found.sort_by_key(|capability| capability.offset);
    for pair in found.windows(2) {
        if pair[1].offset - pair[0].offset < pair[0].bytes {
            return Err(ReadCapabilitiesError::Overlap {
                first: pair[0].offset,
                second: pair[1].offset,
            });
        }
    }
    match found.last() {
        Some(last) if end - last.offset < last.bytes => Err(ReadCapabilitiesError::Truncated {
            offset: last.offset,
        }),
        Some(_) | None => Ok(found),
    }
}

/// Which registers a walk has seen.
struct Visited([bool; CONFIG_BYTES_EXTENDED as usize / REGISTER_BYTES as usize]);

impl Default for Visited {
    fn default() -> Self {
        Self([false; CONFIG_BYTES_EXTENDED as usize / REGISTER_BYTES as usize])
    }
}

impl Visited {
    fn add(&mut self, offset: u16) -> ReadResult<()> {
        match self.0.get_mut(usize::from(offset / REGISTER_BYTES)) {
            Some(seen) if !*seen => {
                *seen = true;
                Ok(())
            }
            Some(_) => Err(ReadCapabilitiesError::Loop { offset }),
            None => Err(ReadCapabilitiesError::BadPointer { offset }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn config(registers: &[(u16, u32)]) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        bytes[6] = 0x10;
        for &(offset, value) in registers {
            let place = usize::from(offset);
            bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    fn walk(bytes: &[u8]) -> Result<Capabilities, ReadCapabilitiesError> {
        Capabilities::read(4096, |offset| {
            let place = usize::from(offset);
            Ok(u32::from_le_bytes(
                bytes[place..place + 4].try_into().unwrap(),
            ))
        })
    }

    #[track_caller]
    fn refused(registers: &[(u16, u32)], expected: &str) {
        let error = walk(&config(registers)).expect_err("the list is broken");
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn both_lists_are_found_in_whatever_order_they_are_chained() {
        let found = walk(&config(&[
            (0x34, 0x80),
            (0x80, 0x0000_4011),
            (0x40, 0x0003_0001),
            (0x100, 0x1f01_0019),
            (0x1f0, 0x0001_000b),
        ]))
        .unwrap();
        let ids: Vec<_> = found.standard.iter().map(|found| found.id).collect();
        assert_eq!((found.first, ids), (0x80, vec![0x01, 0x11]));
        let offsets: Vec<_> = found.extended.iter().map(|found| found.offset).collect();
        assert_eq!(offsets, [0x100, 0x1f0]);
    }

    #[test]
    fn a_device_without_lists_has_no_capabilities() {
        let mut bytes = config(&[(0x34, 0x40), (0x40, 0x1)]);
        bytes[6] = 0;
        assert_eq!(walk(&bytes).unwrap(), Capabilities::default());
        let conventional = config(&[(0x100, u32::MAX)]);
        assert_eq!(walk(&conventional).unwrap(), Capabilities::default());
    }

    #[test]
    fn a_list_that_loops_is_refused() {
        refused(
            &[(0x34, 0x40), (0x40, 0x5009), (0x50, 0x4009)],
            "a capability list visits 0x40 twice",
        );
        refused(
            &[(0x34, 0x40), (0x40, 0x4009)],
            "a capability list visits 0x40 twice",
        );
        refused(
            &[(0x100, 0x1001_000b)],
            "a capability list visits 0x100 twice",
        );
    }

    #[test]
    fn pointers_into_the_header_are_refused() {
        refused(
            &[(0x34, 0x3c)],
            "a capability list points to 0x3c, where no capability can be",
        );
        refused(
            &[(0x100, 0x0ff1_000b)],
            "a capability list points to 0xfc, where no capability can be",
        );
    }

    #[test]
    fn overlapping_truncated_and_repeated_capabilities_are_refused() {
        refused(
            &[(0x34, 0x40), (0x40, 0x4411), (0x44, 0x09)],
            "the capability at 0x40 reaches into the one at 0x44",
        );
        refused(
            &[(0x34, 0xf8), (0xf8, 0x11)],
            "the capability at 0xf8 passes the end of configuration space",
        );
        refused(
            &[(0x100, 0xfe01_000b), (0xfe0, 0x0001_0001)],
            "the capability at 0xfe0 passes the end of configuration space",
        );
        refused(
            &[(0x34, 0x40), (0x40, 0x6011), (0x60, 0x11)],
            "there are two capabilities of id 0x11, the second one at 0x60",
        );
    }

    #[test]
    fn a_device_that_stops_answering_or_fails_is_refused() {
        refused(
            &[(0x34, 0x40), (0x40, u32::MAX)],
            "the capability at 0x40 reads all ones",
        );
        let error = Capabilities::read(256, |_| Err(io::Error::from_raw_os_error(5)))
            .expect_err("nothing can be read");
        assert!(matches!(
            error,
            ReadCapabilitiesError::Read { offset: 4, .. }
        ));
    }

    #[test]
    fn an_msi_capability_is_as_long_as_its_control_says() {
        let lengths = [0, MSI_64_BIT, MSI_MASKABLE, MSI_64_BIT | MSI_MASKABLE].map(msi_bytes);
        assert_eq!(lengths, [12, 16, 20, 24]);
    }

    proptest! {
        #[test]
        fn a_walk_over_noise_ends_and_what_it_accepts_is_disjoint(
            bytes in prop::collection::vec(any::<u8>(), 4096),
        ) {
            if let Ok(found) = walk(&bytes) {
                for list in [found.standard, found.extended] {
                    for pair in list.windows(2) {
                        prop_assert!(pair[0].offset + pair[0].bytes <= pair[1].offset);
                    }
                }
            }
        }
    }
}
