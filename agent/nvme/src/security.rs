//! Locks that a tenant may have left: what the drive says by Security Receive (NVMe Base 2.0, 5.25) of
//! the TCG protocols (TCG Storage Core 2.01, 3.3.6; SIIS 1.10) and of an ATA password.
//!
//! Reads only. Nothing is unlocked: without the tenant's secret only the label's PSID could.

use crate::drive::Drive;
use crate::error::DriveError;
use crate::fields::Fields;
use crate::identify::controller::ControllerIdentity;
use crate::wipe_error::WipeError;

/// Security protocol information.
const INFORMATION: u8 = 0x00;
/// TCG, with Level 0 discovery as its ComID 1.
const TCG: u8 = 0x01;
const LEVEL_0_DISCOVERY: u16 = 0x0001;
/// ATA device server password security.
const ATA: u8 = 0xef;

const PROTOCOLS_BYTES: usize = 512;
const DISCOVERY_BYTES: usize = 2048;
const DISCOVERY_HEADER: usize = 48;

const FEATURE_LOCKING: u16 = 0x0002;
const FEATURE_BLOCK_SID: u16 = 0x0402;

/// Refuse a drive that somebody has locked or owns.
pub(crate) fn check(
    drive: &mut Drive<'_>,
    controller: &ControllerIdentity,
) -> Result<(), WipeError> {
    if !controller.has_security() {
        return Ok(());
    }
    let mut page = [0; PROTOCOLS_BYTES];
    drive.security_receive(INFORMATION, 0, &mut page)?;
    let protocols = protocols(&page);
    let mut found = Vec::new();
    if protocols.contains(&TCG) {
        let mut page = [0; DISCOVERY_BYTES];
        drive.security_receive(TCG, LEVEL_0_DISCOVERY, &mut page)?;
        found.extend(discovered_locks(&page)?);
    }
    if protocols.contains(&ATA) {
        let mut page = [0; 16];
        drive.security_receive(ATA, 0, &mut page)?;
        found.extend(ata_locks(&page));
    }
    if found.is_empty() {
        return Ok(());
    }
    Err(WipeError::Locked {
        found: found.join(", "),
    })
}

/// The list of protocols: a length in bytes 6 and 7, then one byte each (SPC-4, 7.7.1.3).
fn protocols(page: &[u8; PROTOCOLS_BYTES]) -> Vec<u8> {
    let count = usize::from(Fields(page).be16(6));
    page.iter().skip(8).take(count).copied().collect()
}

fn discovered_locks(page: &[u8; DISCOVERY_BYTES]) -> Result<Vec<&'static str>, DriveError> {
    let fields = Fields(page);
    let length = fields.be32(0);
    let end = usize::try_from(length)
        .unwrap_or(usize::MAX)
        .saturating_add(4);
    if !(DISCOVERY_HEADER..=DISCOVERY_BYTES).contains(&end) {
        return Err(DriveError::Malformed {
            what: "the length of its Level 0 discovery",
            found: length.into(),
        });
    }
    let mut found = Vec::new();
    let mut place = DISCOVERY_HEADER;
    while place + 4 <= end {
        let flags = fields.byte(place + 4);
        match fields.be16(place) {
            FEATURE_LOCKING => {
                found.extend((flags & 1 << 1 != 0).then_some("locking is enabled"));
                found.extend((flags & 1 << 2 != 0).then_some("a range is locked"));
                found.extend((flags & 1 << 4 != 0).then_some("a shadow MBR is enabled"));
            }
            FEATURE_BLOCK_SID => {
                found.extend((flags & 1 != 0).then_some("its owner's password was changed"));
            }
            _ => {}
        }
        place += 4 + usize::from(fields.byte(place + 3));
    }
    Ok(found)
}

fn ata_locks(page: &[u8; 16]) -> Vec<&'static str> {
    let flags = Fields(page).byte(9);
    let mut found = Vec::new();
    found.extend((flags & 1 << 1 != 0).then_some("an ATA password is set"));
    found.extend((flags & 1 << 2 != 0).then_some("an ATA password locks it"));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn discovery(features: &[(u16, u8)]) -> [u8; DISCOVERY_BYTES] {
        let mut page = [0; DISCOVERY_BYTES];
        let mut place = DISCOVERY_HEADER;
        for (code, flags) in features {
            page[place..place + 2].copy_from_slice(&code.to_be_bytes());
            page[place + 3] = 12;
            page[place + 4] = *flags;
            place += 16;
        }
        let length = u32::try_from(place - 4).unwrap();
        page[..4].copy_from_slice(&length.to_be_bytes());
        page
    }

    #[track_caller]
    fn check(features: &[(u16, u8)], expected: &[&str]) {
        assert_eq!(discovered_locks(&discovery(features)).unwrap(), expected);
    }

    #[test]
    fn locks_and_owners_are_found_in_a_discovery() {
        check(&[(0x0001, 0xff), (0x0002, 0b1001)], &[]);
        check(&[(0x0001, 0), (0x0002, 0b1011)], &["locking is enabled"]);
        check(
            &[(0x0002, 0b1111), (0x0203, 0xff)],
            &["locking is enabled", "a range is locked"],
        );
        check(&[(0x0402, 1)], &["its owner's password was changed"]);
        check(&[(0x0402, 2)], &[]);
    }

    #[test]
    fn a_discovery_of_a_length_that_cannot_be_is_refused() {
        for length in [0_u32, 43, 2045, u32::MAX] {
            let mut page = discovery(&[]);
            page[..4].copy_from_slice(&length.to_be_bytes());
            assert!(
                matches!(discovered_locks(&page), Err(DriveError::Malformed { .. })),
                "{length}"
            );
        }
    }

    #[test]
    fn features_of_no_length_end() {
        let mut page = [0; DISCOVERY_BYTES];
        page[..4].copy_from_slice(&2044_u32.to_be_bytes());
        assert_eq!(discovered_locks(&page).unwrap(), Vec::<&str>::new());
    }

    #[test]
    fn a_list_of_protocols_ends_with_the_page() {
        let mut page = [0; PROTOCOLS_BYTES];
        page[6..10].copy_from_slice(&[0xff, 0xff, 0, 1]);
        assert_eq!(protocols(&page).len(), PROTOCOLS_BYTES - 8);
    }
}
