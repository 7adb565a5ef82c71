//! Where a command's data is: put into the shared memory, and told to the drive as physical region pages
//! (NVMe Base 2.0, 4.1.1).

use crate::command::Pointers;
use crate::error::DriveError;
use crate::transport::{DATA_PAGES, PAGE_BYTES};

use super::{Drive, FIRST_DATA_PAGE, LIST_PAGE, METADATA_PAGE, Metadata, Transfer};

impl Drive<'_> {
    /// Put outgoing data into the shared memory, clear it for incoming data, and say where it is.
    pub(super) fn lay_out(
        &mut self,
        transfer: &mut Transfer<'_>,
        metadata: &mut Metadata<'_>,
    ) -> Result<Pointers, DriveError> {
        let mut pointers = Pointers::default();
        let place = METADATA_PAGE * PAGE_BYTES;
        let bytes = match metadata {
            Metadata::None => 0,
            Metadata::In(bytes) => {
                bytes.fill(0);
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
            Metadata::Out(bytes) => {
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
        };
        if bytes > PAGE_BYTES {
            return Err(DriveError::Unsupported {
                found: "more metadata in a transfer than fits a page",
            });
        }
        if bytes > 0 {
            pointers.metadata = self.address(METADATA_PAGE);
        }
        let place = FIRST_DATA_PAGE * PAGE_BYTES;
        let bytes = match transfer {
            Transfer::None => return Ok(pointers),
            Transfer::In(bytes) => {
                // What a drive does not write must not be what it wrote before.
                bytes.fill(0);
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
            Transfer::Out(bytes) => {
                self.transport.write_memory(place, bytes)?;
                bytes.len()
            }
        };
        pointers.prp = self.lists(bytes)?;
        Ok(pointers)
    }

    /// PRP entries for the first `bytes` of the data buffer (NVMe Base 2.0, 4.1.1).
    fn lists(&mut self, bytes: usize) -> Result<[u64; 2], DriveError> {
        let pages = bytes.div_ceil(PAGE_BYTES);
        if pages > DATA_PAGES {
            return Err(DriveError::Unsupported {
                found: "a transfer longer than the buffer",
            });
        }
        let first = self.address(FIRST_DATA_PAGE);
        Ok(match pages {
            0 | 1 => [first, 0],
            2 => [first, self.address(FIRST_DATA_PAGE + 1)],
            _ => {
                let list: Vec<u8> = (1..pages)
                    .flat_map(|page| self.address(FIRST_DATA_PAGE + page).to_le_bytes())
                    .collect();
                self.transport.write_memory(LIST_PAGE * PAGE_BYTES, &list)?;
                [first, self.address(LIST_PAGE)]
            }
        })
    }

    pub(super) fn address(&self, page: usize) -> u64 {
        let addresses = self.transport.page_addresses();
        *addresses
            .get(page)
            .expect("`open` has seen as many pages as the driver uses")
    }
}
