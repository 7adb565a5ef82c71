//! What a drive says of its controller (NVMe Base 2.0, figure 275): copied once, kept only as far as the
//! driver uses it.

use crate::drive::Drive;
use crate::error::DriveError;
use crate::fields::Fields;
use crate::transport::PAGE_BYTES;

const CONTROLLER: u8 = 0x01;

/// One controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// Serial number without padding.
    pub serial: String,
    /// Model number without padding.
    pub model: String,
    /// Firmware revision that runs.
    pub firmware: String,
    /// Name of the NVM subsystem; empty if it tells none.
    pub subsystem_name: String,
    /// CMIC: bit 0 several ports, bit 1 several controllers, bit 2 a virtual function's.
    pub sharing: u8,
    /// CNTLID.
    pub id: u16,
    /// VER.
    pub version: u32,
    /// OACS.
    pub admin_commands: u16,
    /// ONCS.
    pub nvm_commands: u16,
    /// FNA.
    pub format_attributes: u8,
    /// SANICAP.
    pub sanitize: u32,
    /// NWPC: bit 0 write protection, bit 1 until power cycle, bit 2 permanent.
    pub write_protection: u8,
    /// RPMBS, bits 2:0: how many replay-protected memory blocks.
    pub protected_blocks: u8,
    /// LPA.
    pub log_attributes: u8,
    /// NN: the highest possible namespace id.
    pub max_namespace_id: u32,
    /// TNVMCAP in bytes; 0 without namespace management.
    pub total_bytes: u128,
    /// UNVMCAP in bytes; 0 without namespace management.
    pub unallocated_bytes: u128,
    mdts: u8,
}

impl ControllerIdentity {
    pub(crate) fn read(drive: &mut Drive<'_>) -> Result<Self, DriveError> {
        let page = drive.identify_page(CONTROLLER, 0)?;
        Ok(Self::parse(&page))
    }

    pub(crate) fn parse(page: &[u8; PAGE_BYTES]) -> Self {
        let page = Fields(page);
        Self {
            serial: page.text(4, 20),
            model: page.text(24, 40),
            firmware: page.text(64, 8),
            subsystem_name: page.text(768, 256),
            sharing: page.byte(76),
            id: page.le16(78),
            version: page.le32(80),
            admin_commands: page.le16(256),
            log_attributes: page.byte(261),
            total_bytes: page.le128(280),
            unallocated_bytes: page.le128(296),
            protected_blocks: page.byte(312) & 7,
            sanitize: page.le32(328),
            max_namespace_id: page.le32(516),
            nvm_commands: page.le16(520),
            format_attributes: page.byte(524),
            write_protection: page.byte(531),
            mdts: page.byte(77),
        }
    }

    /// Bytes that one command may move (MDTS, with pages of 4 KiB); `None` if there is no limit.
    pub(crate) fn max_transfer(&self) -> Option<usize> {
        match self.mdts {
            0 => None,
            shift => Some(PAGE_BYTES.checked_shl(shift.into()).unwrap_or(usize::MAX)),
        }
        .map(|bytes| bytes.max(PAGE_BYTES))
    }

    /// Whether another host may reach the same media.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.sharing & 0b111 != 0
    }

    pub(crate) fn has_security(&self) -> bool {
        self.admin_commands & 1 != 0
    }

    pub(crate) fn has_format(&self) -> bool {
        self.admin_commands & 1 << 1 != 0
    }

    pub(crate) fn has_namespace_management(&self) -> bool {
        self.admin_commands & 1 << 3 != 0
    }

    pub(crate) fn has_dataset_management(&self) -> bool {
        self.nvm_commands & 1 << 2 != 0
    }

    /// Whether features can be saved and asked for by kind of value (ONCS bit 4).
    pub(crate) fn has_saved_features(&self) -> bool {
        self.nvm_commands & 1 << 4 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_of_all_ones_is_read_without_overflow() {
        let found = ControllerIdentity::parse(&[0xff; PAGE_BYTES]);
        assert_eq!(found.serial, "?".repeat(20));
        assert!(
            found
                .max_transfer()
                .is_some_and(|bytes| bytes >= PAGE_BYTES)
        );
        assert!(found.is_shared());
    }

    #[test]
    fn no_limit_of_transfers_is_zero() {
        assert_eq!(
            ControllerIdentity::parse(&[0; PAGE_BYTES]).max_transfer(),
            None
        );
    }
}
