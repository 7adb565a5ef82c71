//! Commands by their numbers (NVMe Base 2.0, chapter 5; NVM command set 1.0, chapter 3). Builds the 64
//! bytes that a drive reads; submits nothing.

/// Bytes of a submission queue entry.
pub(crate) const ENTRY_BYTES: usize = 64;

/// Opcodes of the admin command set, with their sections of NVMe Base 2.0.
pub(crate) mod admin {
    /// Create I/O Submission Queue, 5.5.
    pub(crate) const CREATE_SQ: u8 = 0x01;
    /// Get Log Page, 5.16.
    pub(crate) const GET_LOG: u8 = 0x02;
    /// Create I/O Completion Queue, 5.4.
    pub(crate) const CREATE_CQ: u8 = 0x05;
    /// Identify, 5.17.
    pub(crate) const IDENTIFY: u8 = 0x06;
    /// Set Features, 5.27.
    pub(crate) const SET_FEATURES: u8 = 0x09;
    /// Get Features, 5.15.
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    /// Namespace Management, 5.23.
    pub(crate) const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Namespace Attachment, 5.22.
    pub(crate) const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Format NVM, 5.14.
    pub(crate) const FORMAT: u8 = 0x80;
    /// Security Receive, 5.25.
    pub(crate) const SECURITY_RECEIVE: u8 = 0x82;
    /// Sanitize, 5.24.
    pub(crate) const SANITIZE: u8 = 0x84;
}

/// Opcodes of the NVM command set, with their sections of its specification 1.0.
pub(crate) mod nvm {
    /// Flush, Base 7.1.
    pub(crate) const FLUSH: u8 = 0x00;
    /// Write, 3.2.6.
    pub(crate) const WRITE: u8 = 0x01;
    /// Read, 3.2.4.
    pub(crate) const READ: u8 = 0x02;
    /// Dataset Management, 3.2.3.
    pub(crate) const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Every namespace at once.
pub(crate) const ALL_NAMESPACES: u32 = u32::MAX;

/// A command before it has an id and places for its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) nsid: u32,
    /// CDW10 to CDW15.
    pub(crate) words: [u32; 6],
}

/// Where a command's data is, as the drive sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Pointers {
    pub(crate) metadata: u64,
    pub(crate) prp: [u64; 2],
}

impl Command {
    pub(crate) fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            nsid,
            words: [0; 6],
        }
    }

    /// With CDW10 and CDW11.
    pub(crate) fn with(self, cdw10: u32, cdw11: u32) -> Self {
        let [_, _, rest @ ..] = self.words;
        let mut words = [cdw10, cdw11, 0, 0, 0, 0];
        words[2..].copy_from_slice(&rest);
        Self { words, ..self }
    }

    /// Identify a structure (CNS), of a namespace where that says something.
    pub(crate) fn identify(structure: u8, nsid: u32) -> Self {
        Self::new(admin::IDENTIFY, nsid).with(structure.into(), 0)
    }

    /// Read the first `bytes`, a multiple of 4, of a log page of the whole drive.
    pub(crate) fn get_log(page: u8, bytes: u16) -> Self {
        let dwords_less_one = u32::from(bytes / 4).saturating_sub(1);
        Self::new(admin::GET_LOG, ALL_NAMESPACES).with(u32::from(page) | dwords_less_one << 16, 0)
    }

    /// Read or write `blocks` (at least one) from `lba` on.
    pub(crate) fn blocks(opcode: u8, nsid: u32, lba: u64, blocks: u16) -> Self {
        let [a, b, c, d, e, f, g, h] = lba.to_le_bytes();
        Self {
            opcode,
            nsid,
            words: [
                u32::from_le_bytes([a, b, c, d]),
                u32::from_le_bytes([e, f, g, h]),
                u32::from(blocks.saturating_sub(1)),
                0,
                0,
                0,
            ],
        }
    }

    /// The bytes of its submission queue entry.
    pub(crate) fn entry(&self, id: u16, pointers: Pointers) -> [u8; ENTRY_BYTES] {
        let mut entry = [0; ENTRY_BYTES];
        entry[0] = self.opcode;
        entry[2..4].copy_from_slice(&id.to_le_bytes());
        entry[4..8].copy_from_slice(&self.nsid.to_le_bytes());
        entry[16..24].copy_from_slice(&pointers.metadata.to_le_bytes());
        entry[24..32].copy_from_slice(&pointers.prp[0].to_le_bytes());
        entry[32..40].copy_from_slice(&pointers.prp[1].to_le_bytes());
        for (place, word) in entry[40..].chunks_exact_mut(4).zip(self.words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_each_field_at_its_place() {
        let command = Command::blocks(nvm::READ, 3, 0x1_0000_0002, 8);
        let entry = command.entry(
            0x1234,
            Pointers {
                metadata: 5,
                prp: [0x1000, 0x2000],
            },
        );
        assert_eq!(entry[..8], [2, 0, 0x34, 0x12, 3, 0, 0, 0]);
        assert_eq!(entry[16], 5);
        assert_eq!((entry[25], entry[33]), (0x10, 0x20));
        assert_eq!(entry[40..52], [2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn a_log_page_is_asked_for_in_dwords_less_one() {
        assert_eq!(Command::get_log(0x81, 512).words[0], 0x81 | 127 << 16);
    }
}
