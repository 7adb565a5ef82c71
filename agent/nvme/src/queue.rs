//! One pair of queues in shared memory, with one command in flight at a time (NVMe Base 2.0, 3.3 and 4.2).
//!
//! The completion is the drive's word: its id, queue, head and phase are compared with what they have to
//! be, and anything else ends the conversation.

use crate::command::ENTRY_BYTES;
use crate::error::DriveError;
use crate::fields::Fields;
use crate::registers::Capabilities;
use crate::status::Status;
use crate::transport::{PAGE_BYTES, Transport};

/// Entries of each queue: a page of submissions holds 64.
pub(crate) const MAX_ENTRIES: u16 = 64;

const COMPLETION_BYTES: usize = 16;

/// A pair of queues.
#[derive(Debug)]
pub(crate) struct Queue {
    id: u16,
    entries: u16,
    submissions: usize,
    completions: usize,
    tail: u16,
    head: u16,
    phase: bool,
    last_id: u16,
    in_flight: Option<u16>,
}

/// What a drive says of a command that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Completion {
    /// DW0, whose meaning is the command's.
    pub(crate) result: u32,
    pub(crate) status: Status,
}

impl Queue {
    /// A pair in the two given pages of shared memory, which are cleared.
    pub(crate) fn new(
        transport: &mut dyn Transport,
        id: u16,
        entries: u16,
        pages: [usize; 2],
    ) -> Result<Self, DriveError> {
        let [submissions, completions] = pages.map(|page| page * PAGE_BYTES);
        transport.write_memory(submissions, &[0; PAGE_BYTES])?;
        transport.write_memory(completions, &[0; PAGE_BYTES])?;
        Ok(Self {
            id,
            entries,
            submissions,
            completions,
            tail: 0,
            head: 0,
            phase: true,
            // Not zero, so that a drive that writes zeroes does not guess the first id.
            last_id: 0x5a00_u16.wrapping_add(id << 4),
            in_flight: None,
        })
    }

    /// The id of the next command.
    pub(crate) fn next_id(&self) -> u16 {
        self.last_id.wrapping_add(1)
    }

    /// Put in a command whose entry carries [`Queue::next_id`], and ring.
    pub(crate) fn submit(
        &mut self,
        transport: &mut dyn Transport,
        capabilities: Capabilities,
        entry: &[u8; ENTRY_BYTES],
    ) -> Result<(), DriveError> {
        if self.in_flight.is_some() {
            return Err(DriveError::NeedsReset);
        }
        let place = self.submissions + usize::from(self.tail) * ENTRY_BYTES;
        transport.write_memory(place, entry)?;
        self.last_id = self.next_id();
        self.in_flight = Some(self.last_id);
        self.tail = (self.tail + 1) % self.entries;
        transport.write_register(capabilities.doorbell(self.id, false), self.tail.into())?;
        Ok(())
    }

    /// The completion of the command in flight, if it is there.
    pub(crate) fn poll(
        &mut self,
        transport: &mut dyn Transport,
        capabilities: Capabilities,
    ) -> Result<Option<Completion>, DriveError> {
        let place = self.completions + usize::from(self.head) * COMPLETION_BYTES;
        // The phase is written last, so the rest is read after it.
        let mut last = [0; 2];
        transport.read_memory(place + 14, &mut last)?;
        if (last[0] & 1 != 0) != self.phase {
            return Ok(None);
        }
        let mut entry = [0; COMPLETION_BYTES];
        transport.read_memory(place, &mut entry)?;
        let entry = Fields(&entry);
        self.check(entry)?;
        self.in_flight = None;
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        transport.write_register(capabilities.doorbell(self.id, true), self.head.into())?;
        Ok(Some(Completion {
            result: entry.le32(0),
            status: Status::from_completion(entry.le16(14)),
        }))
    }

    fn check(&self, entry: Fields<'_>) -> Result<(), DriveError> {
        let given = self.in_flight.unwrap_or(0);
        let phase = entry.le16(14) & 1;
        // With one command in flight, the drive has taken everything that was put in.
        for (what, found, wanted) in [
            ("phase", phase, u16::from(self.phase)),
            ("queue id", entry.le16(10), self.id),
            ("command id", entry.le16(12), given),
            ("submission queue head", entry.le16(8), self.tail),
        ] {
            if found != wanted {
                return Err(DriveError::FalseCompletion {
                    what,
                    found,
                    wanted,
                });
            }
        }
        if self.in_flight.is_none() {
            return Err(DriveError::NeedsReset);
        }
        Ok(())
    }
}
