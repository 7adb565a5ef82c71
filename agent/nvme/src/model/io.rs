//! I/O commands of a modelled drive.

use crate::command::nvm;
use crate::fields::Fields;
use crate::status::Status;

use super::Model;
use super::media::Space;
use super::queues::{Given, Outcome};

impl Model {
    pub(super) fn io(&mut self, given: &Given) -> Outcome {
        Outcome::at_once(self.io_status(given))
    }

    fn io_status(&mut self, given: &Given) -> Status {
        if self.is_sanitizing() {
            return Status::new(0, 0x1d);
        }
        if self.has_failed_sanitize() {
            return Status::new(0, 0x1c);
        }
        if self.formatting.is_some() {
            return Status::new(0, 0x84);
        }
        let Some(space) = self
            .media
            .spaces
            .get(&given.nsid)
            .filter(|space| space.is_attached)
        else {
            return Status::new(0, 0x0b);
        };
        if space.write_protection != 0
            && matches!(given.opcode, nvm::WRITE | nvm::DATASET_MANAGEMENT)
        {
            return Status::new(0, 0x20);
        }
        let space = space.clone_shape();
        match given.opcode {
            nvm::FLUSH => Status::SUCCESS,
            nvm::READ => self.read_blocks(given, &space),
            nvm::WRITE => self.write_blocks(given, &space),
            nvm::DATASET_MANAGEMENT => self.deallocate(given, &space),
            _ => Status::new(0, 0x01),
        }
    }

    fn lba_range(given: &Given, space: &Space) -> Option<std::ops::Range<u64>> {
        let first = u64::from(given.words[1]) << 32 | u64::from(given.words[0]);
        let count = u64::from(given.words[2] & 0xffff) + 1;
        let end = first.checked_add(count)?;
        (end <= space.blocks).then_some(first..end)
    }

    fn read_blocks(&mut self, given: &Given, space: &Space) -> Status {
        let Some(range) = Self::lba_range(given, space) else {
            return Status::new(0, 0x80);
        };
        let (mut data, mut metadata) = (Vec::new(), Vec::new());
        for lba in range {
            let stored = self
                .media
                .spaces
                .get(&given.nsid)
                .map(|space| space.read(lba));
            let block = stored.unwrap_or_default();
            if space.is_extended {
                data.extend_from_slice(&block);
            } else {
                let (front, back) = block.split_at(space.data_bytes().min(block.len()));
                data.extend_from_slice(front);
                metadata.extend_from_slice(back);
            }
        }
        if self.exceeds_transfer(data.len()) {
            return Status::new(0, 0x02);
        }
        let sent = self.send(given.prp, &data)
            && (metadata.is_empty() || self.send([given.metadata, 0], &metadata));
        if sent {
            Status::SUCCESS
        } else {
            Status::new(0, 0x04)
        }
    }

    fn write_blocks(&mut self, given: &Given, space: &Space) -> Status {
        let Some(range) = Self::lba_range(given, space) else {
            return Status::new(0, 0x80);
        };
        let count = usize::from(u16::try_from(given.words[2] & 0xffff).unwrap_or(0)) + 1;
        let beside = if space.is_extended {
            0
        } else {
            space.metadata_bytes()
        };
        let front = space.stride() - beside;
        if self.exceeds_transfer(front * count) {
            return Status::new(0, 0x02);
        }
        let Some(data) = self.receive(given.prp, front * count) else {
            return Status::new(0, 0x04);
        };
        let metadata = match beside {
            0 => Some(Vec::new()),
            _ => self.receive([given.metadata, 0], beside * count),
        };
        let Some(metadata) = metadata else {
            return Status::new(0, 0x04);
        };
        self.note_written();
        if self.script.drops_writes {
            return Status::SUCCESS;
        }
        let mut pieces = metadata.chunks(beside.max(1));
        for (lba, block) in range.zip(data.chunks(front)) {
            self.recent.insert((given.nsid, lba));
            let mut block = block.to_vec();
            if beside > 0 {
                block.extend_from_slice(pieces.next().unwrap_or_default());
            }
            if let Some(space) = self.media.spaces.get_mut(&given.nsid) {
                space.written.insert(lba, block);
            }
        }
        Status::SUCCESS
    }

    fn deallocate(&mut self, given: &Given, space: &Space) -> Status {
        let Some(range) = self.receive(given.prp, 16) else {
            return Status::new(0, 0x04);
        };
        let range = Fields(&range);
        let (first, count) = (range.le64(8), u64::from(range.le32(4)));
        let end = first.saturating_add(count);
        if end > space.blocks {
            return Status::new(0, 0x80);
        }
        if let Some(space) = self.media.spaces.get_mut(&given.nsid) {
            space.written.retain(|lba, _| !(first..end).contains(lba));
        }
        Status::SUCCESS
    }

    fn exceeds_transfer(&self, bytes: usize) -> bool {
        match self.script.transfer_shift {
            0 => false,
            shift => bytes > 4096_usize.checked_shl(shift.into()).unwrap_or(usize::MAX),
        }
    }
}

impl Space {
    fn clone_shape(&self) -> Self {
        Self {
            written: std::collections::BTreeMap::new(),
            ..*self
        }
    }
}
