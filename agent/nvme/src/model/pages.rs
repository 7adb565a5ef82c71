//! What a modelled drive says of itself: Identify structures and log pages.

use crate::transport::PAGE_BYTES;

use super::Model;
use super::media::{FORMATS, Space};

type Page = [u8; PAGE_BYTES];

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

impl Model {
    /// The structure that Identify is asked for; `None` if there is none.
    pub(super) fn identify(&self, structure: u8, nsid: u32) -> Option<Page> {
        let mut page = match structure {
            0x00 if nsid == u32::MAX => self.common_page(),
            0x00 => match self
                .media
                .spaces
                .get(&nsid)
                .filter(|space| space.is_attached)
            {
                Some(space) => self.namespace_page(space),
                None => [0; PAGE_BYTES],
            },
            0x01 => self.controller_page(),
            0x02 => self.list(nsid, |space| space.is_attached),
            0x10 => self.list(nsid, |_| true),
            0x11 => match self.media.spaces.get(&nsid) {
                Some(space) => self.namespace_page(space),
                None => [0; PAGE_BYTES],
            },
            _ => return None,
        };
        for patch in &self.script.patches {
            if patch.structure == structure {
                put(&mut page, patch.offset, &patch.bytes);
            }
        }
        Some(page)
    }

    fn controller_page(&self) -> Page {
        let script = &self.script;
        let mut page = [0; PAGE_BYTES];
        put(&mut page, 4, b"MODEL0001           ");
        put(&mut page, 24, b"berth scripted drive                    ");
        put(&mut page, 64, b"1.0     ");
        page[76] = script.sharing;
        page[77] = script.transfer_shift;
        put(&mut page, 78, &7_u16.to_le_bytes());
        put(&mut page, 80, &0x0001_0400_u32.to_le_bytes());
        let security = u16::from(script.locking.is_some());
        put(
            &mut page,
            256,
            &(script.admin_commands | security).to_le_bytes(),
        );
        if script.admin_commands & 1 << 3 != 0 {
            let total = u128::from(script.capacity_bytes);
            let free = total.saturating_sub(u128::from(self.media.allocated_bytes()));
            put(&mut page, 280, &total.to_le_bytes());
            put(&mut page, 296, &free.to_le_bytes());
        }
        put(&mut page, 312, &script.protected_blocks.to_le_bytes());
        put(&mut page, 328, &script.sanitize.to_le_bytes());
        put(&mut page, 516, &128_u32.to_le_bytes());
        put(&mut page, 520, &script.nvm_commands.to_le_bytes());
        page[524] = script.format_attributes;
        page[531] = 0b111;
        put(&mut page, 768, b"nqn.2014.08.org.nvmexpress:model");
        page
    }

    fn common_page(&self) -> Page {
        let mut page = [0; PAGE_BYTES];
        put_formats(&mut page);
        page
    }

    fn namespace_page(&self, space: &Space) -> Page {
        let mut page = [0; PAGE_BYTES];
        for offset in [0, 8, 16] {
            put(&mut page, offset, &space.blocks.to_le_bytes());
        }
        page[26] = space.format & 0xf | u8::from(space.is_extended) << 4;
        page[29] = space.protection;
        page[32] = 0x80 | self.format_left;
        page[99] = u8::from(space.write_protection != 0);
        put_formats(&mut page);
        page
    }

    fn list(&self, after: u32, is_in: impl Fn(&Space) -> bool) -> Page {
        let mut page = [0; PAGE_BYTES];
        let ids = self
            .media
            .spaces
            .iter()
            .filter(|(id, space)| **id > after && is_in(space));
        for ((id, _), place) in ids.zip(page.chunks_exact_mut(4)) {
            place.copy_from_slice(&id.to_le_bytes());
        }
        page
    }

    /// The page that Get Log Page is asked for; `None` if there is none.
    pub(super) fn log(&mut self, page: u8) -> Option<Vec<u8>> {
        let mut log = vec![0; 512];
        match page {
            0x03 => {
                log[0] = 1;
                put(&mut log, 8, b"1.0     ");
            }
            0x81 if self.script.sanitize & 7 != 0 => {
                let found = self.sanitize_status();
                put(&mut log, 0, &found.progress.to_le_bytes());
                put(&mut log, 2, &found.status.to_le_bytes());
                put(&mut log, 4, &found.command.to_le_bytes());
                for offset in (8..32).step_by(4) {
                    put(&mut log, offset, &self.script.estimate_s.to_le_bytes());
                }
            }
            _ => return None,
        }
        Some(log)
    }

    /// What Security Receive returns: the list of protocols, or Level 0 discovery.
    pub(super) fn security(&self, protocol: u8, specific: u16) -> Option<Vec<u8>> {
        let flags = self.script.locking?;
        match (protocol, specific) {
            (0, 0) => Some(vec![0, 0, 0, 0, 0, 0, 0, 2, 0, 1]),
            (1, 1) => {
                let mut page = vec![0; 64];
                put(&mut page, 0, &60_u32.to_be_bytes());
                put(&mut page, 48, &[0, 2, 0x10, 12, flags]);
                Some(page)
            }
            _ => None,
        }
    }
}

fn put_formats(page: &mut Page) {
    page[25] = u8::try_from(FORMATS.len() - 1).unwrap_or(0);
    for (index, (shift, metadata)) in FORMATS.iter().enumerate() {
        let [low, high] = metadata.to_le_bytes();
        put(page, 128 + 4 * index, &[low, high, *shift]);
    }
}
