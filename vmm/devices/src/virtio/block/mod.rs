//! virtio-blk: a raw disk.

pub mod backend;

use self::backend::BlockBackend;

/// What a disk tells its driver.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BlockOptions {
    /// Whether writes are refused.
    pub read_only: bool,
    /// Serial number: at most 20 bytes are shown, padded with zeroes.
    pub serial: String,
}

/// A disk.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    options: BlockOptions,
}

impl Block {
    /// A disk over `backend`.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, options: BlockOptions) -> Self {
        Self { backend, options }
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Block")
            .field("options", &self.options)
            .field("bytes", &self.backend.bytes())
            .finish()
    }
}
