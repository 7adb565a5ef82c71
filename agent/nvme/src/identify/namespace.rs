//! What a drive says of one namespace (NVM command set 1.0, figure 97), checked, and namespace lists.

use crate::drive::Drive;
use crate::error::DriveError;
use crate::fields::Fields;
use crate::identify::layout::Shape;
use crate::transport::PAGE_BYTES;

const NAMESPACE: u8 = 0x00;
const ACTIVE_LIST: u8 = 0x02;
const ALLOCATED_LIST: u8 = 0x10;
const ALLOCATED_NAMESPACE: u8 = 0x11;

/// More namespaces than any drive has; a list that goes on beyond them is a lie.
pub(crate) const MAX_NAMESPACES: usize = 1024;
const IDS_IN_A_LIST: usize = PAGE_BYTES / 4;

/// One namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespace {
    /// NSID.
    pub id: u32,
    /// How long it is and how it is formatted.
    pub shape: Shape,
    /// Index of its LBA format (FLBAS).
    pub format: u8,
    /// Whether it may not be written (NSATTR bit 0).
    pub is_write_protected: bool,
    /// Percent of a format that are still to do (FPI); `None` if the drive does not say.
    pub format_left: Option<u8>,
    /// The drive's LBA formats.
    pub formats: Vec<LbaFormat>,
}

/// One LBA format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LbaFormat {
    /// Its index.
    pub index: u8,
    /// Bytes of data in a block.
    pub block_bytes: u32,
    /// Bytes of metadata of a block.
    pub metadata_bytes: u16,
}

impl Namespace {
    /// One that is attached.
    pub(crate) fn read(drive: &mut Drive<'_>, id: u32) -> Result<Self, DriveError> {
        let page = drive.identify_page(NAMESPACE, id)?;
        Self::parse(id, &page)
    }

    /// One that is allocated, attached or not.
    pub(crate) fn read_allocated(drive: &mut Drive<'_>, id: u32) -> Result<Self, DriveError> {
        let page = drive.identify_page(ALLOCATED_NAMESPACE, id)?;
        Self::parse(id, &page)
    }

    pub(crate) fn parse(id: u32, page: &[u8; PAGE_BYTES]) -> Result<Self, DriveError> {
        let page = Fields(page);
        let malformed = |what, found: u64| DriveError::Malformed {
            what,
            found: found.into(),
        };
        let blocks = page.le64(0);
        if blocks == 0 {
            return Err(malformed("the size of a namespace in its list", blocks));
        }
        let formats = formats(page);
        let flbas = page.byte(26);
        let index = flbas & 0xf | (flbas >> 5 & 3) << 4;
        let format = *formats
            .iter()
            .find(|format| format.index == index)
            .ok_or(malformed("the LBA format of a namespace", index.into()))?;
        let shape = Shape {
            blocks,
            block_bytes: format.block_bytes,
            metadata_bytes: format.metadata_bytes,
            is_extended: flbas & 1 << 4 != 0 && format.metadata_bytes > 0,
            protection: page.byte(29) & 0xf,
        };
        if shape.bytes().is_none() {
            return Err(malformed("the size of a namespace", blocks));
        }
        let fpi = page.byte(32);
        Ok(Self {
            id,
            shape,
            format: index,
            is_write_protected: page.byte(99) & 1 != 0,
            format_left: (fpi & 0x80 != 0).then_some(fpi & 0x7f),
            formats,
        })
    }
}

/// The formats that this driver can use: blocks of 512 bytes to 64 KiB.
pub(crate) fn formats(page: Fields<'_>) -> Vec<LbaFormat> {
    let count = page.byte(25).saturating_add(1).min(64);
    (0..count)
        .filter_map(|index| {
            let word = page.le32(128 + 4 * usize::from(index));
            let [low, high, shift, _] = word.to_le_bytes();
            (9..=16).contains(&shift).then(|| LbaFormat {
                index,
                block_bytes: 1 << shift,
                metadata_bytes: u16::from_le_bytes([low, high]),
            })
        })
        .collect()
}

