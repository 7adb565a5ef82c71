//! What is behind a disk whose medium was taken out: nothing.
//!
//! The device answers by itself then; this only stands where a backend was, which is closed.

use super::backend::{BlockBackend, Completion, DiskFacts, NotMemory, Operation, RequestId};
use crate::memory::Memory;

/// No medium.
#[derive(Debug)]
pub(super) struct NoMedium;

impl BlockBackend for NoMedium {
    fn facts(&self) -> DiskFacts {
        DiskFacts::plain(0)
    }

    fn start(&mut self, _: RequestId, _: &Operation, _: &Memory) -> Result<(), NotMemory> {
        Err(NotMemory)
    }

    fn next_completed(&mut self) -> Option<Completion> {
        None
    }

    fn wait(&mut self) {}
}
