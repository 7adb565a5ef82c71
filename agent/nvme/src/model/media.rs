//! What is on a modelled drive: blocks of namespaces, and blocks that belong to none any more. Sparse.

use std::collections::BTreeMap;

use crate::stream::Stream;

use super::script::NewNamespace;

/// LBA formats of every modelled drive: shift of the data, bytes of metadata.
pub(super) const FORMATS: [(u8, u16); 3] = [(9, 0), (12, 0), (12, 8)];

/// One namespace and its blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Space {
    /// Blocks.
    pub blocks: u64,
    /// Index of its LBA format.
    pub format: u8,
    /// Whether metadata is inside the block.
    pub is_extended: bool,
    /// DPS.
    pub protection: u8,
    /// Whether the controller has it.
    pub is_attached: bool,
    /// Write protection: 0 none, 1 on, 2 until power cycle, 3 permanent.
    pub write_protection: u8,
    /// Blocks that were written, data before metadata. Others read as zeroes.
    pub written: BTreeMap<u64, Vec<u8>>,
}

impl Space {
    pub(super) fn new(new: NewNamespace) -> Self {
        Self {
            blocks: new.blocks,
            format: new.format,
            is_extended: new.is_extended,
            protection: 0,
            is_attached: true,
            write_protection: 0,
            written: BTreeMap::new(),
        }
    }

    pub(super) fn data_bytes(&self) -> usize {
        FORMATS
            .get(usize::from(self.format))
            .map_or(512, |(shift, _)| 1 << shift)
    }

    pub(super) fn metadata_bytes(&self) -> usize {
        let format = FORMATS.get(usize::from(self.format));
        format.map_or(0, |(_, metadata)| usize::from(*metadata))
    }

    /// Bytes of one block with its metadata.
    pub(super) fn stride(&self) -> usize {
        self.data_bytes() + self.metadata_bytes()
    }

    pub(super) fn bytes(&self) -> u64 {
        let stride = u64::try_from(self.stride()).unwrap_or(u64::MAX);
        self.blocks.saturating_mul(stride)
    }

    pub(super) fn read(&self, lba: u64) -> Vec<u8> {
        let block = self.written.get(&lba).cloned();
        block.unwrap_or_else(|| vec![0; self.stride()])
    }
}

/// Everything that is on a drive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Media {
    /// Namespaces by id.
    pub spaces: BTreeMap<u32, Space>,
    /// Blocks of deleted namespaces.
    pub leftovers: BTreeMap<u64, Vec<u8>>,
}

/// How blocks are erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Erasing {
    /// They read as zeroes.
    ToZeroes,
    /// Their key is lost: they read as something else than before.
    ToGarbage { key: u64 },
}

impl Media {
    /// Whether any namespace has this in one of its blocks.
    #[must_use]
    pub fn holds(&self, pattern: &[u8]) -> bool {
        let mut blocks = self
            .spaces
            .values()
            .flat_map(|space| space.written.values());
        blocks.any(|block| contains(block, pattern))
    }

    /// Whether anything at all has this, blocks of deleted namespaces among it.
    #[must_use]
    pub fn holds_anywhere(&self, pattern: &[u8]) -> bool {
        self.holds(pattern)
            || self
                .leftovers
                .values()
                .any(|block| contains(block, pattern))
    }

    /// Write a tenant's pattern into every block of every namespace, each with its number.
    pub fn fill(&mut self, pattern: &[u8]) {
        for space in self.spaces.values_mut() {
            let stride = space.stride();
            for lba in 0..space.blocks {
                let number = lba.to_le_bytes();
                let unit = pattern.iter().chain(&number).copied();
                let block: Vec<u8> = unit.cycle().take(stride).collect();
                space.written.insert(lba, block);
            }
        }
    }

    pub(super) fn allocated_bytes(&self) -> u64 {
        self.spaces.values().map(Space::bytes).sum()
    }

    pub(super) fn delete(&mut self, nsid: u32, keeps_blocks: bool) -> bool {
        let Some(space) = self.spaces.remove(&nsid) else {
            return false;
        };
        if keeps_blocks {
            self.leftovers.extend(space.written);
        }
        true
    }

    /// A new namespace, with what deleted ones have left in its blocks.
    pub(super) fn create(&mut self, mut space: Space) -> u32 {
        let stride = space.stride();
        let leftovers = std::mem::take(&mut self.leftovers);
        for (lba, mut block) in leftovers {
            if lba < space.blocks {
                block.resize(stride, 0);
                space.written.insert(lba, block);
            } else {
                self.leftovers.insert(lba, block);
            }
        }
        let taken = |id: &u32| self.spaces.contains_key(id);
        let id = (1..).find(|id| !taken(id)).unwrap_or(1);
        self.spaces.insert(id, space);
        id
    }

    pub(super) fn erase_all(&mut self, erasing: Erasing) {
        self.leftovers.clear();
        let ids: Vec<u32> = self.spaces.keys().copied().collect();
        for id in ids {
            self.erase(id, erasing, |_| true);
        }
    }

    /// Erase the blocks of a namespace that `is_reached` names.
    pub(super) fn erase(&mut self, nsid: u32, erasing: Erasing, is_reached: impl Fn(u64) -> bool) {
        let Some(space) = self.spaces.get_mut(&nsid) else {
            return;
        };
        match erasing {
            Erasing::ToZeroes => space.written.retain(|lba, _| !is_reached(*lba)),
            Erasing::ToGarbage { key } => {
                for (lba, block) in &mut space.written {
                    if is_reached(*lba) {
                        Stream::of_block(key, nsid, *lba).fill(block);
                    }
                }
            }
        }
    }
}

fn contains(block: &[u8], pattern: &[u8]) -> bool {
    block.windows(pattern.len()).any(|window| window == pattern)
}