/// Ids of the attached namespaces.
pub(crate) fn active_ids(drive: &mut Drive<'_>) -> Result<Vec<u32>, DriveError> {
    ids(drive, ACTIVE_LIST)
}

/// Ids of all namespaces, where there is namespace management.
pub(crate) fn allocated_ids(drive: &mut Drive<'_>) -> Result<Vec<u32>, DriveError> {
    ids(drive, ALLOCATED_LIST)
}

fn ids(drive: &mut Drive<'_>, structure: u8) -> Result<Vec<u32>, DriveError> {
    let mut found: Vec<u32> = Vec::new();
    loop {
        let after = found.last().copied().unwrap_or(0);
        if after >= u32::MAX - 1 {
            return Ok(found);
        }
        let page = drive.identify_page(structure, after)?;
        let is_full = read_list(&page, &mut found)?;
        if found.len() > MAX_NAMESPACES {
            return Err(DriveError::Malformed {
                what: "the number of namespaces",
                found: u128::try_from(found.len()).unwrap_or(u128::MAX),
            });
        }
        if !is_full {
            return Ok(found);
        }
    }
}

/// Add one page of a list, which has to rise. Whether it was full.
fn read_list(page: &[u8; PAGE_BYTES], found: &mut Vec<u32>) -> Result<bool, DriveError> {
    for index in 0..IDS_IN_A_LIST {
        let id = Fields(page).le32(index * 4);
        if id == 0 {
            return Ok(false);
        }
        let last = found.last().copied().unwrap_or(0);
        if id <= last || id >= u32::MAX - 1 {
            return Err(DriveError::Malformed {
                what: "an id in a list of namespaces, which has to rise",
                found: id.into(),
            });
        }
        found.push(id);
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(blocks: u64, flbas: u8, formats: &[(u16, u8)]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[..8].copy_from_slice(&blocks.to_le_bytes());
        page[25] = u8::try_from(formats.len() - 1).unwrap();
        page[26] = flbas;
        for (index, (metadata, shift)) in formats.iter().enumerate() {
            page[128 + 4 * index..][..2].copy_from_slice(&metadata.to_le_bytes());
            page[128 + 4 * index + 2] = *shift;
        }
        page
    }

    #[test]
    fn a_namespace_has_the_format_that_flbas_names() {
        let found = Namespace::parse(1, &page(100, 0x11, &[(0, 9), (8, 12)])).unwrap();
        assert_eq!(found.shape.block_bytes, 4096);
        assert_eq!(found.shape.metadata_bytes, 8);
        assert!(found.shape.is_extended);
        assert_eq!(found.format, 1);
    }

    #[test]
    fn sizes_and_formats_that_cannot_be_are_refused() {
        for (blocks, flbas, shift) in [
            (0, 0, 9),
            (1, 0, 8),
            (1, 0, 17),
            (1, 1, 9),
            (u64::MAX, 0, 9),
            (1 << 52, 0, 12),
        ] {
            let found = Namespace::parse(1, &page(blocks, flbas, &[(0, shift)]));
            assert!(
                matches!(found, Err(DriveError::Malformed { .. })),
                "{blocks} {flbas} {shift}"
            );
        }
    }

    #[test]
    fn a_list_that_does_not_rise_is_refused() {
        for list in [[1_u32, 1], [2, 1], [1, u32::MAX]] {
            let mut page = [0; PAGE_BYTES];
            page[..4].copy_from_slice(&list[0].to_le_bytes());
            page[4..8].copy_from_slice(&list[1].to_le_bytes());
            assert!(read_list(&page, &mut Vec::new()).is_err(), "{list:?}");
        }
        let mut found = vec![7];
        assert!(read_list(&[0; PAGE_BYTES], &mut found).is_ok_and(|full| !full));
        assert_eq!(found, [7]);
    }
}
